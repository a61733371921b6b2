"""What a step would wait for on a device, found on a CPU."""

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# What reads values from a device, or has an output whose size depends on them.
READS = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "equal", "unique", "bincount")


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
