"""Batched random erasing: a rectangle of each image is filled with normal noise.

Source: Zhong et al., AAAI 2020; areas, ratios and tries as in timm.data.random_erasing with mode `pixel`.
Shapes: B images, S side, n erased images. Images are rows of red, green, blue: (B, S, S 3).
"""

import math

import numpy as np
import torch
from torch import Tensor

from pycls_std.core.sending import send
from pycls_std.datasets.memory.counter_rng import CounterRNG

AREA = (0.02, 1 / 3)
RATIO = (math.log(0.3), math.log(1 / 0.3))
TRIES = 10
NOISE = 2**20  # minimum size of the noise table


class RandomErasing:
    """Erase with a probability.

    size: S. The noise of a rectangle is read from a table of normal numbers, the same for every seed, at a random
    offset for each image: drawing fresh noise would cost more than the rest of the augmentation.
    """

    def __init__(self, probability: float, size: int, device: torch.device):
        self.probability = probability
        count = max(NOISE, 4 * 3 * size * size)
        self.noise = torch.randn(count, generator=torch.Generator().manual_seed(0)).to(device)

    def __call__(self, images: Tensor, draws: CounterRNG) -> Tensor:
        """Change normalised images (B, S, S 3) in place; return them."""
        batch, height, width = images.shape[0], images.shape[1], images.shape[2] // 3
        places, *sides = self.draw(draws, height, width)
        start = draws.below(np.full((batch, 1), len(self.noise) - images[0].numel() + 1))[places, 0]
        numbers = send(np.stack([places, *sides, start]), images.device)
        where, top, left, bottom, right, start = numbers.unsqueeze(2)
        rows = torch.arange(height, device=images.device)
        columns = torch.arange(width, device=images.device).repeat_interleave(3)
        inside_rows = (rows >= top) & (rows < bottom)
        inside_columns = (columns >= left) & (columns < right)
        inside = inside_rows[:, :, None] & inside_columns[:, None, :]  # (n, S, S 3)
        runs = self.noise.unfold(0, images[0].numel(), 1)  # a view, nothing is copied
        noise = runs.index_select(0, start.squeeze(1)).view(-1, height, 3 * width)
        where = where.squeeze(1)
        return images.index_copy_(0, where, torch.where(inside, noise, images.index_select(0, where)))

    def draw(self, draws: CounterRNG, height: int, width: int) -> tuple[np.ndarray, ...]:
        """Return (n,) positions of the images to erase, and top, left, bottom, right of their rectangles."""
        applies = draws.uniform(1)[:, 0] < self.probability
        area = draws.between(*AREA, TRIES) * (height * width)
        ratio = np.exp(draws.between(*RATIO, TRIES))
        tall, wide = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
        fits = (tall < height) & (wide < width)
        first = fits.argmax(axis=1)
        each = np.arange(len(first))
        tall, wide = tall[each, first].astype(np.int64), wide[each, first].astype(np.int64)
        corner = draws.below(np.stack([height - tall + 1, width - wide + 1], axis=1))
        places = np.flatnonzero(applies & fits[each, first])
        top, left = corner[places].T
        return places, top, left, top + tall[places], left + wide[places]
