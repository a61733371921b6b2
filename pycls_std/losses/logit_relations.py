"""Distillation from how a teacher's probabilities vary, over the classes and over the images of a batch.

Shapes: ... any leading dimensions, B batch, K classes.
"""

from torch import Tensor

from pycls_std.core.registry import LOGIT_LOSSES

SMALL = 1e-8  # beside a product of lengths that is divided by


@LOGIT_LOSSES.register("dist")
def relation_distillation(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    *,
    dist_beta: float = 1.0,
    dist_gamma: float = 1.0,
) -> Tensor:
    """Return 1 - the correlation of both sides' probabilities at a temperature T, times T^2.

    dist_beta weighs the correlation over the classes of each image; dist_gamma that over the images of each class, a
    mean over the classes that is alike for all images of a batch, of each process's own share of it.

    Even probabilities of the student have a gradient that is of no use: its head must not start at zero.

    student_logits, teacher_logits: (..., B, K) raw scores.
    Returns (..., B) values: of each image, so that the mean over images is the publication's.
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
