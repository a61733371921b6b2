"""Logit distillation (KD) for any student and any number of teachers."""

from torch import Tensor

from pycls_std.core.registry import TRAINERS
from pycls_std.core.structures import Batch, Progress
from pycls_std.losses.classification import soft_target_cross_entropy
from pycls_std.models.distilled_student import DistilledStudent, create_student
from pycls_std.models.plain_student import PlainStudent
from pycls_std.trainers.base import BaseTrainer
from pycls_std.trainers.logit_term import LogitTerm
from pycls_std.trainers.mine import refuse_mine


@TRAINERS.register("kd")
class KD(BaseTrainer):
    """Class loss, and the distillation loss of the logits from all teachers, each with its own weight.

    L = ce_weight CE(class head, labels) + kd_weight D(logits, teachers)
    D is that of section DISTILLATION: hard, soft or decoupled (DKD), of raw or standardized logits. Where the student
    has a distillation head, D is that head's, and the class head learns from the labels alone; both need a weight then.
    What weighs 0 is not computed.
    Source: Hinton et al., 2015; Zhao et al., CVPR 2022; Sun et al., CVPR 2024. Defaults are mdistiller's for soft
    distillation at temperature 4.
    """

    OPTIONS = {
        # Weight of the class loss.
        "CE_WEIGHT": 0.1,
        # Weight of the distillation loss.
        "KD_WEIGHT": 0.9,
        # Epochs over which the distillation loss grows to its weight, by a step each; 0 = off.
        "WARMUP_EPOCHS": 0,
    }
    WEIGHED_BY = {"ce": "KD.CE_WEIGHT", "distill": "KD.KD_WEIGHT"}

    def __init__(
        self, student: PlainStudent, teachers, term: LogitTerm, *, ce_weight: float, kd_weight: float, warmup: int = 0
    ):
        if isinstance(student, DistilledStudent):
            self.PREDICTIONS = ("avg", "cls", "dist")
            for name, weight in (("ce", ce_weight), ("distill", kd_weight)):
                if not weight:
                    raise ValueError(f"{self.WEIGHED_BY[name]}: {name} weighs 0, and one of two heads would not learn")
        super().__init__(student, teachers)
        self.term = term
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight
        self.warmup = warmup

    @classmethod
    def from_cfg(cls, cfg, *, backbone, teachers):
        """Build from sections KD and DISTILLATION. Raises ValueError if there is no teacher or no term, or MINE."""
        if not teachers:
            raise ValueError("TRAINER kd needs at least one teacher, DISTILLATION.TEACHERS is empty")
        refuse_mine("kd", cfg.MINE.SAMPLES)
        for name, value in cfg.KD.items():
            if value < 0:
                raise ValueError(f"KD.{name} is {value}, expected at least 0")
        if not cfg.KD.CE_WEIGHT + cfg.KD.KD_WEIGHT:
            raise ValueError("KD.CE_WEIGHT and KD.KD_WEIGHT are 0, so there is nothing to learn from")
        return cls(
            create_student(backbone),
            teachers,
            LogitTerm.from_cfg(cfg),
            ce_weight=cfg.KD.CE_WEIGHT,
            kd_weight=cfg.KD.KD_WEIGHT,
            warmup=cfg.KD.WARMUP_EPOCHS,
        )

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return {"ce", "distill"}, weighted; without what weighs 0."""
        output = self.forward(batch.images)
        losses = {}
        if self.ce_weight:
            losses["ce"] = self.ce_weight * soft_target_cross_entropy(output.logits, batch.targets)
        if self.kd_weight:
            learner = output.logits if output.distillation is None else output.distillation[0]
            value, weights = self.term.over_teachers(learner, self.taught(batch), batch.targets)
            self.watch(weights)
            grown = min(1.0, (progress.epoch + 1) / self.warmup) if self.warmup else 1.0
            losses["distill"] = grown * self.kd_weight * value
        return losses

    def deployed_parameters(self) -> int:
        """Return all parameters but those of a head that `prediction` does not need."""
        return super().deployed_parameters() - self.student.unused_parameters(self.prediction)
