"""Learning rates as pure functions of progress.

`SCHEDULES[name](progress)` is the learning rate on a scale from 0 (lowest) to 1 (peak) at a progress in [0, 1];
`PERIODS[name](progress, epochs)` is the progress whose learning rate is used at a progress.
"""

import math
from bisect import bisect_right
from collections.abc import Callable
from functools import partial


def cosine(progress: float) -> float:
    """Half a cosine from 1 to 0."""
    return (1 + math.cos(math.pi * progress)) / 2


def step(progress: float, steps: tuple[float, ...] = (), gamma: float = 0.1) -> float:
    """1, multiplied by gamma at each of the steps, ascending values of progress."""
    return gamma ** bisect_right(steps, progress)


def constant(progress: float) -> float:
    """1 throughout."""
    return 1.0


SCHEDULES: dict[str, Callable[..., float]] = {"cosine": cosine, "step": step, "constant": constant}


def each_step(progress: float, epochs: int) -> float:
    """The progress itself."""
    return progress


def each_epoch(progress: float, epochs: int, late: int = 0) -> float:
    """The progress at the start of its epoch, of so many in the run, or of the one `late` epochs before."""
    # At the start of an epoch, the product may be rounded to just below the whole number. What is added is more than
    # this rounding error, and less than a step of any run.
    epoch = math.floor(progress * epochs * (1 + 1e-15))
    return max(epoch - late, 0) / epochs


PERIODS: dict[str, Callable[[float, int], float]] = {
    "step": each_step,
    "epoch": each_epoch,
    "epoch_late": partial(each_epoch, late=1),
}


def learning_rate(
    progress: float, *, shape: Callable[[float], float], peak: float, lowest: float, warmup: float, warmup_lr: float
) -> float:
    """Return the learning rate at a progress in [0, 1].

    It rises linearly from warmup_lr to peak while progress is below warmup, and is lowest + (peak - lowest) *
    shape(progress) after that. The shape is counted from the start of the run, as in timm, so the warm-up replaces its
    beginning and does not delay it.
    """
    if progress < warmup:
        return warmup_lr + (peak - warmup_lr) * progress / warmup
    return lowest + (peak - lowest) * shape(progress)
