"""An asynchronous copy of tensors from the device to the host, without synchronization until they are read."""

import torch
from torch import Tensor


class Arriving:
    """An asynchronous copy to the host, in pinned memory, of tensors as they are now.

    CPU tensors are not copied, unless kept: then they are copied at once, to be safe from later changes.
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
        """Return the tensors on the host; wait until they are copied."""
        if self.event:
            self.event.synchronize()
        return self.copies


def _copied(tensor: Tensor, *, pinned: bool) -> Tensor:
    """Return a copy on the host, or pinned memory that the device asynchronously writes the copy to."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned).copy_(tensor, non_blocking=True)
