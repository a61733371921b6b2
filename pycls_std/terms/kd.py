"""Logit distillation (KD) for any student and any number of teachers."""

from collections.abc import Sequence

from torch import Tensor

from pycls_std.core.option import Option
from pycls_std.core.registry import TERMS
from pycls_std.core.structures import Batch, Output, Progress
from pycls_std.models.describe import Description
from pycls_std.terms.logits import LogitLoss, LogitTerm, mean_weights, need_logits


@TERMS.register("kd")
class KD(LogitTerm):
    """weight D(logits, teachers), each teacher with its own weight.

    D is any form of section DISTILLATION, of raw or standardized logits. If the student has a distillation head, D
    applies to that head, and the class head is trained by the labels alone.
    Source: Hinton et al., 2015; Touvron et al., ICML 2021; Zhao et al., CVPR 2022; Sun et al., CVPR 2024.
    """

    OPTIONS = {
        # Weight of logit distillation; 0 = off. If this or TASK.WEIGHT is 0, a student with two heads is trained as one
        # head, their average.
        "WEIGHT": Option(0.0, least=0, student=True),
        # Epochs of linear warm-up of the weight, constant within an epoch, at most OPTIM.MAX_EPOCH; 0 = off.
        "WARMUP_EPOCHS": Option(0, least=0, within="OPTIM.MAX_EPOCH"),
    }
    READS = ("DISTILLATION.",)
    SPLITS_HEADS = True

    def __init__(self, loss: LogitLoss, teachers: Sequence[Description], *, head: str, weight: float, warmup: int = 0):
        super().__init__(weight)
        self.loss = loss
        self.described = teachers
        self.teacher_heads = tuple(range(len(teachers)))
        self.heads = (head,)
        self.warmup = warmup
        self.no_graph = f"KD.WARMUP_EPOCHS {warmup}, whose weight changes every epoch" if warmup else ""

    @classmethod
    def from_cfg(cls, cfg, run, student):
        """Build from sections KD and DISTILLATION. Raises ValueError if no teacher has logits."""
        need_logits("KD.WEIGHT", run)
        return cls(
            LogitLoss.from_cfg(cfg, run.task.classes),
            run.teachers,
            head="dist" if "dist" in student.heads else "cls",
            weight=cfg.KD.WEIGHT,
            warmup=cfg.KD.WARMUP_EPOCHS,
        )

    def forward(self, student: Output, teachers: list[Output], batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return {"kd"}."""
        value, weights = self.loss.over_teachers(student.heads[self.heads[0]], teachers, batch.targets, progress)
        self.monitors = mean_weights(weights, self.described) | self.loss.learned_values("kd")
        return {"kd": progress.warmed(self.warmup) * self.weight * value}
