"""Normalising what a teacher's features ask for, before a student's are compared with them.

A function that is registered in FEATURE_NORMS is one that an option such as VKD.NORM can name. It takes features (B, C)
and the population (N, C) that its statistics are of, and by its name what else it asks of the options; if it uses the
population, it says so in `of_population`, and is otherwise given the features themselves.

Shapes: B batch, N images of the population, C channels.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from pycls_std.core.registry import FEATURE_NORMS


@FEATURE_NORMS.register("layer")
def layer(features: Tensor, population: Tensor) -> Tensor:
    """Return features (B, C) of mean 0 and variance 1 over the channels of each image, fp32; 1e-5 beside the variance.

    Source: Miles et al. (VkD), discriminative tasks: F.layer_norm without scale and shift.
    """
    return layer_norm(features.float(), features.shape[1:])


@FEATURE_NORMS.register("standardize")
def standardize(features: Tensor, population: Tensor) -> Tensor:
    """Return features (B, C) less the mean of each channel, divided by its standard deviation; fp32.

    Both are those of the population, N - 1 in the deviation. Channels that do not vary become 0.
    Raises ValueError for a population of fewer than 2 images.
    Source: Miles et al. (VkD), detection, where the code adds nothing to it: such channels are NaN there.
    """
    _need_two(population)
    mean, deviation = population.float().mean(dim=0), population.float().std(dim=0)
    return (features.float() - mean) / (deviation + 1e-6)


@FEATURE_NORMS.register("whiten")
def whiten(features: Tensor, population: Tensor, *, shrinkage: float) -> Tensor:
    """Return features (B, C) whose channels are uncorrelated, of mean 0 and variance 1 over a large population; fp32.

    S^-1/2 (z - mean), S = (1 - shrinkage) Cov + shrinkage (trace Cov / C) I, the covariance with N in it: of all
    whitenings the one that changes features least, which does not depend on the order of the channels, and hardly on
    the other images of a batch. As long as N is at most C the covariance has no inverse, and it is the shrinkage that
    decides how much of its small directions is seen; with shrinkage 1, features are only centred and scaled. If the
    covariance is 0 the result is, too. Its eigenvalues are those of the smaller of an N x N and a C x C matrix, and all
    is computed in fp64, for where N is less than C the result is a difference of what is much larger.
    Raises ValueError for a population of fewer than 2 images.
    Source: Miles et al. (VkD) whiten for generative tasks, without code; Kessy, Lewin and Strimmer, The American
    Statistician 2018 (ZCA); Ledoit and Wolf, JMVA 2004 (shrinkage).
    """
    _need_two(population)
    mean = population.double().mean(dim=0)
    centred = population.double() - mean
    variance = centred.square().mean()
    size = variance.clamp(min=torch.finfo(variance.dtype).tiny).sqrt()  # to which all is scaled, so nothing is tiny
    centred, scaled = centred / size / math.sqrt(len(centred)), (features.double() - mean) / size
    few = len(centred) < centred.shape[1]
    # eigh raises an error for NaN; the mean carries that into the result instead.
    products = (centred @ centred.T if few else centred.T @ centred).nan_to_num(0, 0, 0)
    eigenvalues, vectors = torch.linalg.eigh(products)
    roots = (shrinkage + (1 - shrinkage) * eigenvalues.clamp(min=0)).sqrt()
    if not few:
        return (scaled @ (vectors / roots) @ vectors.T).float()
    # What S^-1/2 lacks to shrinkage^-1/2 I is within what the images span: X^T V diag(lack) V^T X.
    lack = (1 - shrinkage) / (roots * (roots + math.sqrt(shrinkage)))
    return ((scaled - scaled @ centred.T @ (vectors * lack) @ vectors.T @ centred) / math.sqrt(shrinkage)).float()


@FEATURE_NORMS.register("none")
def none(features: Tensor, population: Tensor) -> Tensor:
    """Return the features (B, C) as they are, fp32."""
    return features.float()


standardize.of_population = True
whiten.of_population = True
whiten.no_graph = "the NORM whiten"  # for it asks the device whether eigenvalues were found


def _need_two(population: Tensor) -> None:
    if len(population) < 2:
        raise ValueError(f"statistics over a batch need at least 2 images, this one has {len(population)}")
