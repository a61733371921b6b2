"""What torchrun told this process: which of how many it is."""

import os
from typing import NamedTuple


class Launch(NamedTuple):
    """A process among those of a run; alone unless torchrun started several."""

    rank: int = 0  # among all
    size: int = 1  # processes
    local_rank: int = 0  # among those of this machine


def launch() -> Launch:
    """Return this process's place, by the environment."""
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1 or "RANK" not in os.environ:
        return Launch()
    return Launch(int(os.environ["RANK"]), size, int(os.environ.get("LOCAL_RANK", 0)))
