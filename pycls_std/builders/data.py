"""Build datasets, loaders and mixing from the options."""

import logging
import time
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from pycls_std.core.registry import DATASETS
from pycls_std.core.structures import DatasetInfo, Normalization, World
from pycls_std.datasets import loader as loaders
from pycls_std.datasets.faults import read_all
from pycls_std.datasets.memory import NotInMemory, store
from pycls_std.datasets.memory.augment import BatchAugmentation, Plain
from pycls_std.datasets.memory.views import MemoryLoader, MemoryViews
from pycls_std.datasets.mixing import Mixing
from pycls_std.datasets.normalizations import NORMALIZATIONS
from pycls_std.datasets.transforms import Augmentation, test_pixels, test_transform, train_transform, whole

LOG = logging.getLogger("pycls_std")
CPU = torch.device("cpu")


class Data(NamedTuple):
    """The images of a run. The training loader is None where only the test split was asked for."""

    info: DatasetInfo
    normalization: Normalization  # of the student's input
    test: DataLoader | MemoryLoader
    train: DataLoader | MemoryLoader | None = None

    @property
    def in_memory(self) -> bool:
        """Whether the training images are, so that their views are not those that workers make."""
        return isinstance(self.train.dataset, MemoryViews)


def build_info(cfg) -> DatasetInfo:
    """Return what the dataset says of itself. Raises ValueError if MODEL.NUM_CLASSES is another number of classes."""
    return _split(cfg, "test")[1]


def build_data(cfg, *, device: torch.device = CPU, train: bool = True, world: World = loaders.WORLD) -> Data:
    """Return the loaders of a run, with this process's share of the images.

    device: where images that are held in memory shall lie.
    Raises ValueError if the splits do not have the same classes, or if MODEL.NUM_CLASSES is another number.
    """
    test_set, info = _split(cfg, "test")
    normalization = named_normalization("DATA.NORMALIZATION", cfg.DATA.NORMALIZATION) or info.normalization
    workers = cfg.DATA.NUM_WORKERS
    if train:  # first, for what is wrong with it is told before anything is read
        train_set, train_info = DATASETS.get(cfg.DATA.NAME)(root=cfg.DATA.ROOT, split="train")
        _refuse_other_classes(cfg, train_info, info)
        _refuse_odd_batch(cfg, world)
        loaders.check_batch_size(len(train_set), cfg.TRAIN.BATCH_SIZE, world)
        views = _train_views(cfg, train_set, info, normalization, device)
        train_batches = loaders.train_loader(
            views,
            batch_size=cfg.TRAIN.BATCH_SIZE,
            workers=workers,
            seed=data_seed(cfg),
            repeats=cfg.AUG.REPEATS,
            world=world,
        )
    views = _test_views(cfg, test_set, info, normalization, device)
    test = loaders.test_loader(views, batch_size=cfg.TEST.BATCH_SIZE, workers=workers, world=world)
    return Data(info, normalization, test, train_batches if train else None)


def _split(cfg, split: str) -> tuple[Dataset, DatasetInfo]:
    dataset, info = DATASETS.get(cfg.DATA.NAME)(root=cfg.DATA.ROOT, split=split)
    classes = len(info.classes)
    if cfg.MODEL.NUM_CLASSES not in (0, classes):
        raise ValueError(f"MODEL.NUM_CLASSES is {cfg.MODEL.NUM_CLASSES}, {info.name} has {classes} classes")
    return dataset, info


def _refuse_other_classes(cfg, train: DatasetInfo, test: DatasetInfo) -> None:
    if train.classes != test.classes:
        odd = set(train.classes) ^ set(test.classes)
        names = [f"{name} ({'test' if name in test.classes else 'train'} only)" for name in sorted(odd)[:5]]
        raise ValueError(f"DATA.ROOT {cfg.DATA.ROOT}: the splits differ in {len(odd)} classes: {', '.join(names)}")


def _refuse_odd_batch(cfg, world: World) -> None:
    batch_size = cfg.TRAIN.BATCH_SIZE
    if (cfg.AUG.MIXUP or cfg.AUG.CUTMIX) and batch_size // world.size % 2:
        raise ValueError(
            f"TRAIN.BATCH_SIZE is {batch_size}, {batch_size // world.size} for each of {world.size} processes: "
            "AUG.MIXUP and AUG.CUTMIX, which mix images in pairs, need an even number"
        )


