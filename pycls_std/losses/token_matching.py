"""Distance between the tokens of two models: optionally standardized per channel, then the mean over pairs of tokens.

Shapes: N tokens, C channels.
"""

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from pycls_std.core.precision import full_precision
from pycls_std.core.structures import World


def smooth_l1_distance(first: Tensor, second: Tensor) -> Tensor:
    """Return the smooth L1 distance, beta 1, of each pair of tokens (N, C), averaged over the channels: (N,)."""
    return smooth_l1_loss(first, second, reduction="none").mean(dim=1)


def euclidean_distance(first: Tensor, second: Tensor) -> Tensor:
    """Return the Euclidean distance of each pair of tokens (N, C): (N,). Its gradient is 0 where the distance is."""
    return torch.linalg.vector_norm(first - second, dim=1)


DISTANCES = {"smooth_l1": smooth_l1_distance, "euclidean": euclidean_distance}


class _Summed(torch.autograd.Function):
    """All-reduce (sum) with gradient: each process's term affects the losses of all, so gradients are summed, too."""

    @staticmethod
    def forward(ctx, tensor, world):
        ctx.world = world
        return world.sum(tensor)

    @staticmethod
    def backward(ctx, gradient):
        return ctx.world.sum(gradient), None


def summed(values: Tensor, keep: Tensor | None, world: World) -> Tensor:
    """Return the sum over the tokens of all processes, with gradient, of values (N, ...).

    keep: (N,) 1 for tokens that count, 0 for others; None = all count.
    """
    kept = values if keep is None else values * keep.view(-1, *[1] * (values.ndim - 1))
    total = kept.sum(dim=0)
    return total if world.size == 1 else _Summed.apply(total, world)


def averaged(value: Tensor, world: World) -> Tensor:
    """Return the mean of a value over all processes, with gradient."""
    return value if world.size == 1 else _Summed.apply(value, world) / world.size


def standardize_tokens(tokens: Tensor, keep: Tensor | None, world: World, *, eps: float) -> Tensor:
    """Standardize tokens (N, C) to mean 0 and variance 1 in each channel, over the tokens of all processes that count.

    The variance is the unbiased one, plus eps. The statistics have a gradient.
    Source: Miles et al. (VkD), whose code for detection has no eps: a constant channel is NaN there.
    """
    count = summed(tokens.new_ones(len(tokens)), keep, world)
    centred = tokens - summed(tokens, keep, world) / count.clamp(min=1)
    variance = summed(centred.square(), keep, world) / (count - 1).clamp(min=1)
    return centred * (variance + eps).rsqrt()


def token_distance(
    student: Tensor,
    teacher: Tensor,
    keep: Tensor | None = None,
    *,
    distance: str = "smooth_l1",
    eps: float | None = None,
    world: World | None = None,
) -> Tensor:
    """Return the mean distance between tokens (N, C) of a student and of a teacher, in fp32.

    keep: see `summed`. distance: a name of DISTANCES. eps: of the standardization of both; None = not standardized.
    world: processes whose tokens are treated as one set: the average of their results, and of the gradients, is that of
    one process with all tokens; numbers of tokens may differ.
    """
    world = world or World()
    with full_precision(student.device):
        own, other = student.float(), teacher.float()
        keep = keep if keep is None else keep.float()
        if eps is not None:
            own, other = (standardize_tokens(tokens, keep, world, eps=eps) for tokens in (own, other))
        each = DISTANCES[distance](own, other)
        count = summed(torch.ones_like(each), keep, world).clamp(min=1)
        total = each.sum() if keep is None else (each * keep).sum()
        return world.size * total / count
