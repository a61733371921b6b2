"""Scores of one prediction, by all metrics of a task."""

from pycls_std.core.registry import METRICS
from pycls_std.core.structures import World


class Evaluator:
    """Takes predictions batch by batch, and computes the scores of all registered metrics of a task."""

    def __init__(self, task: str):
        self.metrics = [make() for make in METRICS.entries.values() if task == make.TASK]

    def update(self, prediction, targets) -> None:
        """Add the prediction and the targets of a batch."""
        for metric in self.metrics:
            metric.update(prediction, targets)

    def compute(self, world: World) -> dict[str, float]:
        """Return the scores by name, over the images of all processes, which must all call this.

        Scores that are undefined on these images are omitted, except the task's RESULT.
        """
        return {score: float(value) for metric in self.metrics for score, value in metric.compute(world).items()}


def scores_of(task: str) -> dict[str, dict]:
    """Return the scores of a task's metrics by name, each with its label, its unit and whether higher is better."""
    kinds = [kind for kind in METRICS.entries.values() if task == kind.TASK]
    return {score: facts for kind in kinds for score, facts in kind.SCORES.items()}
