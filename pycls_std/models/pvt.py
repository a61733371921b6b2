"""PVT (version 1), for images whose sides are multiples of 32.

Shapes: B batch, C channels, H height, W width, N tokens.
"""

from functools import partial

import torch
from timm.layers import DropPath, Mlp, trunc_normal_
from timm.models.pvt_v2 import Attention
from torch import Tensor, nn

from pycls_std.models.entry_points import register
from pycls_std.models.pyramid import Pyramid, Tokens, split_rates, tokens_of

# name: blocks, channels, heads, hidden units of the MLPs as multiples of the channels, and the reduction of keys and
# values per side, of each stage. Source: Wang et al., ICCV 2021.
PVTS = {"pvt_tiny": ((2, 2, 2, 2), (64, 128, 320, 512), (1, 2, 5, 8), (8, 8, 4, 4), (8, 4, 2, 1))}
# Of all norms, as in lkhl/tiny-transformers; whai362/PVT has 1e-5 for embeddings and keys: 3e-7 apart in the logits.
EPS = 1e-6


class PVTBlock(nn.Module):
    """Pre-norm residual spatial-reduction attention and MLP."""

    def __init__(self, channels: int, heads: int, mlp_ratio: float, fewer: int, *, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = Attention(channels, heads, fewer)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, int(mlp_ratio * channels))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tokens) -> Tokens:
        """x: without a class token, if keys are reduced."""
        values = x.values + self.drop_path(self.attn(self.norm1(x.values), (x.height, x.width)))
        return x._replace(values=values + self.drop_path(self.mlp(self.norm2(values))))


class PVTEmbedding(nn.Module):
    """Patch embedding, norm and position embeddings; optionally a class token is prepended.

    places: patches per side.
    """

    def __init__(self, before: int, channels: int, patch: int, *, places: int, class_token: bool):
        super().__init__()
        self.proj = nn.Conv2d(before, channels, patch, patch)
        self.norm = nn.LayerNorm(channels)
        self.cls_token = nn.Parameter(torch.empty(1, 1, channels)) if class_token else None
        self.pos_embed = nn.Parameter(torch.empty(1, class_token + places**2, channels))
        for parameter in (self.cls_token, self.pos_embed):
            if parameter is not None:
                trunc_normal_(parameter, std=0.02)

    def forward(self, maps: Tensor) -> Tokens:
        """maps: (B, C, H, W)."""
        x = tokens_of(self.proj(maps))
        values = self.norm(x.values)
        if self.cls_token is not None:
            values = torch.cat([self.cls_token.expand(values.shape[0], -1, -1), values], dim=1)
        return x._replace(values=values + self.pos_embed)


class PVT(Pyramid):
    """Four stages, a class token in the last. Raises ValueError if the image size is not a multiple of 32."""

    num_prefix_tokens = 1

    def __init__(self, depths, channels, heads, mlp_ratios, fewer, *, num_classes, image_size, drop_path=0.0):
        shrinks = 4 * 2 ** (len(depths) - 1)
        if image_size % shrinks:
            raise ValueError(f"image size {image_size} is no multiple of {shrinks}, by which the stages shrink it")
        last, embeddings = len(depths) - 1, []
        for stage, (before, after) in enumerate(zip((3, *channels), channels, strict=False)):
            places = image_size // (4 * 2**stage)
            embeddings.append(PVTEmbedding(before, after, 2 if stage else 4, places=places, class_token=stage == last))
        sizes = zip(channels, heads, mlp_ratios, fewer, split_rates(drop_path, depths), strict=True)
        stages = [[PVTBlock(*size, drop_path=rate) for rate in rates] for *size, rates in sizes]
        norm = nn.LayerNorm(channels[-1])
        super().__init__(embeddings, stages, channels=channels, norm=norm, num_classes=num_classes)
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = EPS


def pvt(size, /, *, num_classes, image_size, drop_path=0.0, **args) -> PVT:
    """Build a PVT of a size of PVTS; `args` change its sizes."""
    options = dict(zip(("depths", "channels", "heads", "mlp_ratios", "fewer"), size, strict=True))
    return PVT(**(options | args), num_classes=num_classes, image_size=image_size, drop_path=drop_path)


for _name, _size in PVTS.items():
    register(_name, partial(pvt, _size))
