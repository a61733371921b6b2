"""Differences of two models' feature maps, place by place.

Of two maps of different size the larger one is averaged to the smaller. The numbers of channels may differ where an
entry says nothing of them.
Shapes: B batch, C channels, H height, W width.
"""

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, normalize

from pycls_std.losses.feature import attention

PYRAMID = (4, 2, 1)  # sides of the averaged maps of `hierarchical_distance`


def to_smaller_size(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return two maps (B, C, H, W), of any channels, averaged to the smaller height and width of the two."""
    height, width = (min(pair) for pair in zip(first.shape[2:], second.shape[2:], strict=True))
    size = height, width
    first, second = (m if m.shape[2:] == size else averaged(m, size) for m in (first, second))
    return first, second


def averaged(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Return maps (B, C, H, W) averaged to a height and a width.

    Where these divide H and W, windows do not overlap, and CUDA has a deterministic gradient.
    """
    windows = [whole // part for whole, part in zip(maps.shape[2:], size, strict=True)]
    if all(whole % part == 0 for whole, part in zip(maps.shape[2:], size, strict=True)):
        return avg_pool2d(maps, windows)
    return adaptive_avg_pool2d(maps, size)


def hint_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of two maps (B, C, H, W) of one shape but for their sizes, in fp32.

    Source: Romero et al., ICLR 2015 (FitNet).
    """
    student, teacher = to_smaller_size(student.float(), teacher.float())
    return (student - teacher).square().mean()


def attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of where two maps (B, C, H, W) are large, each of length 1, in fp32.

    Neither a positive scale nor an orthogonal map of the channels of either side changes it.
    Source: Zagoruyko and Komodakis, ICLR 2017 (AT), its mean over images and places as in its code.
    """
    student, teacher = to_smaller_size(student.float(), teacher.float())
    return (attention(student) - attention(teacher)).square().mean()


def selectivity_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared maximum mean discrepancy of the channels of two maps (B, C, H, W), averaged over the images.

    A sample is a channel, all its places as one vector of length 1; the kernel is (x.y)^2. Neither the order nor a
    scale of the channels changes it. In fp64, which autocast leaves alone.
    Source: Huang and Wang, 2017 (NST), with the polynomial kernel.
    """
    pair = to_smaller_size(student.float(), teacher.float())
    student, teacher = (normalize(m.flatten(2).double(), dim=2) for m in pair)

    def kernel(first, second):
        return (first @ second.transpose(1, 2)).square().mean()

    return (kernel(teacher, teacher) + kernel(student, student) - 2 * kernel(student, teacher)).float()


def gaussian_distance(mean: Tensor, variance: Tensor, target: Tensor) -> Tensor:
    """Return how unlikely a target is under a normal distribution, in nats without its constant, averaged.

    mean: (B, C, H, W). variance: (C,), above 0. target: of the mean's shape but for its size.
    Source: Ahn et al., CVPR 2019 (VID).
    """
    mean, target = to_smaller_size(mean.float(), target.float())
    variance = variance.float().view(1, -1, 1, 1)
    return 0.5 * ((mean - target).square() / variance + variance.log()).mean()


def hierarchical_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of two maps (B, C, H, W) of one shape, and of both averaged to a few places.

    Maps of 4x4, 2x2 and 1x1 places weigh 1/2, 1/4, 1/8 beside the whole, those that are smaller than it; the weights
    then add up to 1.
    Source: Chen et al., CVPR 2021 (ReviewKD), the hierarchical context loss of its code.
    """
    student, teacher = student.float(), teacher.float()
    total, weight, weights = (student - teacher).square().mean(), 1.0, 1.0
    for side in PYRAMID:
        if side < min(student.shape[2:]):
            pair = (averaged(m, (side, side)) for m in (student, teacher))
            weight /= 2
            weights += weight
            total = total + weight * torch.sub(*pair).square().mean()
    return total / weights
