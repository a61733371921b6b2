"""Distillation of the correlations of a teacher's probabilities, over the classes and over the images of a batch.

Shapes: ... any leading dimensions, B batch, K classes.
"""

from torch import Tensor

from pycls_std.core.registry import LOGIT_LOSSES

SMALL = 1e-8  # added to the denominator, a product of norms


@LOGIT_LOSSES.register("dist")
def relation_distillation(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    *,
    dist_beta: float = 1.0,
    dist_gamma: float = 1.0,
) -> Tensor:
    """Return 1 - the correlation of student and teacher probabilities at a temperature T, times T^2.

    dist_beta weights the correlation over the classes of each image; dist_gamma that over the images of each class,
    averaged over the classes, which is the same for all images of a batch (each process's own share of it).

    For uniform probabilities of the student the gradient is useless: its head must not be initialized to zero.

    student_logits, teacher_logits: (..., B, K) raw scores.
    Returns (..., B) values: one per image, so that the mean over images is the paper's loss.
    Source: Huang et al., NeurIPS 2022 (DIST).
    """
    student, teacher = ((logits.float() / temperature).softmax(dim=-1) for logits in (student_logits, teacher_logits))
    of_images = 1 - correlation(student, teacher, dim=-1)
    of_classes = (1 - correlation(student, teacher, dim=-2)).mean(dim=-1, keepdim=True)
    return (dist_beta * of_images + dist_gamma * of_classes) * temperature**2


relation_distillation.needs_spread = True


def correlation(first: Tensor, second: Tensor, dim: int) -> Tensor:
    """Return Pearson's correlation of two tensors of one shape over a dimension; 0 where one of them is constant."""
    first, second = (values - values.mean(dim=dim, keepdim=True) for values in (first, second))
    return (first * second).sum(dim=dim) / (first.norm(dim=dim) * second.norm(dim=dim) + SMALL)
