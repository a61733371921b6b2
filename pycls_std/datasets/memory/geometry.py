"""Batched geometric operations, equal to Pillow's.

Images are (B, H, W, 4) uint8, see `pixels`. Pixels from outside an image have the colour `fill`.
Shapes: B images, H height, W width, S side of the result.
"""

import torch
from torch import Tensor

from pycls_std.core.precision import without_tf32
from pycls_std.datasets.memory.pixels import choose, padded, select, transposed

BLACK = (0, 0, 0)
SOURCE = 2**23  # pixels resized at once, to bound the memory with large images


def pick(images: Tensor, rows: Tensor, columns: Tensor, which: Tensor | None = None) -> Tensor:
    """Return the pixels at (rows, columns) of each image, clamped to its border.

    rows, columns: int32, broadcastable to (B, S, S). which: (B,) int32, images to take them from, by default all in
    order.
    """
    total, height, width, _ = images.shape
    which = _steps(images, total) if which is None else which
    places = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    return select(images, places + (which * (height * width)).view(-1, 1, 1))


def _steps(images: Tensor, end: int, start: int = 0) -> Tensor:
    """Return start to end - 1 as int32, which suffices for all pixels and is faster than int64."""
    return torch.arange(start, end, device=images.device, dtype=torch.int32)


def crop(images: Tensor, which: Tensor, top: Tensor, left: Tensor, flip: Tensor, size: int) -> Tensor:
    """Return square crops of images, black outside the image, and flipped horizontally where `flip` is true.

    which: (B,) images. top, left: (B,) corner of each square, pixels; all int32. flip: (B,) bool. size: S.
    """
    steps = _steps(images, size)
    rows = (top[:, None] + steps)[:, :, None]
    columns = (left[:, None] + torch.where(flip[:, None], size - 1 - steps, steps))[:, None, :]
    _, height, width, _ = images.shape
    inside = ((rows >= 0) & (rows < height)) & ((columns >= 0) & (columns < width))
    return choose(inside, pick(images, rows, columns, which), BLACK)


def shear_x(images: Tensor, slope: Tensor, fill) -> Tensor:
    """Shift each row by slope times its height in the image."""
    heights = torch.arange(images.shape[1], device=images.device) + 0.5
    return shift_rows(images, slope[:, None] * heights, fill)


def translate_x(images: Tensor, pixels: Tensor, fill) -> Tensor:
    """Shift all rows to the left."""
    return shift_rows(images, pixels[:, None].expand(-1, images.shape[1]), fill)


def shear_y(images: Tensor, slope: Tensor, fill) -> Tensor:
    """Shift each column by slope times its distance from the left."""
    return transposed(shear_x(transposed(images), slope, fill))


def translate_y(images: Tensor, pixels: Tensor, fill) -> Tensor:
    """Shift all columns upwards."""
    return transposed(translate_x(transposed(images), pixels, fill))


def shift_rows(images: Tensor, shift: Tensor, fill) -> Tensor:
    """Return images whose pixel (y, x) comes from (y, x + shift), by cubic interpolation.

    shift: (B, H) pixels, float64.
    """
    width = images.shape[2]
    whole = shift.floor()
    taps = cubic((shift - whole).float())  # (B, H) four times
    rows = _steps(images, images.shape[1]).view(1, -1, 1)
    columns = whole.int()[:, :, None] + _steps(images, width + 2, -1)
    row = pick(images, rows, columns).flatten(2).float()  # (B, H, (W + 3) 4)
    moved = _weighted(taps, [row[:, :, 4 * k : 4 * (k + width)] for k in range(4)])
    # 0 <= x + 0.5 + shift < W
    first, end = ((limit - 0.5 - shift).ceil().int()[:, :, None] for limit in (0, width))
    x = _steps(images, width)
    return choose((x >= first) & (x < end), _bytes(moved), fill)


def rotate(images: Tensor, degrees: Tensor, fill) -> Tensor:
    """Rotate counter-clockwise about the centre, by bicubic interpolation. degrees: float64."""
    _, height, width, _ = images.shape
    angle = -torch.deg2rad(degrees).view(-1, 1, 1)
    y = torch.arange(height, device=images.device).view(1, -1, 1) + 0.5 - height / 2
    x = torch.arange(width, device=images.device) + 0.5 - width / 2
    source_x = angle.cos() * x + angle.sin() * y + width / 2
    source_y = -angle.sin() * x + angle.cos() * y + height / 2
    inside = ((source_x >= 0) & (source_x < width)) & ((source_y >= 0) & (source_y < height))
    source_x, source_y = source_x - 0.5, source_y - 0.5
    left, top = source_x.floor(), source_y.floor()
    across, down = (
        cubic((source - whole).float().repeat_interleave(4, dim=2))
        for source, whole in ((source_x, left), (source_y, top))
    )
    first = (_steps(images, len(images)) * (height * width)).view(-1, 1, 1)
    rows = [first + (top.int() + i).clamp_(0, height - 1) * width for i in range(-1, 3)]
    columns = [(left.int() + j).clamp_(0, width - 1) for j in range(-1, 3)]
    lines = [_weighted(across, [select(images, row + column).flatten(2).float() for column in columns]) for row in rows]
    return choose(inside, _bytes(_weighted(down, lines)), fill)


