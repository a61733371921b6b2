"""The rank of this process and the number of processes, from the environment that torchrun sets."""

import os
from typing import NamedTuple

from pycls_std.core.text import shortened


class Launch(NamedTuple):
    """The place of a process among those of a run; a single one unless torchrun started several."""

    rank: int = 0  # among all
    size: int = 1  # processes
    local_rank: int = 0  # among those of this machine


def launch() -> Launch:
    """Return this process's place, from the environment.

    Raises ValueError that names a variable that is not a number, or is not set although there are several processes.
    """
    size = _number("WORLD_SIZE", default=1)
    return Launch(_number("RANK"), size, _number("LOCAL_RANK")) if size > 1 else Launch()


def _number(name: str, default: int | None = None) -> int:
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    if text is None:
        size = os.environ["WORLD_SIZE"]
        raise ValueError(f"the environment variable WORLD_SIZE is {size}, and {name} is not set: torchrun sets both")
    if not text.isdecimal():
        raise ValueError(f"the environment variable {name} is {shortened(text)!r}, expected a whole number")
    return int(text)
