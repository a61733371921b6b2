"""Batched colour operations, equal to Pillow's.

Images are (B, H, W, 4) uint8, see `pixels`; amounts are (B,), one for each image.
"""

import torch
from torch import Tensor

from pycls_std.datasets.memory.pixels import channels, unpacked


def invert(images: Tensor) -> Tensor:
    """Return 255 minus each value."""
    return 255 - images


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest bits of each value; bits: 1 to 8."""
    return images & _each(256 - 2 ** (8 - bits)).to(torch.uint8)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert the values at or above the threshold, 0 to 256."""
    bright = (images >= _each(threshold)).to(torch.uint8)
    return bright.mul_(255).bitwise_xor_(images)  # 255 - x flips all bits of x


def solarize_add(images: Tensor, addend: Tensor) -> Tensor:
    """Add to the values below 128; addend: at most 128."""
    dark = (images < 128).to(torch.uint8)  # a product is faster than torch.where on bytes
    return dark.mul_(_each(addend).to(torch.uint8)).add_(images)


def auto_contrast(images: Tensor) -> Tensor:
    """Stretch each channel to 0 to 255."""
    low, high = (limit(limit(images, 1), 1).int().unsqueeze(2) for limit in (torch.amin, torch.amax))  # (B, 4, 1)
    steps = torch.arange(256, device=images.device)
    # in double and by a true division, as in Pillow: truncation depends on the last bit
    spread = (high - low).clamp(min=1).double()
    scale = torch.full_like(spread, 255.0) / spread
    tables = (steps * scale - low * scale).clamp(0, 255).to(torch.uint8)
    return apply_tables(images, torch.where(high <= low, steps.to(torch.uint8), tables))


def equalize(images: Tensor) -> Tensor:
    """Equalize the histogram of each channel."""
    places = _places(images).long().flatten()
    counts = torch.zeros(len(images) * 1024, dtype=torch.long, device=images.device)
    counts = counts.index_add_(0, places, torch.ones_like(places)).view(-1, 4, 256)
    steps = torch.arange(256, device=images.device)
    last = torch.where(counts > 0, steps, -1).amax(dim=2, keepdim=True)
    step = (images.shape[1] * images.shape[2] - counts.gather(2, last)) // 255
    before = counts.cumsum(dim=2) - counts
    tables = ((step // 2 + before) // step.clamp(min=1)).clamp(max=255)
    return apply_tables(images, torch.where(step > 0, tables, steps).to(torch.uint8))


def apply_tables(images: Tensor, tables: Tensor) -> Tensor:
    """Return each value's entry in the lookup table of its image and channel; tables: (B, 4, 256) uint8."""
    return tables.flatten().index_select(0, _places(images).flatten()).view(images.shape)


def _places(images: Tensor) -> Tensor:
    """Return the index of each value in flattened tables (B, 4, 256)."""
    batch, height, width, _ = images.shape
    channel = (256 * torch.arange(4, device=images.device, dtype=torch.int32)).repeat(width)
    first = 1024 * torch.arange(batch, device=images.device, dtype=torch.int32)
    return images.reshape(batch, height, width * 4).int() + first.view(-1, 1, 1) + channel


def grey(images: Tensor) -> Tensor:
    """Return the luma (ITU-R 601) of each pixel, (B, H, W) int32, in Pillow's fixed point."""
    red, green, blue = channels(images)
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


def greyscale(images: Tensor) -> Tensor:
    """Return the luma in all channels."""
    return unpacked(grey(images) * 0x010101)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with black."""
    return (images * _each(factor).float()).clamp_(max=255).to(torch.uint8)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean grey."""
    mean = (grey(images).double().mean(dim=(1, 2)) + 0.5).floor()
    return blend(_each(mean).float(), images, factor)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the grey image."""
    return blend(greyscale(images), images, factor)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the smoothed image: a 3x3 kernel with 5 times the weight at the centre, the border unchanged."""
    values = images.float()
    rows = values[:, :-2] + values[:, 1:-1] + values[:, 2:]
    box = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    smooth = values.clone()
    smooth[:, 1:-1, 1:-1] = ((box + 4 * values[:, 1:-1, 1:-1]) / 13 + 0.5).floor_()
    return blend(smooth, values, factor)


def blend(base: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """Return base + factor (images - base), clamped to 0 to 255; factor: 0 = base, 1 = images, above 1 extrapolates."""
    base = base.float()
    return (images.float() - base).mul_(_each(factor).float()).add_(base).clamp_(0, 255).to(torch.uint8)


def _each(amount: Tensor) -> Tensor:
    return amount.view(-1, 1, 1, 1)
