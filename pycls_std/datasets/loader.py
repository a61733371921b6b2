"""Data loaders in which every view of an image is a pure function of (seed, epoch, index)."""

from typing import Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from pycls_std.core.seeding import seeded
from pycls_std.core.structures import ImageSet, Loader, Sample, World
from pycls_std.datasets.crops import recorded_crop
from pycls_std.process import signals

WORLD = World()  # this process alone


class Views(Dataset):
    """Transformed images of a dataset, addressed by (view, index); the same address always gives the same pixels.

    So the views do not depend on the number of workers or on resuming.
    transform(image, target) returns both, transformed. check(index, target) returns the target, or raises ValueError if
    it is invalid. collate turns samples into a `Loaded`. crops: whether to record the part of the image that a view
    shows.
    """

    def __init__(self, dataset: ImageSet, transform, *, seed: int, check, collate, crops: bool = False):
        self.dataset = dataset
        self.transform = transform
        self.seed = seed
        self.check = check
        self.collate = collate
        self.crops = crops

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, address: tuple[int, int]) -> Sample:
        """Return a view as a `Sample`. Raises ValueError for an invalid target."""
        view, index = address
        image, target = self.dataset[index]
        target = self.check(index, target)
        with seeded(self.seed, view, index):
            pixels, target = self.transform(image, target)
        return Sample(pixels, target, index, recorded_crop(self.transform.transforms) if self.crops else None)

    def loader(self, sampler, *, batch_size: int, workers: int) -> DataLoader:
        """Return a DataLoader. workers: number of worker processes; 0 = this process."""
        return DataLoader(
            self,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=workers,
            collate_fn=self.collate,
            pin_memory=torch.cuda.is_initialized(),  # faster to CUDA; warns without CUDA
            persistent_workers=workers > 0,
            worker_init_fn=signals.ignore_interrupt,
            generator=torch.Generator(),  # so that a pass does not draw from the global one
        )


class EpochSampler(Sampler):
    """Addresses of one process's images of an epoch, batch by batch.

    All images are shuffled by (seed, epoch), each repeated `repeats` times as different views, and split into batches
    of `batch_size`, dropping an incomplete last one. positions: this process's positions in a batch. Set `epoch` before
    each pass.
    Repeats are adjacent, and the epoch is truncated to the size of the dataset, so with 3 repeats it contains a third
    of the images, each in three views.
    Source: Hoffer et al., CVPR 2020; Touvron et al., ICML 2021 (repeated augmentation).
    groups: group number of each image, or None. Each batch then has images of one group. The remainders of the groups,
    less than a batch each, are combined into batches as well, neighbouring groups together, so that the number of
    batches is the same as without groups; and the order of the batches is shuffled.
    """

    def __init__(
        self,
        size: int,
        *,
        seed: int,
        batch_size: int,
        positions: list[int],
        repeats: int = 1,
        groups: np.ndarray | None = None,
    ):
        self.size = size
        self.seed = seed
        self.batches = size // batch_size
        self.batch_size = batch_size
        self.positions = positions
        self.repeats = repeats
        self.groups = groups
        self.epoch = 0

    def __len__(self) -> int:
        return self.batches * len(self.positions)

    def __iter__(self):
        return map(tuple, self.addresses().tolist())

    def addresses(self) -> np.ndarray:
        """Return all addresses of a pass, (N, 2)."""
        own = self._order()[:, self.positions].reshape(-1, 2)
        return own + (self.epoch * self.repeats, 0)

    def _order(self) -> np.ndarray:
        """Return view number, below `repeats`, and image at each position of each batch, (batches, positions, 2)."""
        draws = np.random.default_rng((self.seed, self.epoch))
        order = draws.permutation(self.size)
        if self.groups is None:
            return self._batches(self._views(order))
        order = order[: self.batches * self.batch_size]  # dropped images are of any group
        own = self.groups[order]
        parts = [self._views(order[own == group]) for group in np.unique(own)]
        whole = [len(part) // self.batch_size * self.batch_size for part in parts]
        first = [part[:count] for part, count in zip(parts, whole, strict=True)]
        left = [part[count:] for part, count in zip(parts, whole, strict=True)]
        return draws.permutation(self._batches(np.concatenate(first + left)))

    def _views(self, order: np.ndarray) -> np.ndarray:
        """Return the first N repeated views (N, 2) of images in an order (N,); those of an image are adjacent."""
        places = np.arange(len(order))
        return np.stack([places % self.repeats, order[places // self.repeats]], axis=1)

    def _batches(self, places: np.ndarray) -> np.ndarray:
        count = self.batches * self.batch_size
        return places[:count].reshape(self.batches, self.batch_size, 2)


class AnyViews(Protocol):
    """The dataset of a loader: `Views`, or views of images in memory."""

    def __len__(self) -> int:
        """Return the number of images."""

    def loader(self, sampler: EpochSampler | list, *, batch_size: int, workers: int) -> Loader:
        """Return the loader of a pass of batches."""


def train_loader(
    views: AnyViews,
    *,
    batch_size: int,
    workers: int,
    seed: int,
    repeats: int = 1,
    groups: np.ndarray | None = None,
    world: World = WORLD,
) -> Loader:
    """Return a loader of this process's share of shuffled batches; an incomplete last batch is dropped.

    batch_size: global batch size, of all processes. repeats, groups: see `EpochSampler`.
    Raises ValueError if there are fewer images than a batch has, and if processes cannot share a batch evenly.
    """
    check_batch_size(len(views), batch_size, world)
    positions = world.positions(batch_size)
    sampler = EpochSampler(
        len(views), seed=seed, batch_size=batch_size, positions=positions, repeats=repeats, groups=groups
    )
    return views.loader(sampler, batch_size=len(positions), workers=workers)


def check_batch_size(images: int, batch_size: int, world: World) -> None:
    """Raise ValueError if there are fewer images than a batch has, and if processes cannot share a batch evenly."""
    if images < batch_size:
        raise ValueError(f"TRAIN.BATCH_SIZE is {batch_size}, the training split has {images} images")
    if batch_size % world.size:
        raise ValueError(f"TRAIN.BATCH_SIZE is {batch_size}, {world.size} processes cannot share it evenly")


def batch_at_test(device: torch.device, *, size: int, image_size: int) -> int:
    """Return the batch size of evaluation. size: as configured; 0 = by device, larger on CUDA, to amortize launches."""
    if size or device.type != "cuda":
        return size or 200
    return max(1, min(2048, 2**24 // image_size**2))


def test_loader(views: AnyViews, *, batch_size: int, workers: int, world: World = WORLD) -> Loader:
    """Return a loader of this process's share of all images, with a possibly smaller last batch.

    batch_size: of this process. No image is duplicated, so some processes may have one more.
    Raises ValueError if there are fewer images than processes.
    """
    if len(views) < world.size:
        raise ValueError(f"{len(views)} images are to be scored, fewer than {world.size} processes")
    order = [(0, index) for index in range(world.rank, len(views), world.size)]
    return views.loader(order, batch_size=batch_size, workers=workers)
