"""The student model: a backbone with one or two heads, and branches that read its taps and add heads.

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
    """A module that reads taps of the backbone, without changing its features, and adds heads."""

    taps: tuple[str, ...]  # names of the taps that it reads
    heads: tuple[str, ...]  # names of the heads that it adds

    def __call__(self, features: dict[str, Tensor]) -> Output:
        """Return the heads' outputs, (B, K) each, and named features."""

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters without weight decay."""


class Student(nn.Module):
    """A backbone; the head of a classifier is `cls`, and with `split_heads` timm's distillation head is `dist`.

    Without `split_heads`, a backbone with both predicts their average, as in timm. branches: by name; they are deployed
    with the student if the prediction uses one of their heads.
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
        """images: (B, 3, H, W), or padded ones. taps: names of those whose features to return.

        Returns the outputs of all heads, (B, K) logits each for a classifier, and these features.
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
            if not training:  # timm returns separate heads only in training mode; submodules, as dropout, stay in eval
                self.backbone.training = True
            logits, distillation = self.backbone.forward_head(last)
        finally:
            if not training:
                self.backbone.training = False
        return dict(zip(OWN, (logits, distillation), strict=True))

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters without weight decay, as chosen by the backbone and the branches.

        And those of ResMLP's affine transforms, which replace norms: (C,) in DeiT's code, (1, 1, C) in timm's.
        """
        parts = {"backbone.": self.backbone} | {f"branches.{name}.": branch for name, branch in self.branches.items()}
        chosen = {prefix + name for prefix, part in parts.items() for name in getattr(part, "no_weight_decay", set)()}
        affine = [name for name, module in self.named_modules() if isinstance(module, Affine)]
        return chosen | {f"{name}.{own}" for name in affine for own in ("alpha", "beta")}

    def deployed(self, heads: set[str]) -> "Student":
        """Return a student that shares these modules, without the branches that add none of these heads."""
        branches: dict[str, Any] = dict(self.branches)  # each is a `Branch`; a ModuleDict is typed as holding modules
        kept = {name: branch for name, branch in branches.items() if heads & set(branch.heads)}
        student = Student(self.backbone, kept, split_heads=self.split_heads)
        student.training = self.training  # of itself only; that of its modules is unchanged
        return student

    def parameters_of(self, heads: set[str]) -> int:
        """Return the number of parameters that these heads need, without the classifiers of other heads.

        The backbone's tokens attend to each other, so all of them are needed.
        """
        found = self.backbone.get_classifier()
        classifiers = found if isinstance(found, tuple) else (found,)
        own = [{head} for head in OWN] if self.split_heads else [set(head_names(self.backbone))] * len(classifiers)
        unused = [classifier for made, classifier in zip(own, classifiers, strict=True) if not made & heads]
        return _count([self.deployed(heads)]) - _count(unused)


def _count(modules: list[nn.Module]) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def has_distillation_head(backbone: nn.Module) -> bool:
    """Return whether a backbone has a distillation head in addition to the class head.

    Raises ValueError for one whose two heads cannot be accessed separately (RepViT).
    """
    if not hasattr(backbone, "set_distilled_training"):
        return False
    if not hasattr(backbone, "head_dist"):
        raise ValueError(f"the two heads of {type(backbone).__name__} cannot be kept apart")
    return backbone.head_dist is not None
