"""Spatial-channel distillation tokens (STD): a branch of token sets, their updates, and a head for each token.

The tokens read the outputs of some of the backbone's blocks and never write back, so the branch attaches to any
backbone and does not change its logits.

Shapes: B batch, P patches, C channels, H height, W width, M tokens of a set (one for each of its teachers), K classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pycls_std.core.structures import Output


@dataclass(frozen=True)
class TokenLayout:
    """Where the tokens are, and their teachers.

    taps: names of taps of the backbone, in their order.
    teachers: for each token set, the positions of its teachers; one set for each tap, or a single set if the tokens
        propagate.
    kind: `both`, `spatial`, `channel`; `none` = no tokens, the heads read the mean of the patches.
    propagate: one token set is carried from tap to tap and read at the end (the reproduction's STD-57); otherwise each
        tap has its own tokens, branch and heads (the paper).
    shared_update: all tokens of a set get the same update, as in the reference code; otherwise each its own.
    init_std: standard deviation of the tokens' initial values.
    decay_tokens: apply weight decay to the tokens, as in the reference code.
    """

    taps: tuple[str, ...]
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


class TokenSet(nn.Module):
    """The tokens of one layer: M spatial ones of C channels, M channel ones of P patches, one of each for each teacher.

    kind: `both`, `spatial` or `channel`; the other kind is None, without parameters.
    init_std: standard deviation of their truncated normal initialization; the reference uses 0.2.
    """

    def __init__(self, channels: int, patches: int, tokens: int, *, kind: str = "both", init_std: float = 0.2):
        super().__init__()
        self.spatial = _tokens(tokens, channels, init_std) if kind in ("both", "spatial") else None
        self.channel = _tokens(patches, tokens, init_std) if kind in ("both", "channel") else None

    def forward(self, batch: int) -> tuple[Tensor | None, Tensor | None]:
        """Return spatial (B, M, C) and channel (B, P, M) tokens, the same for every image of a batch of B."""
        spatial, channel = (None if t is None else t.expand(batch, *t.shape) for t in (self.spatial, self.channel))
        return spatial, channel


class TokenBranch(nn.Module):
    """Update spatial tokens by mixing over patches and channel tokens by mixing over channels, each from one layer.

    The tokens read the patches; the patches never read the tokens. One residual step:
        T_S' = T_S + MLP(LN([Z ; T_S])) over the P + M rows,       T_S: (B, M, C)
        T_C' = T_C + MLP(LN([Z , T_C])) over the C + M columns,    T_C: (B, P, M)
    with C // 2 hidden units for the rows and 4 C for the columns, whatever the backbone's own ratios.

    kind: `both`, `spatial` or `channel`; the other kind is None, without parameters.
    width: outputs of each MLP; M gives each token its own update, 1 adds the same update to all, as the reference does
        (with one teacher the two are the same).
    Source: Li et al., ICML 2022, as implemented in the reproduction; the sizes are confirmed by the parameter counts.
    """

    def __init__(self, channels: int, patches: int, tokens: int, *, kind: str = "both", width: int | None = None):
        super().__init__()
        width = width or tokens
        if kind in ("both", "spatial"):
            self.spatial_norm = nn.LayerNorm(channels)
            self.spatial_mlp = _mlp(patches + tokens, channels // 2, width)
        if kind in ("both", "channel"):
            self.channel_norm = nn.LayerNorm(channels + tokens)
            self.channel_mlp = _mlp(channels + tokens, 4 * channels, width)

    def forward(
        self, patches: Tensor, spatial: Tensor | None, channel: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """patches: (B, P, C). spatial: (B, M, C). channel: (B, P, M). Returns both kinds of tokens, updated."""
        if spatial is not None:
            rows = self.spatial_norm(torch.cat([patches, spatial], dim=1))
            spatial = spatial + self.spatial_mlp(rows.transpose(1, 2)).transpose(1, 2)
        if channel is not None:
            columns = self.channel_norm(torch.cat([patches, channel], dim=2))
            channel = channel + self.channel_mlp(columns)
        return spatial, channel


class TokenBranches(nn.Module):
    """Token sets, one update of them for each tap, and one head for each token.

    sizes: (channels, patches) of each tap of the layout.
    Its heads are std0, std1, ...; its features are the updated tokens, tokens0.spatial (B, M, C) and tokens0.channel
    (B, P, M) of the first set, and so on.
    Raises ValueError if the tokens propagate between taps of different size, or have nothing to carry.
    Source: Li et al., ICML 2022, "Spatial-Channel Token Distillation for Vision MLPs".
    """

    def __init__(self, layout: TokenLayout, sizes: list[tuple[int, int]], *, num_classes: int):
        super().__init__()
        if layout.propagate and (len(set(sizes)) > 1 or layout.kind == "none"):
            raise ValueError(f"tokens of kind {layout.kind!r} cannot propagate between taps of the sizes {sizes}")
        self.layout = layout
        self.taps = layout.taps
        self.tokens = nn.ModuleList()
        self.updates = nn.ModuleList()
        self.classifiers = nn.ModuleList()
        for size, group in zip(sizes[-1:] if layout.propagate else sizes, layout.teachers, strict=True):
            if layout.kind != "none":
                self.tokens.append(TokenSet(*size, len(group), kind=layout.kind, init_std=layout.init_std))
            inputs = _head_inputs(*size, layout.kind)
            self.classifiers.extend(nn.Linear(inputs, num_classes) for _ in group)
        if layout.kind != "none":
            groups = layout.teachers * len(sizes) if layout.propagate else layout.teachers
            for size, group in zip(sizes, groups, strict=True):
                width = 1 if layout.shared_update else len(group)
                self.updates.append(TokenBranch(*size, len(group), kind=layout.kind, width=width))
        self.heads = tuple(f"std{number}" for number in range(len(self.classifiers)))

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters without weight decay: the tokens, unless `decay_tokens`."""
        tokens = {name for name, _ in self.named_parameters() if name.startswith("tokens.")}
        return set() if self.layout.decay_tokens else tokens

    def forward(self, features: dict[str, Tensor]) -> Output:
        """features: the maps (B, C, H, W) of the taps. Returns (B, K) logits of every head, and the updated tokens."""
        patches = [features[tap].flatten(2).transpose(1, 2) for tap in self.taps]
        if self.layout.kind == "none":
            readings = [[z.mean(dim=1)] * len(group) for z, group in zip(patches, self.layout.teachers, strict=True)]
            tokens = []
        else:
            tokens = self._updated_tokens(patches)
            readings = [_readings(*pair) for pair in tokens]
        inputs = [reading for group in readings for reading in group]
        logits = [classifier(reading) for classifier, reading in zip(self.classifiers, inputs, strict=True)]
        named: dict[str, Tensor] = {}
        for number, (spatial, channel) in enumerate(tokens):
            named |= {} if spatial is None else {f"tokens{number}.spatial": spatial}
            named |= {} if channel is None else {f"tokens{number}.channel": channel}
        return Output(dict(zip(self.heads, logits, strict=True)), named)

    def _updated_tokens(self, patches: list[Tensor]) -> list[tuple[Tensor | None, Tensor | None]]:
        sets = [tokens(patches[0].shape[0]) for tokens in self.tokens]
        if self.layout.propagate:
            for update, z in zip(self.updates, patches, strict=True):
                sets = [update(z, *sets[0])]
        else:
            sets = [update(z, *pair) for update, z, pair in zip(self.updates, patches, sets, strict=True)]
        return sets


def _readings(spatial: Tensor | None, channel: Tensor | None) -> list[Tensor]:
    """Return the input of each head of a set: its spatial token, its channel token, or both concatenated."""
    parts = [] if spatial is None else [spatial.unbind(dim=1)]
    parts += [] if channel is None else [channel.unbind(dim=2)]
    return [torch.cat(pair, dim=1) for pair in zip(*parts, strict=True)]


def _head_inputs(channels: int, patches: int, kind: str) -> int:
    spatial = 0 if kind == "channel" else channels
    return spatial + (patches if kind in ("both", "channel") else 0)


def _tokens(rows: int, columns: int, std: float) -> nn.Parameter:
    values = torch.zeros(rows, columns)
    return nn.Parameter(nn.init.trunc_normal_(values, std=std) if std else values)


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))
