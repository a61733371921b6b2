"""A student with two heads, one for the labels and one for the teacher, as timm's distilled models have them.

Shapes: B batch, H height, W width, K classes.
"""

from torch import Tensor, nn

from pycls_std.core.structures import StudentOutput
from pycls_std.models.plain_student import PlainStudent


class DistilledStudent(PlainStudent):
    """A backbone of timm with a distillation head (DeiT, PiT, LeViT, ...), whose two heads are kept apart.

    In DeiT and PiT each head reads a token of its own.
    Source: Touvron et al., ICML 2021.
    """

    def __init__(self, backbone: nn.Module):
        super().__init__(backbone)
        backbone.set_distilled_training(True)

    def forward(self, images: Tensor) -> StudentOutput:
        """images: (B, 3, H, W). Returns (B, K) logits of the class head, and (1, B, K) of the distillation head."""
        features = self.backbone.forward_features(images)
        training = self.backbone.training
        try:
            if not training:  # timm returns the heads apart in training only; what is below, dropout too, stays in eval
                self.backbone.training = True
            logits, distillation = self.backbone.forward_head(features)
        finally:
            if not training:
                self.backbone.training = False
        return StudentOutput(logits=logits, distillation=distillation.unsqueeze(0))

    def unused_parameters(self, prediction: str) -> int:
        """Return those of the other head, for the prediction of one. Tokens see each other, so no token can go."""
        class_head, distillation_head = self.backbone.get_classifier()
        unused = {"cls": distillation_head, "dist": class_head}.get(prediction)
        return sum(p.numel() for p in unused.parameters()) if unused else 0


def has_distillation_head(backbone: nn.Module) -> bool:
    """Return whether a backbone has a head for the teacher beside the one for the labels.

    Raises ValueError for one that has two and does not show them, so that they cannot be kept apart (RepViT).
    """
    if not hasattr(backbone, "set_distilled_training"):
        return False
    if not hasattr(backbone, "head_dist"):
        raise ValueError(f"the two heads of {type(backbone).__name__} cannot be kept apart")
    return backbone.head_dist is not None


def create_student(backbone: nn.Module) -> PlainStudent:
    """Return a backbone as a student, with its heads kept apart if it has two."""
    return DistilledStudent(backbone) if has_distillation_head(backbone) else PlainStudent(backbone)
