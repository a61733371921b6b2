"""The task's own loss, with the labels."""

from torch import Tensor

from pycls_std.core.registry import TERMS
from pycls_std.core.structures import Batch, Output, Progress
from pycls_std.terms.base import Term


@TERMS.register("task")
class TaskLoss(Term):
    """The losses of the task times TASK.WEIGHT; in classification `ce`, cross-entropy with mixed, smoothed labels.

    prediction: the one that the reported scores are of; monitors are computed of it.
    """

    READS = ()

    def __init__(self, task, weight: float, prediction: str):
        super().__init__(weight)
        self.task = task
        self.prediction = prediction
        self.heads = task.HEADS

    @classmethod
    def from_cfg(cls, cfg, run, student):
        """Build from section TASK. Raises ValueError if the student's heads do not match the task's losses."""
        run.task.check_heads(student.heads)
        default, *_ = run.task.prediction_heads(student.heads)
        return cls(run.task, cfg.TASK.WEIGHT, cfg.TEST.PREDICTION or default)

    def forward(self, student: Output, teachers: list[Output], batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return the task's losses, weighted."""
        found = self.task.losses(student, batch, self.world)
        self.monitors = self.task.monitors(student, batch, self.prediction)
        return {name: self.weight * value for name, value in found.items()}
