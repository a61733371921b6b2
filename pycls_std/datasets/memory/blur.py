"""Gaussian blur of many images at once, as Pillow makes it of one: three box blurs along rows, three along columns.

Images are (B, H, W, 4) uint8, see `pixels`.
Source of the box: Gwosdek et al., SSVM 2011 (extended box filters); its rounding is Pillow's.
"""

import numpy as np
import torch
from torch import Tensor

ONE = 2**24  # weights are whole numbers of which so many are 1
PASSES = 3


def box_weights(sigma: np.ndarray) -> np.ndarray:
    """Return (B, 3) weights of a pixel, of each neighbour, and of each next but one; they are whole, and sum to ONE.

    sigma: (B,) deviations of the Gaussian, pixels, above 0 and at most 2. Pillow computes them in single precision.
    """
    sigma = sigma.astype(np.float32)
    variance = sigma * sigma / np.float32(PASSES)
    length = np.sqrt(12.0 * variance.astype(np.float64) + 1.0).astype(np.float32)
    whole = np.floor((length.astype(np.float64) - 1) / 2).astype(np.float32)
    share = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) * (whole + 1)))
    radius = whole + share
    inner = (np.float32(ONE) / (radius * 2 + 1)).astype(np.int64)  # of a pixel that lies within the box
    reach = radius.astype(np.int64)
    outer = (ONE - (2 * reach + 1) * inner) // 2  # of those that its edge cuts
    return np.stack([inner, np.where(reach == 0, outer, inner), np.where(reach == 0, 0, outer)], axis=1)


def blur(images: Tensor, weights: Tensor) -> Tensor:
    """Return the blurred images; weights: (B, 3), see `box_weights`. Beyond an image its border goes on."""
    weights = (weights.double() / ONE).view(-1, 3, 1, 1, 1)  # products of 8 and 24 bits are exact
    values = images.double()
    for axis in (2, 1):
        side = images.shape[axis]
        places = torch.arange(-2, side + 2, device=images.device).clamp_(0, side - 1)
        for _ in range(PASSES):
            far, near, own, right, most = (values.index_select(axis, places[k : k + side]) for k in range(5))
            values = own * weights[:, 0] + (near + right) * weights[:, 1] + (far + most) * weights[:, 2]
            values = values.add_(0.5).floor_()
    return values.to(torch.uint8)
