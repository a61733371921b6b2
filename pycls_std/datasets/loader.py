"""Loaders whose every view of an image is a pure function of (seed, epoch, index)."""

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

    So neither the number of workers nor a resume changes what is seen.
    transform(image, target) returns both, transformed. check(index, target) returns the target, or raises ValueError
    for what is none. collate turns samples into a `Loaded`. crops: whether to record the part of the image that a view
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
        """Return a view with what belongs to it. Raises ValueError for a target that is none."""
        view, index = address
        image, target = self.dataset[index]
        target = self.check(index, target)
        with seeded(self.seed, view, index):
            pixels, target = self.transform(image, target)
        return Sample(pixels, target, index, recorded_crop(self.transform.transforms) if self.crops else None)

    def loader(self, sampler, *, batch_size: int, workers: int) -> DataLoader:
        """Return what a pass of batches comes from. workers: processes that make them; 0 = this one."""
        return DataLoader(
            self,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=workers,
            collate_fn=self.collate,
            pin_memory=torch.cuda.is_initialized(),  # faster to CUDA; a warning where CUDA is not in use
            persistent_workers=workers > 0,
            worker_init_fn=signals.ignore_interrupt,
            generator=torch.Generator(),  # of its own, so that a pass draws nothing from the global one
        )


class EpochSampler(Sampler):
    """Addresses of one process's images of an epoch, batch by batch.

    The order of all is shuffled from (seed, epoch), each image `repeats` times as another view, and cut into batches of
    `batch_size`, an incomplete last one dropped. positions: places in a batch that are this process's. Set `epoch`
    before each pass.
    Repeats follow each other, and the epoch is cut to the size of the dataset, so that with 3 repeats it sees a third
    of the images, each in three views.
    Source: Hoffer et al., CVPR 2020; Touvron et al., ICML 2021 (repeated augmentation).
    groups: of each image, a number, or None. A batch then has images of one group. What is left of all groups, less
    than a batch of each, is cut into batches as well, neighbouring groups together, so that there are as many batches
    as without groups; and the order of the batches is shuffled.
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
        """Return all of a pass at once, (N, 2)."""
        own = self._order()[:, self.positions].reshape(-1, 2)
        return own + (self.epoch * self.repeats, 0)

    def _order(self) -> np.ndarray:
        """Return which view, below `repeats`, of which image stands at each place of a batch, (batches, places, 2)."""
        draws = np.random.default_rng((self.seed, self.epoch))
        order = draws.permutation(self.size)
        if self.groups is None:
            return self._batches(self._views(order))
        order = order[: self.batches * self.batch_size]  # what is left out is of any group
        own = self.groups[order]
        parts = [self._views(order[own == group]) for group in np.unique(own)]
        whole = [len(part) // self.batch_size * self.batch_size for part in parts]
        first = [part[:count] for part, count in zip(parts, whole, strict=True)]
        left = [part[count:] for part, count in zip(parts, whole, strict=True)]
        return draws.permutation(self._batches(np.concatenate(first + left)))

    def _views(self, order: np.ndarray) -> np.ndarray:
        """Return views (N, 2) of images in an order (N,), as many as these, those of an image one after the other."""
        places = np.arange(len(order))
        return np.stack([places % self.repeats, order[places // self.repeats]], axis=1)

    def _batches(self, places: np.ndarray) -> np.ndarray:
        count = self.batches * self.batch_size
        return places[:count].reshape(self.batches, self.batch_size, 2)


class AnyViews(Protocol):
    """What a loader is made of: `Views`, or those of images in memory."""

    def __len__(self) -> int:
        """Return the number of images."""

    def loader(self, sampler: EpochSampler | list, *, batch_size: int, workers: int) -> Loader:
        """Return what a pass of batches comes from."""


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

    batch_size: images of a batch of all processes. repeats, groups: see `EpochSampler`.
    Raises ValueError if there are fewer images than a batch has, and if a batch cannot be shared out.
    """
    check_batch_size(len(views), batch_size, world)
    positions = world.positions(batch_size)
    sampler = EpochSampler(
        len(views), seed=seed, batch_size=batch_size, positions=positions, repeats=repeats, groups=groups
    )
    return views.loader(sampler, batch_size=len(positions), workers=workers)


def check_batch_size(images: int, batch_size: int, world: World) -> None:
    """Raise ValueError if there are fewer images than a batch has, and if a batch cannot be shared out."""
    if images < batch_size:
        raise ValueError(f"TRAIN.BATCH_SIZE is {batch_size}, the training split has {images} images")
    if batch_size % world.size:
        raise ValueError(f"TRAIN.BATCH_SIZE is {batch_size}, {world.size} processes cannot share it evenly")


def batch_at_test(device: torch.device, *, size: int, image_size: int) -> int:
    """Return the images of a test batch. size: as configured; 0 = by device, for a launch on CUDA costs the same."""
    if size or device.type != "cuda":
        return size or 200
    return max(1, min(2048, 2**24 // image_size**2))


def test_loader(views: AnyViews, *, batch_size: int, workers: int, world: World = WORLD) -> Loader:
    """Return a loader of this process's share of all images, the last batch as small as it comes.

    batch_size: images of a batch of this process. No image is there twice, so one process may have one more.
    Raises ValueError if there are fewer images than processes.
    """
    if len(views) < world.size:
        raise ValueError(f"{len(views)} images are to be scored, fewer than {world.size} processes")
    order = [(0, index) for index in range(world.rank, len(views), world.size)]
    return views.loader(order, batch_size=batch_size, workers=workers)
