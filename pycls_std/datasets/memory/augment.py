"""Augment images in memory, by the pipelines of `transforms` in batched tensor operations.

Shapes: B images, H height, W width, S side of the result.
"""

import math

import numpy as np
import torch
from torch import Tensor

from pycls_std.core.sending import send
from pycls_std.core.structures import Normalization
from pycls_std.datasets.memory import color, geometry
from pycls_std.datasets.memory.counter_rng import CounterRNG
from pycls_std.datasets.memory.erasing import RandomErasing
from pycls_std.datasets.memory.pixels import change
from pycls_std.datasets.memory.rand_augment import RandAugment
from pycls_std.datasets.memory.three_augment import three_augment
from pycls_std.datasets.transforms import Augmentation

TRIES = 10
RATIO = (math.log(3 / 4), math.log(4 / 3))


class Normalize:
    """Convert bytes to normalised floats: (B, H, W, 4) uint8 -> (B, H, W 3) float."""

    def __init__(self, normalization: Normalization, device: torch.device):
        mean, std = (torch.tensor(values, device=device) for values in normalization)
        self.scale, self.shift = 1 / (255 * std), -mean / std

    def __call__(self, images: Tensor) -> Tensor:
        width = images.shape[2]
        values = images[..., :3].float().flatten(2)
        return torch.addcmul(self.shift.repeat(width), values, self.scale.repeat(width), out=values)


class Plain:
    """The transform without augmentation: normalises images of the final size to (B, 3, S, S) float, channels_last."""

    def __init__(self, normalization: Normalization, device: torch.device):
        self.normalize = Normalize(normalization, device)

    def __call__(self, images: Tensor, views: np.ndarray, indices: np.ndarray) -> tuple[Tensor, None]:
        """images: (N, S, S, 4) uint8, all of them. indices: (B,)."""
        which = send(indices, images.device)
        return self.normalize(images[which]).unflatten(2, (-1, 3)).permute(0, 3, 1, 2), None


class BatchAugmentation:
    """The training transform of a block of views; every view is a function of (seed, view, index).

    It has the same distribution as `transforms.train_transform`, but other random draws.
    crops: whether to record the part of the image that a view shows.
    """

    def __init__(
        self,
        image_size: int,
        normalization: Normalization,
        augmentation: Augmentation,
        *,
        seed: int,
        device: torch.device,
        crops: bool = False,
    ):
        self.crops = crops
        self.size = image_size
        self.options = augmentation
        self.seed = seed
        self.normalize = Normalize(normalization, device)
        spec = augmentation.rand_augment
        self.rand_augment = RandAugment(spec, image_size, normalization) if spec else None
        self.erase = RandomErasing(augmentation.erasing, image_size, device) if augmentation.erasing else None

    def __call__(self, images: Tensor, views: np.ndarray, indices: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """images: (N, H, W, 4) uint8, all of them. views, indices: (B,).

        Returns (B, 3, S, S) float, normalised, channels_last; and the crop of each image, (B, 5), see `crops`, or None
        if it is not recorded.
        """
        draws = CounterRNG(self.seed, views, indices)
        which = send(indices.astype(np.int32), images.device)
        cut = self._resized if self.options.crop == "resized" else self._padded
        block, seen = cut(images, which, draws)
        if self.rand_augment:
            block = self.rand_augment(block, draws)
        if self.options.three_augment:
            block = three_augment(block, draws)
        if self.options.color_jitter:
            block = jitter(block, draws, self.options.color_jitter)
        block = self.normalize(block)
        if self.erase:
            block = self.erase(block, draws)
        crop = send(seen.astype(np.float32), images.device) if self.crops else None
        return block.unflatten(2, (-1, 3)).permute(0, 3, 1, 2), crop

    def _padded(self, images, which, draws):
        """Return padded random crops, or whole images, some flipped; and their crops."""
        reach = self.options.crop_padding if self.options.crop == "pad" else 0
        corner = (draws.below(np.full((len(which), 2), 2 * reach + 1)) - reach).astype(np.int32)
        flip = draws.uniform(1)[:, 0] < self.options.flip
        seen = np.concatenate([corner / self.size, np.ones_like(corner), flip[:, None]], axis=1)
        if images.shape[1:3] != (self.size, self.size):
            whole = torch.zeros(1, device=images.device), torch.zeros(1, device=images.device)
            sides = (torch.full((1,), side, device=images.device) for side in images.shape[1:3])
            images = geometry.resample(
                images[which], *whole, *sides, self.size, interpolation=self.options.interpolation
            )
            which = torch.arange(len(which), device=images.device, dtype=torch.int32)
        (top, left), flip = (send(numbers, images.device) for numbers in (corner.T, flip))
        return geometry.crop(images, which, top, left, flip, self.size), seen

    def _resized(self, images, which, draws):
        """Return random rectangles resized to squares, some flipped; and their crops."""
        whole = images.shape[1:3]
        corner, sides = draw_rectangles(draws, *whole, self.options.crop_scale)
        mirrored = draws.uniform(1)[:, 0] < self.options.flip
        seen = np.concatenate([corner / whole, sides / whole, mirrored[:, None]], axis=1)
        flip = send(mirrored, images.device)
        numbers = send(np.concatenate([corner, sides], axis=1).T.copy(), images.device)
        block = geometry.resample(images[which], *numbers, self.size, interpolation=self.options.interpolation)
        return torch.where(flip.view(-1, 1, 1, 1), block.flip(2), block), seen


def draw_rectangles(draws: CounterRNG, height: int, width: int, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Return corners (B, 2) and sides (B, 2), each vertical first, of random rectangles, drawn as in torchvision.

    least: minimum fraction of the image's area. If none of ten tries fits, a central crop is taken.
    """
    area = draws.between(least, 1.0, TRIES) * (height * width)
    ratio = np.exp(draws.between(*RATIO, TRIES))
    sides = np.stack([np.rint(np.sqrt(area / ratio)), np.rint(np.sqrt(area * ratio))], axis=2)  # (B, TRIES, 2)
    fits = np.all((sides > 0) & (sides <= (height, width)), axis=2)
    each, first = np.arange(len(fits)), fits.argmax(axis=1)
    central = (round(min(height, width / math.exp(RATIO[0]))), round(min(width, height * math.exp(RATIO[1]))))
    sides = np.where(fits[each, first][:, None], sides[each, first], central).astype(np.int64)
    corner = draws.below(np.array([height, width]) - sides + 1)
    middle = (np.array([height, width]) - sides) // 2
    return np.where(fits[each, first][:, None], corner, middle), sides


def jitter(images: Tensor, draws: CounterRNG, strength: float) -> Tensor:
    """Jitter brightness, contrast and saturation of (B, S, S, 4) images, in random order, as torchvision does."""
    functions = (color.brightness, color.contrast, color.saturation)
    factors = send(draws.between(max(0.0, 1 - strength), 1 + strength, len(functions)), images.device)
    order = draws.uniform(len(functions)).argsort(axis=1)
    for turn in range(len(functions)):
        for number, function in enumerate(functions):
            where = send(np.flatnonzero(order[:, turn] == number), images.device)
            change(images, where, function, factors[where, number])
    return images
