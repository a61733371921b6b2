"""What teachers' logits ask of a student's, as section DISTILLATION has it: one term for every method.

Shapes: ... any leading dimensions, B batch, K classes, M teachers.
"""

import torch
from torch import Tensor

from pycls_std.core.structures import TeacherOutput
from pycls_std.losses.confidence import WEIGHTINGS
from pycls_std.losses.logit import decoupled_distillation, hard_distillation, soft_distillation, standardized


class LogitTerm:
    """A form of distillation, on raw or standardized logits, and the weights of several teachers.

    form(student_logits, teacher_logits, targets) gives one value an image. weighting(teacher_logits) gives (B, M).
    standardize: on both sides; the values are then times extra_weight.
    """

    def __init__(self, form, weighting, *, standardize: bool = False, extra_weight: float = 1.0):
        self.form = form
        self.weighting = weighting
        self.standardize = standardize
        self.extra_weight = extra_weight

    @classmethod
    def from_cfg(cls, cfg, *, form: str = ""):
        """Build from section DISTILLATION. form: in the place of DISTILLATION.TYPE."""
        options = cfg.DISTILLATION
        temperature, parts = options.TEMPERATURE, {"alpha": options.DKD_ALPHA, "beta": options.DKD_BETA}
        forms = {
            "hard": lambda student, teacher, targets: hard_distillation(student, teacher),
            "soft": lambda student, teacher, targets: soft_distillation(student, teacher, temperature),
            "decoupled": lambda student, teacher, targets: decoupled_distillation(
                student, teacher, targets.argmax(dim=-1), temperature, **parts
            ),
        }
        return cls(
            forms[form or options.TYPE],
            WEIGHTINGS[options.WEIGHTING],
            standardize=options.LOGIT_STANDARD,
            extra_weight=options.EXTRA_WEIGHT,
        )

    def each(self, student_logits: Tensor, teacher_logits: Tensor, targets: Tensor) -> Tensor:
        """Return one value in nats for each image of (..., B, K) logits.

        targets: (B, K) probabilities; the target class of a mixed image, for the decoupled form, is the one it has most
        of.
        """
        if not self.standardize:
            return self.form(student_logits, teacher_logits, targets)
        return self.extra_weight * self.form(standardized(student_logits), standardized(teacher_logits), targets)

    def over_teachers(
        self, student_logits: Tensor, taught: list[TeacherOutput], targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the mean over the batch of the weighted sum over all teachers, and the weights (B, M).

        student_logits: (B, K), compared with every teacher.
        """
        teacher_logits = torch.stack([teacher.logits for teacher in taught])
        weights = self.weighting(teacher_logits)
        each = self.each(student_logits.expand_as(teacher_logits), teacher_logits, targets)  # (M, B)
        return (weights.T * each).sum(dim=0).mean(), weights
