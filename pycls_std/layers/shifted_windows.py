"""Windows of a feature map, shifted or not, and their attention masks, also for padded images.

Shapes: B batch, H height, W width, C channels, N positions of a window, K windows of a map.
"""

from collections.abc import Callable

import torch
from timm.models.swin_transformer import window_partition, window_reverse
from torch import Tensor
from torch.nn.functional import pad

NEVER = -1e4  # bias of masked attention: its exponential is zero, and it is finite in half precision


def in_windows(x: Tensor, attend: Callable[[Tensor], Tensor], *, window: int, shift: int) -> Tensor:
    """Apply `attend` to the windows (B K, N, C) of a map (B, H, W, C); return the result as a map.

    The map is padded with zeros to whole windows, and attention includes this padding; then it is rolled by the shift.
    """
    height, width, channels = x.shape[1:]
    x = pad(x, (0, 0, 0, -width % window, 0, -height % window))
    padded = x.shape[1:3]
    if shift:
        x = x.roll((-shift, -shift), dims=(1, 2))
    windows = window_partition(x, (window, window)).flatten(1, 2)
    windows = attend(windows).unflatten(1, (window, window))
    x = window_reverse(windows, (window, window), *padded)
    if shift:
        x = x.roll((shift, shift), dims=(1, 2))
    return x[:, :height, :width]


def shifted_mask(size: tuple[int, int], *, window: int, shift: int, mask: Tensor | None, like: Tensor) -> Tensor:
    """Return the attention bias of rolled windows: (K, N, N), or (B K, N, N) with a mask.

    Positions that the roll brings together from opposite ends of the map do not attend to each other. size: height and
    width of the map. mask: (B, H, W) true where there is image; None = everywhere. With it, an image attends to as many
    zeros as it would alone, those that pad it to whole windows. like: a tensor of the device and dtype to use.
    """
    height, width = (length + -length % window for length in size)
    rolled = [torch.arange(length, device=like.device) < shift for length in (height, width)]  # to the other end
    region = (2 * rolled[0][:, None] + rolled[1])[None]
    region = _windows(region, window, shift)
    allowed = region[:, :, None] == region[:, None, :]
    if mask is not None:
        own = mask[:, ::window, ::window]  # whole windows that an image reaches into
        own = own.repeat_interleave(window, dim=1).repeat_interleave(window, dim=2)
        keys = _windows(own, window, shift).unflatten(0, (len(mask), -1))
        allowed = (allowed & keys[:, :, None]).flatten(0, 1)
    return torch.zeros(allowed.shape, device=like.device, dtype=like.dtype).masked_fill(~allowed, NEVER)


def _windows(places: Tensor, window: int, shift: int) -> Tensor:
    """Return the windows (B K, N) of values (B, H, W)."""
    rolled = places.roll((-shift, -shift), dims=(1, 2))[..., None]
    return window_partition(rolled, (window, window)).flatten(1)
