"""Relational losses: compare two models' relations between the images of a batch, or between their channels.

Each process compares its own images of a batch. Products are in fp64, which autocast does not change.
Shapes: B batch, C channels of the student's features, D of the teacher's.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize, smooth_l1_loss

from pycls_std.losses.feature import similarity

SAME = 1e-12  # squared distance, relative to the squared lengths, below which two images have the same features
SMALL = 1e-7  # added to probabilities before the logarithm
SPREAD = 1e-5  # added to standard deviations in denominators


def similarity_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared error between the images' Gram matrices, with L2-normalized rows.

    student, teacher: (B, ...), of any further shape. It is invariant to scaling and orthogonal maps of the features of
    either side.
    Source: Tung and Mori, ICCV 2019 (SP).
    """
    return (similarity(student) - similarity(teacher)).square().mean()


def affinity_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return p log(p / q), averaged over all pairs of images, of the conditional probabilities of being neighbours.

    student: (B, C). teacher: (B, D). The probability is the cosine similarity of two images, scaled to [0, 1], divided
    by its sum for an image. It is invariant to scaling and orthogonal maps of the features of either side.
    Source: Passalis and Tefas, ECCV 2018 (PKT).
    """
    q, p = _affinities(student), _affinities(teacher)
    return (p * ((p + SMALL) / (q + SMALL)).log()).mean().float()


def _affinities(features: Tensor) -> Tensor:
    unit = normalize(features.double())
    scaled = (unit @ unit.T + 1) / 2
    return scaled / scaled.sum(dim=1, keepdim=True)


def relational_distance(
    student: Tensor, teacher: Tensor, *, distance_weight: float = 25.0, angle_weight: float = 50.0
) -> Tensor:
    """Return the weighted smooth L1 losses of the distances of all pairs of images and the angles of all triples.

    student: (B, C). teacher: (B, D). Distances are divided by the mean of the nonzero ones. It is invariant to shifts,
    orthogonal maps and scaling of the features of either side. It needs memory for B^3 numbers.
    Source: Park et al., CVPR 2019 (RKD); the weights are those of its code for classification.
    """
    sides = [_distances_and_angles(features.double()) for features in (student, teacher)]
    distance, angle = (smooth_l1_loss(*pair) for pair in zip(*sides, strict=True))
    return (distance_weight * distance + angle_weight * angle).float()


def _distances_and_angles(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return distances (B, B) over their mean, and cosines (B, B, B) of the angle at i between j and k, by i, j, k.

    From inner products of the features alone: <j - i, k - i> = jk - ij - ik + ii. It is 0 where two are the same.
    """
    products = features @ features.T
    squares = products.diagonal()
    lengths = squares.unsqueeze(0) + squares.unsqueeze(1)
    squared = lengths - 2 * products
    apart = squared > SAME * lengths
    distances = squared.where(apart, 1).sqrt() * apart  # the root of 0 has no gradient
    inverse = apart / distances.where(apart, 1)
    at = products.unsqueeze(0) - products.unsqueeze(2) - products.unsqueeze(1) + squares.view(-1, 1, 1)
    angles = at * inverse.unsqueeze(2) * inverse.unsqueeze(1)
    mean = distances.sum() / apart.sum().clamp(min=1)
    return distances / mean.where(mean > 0, 1), angles


def correlation_distance(student: Tensor, teacher: Tensor, *, kappa: float = 0.01) -> Tensor:
    """Return the squared distance of the cross-correlation of two models' channels over a batch from the identity.

    student, teacher: (B, D). Sum of (C_ii - 1)^2, plus kappa times the sum of C_ij^2, i != j. It is invariant to shifts
    and positive scaling of a channel.
    Source: Zhang et al., ICCV 2025 (RSD).
    """
    student, teacher = (_standardized(features.double()) for features in (student, teacher))
    correlation = teacher.T @ student / len(student)
    own = torch.eye(len(correlation), dtype=torch.bool, device=correlation.device)
    return torch.where(own, (correlation - 1).square(), kappa * correlation.square()).sum().float()


def _standardized(features: Tensor) -> Tensor:
    return (features - features.mean(dim=0)) / (features.std(dim=0, correction=0) + SPREAD)
