"""Swin's block with reconfigured attention (RAM): one set of weights for patches in windows and for detection tokens.

Source: Song et al., ICLR 2022 (ViDT), section 3.
Shapes: B batch, H height, W width, C channels, P patches, Q detection tokens, D channels of their positions.
"""

from typing import NamedTuple

import torch
from timm.layers import DropPath, Mlp
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn
from torch.nn.functional import linear, pad, scaled_dot_product_attention

from pycls_std.layers.padding import zeroed
from pycls_std.layers.shifted_windows import in_windows


class View(NamedTuple):
    """Properties of the map that a stage's blocks need in addition to its tokens."""

    size: tuple[int, int]  # height and width
    mask: Tensor | None  # (B, H, W) true where there is image, for the windows; None = padding is not zeroed
    shifted: Tensor | None  # attention bias of shifted windows, see `shifted_mask`
    positions: Tensor | None  # (B, P, C) of the patches, for cross-attention of detection tokens; None = without it
    attended: Tensor | None  # (B, P) patches that detection tokens may attend to; None = all


class ReconfiguredAttention(WindowAttention):
    """timm's window attention of patches, and attention of detection tokens with the same weights, `detect`."""

    def detect(self, tokens: Tensor, patches: Tensor | None = None, attended: Tensor | None = None) -> Tensor:
        """Return the attention of detection tokens (B, Q, C) to each other, and to patches (B, P, C) if given.

        attended: (B, P) patches that may be attended to; None = all.
        """
        query, key, value = self._heads(self.qkv(tokens), 3)
        mask = None
        if patches is not None:
            seen = linear(patches, self.qkv.weight[self.dim :], self.qkv.bias[self.dim :])
            pairs = zip(self._heads(seen, 2), (key, value), strict=True)
            key, value = (torch.cat(pair, dim=2) for pair in pairs)
            if attended is not None:
                mask = pad(attended, (0, tokens.shape[1]), value=True)[:, None, None]
        seen = scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.proj(seen.transpose(1, 2).flatten(2))

    def _heads(self, projected: Tensor, parts: int) -> tuple[Tensor, ...]:
        return projected.unflatten(2, (parts, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


class ReconfiguredBlock(nn.Module):
    """Pre-norm residual attention and MLP, on patches and detection tokens together.

    positions: D, channels of the detection tokens' positions, which every block projects separately.
    """

    def __init__(self, channels: int, *, heads: int, window: int, shift: int, positions: int, drop_path: float = 0.0):
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(channels)
        self.attn = ReconfiguredAttention(channels, num_heads=heads, window_size=window)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, 4 * channels)
        self.det_pos_linear = nn.Linear(positions, channels)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, tokens: Tensor, det_positions: Tensor, view: View) -> Tensor:
        """tokens: (B, P + Q, C), patches first, row by row. det_positions: (1, Q, D)."""
        places = view.size[0] * view.size[1]
        patches, det = self.norm1(tokens).split([places, tokens.shape[1] - places], dim=1)
        seen = self._patches(patches.unflatten(1, view.size), view)
        det = det + self.det_pos_linear(det_positions)
        context = patches if view.positions is None else patches + view.positions
        found = self.attn.detect(det, None if view.positions is None else context, view.attended)
        tokens = tokens + self.drop_path(torch.cat([seen, found], dim=1))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))

    def _patches(self, patches: Tensor, view: View) -> Tensor:
        mask = view.shifted if self.shift else None
        patches = zeroed(patches, view.mask)  # like the positions that fill up the last windows
        seen = in_windows(patches, lambda x: self.attn(x, mask), window=self.window, shift=self.shift)
        return seen.flatten(1, 2)
