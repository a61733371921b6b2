"""T2T-ViT: an embedding of overlapping patches with attention in between, then a plain transformer.

Shapes: B batch, N tokens, C channels, D channels within the embedding, F random features, H height, W width.
"""

import math
from functools import partial

import torch
from timm.layers import Mlp, trunc_normal_
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn.functional import unfold

from pycls_std.core.precision import full_precision
from pycls_std.models.entry_points import register
from pycls_std.models.pyramid import Pyramid, Tokens, split_rates

# name: channels, blocks, heads, hidden units of the MLPs as a multiple of the channels. Source: Yuan et al., ICCV 2021.
T2TS = {"t2t_vit_7": (256, 7, 4, 2), "t2t_vit_14": (384, 14, 6, 3)}
SPLITS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))  # kernel, stride and padding of each unfolding into patches
NORM = partial(nn.LayerNorm, eps=1e-6)  # as in lkhl/tiny-transformers; 1e-5 in yitu-opensource/T2T-ViT


class Performer(nn.Module):
    """Linear-time attention by random features of keys and queries, and an MLP; it changes the channels.

    The features' projection is orthogonal, drawn at construction, saved in checkpoints and not trained.
    Source: Choromanski et al., ICLR 2021; the values as shortcut, and F = D / 2, as in T2T-ViT.
    """

    directions: Tensor

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.norm1 = NORM(channels)
        self.kqv = nn.Linear(channels, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = NORM(width)
        self.mlp = Mlp(width, width)
        features = width // 2
        directions = nn.init.orthogonal_(torch.empty(features, width)) * math.sqrt(features)
        self.register_buffer("directions", directions)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, N, C). Returns (B, N, D)."""
        keys, queries, values = self.kqv(self.norm1(x)).chunk(3, dim=2)
        with full_precision(x.device):  # an exponent in bf16 would be wrong by several percent
            wide = torch.promote_types(x.dtype, torch.float32)
            attended = self._attend(keys.to(wide), queries.to(wide), values.to(wide))
        x = values + self.proj(attended.to(values.dtype))
        return x + self.mlp(self.norm2(x))

    def _attend(self, keys: Tensor, queries: Tensor, values: Tensor) -> Tensor:
        keys, queries = self._features(keys), self._features(queries)
        sums = queries @ keys.sum(dim=1).unsqueeze(2)  # (B, N, 1), sum of each query's weights
        return queries @ (keys.transpose(1, 2) @ values) / (sums + 1e-8)

    def _features(self, x: Tensor) -> Tensor:
        """x: (B, N, D). Returns positive features (B, N, F)."""
        exponents = x @ self.directions.T.to(x.dtype) - x.square().sum(dim=2, keepdim=True) / 2
        return exponents.exp() / math.sqrt(len(self.directions))


class TokensToToken(nn.Module):
    """Three overlapping unfoldings with performers in between, a class token, and fixed position embeddings."""

    positions: Tensor

    def __init__(self, channels: int, width: int, *, splits, image_size: int):
        super().__init__()
        self.splits = splits
        areas = [kernel**2 for kernel, _, _ in splits]
        performers = [Performer(before * area, width) for before, area in zip((3, width), areas[:-1], strict=False)]
        self.layers = nn.ModuleList([*performers, nn.Linear(width * areas[-1], channels)])
        self.cls_token = nn.Parameter(trunc_normal_(torch.empty(1, 1, channels), std=0.02))
        side = image_size
        for split in splits:
            side = _places(side, *split)
        self.register_buffer("positions", sinusoids(1 + side**2, channels), persistent=False)

    def forward(self, images: Tensor) -> Tokens:
        """images: (B, 3, H, W), of the constructor's image size."""
        maps = images
        for (kernel, stride, padding), layer in zip(self.splits, self.layers, strict=True):
            patches = unfold(maps, kernel, padding=padding, stride=stride).transpose(1, 2)
            tokens = Tokens(layer(patches), *(_places(side, kernel, stride, padding) for side in maps.shape[2:]))
            maps = tokens.map()
        values = torch.cat([self.cls_token.expand(images.shape[0], -1, -1), tokens.values], dim=1)
        return tokens._replace(values=values + self.positions)


def _places(side: int, kernel: int, stride: int, padding: int) -> int:
    return (side + 2 * padding - kernel) // stride + 1


def sinusoids(number: int, channels: int) -> Tensor:
    """Return sinusoidal embeddings (number, C) of positions 0, 1, ...: sines in even channels, cosines in odd ones."""
    pairs = torch.arange(channels, dtype=torch.float64) // 2
    angles = torch.arange(number, dtype=torch.float64).unsqueeze(1) / 10000 ** (2 * pairs / channels)
    return torch.where(torch.arange(channels) % 2 == 0, angles.sin(), angles.cos()).float()


class TokensBlock(Block):
    """timm's block, on the values of Tokens."""

    def forward(self, x: Tokens) -> Tokens:  # type: ignore[override]  # of Tokens, which have a height and a width
        """Return the updated tokens."""
        return x._replace(values=super().forward(x.values))


class T2TViT(Pyramid):
    """One stage with a class token. width: D, channels within the embedding. splits: as SPLITS, of the same length."""

    num_prefix_tokens = 1

    def __init__(self, channels, depth, heads, mlp_ratio, *, num_classes, image_size, drop_path, width, splits):
        embedding = TokensToToken(channels, width, splits=splits, image_size=image_size)
        (rates,) = split_rates(drop_path, (depth,))
        blocks = [TokensBlock(channels, heads, mlp_ratio, drop_path=rate, norm_layer=NORM) for rate in rates]
        options = {"channels": [channels], "norm": NORM(channels), "reduction": math.prod(s for _, s, _ in splits)}
        super().__init__([embedding], [blocks], num_classes=num_classes, **options)


def t2t(size, /, *, num_classes, image_size, drop_path=0.0, width=64, splits=SPLITS, **args) -> T2TViT:
    """Build a T2T-ViT of a size of T2TS; `args` change its sizes."""
    options = dict(zip(("channels", "depth", "heads", "mlp_ratio"), size, strict=True)) | args
    options |= {"num_classes": num_classes, "image_size": image_size, "drop_path": drop_path}
    return T2TViT(**options, width=width, splits=splits)


for _name, _size in T2TS.items():
    register(_name, partial(t2t, _size))
