"""What a step does, operation by operation: that it waits for nothing on a device, and how it multiplies."""

from torch.utils._python_dispatch import TorchDispatchMode

from pycls_std.engine.arithmetic import PRODUCTS
from pycls_std.measure.operations import Operations


class NoReads(Operations):
    """Raises at each wait that `Operations` counts."""

    def wait(self, what):
        raise AssertionError(what)


class Products(TorchDispatchMode):
    """Takes down the products that are computed within it, each with the type of what it multiplies."""

    def __init__(self):
        super().__init__()
        self.products = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in PRODUCTS:
            self.products.append((str(function), args[0].dtype))
        return function(*args, **kwargs or {})
