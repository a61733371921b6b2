"""Build datasets, loaders and mixing from the options."""

from collections.abc import Iterator
from typing import NamedTuple

from torch.utils.data import DataLoader

from pycls_std.datasets import loader as loaders
from pycls_std.datasets.faults import read_all
from pycls_std.datasets.mixing import Mixing
from pycls_std.datasets.normalizations import NORMALIZATIONS
from pycls_std.datasets.transforms import Augmentation, test_transform, train_transform
from pycls_std.registry import DATASETS
from pycls_std.structures import DatasetInfo, Normalization, World


class Data(NamedTuple):
    """The images of a run. The training loader is None where only the test split was asked for."""

    info: DatasetInfo
    normalization: Normalization  # of the student's input
    test: DataLoader
    train: DataLoader | None = None


def build_data(cfg, *, train: bool = True, world: World = loaders.WORLD) -> Data:
    """Return the loaders of a run, with this process's share of the images.

    Raises ValueError if the splits do not have the same classes, or if MODEL.NUM_CLASSES is another number.
    """
    load = DATASETS.get(cfg.DATA.NAME)
    test_set, info = load(root=cfg.DATA.ROOT, split="test")
    classes = len(info.classes)
    if cfg.MODEL.NUM_CLASSES not in (0, classes):
        raise ValueError(f"MODEL.NUM_CLASSES is {cfg.MODEL.NUM_CLASSES}, {info.name} has {classes} classes")
    normalization = named_normalization("DATA.NORMALIZATION", cfg.DATA.NORMALIZATION) or info.normalization
    size, workers = cfg.DATA.IMAGE_SIZE, cfg.DATA.NUM_WORKERS
    views = loaders.Views(
        test_set, test_transform(size, normalization, cfg.DATA.CROP_RATIO), seed=cfg.SEED, classes=classes
    )
    test = loaders.test_loader(views, batch_size=cfg.TEST.BATCH_SIZE, workers=workers, world=world)
    if not train:
        return Data(info, normalization, test)
    train_set, train_info = load(root=cfg.DATA.ROOT, split="train")
    if train_info.classes != info.classes:
        odd = set(train_info.classes) ^ set(info.classes)
        names = [f"{name} ({'test' if name in info.classes else 'train'} only)" for name in sorted(odd)[:5]]
        raise ValueError(f"DATA.ROOT {cfg.DATA.ROOT}: the splits differ in {len(odd)} classes: {', '.join(names)}")
    transform = train_transform(size, normalization, _augmentation(cfg.AUG))
    views = loaders.Views(train_set, transform, seed=cfg.SEED, classes=classes)
    batch_size = cfg.TRAIN.BATCH_SIZE
    if (cfg.AUG.MIXUP or cfg.AUG.CUTMIX) and batch_size // world.size % 2:
        raise ValueError(
            f"TRAIN.BATCH_SIZE is {batch_size}, {batch_size // world.size} for each of {world.size} processes: "
            "AUG.MIXUP and AUG.CUTMIX, which mix images in pairs, need an even number"
        )
    train_batches = loaders.train_loader(
        views, batch_size=batch_size, workers=workers, seed=cfg.SEED, repeats=cfg.AUG.REPEATS, world=world
    )
    return Data(info, normalization, test, train_batches)


def faults_of(cfg, split: str) -> tuple[Iterator[str], int]:
    """Return what is wrong with each image of a split, "" if nothing is, and the number of images."""
    dataset, info = DATASETS.get(cfg.DATA.NAME)(root=cfg.DATA.ROOT, split=split)
    return read_all(dataset, classes=len(info.classes), workers=cfg.DATA.NUM_WORKERS), len(dataset)


def build_mixing(cfg, num_classes: int) -> Mixing:
    """Return what turns images and labels into a batch."""
    return Mixing(
        num_classes,
        mixup=cfg.AUG.MIXUP,
        cutmix=cfg.AUG.CUTMIX,
        probability=cfg.AUG.MIX_PROB,
        switch=cfg.AUG.MIX_SWITCH,
        smoothing=cfg.AUG.LABEL_SMOOTHING,
    )


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
