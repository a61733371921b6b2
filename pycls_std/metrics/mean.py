"""Base of most metrics: means over the images of all processes.

Shapes: B images.
"""

from torch import Tensor

from pycls_std.core.meters import Meters
from pycls_std.core.structures import World


class MeanMetric:
    """Scores that are means over images; a metric overrides `each`, TASK and SCORES.

    Each image counts once, however images are distributed over batches and processes. A metric that needs all images at
    once has the same methods, and collects its data by `world.gather`.
    """

    TASK = ""  # name of the task whose predictions it takes
    # By name: label, unit, whether higher or lower is better; and `shown`, false for a score that is not in an epoch's
    # line, has no published value, and is only in tables that request it by name, or all columns.
    SCORES: dict[str, dict] = {}

    def __init__(self):
        self.meters = Meters()

    def update(self, prediction: Tensor, targets: Tensor) -> None:
        """Add the prediction and the targets of a batch."""
        values = self.each(prediction, targets)
        self.meters.add(values, len(next(iter(values.values()))))

    def compute(self, world: World) -> dict[str, float]:
        """Return the scores over the images of all processes."""
        return self.meters.read(world)

    def each(self, prediction: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the values (B,) of every score, by name."""
        raise NotImplementedError
