"""What a step does, operation by operation: what it would wait for on a device, and how it multiplies."""

import sys
from collections import Counter
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from pycls_std.core.sending import send
from pycls_std.engine.arithmetic import PRODUCTS

# What reads values from a device, or has an output whose size depends on them.
READS = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "equal", "unique", "bincount")
READS += ("_linalg_check_errors", "linalg_matrix_exp", "linalg_eigh")
COPIES = ("cpu", "numpy", "tolist", "__array__")  # methods that are no operation, or a harmless one, on a CPU


class Operations(TorchDispatchMode):
    """Counts operations, by name."""

    def __init__(self):
        super().__init__()
        self.operations = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.operations[function.overloadpacket.__name__.lstrip("_")] += 1
        return function(*args, **(kwargs or {}))


class NoReads(Operations):
    """Raises at each operation that would wait for the device, and at each tensor that is made of values of the host.

    A device would wait for a copy of these unless `send` makes it.
    """

    def __init__(self):
        super().__init__()
        self.copies = NoCopies()

    def __enter__(self):
        self.copies.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.copies.__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__.lstrip("_")
        if name == "lift_fresh":  # what torch.tensor, torch.from_numpy and a list as an index are
            assert _is_sent(), "values of the host are not sent by `send`"
        if name in {read.lstrip("_") for read in READS}:
            raise AssertionError(f"{function} reads from the device")
        if name in ("index", "index_put", "index_put_"):
            assert not any(getattr(leaf, "dtype", None) == torch.bool for leaf in tree_leaves(args)), "a mask is read"
        return super().__torch_dispatch__(function, types, args, kwargs)


class NoCopies(TorchFunctionMode):
    """Raises at each copy to the CPU by name: of a tensor of the CPU, as in tests, it is the tensor itself."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name, kwargs = getattr(function, "__name__", ""), kwargs or {}
        if (
            name in COPIES
            or name == "to"
            and "cpu" in [each for each in (*args, *kwargs.values()) if type(each) is str]
        ):
            raise AssertionError(f"Tensor.{name} copies to the host, and waits for it")
        return function(*args, **kwargs)


@contextmanager
def on_the_host():
    """What is known to be of the host's own tensors alone: nothing in it is looked at."""
    with _disable_current_modes(), torch._C.DisableTorchFunction():
        yield


def _is_sent() -> bool:
    frame = sys._getframe()
    while frame and frame.f_code is not send.__code__:
        frame = frame.f_back
    return frame is not None


class Products(TorchDispatchMode):
    """Takes down the products that are computed within it, each with the type of what it multiplies."""

    def __init__(self):
        super().__init__()
        self.products = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in PRODUCTS:
            self.products.append((str(function), args[0].dtype))
        return function(*args, **kwargs or {})
