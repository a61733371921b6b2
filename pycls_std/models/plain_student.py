"""A backbone alone, as a student."""

from torch import Tensor, nn

from pycls_std.core.structures import StudentOutput


class PlainStudent(nn.Module):
    """A backbone whose logits are the student's output."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay spares: the backbone's own choice."""
        return {f"backbone.{name}" for name in getattr(self.backbone, "no_weight_decay", set)()}

    def unused_parameters(self, prediction: str) -> int:
        """Return how many parameters a prediction does not need."""
        return 0

    def forward(self, images: Tensor) -> StudentOutput:
        """images: (B, 3, H, W). Returns (B, K) logits."""
        return StudentOutput(logits=self.backbone(images))
