"""What torchrun told this process: which of how many it is."""

import os
from typing import NamedTuple

from pycls_std.core.text import shortened


class Launch(NamedTuple):
    """A process among those of a run; alone unless torchrun started several."""

    rank: int = 0  # among all
    size: int = 1  # processes
    local_rank: int = 0  # among those of this machine


def launch() -> Launch:
    """Return this process's place, by the environment. Raises ValueError that names a variable which is no number."""
    size = _number("WORLD_SIZE", "1")
    if size == 1 or "RANK" not in os.environ:
        return Launch()
    return Launch(_number("RANK", "0"), size, _number("LOCAL_RANK", "0"))


def _number(name: str, default: str) -> int:
    text = os.environ.get(name, default)
    if not text.isdecimal():
        raise ValueError(f"the environment variable {name} is {shortened(text)!r}, expected a whole number")
    return int(text)
