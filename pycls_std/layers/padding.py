"""Which places of a feature map are image, where images are padded.

Shapes: B batch, H height, W width.
"""

from torch import Tensor
from torch.nn.functional import interpolate


def mask_at(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the mask (B, H, W), true where there is image, at the size (height, width) of a feature map.

    A place of the map is image if the pixel at its corner is, as in DETR (nearest neighbour).
    """
    return interpolate(mask[:, None].float(), size, mode="nearest")[:, 0].bool()
