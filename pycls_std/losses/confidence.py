"""Weights of several teachers for each image.

Shapes: M teachers, B batch, K classes.
"""

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from pycls_std.core.registry import WEIGHTINGS


def negative_entropy(logits: Tensor) -> Tensor:
    """Return sum p log p over the classes of (..., K) logits, in nats; 0 is certainty, -log K is ignorance."""
    log_p = log_softmax(logits.float(), dim=-1)
    return (log_p.exp() * log_p).sum(dim=-1)


@WEIGHTINGS.register("confidence")
def confidence_weights(teacher_logits: Tensor) -> Tensor:
    """Weight each teacher by how sure it is of each image.

    teacher_logits: (M, B, K) raw scores.
    Returns (B, M) weights, each row sums to 1; the teacher of the lowest entropy weighs most.
    Source: Li et al., ICML 2022 (STD), which calls it confidence and negative entropy. The reproduction's printed
    formula and its code take +entropy, which favours the less sure teacher (see `entropy_weights`), and the code sums
    it over the batch before the softmax, which at 128 images leaves one teacher with all the weight.
    """
    return negative_entropy(teacher_logits).softmax(dim=0).T


@WEIGHTINGS.register("entropy")
def entropy_weights(teacher_logits: Tensor) -> Tensor:
    """Weight each teacher by how unsure it is of each image: the formula as the reproduction prints it.

    Shapes as in `confidence_weights`.
    """
    return (-negative_entropy(teacher_logits)).softmax(dim=0).T


@WEIGHTINGS.register("uniform")
def uniform_weights(teacher_logits: Tensor) -> Tensor:
    """Weight all teachers alike. Shapes as in `confidence_weights`."""
    teachers, batch, _ = teacher_logits.shape
    return torch.full((batch, teachers), 1 / teachers, device=teacher_logits.device)
