"""Batched 3-Augment, see `datasets/three_augment.py`.

Shapes: B images.
"""

import numpy as np
import torch
from torch import Tensor

from pycls_std.core.sending import send
from pycls_std.datasets.memory import color
from pycls_std.datasets.memory.blur import blur, box_weights
from pycls_std.datasets.memory.counter_rng import CounterRNG
from pycls_std.datasets.memory.pixels import change
from pycls_std.datasets.three_augment import CHANGES, SIGMA, THRESHOLD


def three_augment(images: Tensor, draws: CounterRNG) -> Tensor:
    """Change images (B, S, S, 4) uint8 in place, each by one of CHANGES; return them."""
    choice, sigma = draw(draws)

    def device(values: np.ndarray) -> Tensor:
        return send(values, images.device)

    grey, solarized, blurred = (np.flatnonzero(choice == which) for which in range(len(CHANGES)))
    change(images, device(grey), color.greyscale)
    change(images, device(solarized), color.solarize, torch.full((1,), THRESHOLD, device=images.device))
    change(images, device(blurred), blur, device(box_weights(sigma[blurred])))
    return images


def draw(draws: CounterRNG) -> tuple[np.ndarray, np.ndarray]:
    """Return the position in CHANGES, and the standard deviation of the Gaussian, pixels, of each image, (B,)."""
    choice, sigma = draws.uniform(2).T
    return (choice * len(CHANGES)).astype(np.int64), SIGMA[0] + (SIGMA[1] - SIGMA[0]) * sigma
