"""Arithmetic in the precision of its operands, for what loses too much in the run's."""

from contextlib import AbstractContextManager

import torch


def full_precision(device: torch.device) -> AbstractContextManager:
    """Return the context in which operations keep the precision of their operands, within autocast too."""
    return torch.autocast(device.type, enabled=False)
