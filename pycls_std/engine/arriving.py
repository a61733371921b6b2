"""An asynchronous copy of tensors from the device to the host, which nothing waits for until they are read."""

import torch
from torch import Tensor


class Arriving:
    """An asynchronous copy to the host, in pinned memory, of tensors as they are now.

    Those of a CPU are the tensors themselves, unless kept: then they are copied, too, at once, for what changes them.
    """

    def __init__(self, tensors: dict[str, Tensor], *, kept: bool = False):
        self.copies = tensors
        self.event = None
        on_device = any(tensor.is_cuda for tensor in tensors.values())
        if on_device or kept:
            self.copies = {name: _copied(tensor, pinned=on_device) for name, tensor in tensors.items()}
        if on_device:
            self.event = torch.cuda.Event()
            self.event.record()

    def values(self) -> dict[str, Tensor]:
        """Return them on the host; wait until they are there."""
        if self.event:
            self.event.synchronize()
        return self.copies


def _copied(tensor: Tensor, *, pinned: bool) -> Tensor:
    """Return what is a copy, or will be one in pinned memory, which the device writes to while the host goes on."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned).copy_(tensor, non_blocking=True)
