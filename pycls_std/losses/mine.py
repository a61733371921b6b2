"""Mutual information neural estimation (MINE)."""

import math

from torch import Tensor


def shifted(samples: Tensor) -> Tensor:
    """Return the samples in an order in which none keeps its position: each is replaced by its successor.

    samples: (B, ...), B at least 2. Raises ValueError for fewer, which cannot be deranged.
    """
    if len(samples) < 2:
        raise ValueError(f"a derangement needs at least 2 samples, got {len(samples)}")
    return samples.roll(-1, dims=0)


def mutual_information(joint_scores: Tensor, marginal_scores: Tensor) -> Tensor:
    """Return the Donsker-Varadhan lower bound of the mutual information, in nats.

    joint_scores: (B,) critic on joint samples. marginal_scores: (B,) critic on samples of the product of marginals.
    J = mean(joint) - log mean exp(marginal), by logsumexp, so that large scores do not overflow.
    Source: Belghazi et al., ICML 2018.
    """
    log_mean_exp = marginal_scores.float().logsumexp(dim=0) - math.log(len(marginal_scores))
    return joint_scores.float().mean() - log_mean_exp
