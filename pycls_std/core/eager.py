"""What a compiler of the step leaves as it is, for what hands its values to the host and has no fixed sizes."""

from collections.abc import Callable
from typing import TypeVar

import torch

Function = TypeVar("Function", bound=Callable)


def eager(function: Function) -> Function:
    """Return a function that runs as it stands, between the compiled parts before it and after it."""
    return torch.compiler.disable(function)
