"""Averages that stay on the device until they are read."""

import numpy as np
import torch
from torch import Tensor

from pycls_std.core.sending import send
from pycls_std.core.structures import World


class Meters:
    """Means of named values, each weighted by the number of images it stands for."""

    def __init__(self):
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: dict[str, Tensor], count: int = 1) -> None:
        """Add values of `count` images: their mean, a scalar, or the value of each, (count,)."""
        for name, value in values.items():
            value = value.detach().double()
            value = value.sum() if value.ndim else value * count
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + count

    def read(self, world: World) -> dict[str, float]:
        """Return all means, over the images of all processes; this synchronizes with the device."""
        if not self.sums:
            return {}
        sums = torch.stack(list(self.sums.values()))
        counts = send(np.array(list(self.counts.values()), dtype=np.float64), sums.device)
        sums, counts = world.sum(torch.stack([sums, counts])).tolist()
        return {name: total / count for name, total, count in zip(self.sums, sums, counts, strict=True)}
