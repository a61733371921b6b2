"""The critic of MINE."""

import torch
from torch import Tensor, nn


class StatisticsNet(nn.Sequential):
    """Score pairs of samples: a GELU network on their concatenation.

    features: size of the two samples together. width: hidden units. depth: linear layers, at least 1.
    Source: Li et al., ICML 2022: 3 layers of 512.
    """

    def __init__(self, features: int, *, width: int = 512, depth: int = 3):
        layers = []
        for _ in range(depth - 1):
            layers += [nn.Linear(features, width), nn.GELU()]
            features = width
        super().__init__(*layers, nn.Linear(features, 1))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:  # type: ignore[override]  # of a pair, not of one
        """first: (B, C), second: (B, P), C + P = features. Returns (B,) scores."""
        return super().forward(torch.cat([first, second], dim=1)).squeeze(1)
