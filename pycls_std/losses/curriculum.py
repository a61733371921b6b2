"""Distillation at a temperature that is learned adversarially, to increase the loss.

Shapes: ... any leading dimensions, K classes.
"""

import math

from torch import Tensor

from pycls_std.core.registry import LOGIT_LOSSES
from pycls_std.core.structures import Progress
from pycls_std.losses.logit import soft_distillation


def with_gradient(value: Tensor, factor: float) -> Tensor:
    """Return the value with its gradient multiplied by `factor`; a factor below 0 reverses it."""
    return value.detach() + factor * (value - value.detach())


@LOGIT_LOSSES.register("ctkd")
def curriculum_distillation(
    student_logits: Tensor,
    teacher_logits: Tensor,
    theta: Tensor,
    progress: Progress,
    *,
    ctkd_epochs: int = 10,
    ctkd_least: float = 1.0,
    ctkd_range: float = 20.0,
) -> Tensor:
    """Return `soft_distillation` at the temperature ctkd_least + ctkd_range sigmoid(theta).

    theta: a scalar that is trained with the student, but by the reversed gradient, with a factor that falls from 0 to
    -1 over ctkd_epochs by a cosine: so it increases the loss, more so with every epoch.

    student_logits, teacher_logits: (..., K) raw scores.
    Returns (...) values in nats.
    Source: Li et al., AAAI 2023 (CTKD), with the global temperature.
    """
    reversal = -(1 - math.cos(math.pi * progress.warmed(ctkd_epochs))) / 2
    temperature = ctkd_least + ctkd_range * with_gradient(theta, reversal).sigmoid()
    return soft_distillation(student_logits, teacher_logits, temperature)


curriculum_distillation.learned = {"theta": 1.0}
