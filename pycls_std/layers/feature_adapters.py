"""Adapters from a student's features to a teacher's; they are trained with the student and not deployed.

Shapes: B batch, C channels of the student, D of the teacher, H height, W width.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus


def hint_regressor(channels: int, target: int) -> nn.Sequential:
    """Return a 1x1 convolution, batch norm and ReLU, from (B, C, H, W) to (B, D, H, W), for a nonnegative target map.

    Source: HobbitLong/RepDistiller and megvii-research/mdistiller (FitNet), for maps of one size; the paper's regressor
    is a convolution. Theirs has a bias, which the batch norm cancels.
    """
    return nn.Sequential(nn.Conv2d(channels, target, 1, bias=False), nn.BatchNorm2d(target), nn.ReLU())


class GaussianRegressor(nn.Module):
    """Predict mean and variance of a teacher's map from the student's: three 1x1 convolutions, a variance per channel.

    variance: initial value. least: lower bound of the variance.
    Source: Ahn et al., CVPR 2019 (VID). In mdistiller the variance is not trained, since no optimizer has it; in
    RepDistiller it is, as here.
    """

    def __init__(self, channels: int, target: int, *, variance: float = 5.0, least: float = 1e-5):
        super().__init__()
        layers = [nn.Conv2d(width, target, 1, bias=False) for width in (channels, target, target)]
        self.mean = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
        self.raw_variance = nn.Parameter(torch.full((target,), math.log(math.expm1(variance - least))))
        self.least = least

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """features: (B, C, H, W). Returns the mean (B, D, H, W) and the variance (D,)."""
        return self.mean(features), softplus(self.raw_variance) + self.least


def projection_head(channels: int, target: int, *, expansion: int = 2) -> nn.Sequential:
    """Return an MLP with one hidden layer, batch norm and GELU, from (B, C) to (B, D); expansion: hidden width / C.

    Source: Zhang et al., ICCV 2025 (RSD).
    """
    hidden = expansion * channels
    first, last = nn.Linear(channels, hidden, bias=False), nn.Linear(hidden, target, bias=False)
    for layer in (first, last):
        nn.init.trunc_normal_(layer.weight, std=0.02)
    return nn.Sequential(first, nn.BatchNorm1d(hidden), nn.GELU(), last)
