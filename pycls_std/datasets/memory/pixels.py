"""Pixels of four bytes: red, green, blue and an unused one, so that a pixel is copied as one 32-bit number.

On a CPU, indexing pixels is ten times faster than with three bytes each.
Images are (B, H, W, 4) uint8 here and in `color` and `geometry`.
Shapes: B images, H height, W width.
"""

import torch
from torch import Tensor


def padded(images: Tensor) -> Tensor:
    """Return (B, H, W, 3) images with the fourth byte."""
    return torch.nn.functional.pad(images, (0, 1))


def packed(images: Tensor) -> Tensor:
    """Return pixels as (B, H, W) int32."""
    return images.contiguous().view(torch.int32).squeeze(3)


def unpacked(pixels: Tensor) -> Tensor:
    """Return the images of `packed`."""
    return pixels.unsqueeze(3).view(torch.uint8)


def transposed(images: Tensor) -> Tensor:
    """Return the images transposed, with rows and columns swapped."""
    return unpacked(packed(images).transpose(1, 2).contiguous())


def channels(images: Tensor) -> list[Tensor]:
    """Return red, green and blue, (B, H, W) int32 each."""
    pixels = packed(images)
    return [(pixels >> shift) & 255 for shift in (0, 8, 16)]


def change(images: Tensor, where: Tensor, how, *arguments) -> None:
    """Replace the images at indices `where`, (n,), by how(those images, *arguments), in place."""
    pixels = packed(images)
    pixels.index_copy_(0, where, packed(how(unpacked(pixels.index_select(0, where)), *arguments)))


def select(images: Tensor, places: Tensor) -> Tensor:
    """Return pixels by their flat index over all images, row by row; places: indices of any shape."""
    return unpacked(packed(images).flatten().index_select(0, places.flatten()).view(places.shape))


def choose(condition: Tensor, images: Tensor, color: tuple[int, int, int]) -> Tensor:
    """Return the images where the condition (B, H, W) is true, a colour elsewhere."""
    red, green, blue = color
    return unpacked(torch.where(condition, packed(images), red + 256 * green + 65536 * blue))
