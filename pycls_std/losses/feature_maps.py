"""Distances between two models' feature maps.

If two maps differ in size, the larger one is average-pooled to the smaller. The numbers of channels may differ unless
stated otherwise.
Shapes: B batch, C channels, H height, W width.
"""

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, normalize

from pycls_std.losses.feature import attention

PYRAMID = (4, 2, 1)  # sides of the pooled maps of `hierarchical_distance`


def to_smaller_size(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return two maps (B, C, H, W), of any channels, average-pooled to the smaller height and width of the two."""
    height, width = (min(pair) for pair in zip(first.shape[2:], second.shape[2:], strict=True))
    size = height, width
    first, second = (m if m.shape[2:] == size else averaged(m, size) for m in (first, second))
    return first, second


def averaged(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Return maps (B, C, H, W) average-pooled to a height and a width.

    If these divide H and W, windows do not overlap, and the gradient is deterministic on CUDA.
    """
    windows = [whole // part for whole, part in zip(maps.shape[2:], size, strict=True)]
    if all(whole % part == 0 for whole, part in zip(maps.shape[2:], size, strict=True)):
        return avg_pool2d(maps, windows)
    return adaptive_avg_pool2d(maps, size)


def hint_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared error between two maps (B, C, H, W) with equal channels, in fp32.

    Source: Romero et al., ICLR 2015 (FitNet).
    """
    student, teacher = to_smaller_size(student.float(), teacher.float())
    return (student - teacher).square().mean()


def attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared error between the attention maps of two maps (B, C, H, W), L2-normalized, in fp32.

    It is invariant to positive scaling and orthogonal maps of the channels of either side.
    Source: Zagoruyko and Komodakis, ICLR 2017 (AT), its mean over images and positions as in its code.
    """
    student, teacher = to_smaller_size(student.float(), teacher.float())
    return (attention(student) - attention(teacher)).square().mean()


def selectivity_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared maximum mean discrepancy of the channels of two maps (B, C, H, W), averaged over the images.

    A sample is a channel, flattened to a unit vector; the kernel is (x.y)^2. It is invariant to the order and the
    scales of the channels. In fp64, which autocast does not change.
    Source: Huang and Wang, 2017 (NST), with the polynomial kernel.
    """
    pair = to_smaller_size(student.float(), teacher.float())
    student, teacher = (normalize(m.flatten(2).double(), dim=2) for m in pair)

    def kernel(first, second):
        return (first @ second.transpose(1, 2)).square().mean()

    return (kernel(teacher, teacher) + kernel(student, student) - 2 * kernel(student, teacher)).float()


def gaussian_distance(mean: Tensor, variance: Tensor, target: Tensor) -> Tensor:
    """Return the mean Gaussian negative log-likelihood of a target, in nats, without the constant.

    mean: (B, C, H, W). variance: (C,), above 0. target: as the mean, but height and width may differ.
    Source: Ahn et al., CVPR 2019 (VID).
    """
    mean, target = to_smaller_size(mean.float(), target.float())
    variance = variance.float().view(1, -1, 1, 1)
    return 0.5 * ((mean - target).square() / variance + variance.log()).mean()


def hierarchical_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared error between two maps (B, C, H, W) of one shape, at several pooled resolutions.

    Full maps weigh 1, pooled ones of 4x4, 2x2 and 1x1, as far as they are smaller, 1/2, 1/4, 1/8; the weights are then
    normalized to sum to 1.
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
