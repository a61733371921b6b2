"""What a step does, operation by operation: what it would wait for on a device, and how it multiplies."""

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pycls_std.engine.arithmetic import PRODUCTS

# What reads values from a device, or has an output whose size depends on them.
READS = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "equal", "unique", "bincount")
READS += ("_linalg_check_errors", "linalg_matrix_exp", "linalg_eigh")


class NoReads(TorchDispatchMode):
    """Raises at each operation that would wait for the device, unless all it reads is known to be on the CPU."""

    def __init__(self):
        super().__init__()
        self.operations = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__.lstrip("_")
        self.operations[name] += 1
        if name in {read.lstrip("_") for read in READS}:
            raise AssertionError(f"{function} reads from the device")
        if name in ("index", "index_put", "index_put_"):
            assert not any(getattr(leaf, "dtype", None) == torch.bool for leaf in tree_leaves(args)), "a mask is read"
        return function(*args, **(kwargs or {}))


class Products(TorchDispatchMode):
    """Takes down the products that are computed within it, each with the type of what it multiplies."""

    def __init__(self):
        super().__init__()
        self.products = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in PRODUCTS:
            self.products.append((str(function), args[0].dtype))
        return function(*args, **kwargs or {})
