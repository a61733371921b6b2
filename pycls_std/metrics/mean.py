"""What most metrics are: means over images, of all processes.

Shapes: B images.
"""

from torch import Tensor

from pycls_std.core.meters import Meters
from pycls_std.core.structures import World


class MeanMetric:
    """Scores that are means over images; a metric overrides `each`, and says its task and its scores.

    Each image counts once, however the images fall into batches and processes. A metric that needs all images at once
    has the same three methods and gathers what it needs by `world.gather`.
    """

    TASK = ""  # name of the task whose predictions it takes
    # By name: label, unit, which of higher and lower is better; and `shown`, false for one that stands in no line of an
    # epoch, has no published value, and is in those tables alone that ask for it by its name, or for all columns.
    SCORES: dict[str, dict] = {}

    def __init__(self):
        self.meters = Meters()

    def update(self, prediction: Tensor, targets: Tensor) -> None:
        """Take the prediction and the targets of a batch."""
        values = self.each(prediction, targets)
        self.meters.add(values, len(next(iter(values.values()))))

    def compute(self, world: World) -> dict[str, float]:
        """Return the scores over the images of all processes."""
        return self.meters.read(world)

    def each(self, prediction: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return (B,) values of every score."""
        raise NotImplementedError
