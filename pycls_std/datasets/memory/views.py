"""Views of images in memory, computed in blocks of several batches.

Shapes: B views, N images, H height, W width, S side of a view.
"""

import hashlib
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pycls_std.core.sending import send
from pycls_std.core.structures import Loaded, take
from pycls_std.datasets.loader import EpochSampler

# To be changed whenever the same address gives different pixels than before, which invalidates caches of views.
VERSION = 1
# Images per block by device type, at a side of BLOCK_SIDE; fewer for larger images. Smaller blocks cost more per image,
# since the number of CUDA launches does not depend on the size. Larger ones exceed the processor's cache, or take
# device memory from the student.
BLOCK = {"cpu": 2**11, "cuda": 2**14}
BLOCK_SIDE = 32


class MemoryViews(Dataset):
    """Transformed images, addressed by (view, index); the same address always gives the same pixels.

    pixels: (N, H, W, 4) uint8. targets: (N, ...). Both are on the device of the views.
    transform(pixels, views (B,), indices (B,)) returns (B, 3, S, S), normalised, and the crop of each image, (B, 5), or
    None if it is not recorded; see `crops`. size: S.
    """

    def __init__(
        self,
        pixels: Tensor,
        targets: Tensor,
        transform: Callable[[Tensor, np.ndarray, np.ndarray], tuple[Tensor, Tensor | None]],
        *,
        size: int,
    ):
        self.pixels = pixels
        self.targets = targets
        self.transform = transform
        self.size = size

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, address: tuple[int, int]) -> Loaded:
        return self.batch([address])

    @staticmethod
    def collate(samples: list[Loaded]) -> Loaded:
        """Concatenate several batches to one."""
        return Loaded(*map(_joined, zip(*samples, strict=True)))

    def batch(self, addresses: np.ndarray | list[tuple[int, int]]) -> Loaded:
        """Return the views of addresses, (B,)."""
        views, indices = np.array(addresses, dtype=np.int64).T
        images, crop = self.transform(self.pixels, views, indices)
        index = send(indices, self.targets.device)
        return Loaded(images, self.targets[index], index, crop, None if crop is None else indices)

    def fingerprint(self) -> str:
        """Return the SHA-256 of all pixels and targets."""
        digest = hashlib.sha256()
        for values in (self.pixels, self.targets):
            digest.update(str(tuple(values.shape)).encode())
            digest.update(values.cpu().numpy().data)
        return digest.hexdigest()

    def loader(self, sampler: EpochSampler | list, *, batch_size: int, workers: int) -> "MemoryLoader":
        """Return the loader of a pass of batches; it needs no workers."""
        return MemoryLoader(self, sampler, batch_size=batch_size)


class MemoryLoader:
    """A pass of batches, with the interface of a DataLoader. sampler: the addresses of the views of a pass."""

    def __init__(self, views: MemoryViews, sampler: EpochSampler | list, *, batch_size: int):
        self.dataset = views
        self.sampler = sampler
        self.batch_size = batch_size
        self.block = batches_at_once(views.pixels.device.type, batch_size, size=views.size)

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.batch_size)

    def __iter__(self) -> Iterator[Loaded]:
        whole = getattr(self.sampler, "addresses", None)  # as one array if possible, since a pass has many
        addresses = whole() if whole else list(self.sampler)
        step = self.block * self.batch_size
        for start in range(0, len(addresses), step):
            block = self.dataset.batch(addresses[start : start + step])
            for first in range(0, len(block.images), self.batch_size):
                own = slice(first, first + self.batch_size)
                yield take(block, own)


def batches_at_once(kind: str, batch_size: int, *, size: int) -> int:
    """Return the number of batches per block on a device type. size: side of a view, pixels."""
    most = BLOCK.get(kind, BLOCK["cpu"])
    return max(1, min(most, most * BLOCK_SIDE**2 // size**2) // batch_size)


def _joined(parts: tuple):
    """Concatenate tensors or arrays; None if they are not recorded."""
    if parts[0] is None:
        return None
    return torch.cat(parts) if isinstance(parts[0], Tensor) else np.concatenate(parts)
