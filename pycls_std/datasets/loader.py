"""Loaders whose every view of an image is a pure function of (seed, epoch, index)."""

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from pycls_std.seeding import seeded


class Views(Dataset):
    """Transformed images of a dataset, addressed by (view, index); the same address always gives the same pixels.

    So neither the number of workers nor a resume changes what is seen.
    """

    def __init__(self, dataset: Dataset, transform, seed: int):
        self.dataset = dataset
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, address: tuple[int, int]):
        """Return the transformed image and its label."""
        view, index = address
        image, label = self.dataset[index]
        with seeded(self.seed, view, index):
            return self.transform(image), label


class EpochSampler(Sampler):
    """Addresses of one epoch's images: shuffled from (seed, epoch), each image `repeats` times as another view.

    Repeats follow each other, and the epoch is cut to the size of the dataset, so that with 3 repeats it sees a third
    of the images, each in three views. Set `epoch` before each pass.
    Source: Hoffer et al., CVPR 2020; Touvron et al., ICML 2021 (repeated augmentation).
    """

    def __init__(self, size: int, *, seed: int, repeats: int = 1):
        self.size = size
        self.seed = seed
        self.repeats = repeats
        self.epoch = 0

    def __len__(self) -> int:
        return self.size

    def __iter__(self):
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.size).repeat(self.repeats)[: self.size]
        for position, index in enumerate(order.tolist()):
            yield self.epoch * self.repeats + position % self.repeats, index


def train_loader(views: Views, *, batch_size: int, workers: int, seed: int, repeats: int = 1) -> DataLoader:
    """Return a loader of shuffled batches; an incomplete last batch is dropped.

    Raises ValueError if there are fewer images than a batch has.
    """
    if len(views) < batch_size:
        raise ValueError(f"TRAIN.BATCH_SIZE is {batch_size}, the training split has {len(views)} images")
    sampler = EpochSampler(len(views), seed=seed, repeats=repeats)
    return _loader(views, sampler, batch_size, workers, drop_last=True)


def test_loader(views: Views, *, batch_size: int, workers: int) -> DataLoader:
    """Return a loader of all images in their order, the last batch as small as it comes."""
    order = [(0, index) for index in range(len(views))]
    return _loader(views, order, batch_size, workers, drop_last=False)


def _loader(views, sampler, batch_size, workers, drop_last):
    return DataLoader(
        views,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        drop_last=drop_last,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # of its own, so that a pass draws nothing from the global one
    )