def cubic(d: Tensor) -> list[Tensor]:
    """Return the weights of the neighbours at -1, 0, 1, 2 for a position d in [0, 1).

    Pillow's transforms use Keys' kernel with a = -1 (its resize uses a = -1/2).
    """
    d2, d3 = d * d, d * d * d
    return [2 * d2 - d - d3, 1 - 2 * d2 + d3, d + d2 - d3, d3 - d2]


def _weighted(weights: list[Tensor], values: list[Tensor]) -> Tensor:
    """Return the weighted sum of (B, H, W 4) values; weights: (B, H) or (B, H, W 4) each."""
    weights = [w.unsqueeze(2) if w.ndim == 2 else w for w in weights]
    total = values[0] * weights[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total.addcmul_(value, weight)
    return total


def _bytes(values: Tensor) -> Tensor:
    """Return (B, H, W 4) values as images, clamped and truncated as in Pillow; 1e-3 compensates for float32."""
    return (values + 1e-3).clamp_(0, 255).to(torch.uint8).unflatten(2, (-1, 4))


def _bicubic(distance: Tensor) -> Tensor:
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0))


def _bilinear(distance: Tensor) -> Tensor:
    return (1 - distance).clamp_(min=0)


# Pillow's resize filters: their support in pixels, and the weight at a distance.
FILTERS = {"bicubic": (2, _bicubic), "bilinear": (1, _bilinear)}


def resample(
    images: Tensor,
    top: Tensor,
    left: Tensor,
    height: Tensor,
    width: Tensor,
    size: int,
    *,
    interpolation: str = "bicubic",
) -> Tensor:
    """Return rectangles of images, each resized to S x S by an antialiased filter of Pillow's.

    top, left, height, width: (B,) pixels, within the image; (1,) for the same rectangle of all. interpolation: a name
    of FILTERS.
    Pillow 13 resizes the side that shrinks more first, this the width, which differs where values are clamped.
    """
    across = resize_matrix(left, width, images.shape[2], size, interpolation=interpolation)  # (B, S, W)
    down = resize_matrix(top, height, images.shape[1], size, interpolation=interpolation)  # (B, S, H)
    several = max(1, SOURCE // (images.shape[1] * images.shape[2]))
    parts = []
    for start in range(0, len(images), several):
        # shared matrices, or those of these images
        own = [m if len(m) == 1 else m[start : start + several] for m in (across, down)]
        planes = images[start : start + several, ..., :3].permute(0, 3, 1, 2).float()
        with without_tf32(images.device):  # its 10-bit weights would change pixels by a level
            narrow = _rounded(planes @ own[0].transpose(1, 2).unsqueeze(1))
            parts.append(_rounded(own[1].unsqueeze(1) @ narrow).to(torch.uint8).permute(0, 2, 3, 1))
    return padded(torch.cat(parts))


def resize_matrix(start: Tensor, length: Tensor, extent: int, size: int, *, interpolation: str = "bicubic") -> Tensor:
    """Return weights (B, S, extent) that resize pixels start to start + length to S pixels."""
    support, weight = FILTERS[interpolation]
    start, length = start.double().view(-1, 1, 1), length.double().view(-1, 1, 1)
    scale = length / size
    stretch = scale.clamp(min=1)  # of the filter, which is wider for downscaling
    reach = support * stretch  # pixels of the source
    centre = (torch.arange(size, device=start.device).view(1, -1, 1) + 0.5) * scale
    first = (centre - reach + 0.5).floor().clamp(min=0) + start
    last = torch.minimum((centre + reach + 0.5).floor(), length) + start
    place = torch.arange(extent, device=start.device, dtype=torch.float32)
    distance = ((place + 0.5 - (centre + start).float()) / stretch.float()).abs()
    kernel = weight(distance) * ((place >= first.float()) & (place < last.float()))
    return kernel / kernel.sum(dim=2, keepdim=True)


def _rounded(values: Tensor) -> Tensor:
    """Round and clamp values, as Pillow's resize does after each of its two passes."""
    return (values + 0.5).floor_().clamp_(0, 255)
