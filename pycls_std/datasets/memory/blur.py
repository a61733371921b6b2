"""Batched Gaussian blur, equal to Pillow's: three box blurs along rows, three along columns.

Images are (B, H, W, 4) uint8, see `pixels`.
Source of the box: Gwosdek et al., SSVM 2011 (extended box filters); its rounding is Pillow's.
"""

import numpy as np
import torch
from torch import Tensor

ONE = 2**24  # fixed-point representation of a weight of 1
PASSES = 3
PIXELS = 2**17  # pixels blurred at once: more do not fit into the processor's cache


def box_weights(sigma: np.ndarray) -> np.ndarray:
    """Return (B, 3) integer weights of a pixel, of each neighbour, and of each second neighbour; they sum to ONE.

    sigma: (B,) standard deviations of the Gaussian, pixels, above 0 and at most 2. Computed in single precision, as in
    Pillow.
    """
    sigma = sigma.astype(np.float32)
    variance = sigma * sigma / np.float32(PASSES)
    length = np.sqrt(12.0 * variance.astype(np.float64) + 1.0).astype(np.float32)
    whole = np.floor((length.astype(np.float64) - 1) / 2).astype(np.float32)
    share = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) * (whole + 1)))
    radius = whole + share
    inner = (np.float32(ONE) / (radius * 2 + 1)).astype(np.int64)  # of pixels within the box
    reach = radius.astype(np.int64)
    outer = (ONE - (2 * reach + 1) * inner) // 2  # of pixels that its edge cuts
    return np.stack([inner, np.where(reach == 0, outer, inner), np.where(reach == 0, 0, outer)], axis=1)


def blur(images: Tensor, weights: Tensor) -> Tensor:
    """Return the blurred images; weights: (B, 3), see `box_weights`. Borders are replicated."""
    several = max(1, PIXELS // (images.shape[1] * images.shape[2]))
    parts = [torch.empty_like(images[:0])]
    for start in range(0, len(images), several):
        own = weights[start : start + several].int().view(-1, 3, 1, 1, 1).unbind(dim=1)
        values = images[start : start + several].int()
        for axis in (2, 1):
            for _ in range(PASSES):
                values = _box_blur(values, own, axis)
        parts.append(values.to(torch.uint8))
    return torch.cat(parts)


def _box_blur(values: Tensor, weights: tuple[Tensor, ...], axis: int) -> Tensor:
    """Return (B, H, W, 4) int32 values, blurred once along an axis.

    Sums are unsigned 32-bit numbers, so the result is right even if int32 wraps around.
    """
    side, reach = values.shape[axis], len(weights) - 1
    first, last = values.narrow(axis, 0, 1), values.narrow(axis, side - 1, 1)
    padded = torch.cat([first] * reach + [values] + [last] * reach, dim=axis)
    total = (values * weights[0]).add_(ONE // 2)
    for distance, weight in enumerate(weights[1:], start=1):
        pair = padded.narrow(axis, reach - distance, side) + padded.narrow(axis, reach + distance, side)
        total.addcmul_(pair, weight)
    return total.bitwise_right_shift_(24).bitwise_and_(255)
