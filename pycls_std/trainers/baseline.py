"""Plain supervised training."""

from torch import Tensor

from pycls_std.core.registry import TRAINERS
from pycls_std.core.structures import Batch, Progress
from pycls_std.losses.classification import soft_target_cross_entropy
from pycls_std.models.plain_student import PlainStudent
from pycls_std.trainers.base import BaseTrainer
from pycls_std.trainers.mine import refuse_mine


@TRAINERS.register("baseline")
class Baseline(BaseTrainer):
    """Cross-entropy with the (mixed, smoothed) labels."""

    @classmethod
    def from_cfg(cls, cfg, *, backbone, teachers):
        """Build from options. Raises ValueError for options that would have no effect."""
        if teachers:
            raise ValueError(f"TRAINER baseline uses no teachers, DISTILLATION.TEACHERS has {len(teachers)}")
        refuse_mine("baseline", cfg.MINE.SAMPLES)
        return cls(PlainStudent(backbone))

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return {"ce"}."""
        return {"ce": soft_target_cross_entropy(self.forward(batch.images).logits, batch.targets)}
