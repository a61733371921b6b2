"""Distillation losses on a teacher's logits, one value per image.

A function registered in LOGIT_LOSSES can be chosen by DISTILLATION.TYPE. It takes student_logits and teacher_logits,
and any of the following that it names: `targets` (B, K), `labels` (B,), `progress` of the run, options of section
DISTILLATION in lower case, and scalars that are trained with the student: those of its attribute `learned`, a
dictionary of initial values by name. One whose gradient is useless for constant student logits has an attribute
`needs_spread`, True.

Shapes: ... any leading dimensions, K classes.
"""

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from pycls_std.core.registry import LOGIT_LOSSES


def standardized(logits: Tensor) -> Tensor:
    """Return logits (..., K) with mean 0 and standard deviation 1 over the classes of each image, fp32.

    A student then learns the teacher's ranking and relations, not its range: the result is invariant to a shift and a
    positive scale of the logits. Constant logits become 0, with a useless gradient, so a student's head must not be
    initialized to zero (`models.create.randomize_zero_heads`).
    Source: Sun et al., CVPR 2024 (logit standardization), the z-score of its code: K - 1 in the standard deviation,
    epsilon 1e-7.
    """
    logits = logits.float()
    return (logits - logits.mean(dim=-1, keepdim=True)) / (logits.std(dim=-1, keepdim=True) + 1e-7)


@LOGIT_LOSSES.register("hard")
def hard_distillation(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return the cross-entropy of the student with the teacher's predicted class.

    student_logits, teacher_logits: (..., K) raw scores.
    Returns (...) values in nats.
    Source: Touvron et al., ICML 2021, equation 3.
    """
    labels = teacher_logits.argmax(dim=-1, keepdim=True)
    return -log_softmax(student_logits.float(), dim=-1).gather(-1, labels).squeeze(-1)


@LOGIT_LOSSES.register("soft")
def soft_distillation(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return KL(teacher || student) at a temperature T, times T^2 to keep the gradients' scale.

    student_logits, teacher_logits: (..., K) raw scores.
    Returns (...) values in nats: the mean over images is the batch mean. The DeiT and STD references divide by the
    number of logits instead, a K times smaller loss.
    Source: Hinton et al., 2015; Touvron et al., ICML 2021, equation 2.
    """
    student = log_softmax(student_logits.float() / temperature, dim=-1)
    teacher = log_softmax(teacher_logits.float() / temperature, dim=-1)
    return kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1) * temperature**2


@LOGIT_LOSSES.register("decoupled")
def decoupled_distillation(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float = 1.0,
    *,
    dkd_alpha: float = 1.0,
    dkd_beta: float = 8.0,
) -> Tensor:
    """Return soft distillation with separate weights for its two parts (DKD), times T^2.

    dkd_alpha weights the target class versus all others (TCKD), dkd_beta the distribution among the others (NCKD). With
    dkd_alpha 1 and dkd_beta 1 - p, p the teacher's probability of the target class, it is `soft_distillation`.

    student_logits, teacher_logits: (..., K) raw scores. labels: (...) target class, or what broadcasts to it.
    Returns (...) values in nats.
    Source: Zhao et al., CVPR 2022, equations 5 to 7.
    """
    target = label_mask(student_logits, labels)
    student, student_pair = _decoupled(student_logits, target, temperature)
    teacher, teacher_pair = _decoupled(teacher_logits, target, temperature)
    target_class = kl_div(student_pair, teacher_pair, reduction="none", log_target=True).sum(dim=-1)
    others = kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1)
    return (dkd_alpha * target_class + dkd_beta * others) * temperature**2


@LOGIT_LOSSES.register("nkd")
def normalized_distillation(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float = 1.0,
    *,
    nkd_gamma: float = 1.5,
) -> Tensor:
    """Return the target class's cross-entropy, times the teacher's probability of it, plus that of the other classes.

    The latter is over the distribution among the others at a temperature T, times T^2 and nkd_gamma; the target class
    is at temperature 1. The cross-entropy with the labels, which the paper adds, is the task's.

    Shapes as in `decoupled_distillation`. Returns (...) values in nats.
    Source: Yang et al., ICCV 2023 (NKD).
    """
    target = label_mask(student_logits, labels)
    own = [log_softmax(logits.float(), dim=-1).masked_fill(~target, 0) for logits in (student_logits, teacher_logits)]
    target_class = -(own[1].sum(dim=-1).exp() * own[0].sum(dim=-1))
    student, teacher = (_decoupled(logits, target, temperature)[0] for logits in (student_logits, teacher_logits))
    others = -(teacher.exp() * student).sum(dim=-1)  # at the target the student's is 0
    return target_class + nkd_gamma * temperature**2 * others


def label_mask(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the boolean one-hot mask (..., K) of labels (...), or of what broadcasts to it."""
    mask = torch.zeros_like(logits, dtype=torch.bool)
    return mask.scatter_(-1, labels.expand(mask.shape[:-1]).unsqueeze(-1), True)


def _decoupled(logits: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return log-probabilities (..., K) among the non-target classes, and those of target versus others (..., 2).

    The first are 0 at the target, masked before further use, so that no gradient there can overflow.
    """
    log_p = log_softmax(logits.float() / temperature, dim=-1)
    others = log_p.masked_fill(target, -torch.inf).logsumexp(dim=-1, keepdim=True)
    own = log_p.masked_fill(~target, 0).sum(dim=-1, keepdim=True)
    return (log_p - others).masked_fill(target, 0), torch.cat([own, others], dim=-1)
