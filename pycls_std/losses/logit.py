"""Distillation from a teacher's logits, one value for each image.

Shapes: ... any leading dimensions, K classes.
"""

from torch import Tensor
from torch.nn.functional import kl_div, log_softmax


def hard_distillation(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the cross-entropy of the student with the teacher's most likely class.

    student_logits, teacher_logits: (..., K) raw scores. temperature has no effect; it is there to match the soft form.
    Returns (...) values in nats.
    Source: Touvron et al., ICML 2021, equation 3.
    """
    labels = teacher_logits.argmax(dim=-1, keepdim=True)
    return -log_softmax(student_logits.float(), dim=-1).gather(-1, labels).squeeze(-1)


def soft_distillation(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return KL(teacher || student) at a temperature T, times T^2 so that gradients keep their size.

    student_logits, teacher_logits: (..., K) raw scores.
    Returns (...) values in nats: the mean over images is the batch mean. The DeiT and STD references divide by the
    number of logits instead, a K times smaller loss.
    Source: Hinton et al., 2015; Touvron et al., ICML 2021, equation 2.
    """
    student = log_softmax(student_logits.float() / temperature, dim=-1)
    teacher = log_softmax(teacher_logits.float() / temperature, dim=-1)
    return kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1) * temperature**2


DISTILLATION_LOSSES = {"hard": hard_distillation, "soft": soft_distillation}
