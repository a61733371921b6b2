"""Coloured shapes on noise, drawn by code: a detection dataset without files, for tests and demonstrations."""

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from pycls_std.core.registry import DATASETS
from pycls_std.core.structures import DatasetInfo, ImageSet
from pycls_std.datasets.box_targets import box_target
from pycls_std.datasets.normalizations import NORMALIZATIONS

IMAGES = {"train": 128, "test": 32}
SIDES = (64, 97)  # of an image, pixels; the end is exclusive, as below
EXTENTS = (14, 41)  # of a shape
MOST = 4  # maximum number of shapes per image
TRIES = 20  # to place a shape without overlap

# Whether a point belongs to a shape; across and down are from 0 to 1 within its bounding square.
SHAPES = {
    "square": lambda across, down: np.ones(np.broadcast(across, down).shape, dtype=bool),
    "disc": lambda across, down: (across - 0.5) ** 2 + (down - 0.5) ** 2 <= 0.25,
    "triangle": lambda across, down: abs(across - 0.5) <= down / 2,
}


class Shapes(Dataset):
    """Pairs of an image of 64 to 96 pixels a side, with 1 to 4 shapes whose boxes do not overlap, and its target.

    The target is as `box_targets` says; the area is that of the shape. Image `index` is drawn from (seed, index).
    """

    def __init__(self, images: int, seed: int):
        self.images = images
        self.seed = seed

    def __len__(self) -> int:
        return self.images

    @property
    def sizes(self) -> list[list[int]]:
        """Height and width of each image, pixels."""
        return [_size(np.random.default_rng((self.seed, index))) for index in range(self.images)]

    def __getitem__(self, index: int):
        draws = np.random.default_rng((self.seed, index))
        height, width = _size(draws)
        pixels = draws.integers(0, 100, (height, width, 3), dtype=np.uint8)
        taken, rows = np.zeros((height, width), dtype=bool), []
        for label in draws.integers(0, len(SHAPES), draws.integers(1, MOST + 1)).tolist():
            shape = _placed(draws, taken, list(SHAPES.values())[label])
            if shape is not None:
                pixels[shape] = draws.integers(100, 256, 3)
                left, top, right, bottom = _box(shape)
                rows.append((left, top, right, bottom, label, shape.sum()))
                taken[top:bottom, left:right] = True
        boxes, labels, area = np.split(np.array(rows), (4, 5), axis=1)
        truth = {
            "boxes": torch.tensor(boxes, dtype=torch.float32),
            "labels": torch.tensor(labels[:, 0]),
            "area": torch.tensor(area[:, 0], dtype=torch.float32),
            "crowd": torch.zeros(len(rows), dtype=torch.bool),
        }
        return Image.fromarray(pixels), box_target(truth, image_id=index + 1, size=(height, width))


def _size(draws: np.random.Generator) -> list[int]:
    """Return height and width of an image, the first numbers drawn for it."""
    return draws.integers(*SIDES, 2).tolist()


def _placed(draws: np.random.Generator, taken: np.ndarray, shape) -> np.ndarray | None:
    """Return the mask of a shape that does not overlap what is taken, (H, W) bool; None if no position was found."""
    for _ in range(TRIES):
        side = draws.integers(*EXTENTS)
        top, left = draws.integers(0, np.array(taken.shape) - side + 1)
        centres = (np.arange(side) + 0.5) / side
        found = np.zeros_like(taken)
        found[top : top + side, left : left + side] = shape(centres[None], centres[:, None])
        if not taken[top : top + side, left : left + side].any():
            return found
    return None


def _box(shape: np.ndarray) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom of a shape in the image (H, W)."""
    (top, bottom), (left, right) = (np.flatnonzero(shape.any(axis=axis))[[0, -1]] for axis in (1, 0))
    return left, top, right + 1, bottom + 1


@DATASETS.register("shapes", TARGETS="boxes")
def shapes(*, root: str, split: str) -> tuple[ImageSet, DatasetInfo]:
    """Return the `train` (128 images) or `test` (32 images) split; nothing is read from root."""
    dataset = Shapes(IMAGES[split], seed=list(IMAGES).index(split))
    return dataset, DatasetInfo("shapes", tuple(SHAPES), NORMALIZATIONS["imagenet"])
