"""Arithmetic in the precision of its operands, for what loses too much in the run's."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


def full_precision(device: torch.device) -> AbstractContextManager:
    """Return the context in which operations keep the precision of their operands, within autocast too."""
    if device.type == "meta":  # which has no autocast, for nothing is computed there
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
