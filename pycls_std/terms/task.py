"""The task's own loss: what the labels teach."""

from torch import Tensor

from pycls_std.core.registry import TERMS
from pycls_std.core.structures import Batch, Output, Progress
from pycls_std.terms.base import Term


@TERMS.register("task")
class TaskLoss(Term):
    """The losses of the task times TASK.WEIGHT; in classification `ce`, cross-entropy with mixed, smoothed labels."""

    READS = ()

    def __init__(self, task, weight: float):
        super().__init__(weight)
        self.task = task
        self.heads = task.HEADS

    @classmethod
    def from_cfg(cls, cfg, run, student):
        """Build from section TASK. Raises ValueError for a student of other heads than the task's losses take."""
        run.task.check_heads(student.heads)
        return cls(run.task, cfg.TASK.WEIGHT)

    def forward(self, student: Output, teachers: list[Output], batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return the task's losses, weighted."""
        found = self.task.losses(student, batch, self.world)
        return {name: self.weight * value for name, value in found.items()}
