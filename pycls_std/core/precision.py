"""Full precision, for operations that lose too much in the precision of the run."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


def full_precision(device: torch.device) -> AbstractContextManager:
    """Return a context without autocast: operations compute in the precision of their operands."""
    if device.type == "meta":  # which has no autocast, as nothing is computed there
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


@contextmanager
def without_tf32(device: torch.device) -> Iterator[None]:
    """Return the context in which fp32 products are in full fp32, whatever CUDA.TF32 is."""
    before = torch.backends.cuda.matmul.allow_tf32
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = before
