"""Modes of torch that hold for a whole process, and are set back after a test, whatever became of it."""

from contextlib import contextmanager

import torch
from torch.backends import cuda, cudnn


def _attribute(place, name):
    return (lambda: getattr(place, name)), (lambda value: setattr(place, name, value))


def _synchronization():
    return torch.cuda.get_sync_debug_mode() if torch.cuda.is_initialized() else 0


def _set_synchronization(value):
    if torch.cuda.is_initialized():
        torch.cuda.set_sync_debug_mode(value)


# how each is read and set
MODES = {
    "threads": (torch.get_num_threads, torch.set_num_threads),
    "gradients": (torch.is_grad_enabled, torch.set_grad_enabled),
    "type of numbers": (torch.get_default_dtype, torch.set_default_dtype),
    "deterministic kernels": (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    "deterministic convolutions": _attribute(cudnn, "deterministic"),
    "new memory is filled": _attribute(torch.utils.deterministic, "fill_uninitialized_memory"),
    "TF32 in convolutions": _attribute(cudnn, "allow_tf32"),
    "TF32 in products": _attribute(cuda.matmul, "allow_tf32"),
    "waits for the device": (_synchronization, _set_synchronization),
}


def read():
    """Return all modes, by name."""
    return {name: get() for name, (get, _) in MODES.items()}


@contextmanager
def kept():
    """Set the modes back at the end, also of what fails."""
    before = read()
    try:
        yield
    finally:
        for name, value in read().items():
            if value != before[name]:
                MODES[name][1](before[name])
