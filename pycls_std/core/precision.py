"""Arithmetic in the precision of its operands, for what loses too much in the run's."""

from contextlib import AbstractContextManager, nullcontext

import torch


def full_precision(device: torch.device) -> AbstractContextManager:
    """Return the context in which operations keep the precision of their operands, within autocast too."""
    if device.type == "meta":  # which has no autocast, for nothing is computed there
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
