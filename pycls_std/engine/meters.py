"""Averages that stay on the device until they are read.

Shapes: B batch, K classes.
"""

import torch
from torch import Tensor


class Meters:
    """Means of named values, each weighted by the number of images it stands for."""

    def __init__(self):
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: dict[str, Tensor], count: int = 1) -> None:
        """Add values, each the mean over `count` images."""
        for name, value in values.items():
            value = value.detach().double() * count
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + count

    def read(self) -> dict[str, float]:
        """Return all means; this waits for the device."""
        if not self.sums:
            return {}
        totals = torch.stack(list(self.sums.values())).tolist()
        return {name: total / self.counts[name] for name, total in zip(self.sums, totals, strict=True)}


def accuracies(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return top-1 and top-5 accuracy in percent; with fewer than 5 classes, top-5 counts all of them.

    logits: (B, K). labels: (B,).
    """
    found = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels.unsqueeze(1)
    return {"top1": 100 * found[:, 0].double().mean(), "top5": 100 * found.any(dim=1).double().mean()}
