"""One update of the distillation tokens from the patches of one layer.

Shapes: B batch, P patches, C channels, M tokens (one for each teacher).
"""

import torch
from torch import Tensor, nn


class TokenBranch(nn.Module):
    """Update spatial tokens by mixing over patches and channel tokens by mixing over channels.

    The tokens read the patches; the patches never read the tokens. One residual step:
        T_S' = T_S + MLP(LN([Z ; T_S])) over the P + M rows,       T_S: (B, M, C)
        T_C' = T_C + MLP(LN([Z , T_C])) over the C + M columns,    T_C: (B, P, M)
    with C // 2 hidden units for the rows and 4 C for the columns, whatever the backbone's own ratios.

    kind: `both`, `spatial` or `channel`; what is left out has no parameters and is None.
    width: outputs of each MLP; M gives each token its own update, 1 adds the same update to all, as the reference does
        (with one teacher the two are the same).
    Source: Li et al., ICML 2022, as realised in the reproduction; the sizes are confirmed by the parameter counts.
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
        """patches: (B, P, C). spatial: (B, M, C). channel: (B, P, M). Returns the two tokens, updated."""
        if spatial is not None:
            rows = self.spatial_norm(torch.cat([patches, spatial], dim=1))
            spatial = spatial + self.spatial_mlp(rows.transpose(1, 2)).transpose(1, 2)
        if channel is not None:
            columns = self.channel_norm(torch.cat([patches, channel], dim=2))
            channel = channel + self.channel_mlp(columns)
        return spatial, channel


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))
