"""Dataset: rectangles on noise, in images of several sizes."""

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from pycls_std.core.registry import DATASETS
from pycls_std.core.structures import DatasetInfo
from pycls_std.datasets.normalizations import NORMALIZATIONS

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0)}


class Rectangles(Dataset):
    """Pairs of an image and {"boxes": (n, 4) left, top, right, bottom as shares of the image, "labels": (n,)}."""

    def __init__(self, count: int, seed: int):
        self.count = count
        self.seed = seed

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        draws = np.random.default_rng((self.seed, index))
        height, width = draws.integers(20, 33, 2)
        pixels = draws.integers(0, 100, (height, width, 3), dtype=np.uint8)
        boxes, labels = [], draws.integers(0, 2, draws.integers(1, 3))
        for label in labels:
            top, left = draws.integers(0, (height - 12, width - 12))
            bottom, right = draws.integers((top + 8, left + 8), (height, width))
            pixels[top:bottom, left:right] = list(COLORS.values())[label]
            boxes.append([left / width, top / height, right / width, bottom / height])
        return Image.fromarray(pixels), {"boxes": torch.tensor(boxes), "labels": torch.tensor(labels)}


@DATASETS.register("rectangles", TARGETS="rectangles")
def rectangles(*, root, split):
    """Return 256 training or 64 test images of two classes; nothing is read from root."""
    images = {"train": Rectangles(256, 0), "test": Rectangles(64, 1)}[split]
    return images, DatasetInfo("rectangles", tuple(COLORS), NORMALIZATIONS["digits"])
