"""A student: a backbone, its head or two heads, and the branches that read its taps and add heads.

Shapes: B batch, H height, W width, C channels, K classes.
"""

from typing import Any, Protocol

from timm.models.mlp_mixer import Affine
from torch import Tensor, nn

from pycls_std.core.structures import Output, Padded
from pycls_std.models.contract import Backbone, head_names, named_heads
from pycls_std.models.taps import read

OWN = ("cls", "dist")  # heads of a backbone with two that are split


class Branch(Protocol):
    """A part of a student beside its backbone: a module that reads taps, never writes back, and adds heads."""

    taps: tuple[str, ...]  # names of those that it reads
    heads: tuple[str, ...]  # names of those that it adds

    def __call__(self, features: dict[str, Tensor]) -> Output:
        """Return the heads, (B, K) each, and what else of it is worth a name."""

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay spares."""


class Student(nn.Module):
    """A backbone; the head of a classifier is `cls`, and with `split_heads` timm's distillation head is `dist`.

    Without, a backbone with both predicts their average, as timm has it. branches: by name; they are deployed with the
    student, if a head of theirs predicts.
    Source of the two heads: Touvron et al., ICML 2021.
    """

    def __init__(self, backbone: Backbone, branches: dict[str, Branch] | None = None, *, split_heads: bool = False):
        super().__init__()
        self.backbone = backbone
        branches = branches or {}
        self.branches = nn.ModuleDict(branches)  # type: ignore[arg-type]  # a Protocol cannot say that they are modules
        self.split_heads = split_heads
        if split_heads:
            backbone.set_distilled_training(True)
        self.branch_taps = tuple(tap for branch in branches.values() for tap in branch.taps)
        self.branch_heads = {name: tuple(branch.heads) for name, branch in branches.items()}

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the heads, in the order of the output."""
        own = OWN if self.split_heads else head_names(self.backbone)
        return own + tuple(head for heads in self.branch_heads.values() for head in heads)

    def forward(self, images: Tensor | Padded, taps: tuple[str, ...] = ()) -> Output:
        """images: (B, 3, H, W), or padded ones. taps: names of those whose features are asked for.

        Returns all heads, (B, K) logits each of a classifier, and these features.
        """
        taps = (*self.branch_taps, *taps)
        if taps or self.split_heads:
            last, features = read(self.backbone, images, taps)
            heads = self._split(last) if self.split_heads else named_heads(self.backbone.forward_head(last))
        else:
            heads, features = named_heads(self.backbone(images)), {}
        for branch in self.branches.values():
            own = branch(features)
            heads |= own.heads
            features |= own.features
        return Output(heads, features)

    def _split(self, last) -> dict[str, Tensor]:
        training = self.backbone.training
        try:
            if not training:  # timm returns the heads apart in training only; what is below, dropout too, stays in eval
                self.backbone.training = True
            logits, distillation = self.backbone.forward_head(last)
        finally:
            if not training:
                self.backbone.training = False
        return dict(zip(OWN, (logits, distillation), strict=True))

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay spares: the backbone's own choice, and the branches'.

        And those of ResMLP's affine transforms, which stand for norms: (C,) in DeiT's code, (1, 1, C) in timm's.
        """
        parts = {"backbone.": self.backbone} | {f"branches.{name}.": branch for name, branch in self.branches.items()}
        chosen = {prefix + name for prefix, part in parts.items() for name in getattr(part, "no_weight_decay", set)()}
        affine = [name for name, module in self.named_modules() if isinstance(module, Affine)]
        return chosen | {f"{name}.{own}" for name in affine for own in ("alpha", "beta")}

    def deployed(self, heads: set[str]) -> "Student":
        """Return what makes these heads: a student of the same modules, without the branches that add none of them."""
        branches: dict[str, Any] = dict(self.branches)  # each a `Branch`; a ModuleDict speaks of modules
        kept = {name: branch for name, branch in branches.items() if heads & set(branch.heads)}
        student = Student(self.backbone, kept, split_heads=self.split_heads)
        student.training = self.training  # its own, for that of its modules is as it was
        return student

    def parameters_of(self, heads: set[str]) -> int:
        """Return how many parameters these heads need: not the classifiers of others.

        Tokens of the backbone see each other, so none can go.
        """
        found = self.backbone.get_classifier()
        classifiers = found if isinstance(found, tuple) else (found,)
        own = [{head} for head in OWN] if self.split_heads else [set(head_names(self.backbone))] * len(classifiers)
        unused = [classifier for made, classifier in zip(own, classifiers, strict=True) if not made & heads]
        return _count([self.deployed(heads)]) - _count(unused)


def _count(modules: list[nn.Module]) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def has_distillation_head(backbone: nn.Module) -> bool:
    """Return whether a backbone has a head for the teacher beside the one for the labels.

    Raises ValueError for one that has two and does not show them, so that they cannot be kept apart (RepViT).
    """
    if not hasattr(backbone, "set_distilled_training"):
        return False
    if not hasattr(backbone, "head_dist"):
        raise ValueError(f"the two heads of {type(backbone).__name__} cannot be kept apart")
    return backbone.head_dist is not None
