"""Batched random numbers of views, each a pure function of (seed, view, index).

They are always drawn on the CPU, so that views do not depend on the device, the batch size or the processes.
Source: SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) in counter mode.
Shapes: B views.
"""

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class CounterRNG:
    """Successive random numbers of each of B views; the n-th number of a view depends only on n and its address.

    views, indices: (B,) integers, the address of each view.
    """

    def __init__(self, seed: int, views: np.ndarray, indices: np.ndarray):
        key = _mix(np.full(len(indices), seed, dtype=np.uint64))
        key = _mix(key + views.astype(np.uint64) * GOLDEN)
        self.keys = _mix(key + indices.astype(np.uint64) * GOLDEN)
        self.used = 0

    def uniform(self, count: int) -> np.ndarray:
        """Return (B, count) numbers in [0, 1)."""
        counters = np.arange(self.used + 1, self.used + 1 + count, dtype=np.uint64) * GOLDEN
        self.used += count
        bits = _mix(self.keys[:, None] + counters)
        return (bits >> np.uint64(11)) * 2.0**-53

    def between(self, low: float, high: float, count: int) -> np.ndarray:
        """Return (B, count) numbers in [low, high)."""
        return low + (high - low) * self.uniform(count)

    def below(self, limits: np.ndarray) -> np.ndarray:
        """Return integers from 0 to limits - 1; limits: (B, count)."""
        return (self.uniform(limits.shape[1]) * limits).astype(np.int64)

    def normal(self, count: int) -> np.ndarray:
        """Return (B, count) standard normal numbers (Box and Muller)."""
        radius = np.sqrt(-2 * np.log1p(-self.uniform(count)))
        return radius * np.cos(2 * np.pi * self.uniform(count))


def _mix(z: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser; unsigned arrays wrap around silently."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
