"""Sine position encodings of a map.

Shapes: B batch, H height, W width, C channels.
"""

import math

import torch
from torch import Tensor


def sine_positions(mask: Tensor, channels: int) -> Tensor:
    """Return (B, H, W, C): half of the channels encode the row, half the column, as fractions of the image.

    mask: (B, H, W) true where there is image. channels: a multiple of 4.
    Source: Carion et al., ECCV 2020 (DETR), whose scale is 2 pi and whose temperature is 10000.
    """
    half = channels // 2
    steps = 10000 ** (2 * torch.arange(half // 2, device=mask.device) / half)
    parts = []
    for dim in (1, 2):
        counted = mask.cumsum(dim, dtype=torch.float32)
        share = counted / (counted.select(dim, -1).unsqueeze(dim) + 1e-6) * 2 * math.pi
        angles = share[..., None] / steps
        parts += [torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)]
    return torch.cat(parts, dim=-1)
