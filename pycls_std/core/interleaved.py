"""Time several ways to do the same thing in turns, so that a noisy machine treats them alike."""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median


def interleaved(
    ways: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 1, wait: Callable[[], object] = lambda: None
) -> dict[str, list[float]]:
    """Return the seconds that each way took in each round; a round calls every way once, in their order.

    warmup: rounds before, which are not counted. wait: device synchronization, called before the clock is read.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repetition in range(-warmup, rounds):
        for name, way in ways.items():
            wait()
            start = time.perf_counter()
            way()
            wait()
            if repetition >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def report(seconds: dict[str, list[float]], *, amount: float = 0.0, unit: str = "") -> list[str]:
    """Return a line for each way: its median, and how many times faster it is than the first, median and range.

    amount, unit: what one call does, such as 128 images, for a rate.
    """
    base = next(iter(seconds.values()))
    width = max(map(len, seconds))
    lines = []
    for name, own in seconds.items():
        ratios = [first / second for first, second in zip(base, own, strict=True)]
        rate = f"  {amount / median(own):12.1f} {unit}/s" if amount else ""
        told = f"  {median(ratios):6.2f}x ({min(ratios):.2f} to {max(ratios):.2f})" if own is not base else ""
        lines.append(f"{name:{width}s}  {1e3 * median(own):10.2f} ms{rate}{told}")
    return lines


def spread(ratios: Sequence[float], digits: int = 2) -> str:
    """Return the median and the range of ratios, each of two times from the same round."""
    return f"{median(ratios):.{digits}f} ({min(ratios):.{digits}f} to {max(ratios):.{digits}f})"
