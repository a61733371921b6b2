"""A backbone with spatial-channel distillation tokens on a side branch (STD).

The tokens read the outputs of some of the backbone's blocks and never write back, so the branch attaches to any
backbone and leaves its logits as they were.

Shapes: B batch, P patches, N channels, M tokens of a set (one for each of its teachers), J heads, K classes.
"""

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from pycls_std.core.structures import StudentOutput
from pycls_std.layers.token_branch import TokenBranch
from pycls_std.layers.token_set import TokenSet
from pycls_std.models.contract import TapShape, tap_shapes, to_patches


@dataclass(frozen=True)
class TokenLayout:
    """Where the tokens are and whom they listen to.

    taps: ascending positions among the backbone's taps.
    teachers: for each token set, the positions of its teachers; one set for each tap, or, if the tokens propagate, one
        set in all.
    kind: `both`, `spatial`, `channel`; `none` = no tokens, the heads read the mean of the patches.
    propagate: one token set is carried from tap to tap and read at the end (the reproduction's STD-57); otherwise each
        tap has tokens, a branch and heads of its own (the paper).
    shared_update: all tokens of a set get the same update, as in the reference code; otherwise each its own.
    init_std: deviation of the tokens' initial values.
    decay_tokens: weight decay acts on the tokens too, as in the reference code.
    """

    taps: tuple[int, ...]
    teachers: tuple[tuple[int, ...], ...]
    kind: str = "both"
    propagate: bool = False
    shared_update: bool = False
    init_std: float = 0.2
    decay_tokens: bool = False

    @property
    def head_teachers(self) -> tuple[int, ...]:
        """Teacher of each head, in the order of the heads."""
        return tuple(teacher for group in self.teachers for teacher in group)


class STDStudent(nn.Module):
    """A backbone, its token sets, one branch for each tap and one head for each token.

    image_size: pixels; tokens and branches are sized by it.
    Raises ValueError if the tokens propagate between taps of different size, or have nothing to carry.
    Source: Li et al., ICML 2022, "Spatial-Channel Token Distillation for Vision MLPs".
    """

    def __init__(self, backbone: nn.Module, layout: TokenLayout, *, image_size: int, num_classes: int):
        super().__init__()
        all_shapes = tap_shapes(backbone, image_size)
        shapes = [all_shapes[tap] for tap in layout.taps]
        if layout.propagate and (len(set(shapes)) > 1 or layout.kind == "none"):
            raise ValueError(f"tokens of kind {layout.kind!r} cannot propagate between taps of the sizes {shapes}")
        self.backbone = backbone
        self.layout = layout
        self.tokens = nn.ModuleList()
        self.branches = nn.ModuleList()
        self.heads = nn.ModuleList()
        for shape, group in zip(shapes[-1:] if layout.propagate else shapes, layout.teachers, strict=True):
            if layout.kind != "none":
                self.tokens.append(TokenSet(*shape, len(group), kind=layout.kind, init_std=layout.init_std))
            inputs = _head_inputs(shape, layout.kind)
            self.heads.extend(nn.Linear(inputs, num_classes) for _ in group)
        if layout.kind != "none":
            groups = layout.teachers * len(shapes) if layout.propagate else layout.teachers
            for shape, group in zip(shapes, groups, strict=True):
                width = 1 if layout.shared_update else len(group)
                self.branches.append(TokenBranch(*shape, len(group), kind=layout.kind, width=width))

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay spares: the backbone's own choice, and the tokens."""
        own = getattr(self.backbone, "no_weight_decay", set)()
        tokens = {name for name, _ in self.named_parameters() if name.startswith("tokens.")}
        return {f"backbone.{name}" for name in own} | (set() if self.layout.decay_tokens else tokens)

    def forward(self, images: Tensor) -> StudentOutput:
        """images: (B, 3, H, W). Returns class logits, (J, B, K) distillation logits and the updated tokens."""
        features, maps = self.backbone.forward_intermediates(images, indices=list(self.layout.taps), output_fmt="NCHW")
        logits = self.backbone.forward_head(features)
        patches = [to_patches(feature_map) for feature_map in maps]
        if self.layout.kind == "none":
            readings = [[z.mean(dim=1)] * len(group) for z, group in zip(patches, self.layout.teachers, strict=True)]
            tokens = ()
        else:
            tokens = self._updated_tokens(patches)
            readings = [_readings(*pair) for pair in tokens]
        inputs = [reading for group in readings for reading in group]
        outputs = [head(reading) for head, reading in zip(self.heads, inputs, strict=True)]
        return StudentOutput(logits=logits, distillation=torch.stack(outputs), tokens=tokens)

    def _updated_tokens(self, patches: list[Tensor]) -> tuple[tuple[Tensor, Tensor], ...]:
        sets = [tokens(len(patches[0])) for tokens in self.tokens]
        if self.layout.propagate:
            for branch, z in zip(self.branches, patches, strict=True):
                sets = [branch(z, *sets[0])]
        else:
            sets = [branch(z, *pair) for branch, z, pair in zip(self.branches, patches, sets, strict=True)]
        return tuple(sets)


def _readings(spatial: Tensor | None, channel: Tensor | None) -> list[Tensor]:
    """Return what each head of a set reads: its spatial token, its channel token, or both side by side."""
    parts = [] if spatial is None else [spatial.unbind(dim=1)]
    parts += [] if channel is None else [channel.unbind(dim=2)]
    return [torch.cat(pair, dim=1) for pair in zip(*parts, strict=True)]


def _head_inputs(shape: TapShape, kind: str) -> int:
    spatial = 0 if kind == "channel" else shape.channels
    return spatial + (shape.patches if kind in ("both", "channel") else 0)


def tap_positions(names: list[str], count: int) -> tuple[int, ...]:
    """Return the positions of the named taps among `count` taps.

    names: `last`, a position such as 5 or -1, or a share of the depth: 2/3 means int(count * 2 / 3), counted from 0.
    Raises ValueError for a tap that does not exist or is named twice, and if the order is not ascending.
    """
    positions = []
    for name in names:
        try:
            position = count - 1 if name == "last" else int(count * Fraction(name)) if "/" in name else int(name)
        except (ValueError, ZeroDivisionError):
            raise ValueError(f"STD.TAPS has {name!r}, expected last, a position or a share such as 2/3") from None
        position += count if position < 0 else 0
        if not 0 <= position < count:
            raise ValueError(f"STD.TAPS has {name!r}, the backbone has the taps 0 to {count - 1}")
        positions.append(position)
    if not positions or positions != sorted(set(positions)):
        raise ValueError(f"STD.TAPS {names} are the taps {positions}, expected ascending ones, each once")
    return tuple(positions)
