"""Distillation from a transformed teacher distribution: a power of it, or with the label's probability increased.

Shapes: ... any leading dimensions, B batch, K classes.
"""

from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from pycls_std.core.registry import LOGIT_LOSSES
from pycls_std.losses.logit import label_mask


@LOGIT_LOSSES.register("ttm")
def transformed_distillation(student_logits: Tensor, teacher_logits: Tensor, *, ttm_gamma: float = 0.1) -> Tensor:
    """Return KL(q || student), q the teacher's probabilities to the power of ttm_gamma, normalized.

    So only the teacher has a temperature, 1 / ttm_gamma; the student's is 1.

    student_logits, teacher_logits: (..., K) raw scores.
    Returns (...) values in nats.
    Source: Zheng and Yang, ICLR 2024 (TTM).
    """
    student = log_softmax(student_logits.float(), dim=-1)
    target = log_softmax(ttm_gamma * teacher_logits.float(), dim=-1)
    return kl_div(student, target, reduction="none", log_target=True).sum(dim=-1)


@LOGIT_LOSSES.register("wttm")
def weighted_transformed_distillation(
    student_logits: Tensor, teacher_logits: Tensor, *, ttm_gamma: float = 0.1
) -> Tensor:
    """Return `transformed_distillation`, times the sum of the teacher's probabilities to the power of ttm_gamma.

    With ttm_gamma below 1 that sum ranges from 1 for a one-hot teacher to K^(1 - ttm_gamma) for a uniform one.
    Source: Zheng and Yang, ICLR 2024 (WTTM).
    """
    log_p = log_softmax(teacher_logits.float(), dim=-1)
    weight = (ttm_gamma * log_p).exp().sum(dim=-1)
    return weight * transformed_distillation(student_logits, teacher_logits, ttm_gamma=ttm_gamma)


@LOGIT_LOSSES.register("ofa")
def enhanced_distillation(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, ofa_eps: float = 1.0
) -> Tensor:
    """Return the cross-entropy with weights (p_t + 1_y)^ofa_eps - 1_y, p_t the teacher's probabilities, 1_y the label.

    With ofa_eps 1 they are the teacher's probabilities, and it is `soft_distillation` at temperature 1 up to the
    teacher's entropy, a constant; above 1, the label's weight grows and the others' shrink.

    student_logits, teacher_logits: (..., K) raw scores. labels: (...) target class, or what broadcasts to it.
    Returns (...) values in nats.
    Source: Hao et al., NeurIPS 2023 (OFA-KD).
    """
    own = label_mask(teacher_logits, labels).float()
    weights = (teacher_logits.float().softmax(dim=-1) + own) ** ofa_eps - own
    return -(weights * log_softmax(student_logits.float(), dim=-1)).sum(dim=-1)
