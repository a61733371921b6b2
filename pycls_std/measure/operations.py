"""Count what a device would be given, seen on the CPU: operations, copies of what the host has, and waits."""

import sys
from collections import Counter
from types import FrameType

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pycls_std.core.sending import send

# What reads values from a device, or has an output whose size depends on them.
READS = {"local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "equal", "bincount"}
READS |= {"unique2", "unique_dim", "unique_consecutive", "repeat_interleave"}
READS |= {"linalg_check_errors", "linalg_matrix_exp", "linalg_eigh", "linalg_svd"}
TO_THE_HOST = ("cpu", "numpy", "tolist", "__array__")  # methods that are no operation, or a harmless one, on a CPU
NOTHING = ("empty", "new_empty", "set", "resize", "record_function")  # how names of what computes nothing begin


class Operations(TorchDispatchMode):
    """Counts what is done within it.

    operations: by name, each of which is a kernel or more on a device; views, allocations and the below are none.
    copies: how often `send` takes values of the host to the device, which nothing waits for. waits: in words, each time
    that the host would wait for the device: where it reads a value, or where a tensor is made of the host's values
    otherwise than by `send`.
    A copy to the host is seen by the method's name, and by the name "cpu": of a tensor of the CPU it is the tensor.
    """

    def __init__(self):
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.copies = 0
        self.waits: list[str] = []
        self._calls = _CopiesToTheHost(self.wait)

    def wait(self, what: str) -> None:
        """Take down a wait."""
        self.waits.append(what)

    def __enter__(self):
        self._calls.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._calls.__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__.lstrip("_")
        if name == "lift_fresh":  # what torch.tensor, torch.from_numpy and a list as an index are
            if _is_sent():
                self.copies += 1
            else:
                self.wait("values of the host are not sent by `send`")
        elif name in READS:
            self.wait(f"{function} reads from the device")
        elif not function.is_view and not name.startswith(NOTHING):
            self.operations[name] += 1
        if name in ("index", "index_put", "index_put_") and _has_mask(args[1]):
            self.wait("a mask is read from the device")
        return function(*args, **(kwargs or {}))


class _CopiesToTheHost(TorchFunctionMode):
    """Calls `wait` at each copy to the CPU."""

    def __init__(self, wait):
        super().__init__()
        self.wait = wait

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name, kwargs = getattr(function, "__name__", ""), kwargs or {}
        to_cpu = name == "to" and "cpu" in [each for each in (*args, *kwargs.values()) if type(each) is str]
        if name in TO_THE_HOST or to_cpu:
            self.wait(f"Tensor.{name} copies to the host, and waits for it")
        return function(*args, **kwargs)


def _has_mask(indices) -> bool:
    return any(getattr(index, "dtype", None) in (torch.bool, torch.uint8) for index in tree_leaves(indices))


def _is_sent() -> bool:
    frame: FrameType | None = sys._getframe()
    while frame and frame.f_code is not send.__code__:
        frame = frame.f_back
    return frame is not None
