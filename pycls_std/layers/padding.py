"""Padding masks of feature maps, for images padded at their right and bottom.

Shapes: B batch, H height, W width, C channels.
"""

from torch import Tensor
from torch.nn.functional import interpolate


def nearest_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the mask (B, H, W), true where there is image, at a size (height, width), by nearest neighbours."""
    return interpolate(mask[:, None].float(), size, mode="nearest")[:, 0].bool()


def mask_at(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the mask (B, H, W), true where there is image, at the size (height, width) of a feature map.

    A position of the map is image if the pixel at its top left corner is. If the map's size is that of a stride of a
    power of two, that stride is used, so an image has as many positions as without padding. For other maps it is the
    `nearest_mask`.
    """
    strides = [1 << (-(-length // own) - 1).bit_length() for length, own in zip(mask.shape[1:], size, strict=True)]
    places = mask[:, :: strides[0], :: strides[1]]
    return places if places.shape[1:] == size else nearest_mask(mask, size)


def zeroed(features: Tensor, mask: Tensor | None) -> Tensor:
    """Return a map (B, H, W, C) with zeros where the mask (B, H, W) is false; None = unchanged."""
    return features if mask is None else features.masked_fill(~mask[..., None], 0)
