"""Normalisations of a teacher's features, before a student's are compared with them.

A function registered in FEATURE_NORMS can be chosen by an option such as VKD.NORM. It takes features (B, C), the
population (N, C) for its statistics, and further options by name. If it uses the population, its attribute
`of_population` is True; otherwise it gets the features themselves in its place.

Shapes: B batch, N images of the population, C channels.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from pycls_std.core.registry import FEATURE_NORMS


@FEATURE_NORMS.register("layer")
def layer(features: Tensor, population: Tensor) -> Tensor:
    """Return features (B, C) of mean 0 and variance 1 over the channels of each image, fp32; epsilon 1e-5.

    Source: Miles et al. (VkD), discriminative tasks: F.layer_norm without scale and shift.
    """
    return layer_norm(features.float(), features.shape[1:])


@FEATURE_NORMS.register("standardize")
def standardize(features: Tensor, population: Tensor) -> Tensor:
    """Return features (B, C) minus the mean of each channel, divided by its standard deviation; fp32.

    Both are those of the population, with N - 1 in the deviation. Constant channels become 0.
    Raises ValueError for a population of fewer than 2 images.
    Source: Miles et al. (VkD), detection, whose code has no epsilon: constant channels are NaN there.
    """
    _need_two(population)
    mean, deviation = population.float().mean(dim=0), population.float().std(dim=0)
    return (features.float() - mean) / (deviation + 1e-6)


@FEATURE_NORMS.register("whiten")
def whiten(features: Tensor, population: Tensor, *, shrinkage: float) -> Tensor:
    """Return ZCA-whitened features (B, C): channels uncorrelated, mean 0 and variance 1 over a large population; fp32.

    S^-1/2 (z - mean), S = (1 - shrinkage) Cov + shrinkage (trace Cov / C) I, with N in the covariance: the whitening
    that changes features least, which does not depend on the order of the channels, and hardly on the other images of a
    batch. If N is at most C the covariance is singular, and the shrinkage determines how far directions of small
    variance are amplified; with shrinkage 1, features are only centred and scaled. If the covariance is 0, so is the
    result. The eigenvalues are those of the smaller of an N x N and a C x C matrix, and everything is computed in fp64,
    since for N below C the result is a difference of much larger numbers.
    Raises ValueError for a population of fewer than 2 images.
    Source: Miles et al. (VkD) whiten for generative tasks, without code; Kessy, Lewin and Strimmer, The American
    Statistician 2018 (ZCA); Ledoit and Wolf, JMVA 2004 (shrinkage).
    """
    _need_two(population)
    mean = population.double().mean(dim=0)
    centred = population.double() - mean
    variance = centred.square().mean()
    size = variance.clamp(min=torch.finfo(variance.dtype).tiny).sqrt()  # everything is scaled by it, against underflow
    centred, scaled = centred / size / math.sqrt(len(centred)), (features.double() - mean) / size
    few = len(centred) < centred.shape[1]
    # eigh raises an error for NaN; NaN reaches the result through the mean instead.
    products = (centred @ centred.T if few else centred.T @ centred).nan_to_num(0, 0, 0)
    eigenvalues, vectors = torch.linalg.eigh(products)
    roots = (shrinkage + (1 - shrinkage) * eigenvalues.clamp(min=0)).sqrt()
    if not few:
        return (scaled @ (vectors / roots) @ vectors.T).float()
    # S^-1/2 = shrinkage^-1/2 (I - X^T V diag(lack) V^T X): the second term is within the span of the images.
    lack = (1 - shrinkage) / (roots * (roots + math.sqrt(shrinkage)))
    return ((scaled - scaled @ centred.T @ (vectors * lack) @ vectors.T @ centred) / math.sqrt(shrinkage)).float()


@FEATURE_NORMS.register("none")
def none(features: Tensor, population: Tensor) -> Tensor:
    """Return the features (B, C) unchanged, in fp32."""
    return features.float()


standardize.of_population = True
whiten.of_population = True
whiten.no_graph = "the NORM whiten"  # eigh synchronizes with the device to check for convergence


def _need_two(population: Tensor) -> None:
    if len(population) < 2:
        raise ValueError(f"statistics over a batch need at least 2 images, this one has {len(population)}")
