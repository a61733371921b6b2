"""Which places of a feature map are image, where images are padded at their right and bottom.

Shapes: B batch, H height, W width, C channels.
"""

from torch import Tensor
from torch.nn.functional import interpolate


def mask_at(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the mask (B, H, W), true where there is image, at the size (height, width) of a feature map.

    A place of the map is image if the pixel at its corner is, as in DETR (nearest neighbour).
    """
    return interpolate(mask[:, None].float(), size, mode="nearest")[:, 0].bool()


def mask_of_stride(mask: Tensor, stride: int) -> Tensor:
    """Return the mask (B, H, W), true where there is image, of a map whose places are squares of `stride` pixels.

    A place is image if any of its pixels is; the map is padded to whole squares. Unlike `mask_at` it gives an image as
    many places as it has alone, whatever the batch is padded to.
    """
    return mask[:, ::stride, ::stride]


def zeroed(features: Tensor, mask: Tensor | None) -> Tensor:
    """Return a map (B, H, W, C) with zeros where the mask (B, H, W) is false; None = as it is."""
    return features if mask is None else features.masked_fill(~mask[..., None], 0)
