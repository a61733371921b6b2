"""Learning rates as pure functions of progress.

`SCHEDULES[name](progress)` gives the share of the way from the lowest to the peak rate at a progress in [0, 1].
"""

import math
from bisect import bisect_right
from collections.abc import Callable


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


def learning_rate(
    progress: float, *, shape: Callable[[float], float], peak: float, lowest: float, warmup: float, warmup_lr: float
) -> float:
    """Return the learning rate at a progress in [0, 1].

    It rises linearly from warmup_lr to peak while progress is below warmup, and is lowest + (peak - lowest) *
    shape(progress) after that. The shape is counted from the start of the run, as timm counts it, so the warm-up hides
    its beginning and does not delay it.
    """
    if progress < warmup:
        return warmup_lr + (peak - warmup_lr) * progress / warmup
    return lowest + (peak - lowest) * shape(progress)
