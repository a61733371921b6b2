"""An asynchronous copy of tensors from the device to the host, which nothing waits for until they are read."""

import torch
from torch import Tensor


class Arriving:
    """An asynchronous copy to the host, in pinned memory, of tensors as they are now.

    Those of a CPU are the tensors themselves, and nothing is copied.
    """

    def __init__(self, tensors: dict[str, Tensor]):
        self.copies = tensors
        self.event = None
        if any(tensor.is_cuda for tensor in tensors.values()):
            self.copies = {name: _pinned(tensor) for name, tensor in tensors.items()}
            self.event = torch.cuda.Event()
            self.event.record()

    def values(self) -> dict[str, Tensor]:
        """Return them on the host; wait until they are there."""
        if self.event:
            self.event.synchronize()
        return self.copies


def _pinned(tensor: Tensor) -> Tensor:
    """Return what will be a copy, in pinned memory, which the device writes to while the host goes on."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
