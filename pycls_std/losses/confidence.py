"""Per-image weights of several teachers.

Shapes: M teachers, B batch, K classes.
"""

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from pycls_std.core.registry import WEIGHTINGS


def negative_entropy(logits: Tensor) -> Tensor:
    """Return sum p log p over the classes of (..., K) logits, in nats: from -log K (uniform) to 0 (one-hot)."""
    log_p = log_softmax(logits.float(), dim=-1)
    return (log_p.exp() * log_p).sum(dim=-1)


@WEIGHTINGS.register("confidence")
def confidence_weights(teacher_logits: Tensor) -> Tensor:
    """Weight each teacher by its confidence on each image, the softmax over teachers of the negative entropy.

    teacher_logits: (M, B, K) raw scores.
    Returns (B, M) weights, each row sums to 1; the teacher with the lowest entropy has the largest weight.
    Source: Li et al., ICML 2022 (STD), which calls it confidence and negative entropy. The reproduction's printed
    formula and its code use +entropy, which favours the less confident teacher (see `entropy_weights`), and the code
    sums it over the batch before the softmax, which at 128 images gives one teacher all the weight.
    """
    return negative_entropy(teacher_logits).softmax(dim=0).T


@WEIGHTINGS.register("entropy")
def entropy_weights(teacher_logits: Tensor) -> Tensor:
    """Weight each teacher by its entropy on each image: the formula as printed in the reproduction.

    Shapes as in `confidence_weights`.
    """
    return (-negative_entropy(teacher_logits)).softmax(dim=0).T


@WEIGHTINGS.register("uniform")
def uniform_weights(teacher_logits: Tensor) -> Tensor:
    """Weight all teachers equally. Shapes as in `confidence_weights`."""
    teachers, batch, _ = teacher_logits.shape
    return torch.full((batch, teachers), 1 / teachers, device=teacher_logits.device)
