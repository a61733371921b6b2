"""CvT: a transformer with convolutional embeddings, queries, keys and values, for images of any size.

Shapes: B batch, N tokens, T class tokens, C channels, H height, W width.
"""

from functools import partial

import torch
from timm.layers import DropPath, Mlp, get_act_layer, trunc_normal_
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from pycls_std.models.entry_points import register
from pycls_std.models.pyramid import Pyramid, Tokens, split_rates, tokens_of

# name: blocks, channels and heads of each stage. Source: Wu et al., ICCV 2021, and its code.
CVTS = {"cvt_13": ((1, 2, 10), (64, 192, 384), (1, 3, 6))}


class Projection(nn.Module):
    """A depthwise 3x3 convolution with batch norm, and a linear layer; class tokens only pass the linear layer."""

    def __init__(self, channels: int, *, stride: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, channels)

    def forward(self, maps: Tensor, prefix: Tensor) -> Tensor:
        """maps: (B, C, H, W). prefix: (B, T, C). Returns (B, N, C)."""
        patches = tokens_of(self.bn(self.conv(maps))).values
        return self.linear(torch.cat([prefix, patches], dim=1))


class ConvAttention(nn.Module):
    """Attention to keys and values at a quarter of the positions.

    It is scaled by the number of all channels, not of a head's, as in the published code.
    """

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads, self.scale = heads, channels**-0.5
        self.q, self.k, self.v = (Projection(channels, stride=stride) for stride in (1, 2, 2))
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tokens) -> Tensor:
        """Return (B, N, C)."""
        maps, prefix = x.map(), x.prefix()
        queries, keys, values = (
            project(maps, prefix).unflatten(2, (self.heads, -1)).transpose(1, 2) for project in (self.q, self.k, self.v)
        )
        attended = scaled_dot_product_attention(queries, keys, values, scale=self.scale)
        return self.proj(attended.transpose(1, 2).flatten(2))


class CvTBlock(nn.Module):
    """Pre-norm residual attention and MLP."""

    def __init__(self, channels: int, heads: int, *, mlp_ratio: float, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = ConvAttention(channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, int(mlp_ratio * channels), act_layer=get_act_layer("quick_gelu"))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tokens) -> Tokens:
        """Return the updated tokens."""
        values = x.values + self.drop_path(self.attn(x._replace(values=self.norm1(x.values))))
        return x._replace(values=values + self.drop_path(self.mlp(self.norm2(values))))


class ConvEmbedding(nn.Module):
    """An overlapping convolutional patch embedding and a norm; optionally a class token is prepended."""

    def __init__(self, before: int, channels: int, *, first: bool, class_token: bool):
        super().__init__()
        kernel, stride, padding = (7, 4, 2) if first else (3, 2, 1)
        self.proj = nn.Conv2d(before, channels, kernel, stride, padding)
        self.norm = nn.LayerNorm(channels)
        self.cls_token = nn.Parameter(trunc_normal_(torch.empty(1, 1, channels), std=0.02)) if class_token else None

    def forward(self, maps: Tensor) -> Tokens:
        """maps: (B, C, H, W)."""
        x = tokens_of(self.proj(maps))
        values = self.norm(x.values)
        if self.cls_token is not None:
            values = torch.cat([self.cls_token.expand(values.shape[0], -1, -1), values], dim=1)
        return x._replace(values=values)


class CvT(Pyramid):
    """Stages without position embeddings; only the last has a class token and stochastic depth."""

    num_prefix_tokens = 1

    def __init__(self, depths, channels, heads, *, num_classes: int, mlp_ratio: float = 4, drop_path: float = 0.0):
        last, embeddings = len(depths) - 1, []
        for stage, (before, after) in enumerate(zip((3, *channels), channels, strict=False)):
            embeddings.append(ConvEmbedding(before, after, first=stage == 0, class_token=stage == last))
        rates = [[0.0] * depth for depth in depths[:-1]] + split_rates(drop_path, depths[-1:])
        sizes = zip(channels, heads, rates, strict=True)
        stages = [[CvTBlock(*size, mlp_ratio=mlp_ratio, drop_path=rate) for rate in own] for *size, own in sizes]
        norm = nn.LayerNorm(channels[-1])
        super().__init__(embeddings, stages, channels=channels, norm=norm, num_classes=num_classes)


def cvt(size, /, *, num_classes, image_size, drop_path=0.0, **args) -> CvT:
    """Build a CvT of a size of CVTS, for images of any size; `args` change its sizes."""
    options = dict(zip(("depths", "channels", "heads"), size, strict=True))
    return CvT(**(options | args), num_classes=num_classes, drop_path=drop_path)


for _name, _size in CVTS.items():
    register(_name, partial(cvt, _size))
