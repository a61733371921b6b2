"""Read all images of a split into memory.

Shapes: N images, H height, W width.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pycls_std.core.structures import ImageSet
from pycls_std.datasets.decoding import to_rgb
from pycls_std.datasets.memory import NotInMemory
from pycls_std.datasets.memory.pixels import padded
from pycls_std.process import signals

# Maximum bytes of a split's pixels, four per pixel.
LIMIT = 2**31
# Up to FEW pixels, one process is faster than starting workers. Images smaller than SMALL take as long as one of SMALL.
SMALL = 64 * 64
FEW = 5000 * SMALL


def check_room(dataset: ImageSet, size: tuple[int, int]) -> None:
    """Raise NotInMemory if the images of a dataset, at this (width, height), take more than LIMIT."""
    width, height = size
    needed = 4 * width * height * len(dataset)
    if needed > LIMIT:
        raise NotInMemory(
            f"{len(dataset)} images of {width}x{height} pixels take {needed / 2**30:.1f} GiB, "
            f"at most {LIMIT / 2**30:.0f} are kept"
        )


class Decoded(Dataset):
    """Images as arrays (H, W, 3) uint8. prepare, check: see `read`."""

    def __init__(self, dataset: ImageSet, prepare, check):
        self.dataset = dataset
        self.prepare = prepare
        self.check = check

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[np.ndarray, Any]:
        image, target = self.dataset[index]
        pixels = to_rgb(image) if self.prepare is None else self.prepare(to_rgb(image))
        return np.array(pixels), self.check(index, target)


def read(dataset: ImageSet, prepare=None, *, check, workers: int) -> tuple[Tensor, list]:
    """Return the pixels (N, H, W, 4) uint8 and the targets of a dataset.

    prepare: transform applied to each RGB image first; None = none. check(index, target) returns the target, or raises
    ValueError if it is invalid. workers: processes that read.
    Raises NotInMemory that names two images, if they are not all of the same size.
    """
    width, height = dataset[0][0].size
    batches = DataLoader(
        Decoded(dataset, prepare, check),
        batch_size=256,
        num_workers=workers if len(dataset) * max(width * height, SMALL) > FEW else 0,
        collate_fn=_stack,
        worker_init_fn=signals.ignore_interrupt,
    )
    pixels: Tensor | None = None
    targets: list = []
    done = 0
    for images, of_images in batches:
        shape = images[0].shape if pixels is None else (*pixels.shape[1:3], 3)
        odd = [index for index, image in enumerate(images) if image.shape != shape]
        if odd:
            raise NotInMemory(
                f"image 0 of the dataset has {shape[1]}x{shape[0]} pixels, image {done + odd[0]} "
                f"{images[odd[0]].shape[1]}x{images[odd[0]].shape[0]}"
            )
        pixels = torch.empty(len(dataset), *shape[:2], 4, dtype=torch.uint8) if pixels is None else pixels
        pixels[done : done + len(images)] = padded(torch.as_tensor(np.stack(images)))
        targets += of_images
        done += len(images)
    assert pixels is not None, "a dataset has images"
    return pixels, targets


def _stack(items):
    """Return one array for images of one size, which a worker sends at once; and the targets."""
    images, targets = zip(*items, strict=True)
    return (np.stack(images) if len({image.shape for image in images}) == 1 else list(images)), list(targets)