def _train_views(cfg, dataset, info, normalization, device) -> loaders.Views | MemoryViews:
    """Return the augmented images, in memory if DATA.LOADER asks for it, or if it leaves the choice and they can be."""
    size, augmentation, classes = cfg.DATA.IMAGE_SIZE, _augmentation(cfg.AUG), len(info.classes)
    reason, start = "", time.perf_counter()
    if cfg.DATA.LOADER != "workers":
        try:
            pixels, labels = _pixels(cfg, dataset, classes, crop=augmentation.crop)
        except NotInMemory as error:
            if cfg.DATA.LOADER == "memory":
                raise ValueError(f"DATA.LOADER is memory: {error}") from error
            reason = f": {error}"
        else:
            taken, seconds = pixels.numel() / 2**20, time.perf_counter() - start
            LOG.info(
                "training images: %d in memory (%.0f MiB, read in %.1f s), augmented in batches on %s (DATA.LOADER)",
                *(len(labels), taken, seconds, device.type),
            )
            augment = BatchAugmentation(size, normalization, augmentation, seed=data_seed(cfg), device=device)
            return MemoryViews(pixels.to(device), labels.to(device), augment, size=size)
    LOG.info("training images: one by one, by %d workers (DATA.LOADER)%s", cfg.DATA.NUM_WORKERS, reason)
    return loaders.Views(
        dataset, train_transform(size, normalization, augmentation), seed=data_seed(cfg), classes=classes
    )


def _pixels(cfg, dataset, classes, *, crop):
    """Return the training images at the size that the crop needs, at their own where that is too large to keep."""
    size = (cfg.DATA.IMAGE_SIZE, cfg.DATA.IMAGE_SIZE)
    options = {"classes": classes, "workers": cfg.DATA.NUM_WORKERS}
    if crop != "resized":
        try:
            store.check_room(dataset, size)
        except NotInMemory:
            pass
        else:
            return store.read(dataset, whole(cfg.DATA.IMAGE_SIZE), **options)
    store.check_room(dataset, dataset[0][0].size)
    return store.read(dataset, **options)


def _test_views(cfg, dataset, info, normalization, device) -> loaders.Views | MemoryViews:
    """Return the test images, which are the same in memory as not."""
    size, classes = cfg.DATA.IMAGE_SIZE, len(info.classes)
    if cfg.DATA.LOADER != "workers":
        try:
            store.check_room(dataset, (size, size))
        except NotInMemory:
            pass
        else:
            prepare = test_pixels(size, cfg.DATA.CROP_RATIO)
            pixels, labels = store.read(dataset, prepare, classes=classes, workers=cfg.DATA.NUM_WORKERS)
            return MemoryViews(pixels.to(device), labels.to(device), Plain(normalization, device), size=size)
    transform = test_transform(size, normalization, cfg.DATA.CROP_RATIO)
    return loaders.Views(dataset, transform, seed=data_seed(cfg), classes=classes)


def faults_of(cfg, split: str) -> tuple[Iterator[str], int]:
    """Return what is wrong with each image of a split, "" if nothing is, and the number of images."""
    dataset, info = DATASETS.get(cfg.DATA.NAME)(root=cfg.DATA.ROOT, split=split)
    return read_all(dataset, classes=len(info.classes), workers=cfg.DATA.NUM_WORKERS), len(dataset)


def build_mixing(cfg, num_classes: int) -> Mixing:
    """Return what turns images and labels into a batch."""
    return Mixing(
        num_classes,
        seed=data_seed(cfg),
        mixup=cfg.AUG.MIXUP,
        cutmix=cfg.AUG.CUTMIX,
        probability=cfg.AUG.MIX_PROB,
        switch=cfg.AUG.MIX_SWITCH,
        smoothing=cfg.AUG.LABEL_SMOOTHING,
    )


def data_seed(cfg) -> int:
    """Return the seed of order, augmentation and mixing."""
    return cfg.SEED if cfg.DATA.SEED < 0 else cfg.DATA.SEED


def named_normalization(key: str, name: str) -> Normalization | None:
    """Return the normalisation of a name, None for "". Raises ValueError that names the key for an unknown one."""
    if name and name not in NORMALIZATIONS:
        raise ValueError(f"{key} is {name!r}, expected one of {', '.join(NORMALIZATIONS)}")
    return NORMALIZATIONS.get(name)


def _augmentation(aug) -> Augmentation:
    return Augmentation(
        crop=aug.CROP,
        crop_padding=aug.CROP_PADDING,
        crop_scale=aug.CROP_SCALE,
        flip=aug.FLIP,
        rand_augment=aug.RAND_AUGMENT,
        color_jitter=aug.COLOR_JITTER,
        erasing=aug.ERASING,
    )
