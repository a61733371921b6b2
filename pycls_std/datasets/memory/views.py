"""Views of images in memory, made in blocks of many batches.

Shapes: B views, N images, H height, W width, S side of a view.
"""

import hashlib
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

# Changes whenever the same address gives other pixels than before: what is kept of views is then of no use.
VERSION = 1
# Images of a block, and their pixels: fewer cost more for each image, more do not fit into the processor's cache.
BLOCK = 2**11
BLOCK_PIXELS = 2**21


class MemoryViews(Dataset):
    """Transformed images, addressed by (view, index); the same address always gives the same pixels.

    pixels: (N, H, W, 4) uint8. labels: (N,). Both lie where the views shall be.
    transform(pixels, views (B,), indices (B,)) gives (B, 3, S, S), normalised. size: S.
    """

    def __init__(
        self,
        pixels: Tensor,
        labels: Tensor,
        transform: Callable[[Tensor, np.ndarray, np.ndarray], Tensor],
        *,
        size: int,
    ):
        self.pixels = pixels
        self.labels = labels
        self.transform = transform
        self.size = size

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, address: tuple[int, int]) -> tuple[Tensor, int]:
        images, labels = self.batch([address])
        return images[0], int(labels[0])

    def batch(self, addresses: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Return images (B, 3, S, S) and labels (B,) of addresses."""
        views, indices = np.array(addresses, dtype=np.int64).T
        images = self.transform(self.pixels, views, indices)
        return images, self.labels[torch.from_numpy(indices).to(self.labels.device, non_blocking=True)]

    def fingerprint(self) -> str:
        """Return the SHA-256 of all pixels and labels."""
        digest = hashlib.sha256()
        for values in (self.pixels, self.labels):
            digest.update(str(tuple(values.shape)).encode())
            digest.update(values.cpu().numpy().data)
        return digest.hexdigest()

    def loader(self, sampler: Sampler | list, *, batch_size: int, workers: int) -> "MemoryLoader":
        """Return what a pass of batches comes from; it needs no workers."""
        return MemoryLoader(self, sampler, batch_size=batch_size)


class MemoryLoader:
    """A pass of batches, as a DataLoader gives it to the loop. sampler: the address of every view of a pass."""

    def __init__(self, views: MemoryViews, sampler: Sampler | list, *, batch_size: int):
        self.dataset = views
        self.sampler = sampler
        self.batch_size = batch_size
        images = min(BLOCK, BLOCK_PIXELS // views.size**2)
        self.block = max(1, images // batch_size)  # batches that are made at once

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        addresses = list(self.sampler)
        step = self.block * self.batch_size
        for start in range(0, len(addresses), step):
            images, labels = self.dataset.batch(addresses[start : start + step])
            yield from zip(images.split(self.batch_size), labels.split(self.batch_size), strict=True)
