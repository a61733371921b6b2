"""The learned distillation tokens of one layer."""

import torch
from torch import Tensor, nn


class TokenSet(nn.Module):
    """M spatial tokens of C channels and M channel tokens of P patches, one of each for each teacher.

    kind: `both`, `spatial` or `channel`; what is left out is None and has no parameters.
    init_std: deviation of the truncated normal they start from; the reference uses 0.2.
    """

    def __init__(self, channels: int, patches: int, tokens: int, *, kind: str = "both", init_std: float = 0.2):
        super().__init__()
        self.spatial = _tokens(tokens, channels, init_std) if kind in ("both", "spatial") else None
        self.channel = _tokens(patches, tokens, init_std) if kind in ("both", "channel") else None

    def forward(self, batch: int) -> tuple[Tensor | None, Tensor | None]:
        """Return spatial (B, M, C) and channel (B, P, M) tokens, the same for every image of a batch of B."""
        spatial, channel = (None if t is None else t.expand(batch, *t.shape) for t in (self.spatial, self.channel))
        return spatial, channel


def _tokens(rows, columns, std):
    values = torch.zeros(rows, columns)
    return nn.Parameter(nn.init.trunc_normal_(values, std=std) if std else values)
