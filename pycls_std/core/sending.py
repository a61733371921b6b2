"""A pinned, non-blocking copy of arrays from the host to a device."""

import numpy as np
import torch
from torch import Tensor


def send(values: np.ndarray, device: torch.device) -> Tensor:
    """Return an array as a tensor on a device, by a non-blocking copy; on the CPU it shares the array's memory.

    Only copies from contiguous pinned memory are asynchronous: for any other, the host waits until it has been read, or
    made contiguous.
    """
    if device.type == "cpu":
        return torch.from_numpy(values)
    return torch.from_numpy(np.ascontiguousarray(values)).pin_memory().to(device, non_blocking=True)
