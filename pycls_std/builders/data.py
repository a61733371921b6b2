"""Build datasets, loaders and the task from the options."""

import logging
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader

import pycls_std.datasets  # noqa: F401  (registers the datasets)
import pycls_std.tasks  # noqa: F401  (registers the tasks)
from pycls_std.builders.views import data_seed, test_views, train_views
from pycls_std.core.registry import DATASETS, TASKS
from pycls_std.core.structures import DatasetInfo, ImageSet, Loader, Normalization, World
from pycls_std.core.text import counted, printable, shortened
from pycls_std.datasets import loader as loaders
from pycls_std.datasets.contents import contents
from pycls_std.datasets.memory.views import MemoryViews
from pycls_std.datasets.normalizations import NORMALIZATIONS
from pycls_std.datasets.scan import read_all
from pycls_std.datasets.subsets import known_labels, training_parts
from pycls_std.tasks.contract import Task

LOG = logging.getLogger("pycls_std")
CPU = torch.device("cpu")
PLAIN_BATCH = 200  # batch size of teachers whose outputs are precomputed (DISTILLATION.OFFLINE)


class Data(NamedTuple):
    """The data of a run. The loaders of training and held-out images are None if only TEST.SPLIT was requested."""

    info: DatasetInfo
    task: Task
    normalization: Normalization  # of the student's input
    test: Loader  # the test split; where nothing is trained, the images of TEST.SPLIT
    train: Loader | None = None
    images: int = 0  # number of training images
    val: Loader | None = None  # held out of the training split, None without DATA.VAL_FRACTION
    contents: dict[str, str] = {}  # digest of the files of each split that is made of files, see `datasets.contents`

    @property
    def judge(self) -> Loader:
        """The split for model selection and for scoring teachers: the held-out images, or else the test split."""
        return self.val or self.test

    @property
    def training(self) -> Loader:
        """The loader of training images, which must have been requested."""
        assert self.train is not None, "only the test split was asked for"
        return self.train

    @property
    def in_memory(self) -> bool:
        """Whether training images are held in memory; their views differ from those that workers make."""
        return isinstance(self.training.dataset, MemoryViews)


def build_info(cfg) -> DatasetInfo:
    """Return the metadata of the dataset. Raises ValueError if MODEL.NUM_CLASSES is another number of classes."""
    return _split(cfg, "test")[1]


def build_task(cfg, classes: int) -> Task:
    """Return the task, for so many classes."""
    return TASKS.get(cfg.TASK.NAME).from_cfg(cfg, classes=classes, seed=data_seed(cfg))


def build_data(
    cfg, *, device: torch.device = CPU, train: bool = True, world: World = loaders.WORLD, crops: bool = False
) -> Data:
    """Return the loaders of a run, with this process's share of the images.

    device: of images that are held in memory. crops: whether to record which part of an image a training view shows.
    Raises ValueError if the splits do not have the same classes, or if MODEL.NUM_CLASSES is another number.
    """
    test_set, info = _split(cfg, "test")
    task = build_task(cfg, len(info.classes))
    normalization = named_normalization("DATA.NORMALIZATION", cfg.DATA.NORMALIZATION) or info.normalization
    workers, digests = cfg.DATA.NUM_WORKERS, _digests(test=test_set)
    if train:  # first, to report what is wrong with it before anything is read
        train_set = _train_split(cfg, info)
        digests |= _digests(train=train_set)
        task.check_share(cfg.TRAIN.BATCH_SIZE // world.size, cfg.TRAIN.BATCH_SIZE, world.size)
        train_set, held_out = _parts(cfg, train_set)
        _check_images(cfg, task, {"training": train_set, "test": test_set, "held-out": held_out})
        train_set = task.training_set(train_set)
        loaders.check_batch_size(len(train_set), cfg.TRAIN.BATCH_SIZE, world)
        views = train_views(cfg, train_set, task, normalization, device=device, crops=crops)
        train_batches = loaders.train_loader(
            views,
            batch_size=cfg.TRAIN.BATCH_SIZE,
            workers=workers,
            seed=data_seed(cfg),
            repeats=cfg.AUG.REPEATS,
            groups=task.groups(train_set),
            world=world,
        )
    _tell_of(info)

    def plain(dataset: ImageSet) -> Loader:
        views = test_views(cfg, dataset, task, normalization, device=device)
        batch_size = loaders.batch_at_test(device, size=cfg.TEST.BATCH_SIZE, image_size=cfg.DATA.IMAGE_SIZE)
        return loaders.test_loader(views, batch_size=batch_size, workers=workers, world=world)

    if not train:
        scored = test_set
        if cfg.TEST.SPLIT != "test":
            whole = _train_split(cfg, info)
            digests |= _digests(train=whole)
            scored = _scored(cfg, whole)
        _check_images(cfg, task, {{"train": "training"}.get(cfg.TEST.SPLIT, cfg.TEST.SPLIT): scored})
        return Data(info, task, normalization, plain(scored), contents=digests)
    val = plain(held_out) if held_out else None
    return Data(info, task, normalization, plain(test_set), train_batches, len(train_set), val, digests)


def _digests(**splits: ImageSet) -> dict[str, str]:
    return {name: digest for name, split in splits.items() if (digest := contents(split))}


def _train_split(cfg, test: DatasetInfo) -> ImageSet:
    """Return the training split, which must have the classes of the test split."""
    dataset, info = DATASETS.get(cfg.DATA.NAME)(root=cfg.DATA.ROOT, split="train")
    _refuse_other_classes(cfg, info, test)
    _tell_of(info)
    return dataset


def _scored(cfg, train_set: ImageSet) -> ImageSet:
    """Return the part that TEST.SPLIT names of the training split, as the options divide it."""
    trained, held_out = _parts(cfg, train_set)
    if cfg.TEST.SPLIT == "train":
        return trained
    assert held_out is not None, "DATA.VAL_FRACTION is 0"  # which `runner.run` refuses
    return held_out


def _check_images(cfg, task: Task, parts: dict[str, ImageSet | None]) -> None:
    for part, images in parts.items():
        if images is not None:
            task.check_images(images, f"{part} images of DATA.ROOT {printable(cfg.DATA.ROOT)}")


def _parts(cfg, train_set: ImageSet) -> tuple[ImageSet, ImageSet | None]:
    own = cfg.DATA
    return training_parts(train_set, val_fraction=own.VAL_FRACTION, per_class=own.PER_CLASS, images=own.IMAGES)


def _split(cfg, split: str) -> tuple[ImageSet, DatasetInfo]:
    dataset, info = DATASETS.get(cfg.DATA.NAME)(root=cfg.DATA.ROOT, split=split)
    classes = len(info.classes)
    if cfg.MODEL.NUM_CLASSES not in (0, classes):
        raise ValueError(f"MODEL.NUM_CLASSES is {cfg.MODEL.NUM_CLASSES}, {info.name} has {classes} classes")
    return dataset, info


def _refuse_other_classes(cfg, train: DatasetInfo, test: DatasetInfo) -> None:
    if train.classes != test.classes:
        odd = set(train.classes) ^ set(test.classes)
        names = [
            f"{shortened(printable(name), 60)} ({'test' if name in test.classes else 'training'} split only)"
            for name in sorted(odd)[:5]
        ]
        root, which = printable(cfg.DATA.ROOT), counted(len(odd), "class", "classes")
        raise ValueError(f"DATA.ROOT {root}: the splits differ in {which}: {', '.join(names)}")


def _tell_of(info: DatasetInfo) -> None:
    if info.origin:
        LOG.info("%s", info.origin)
    if info.left_out:
        LOG.warning("%s", info.left_out)


def training_images(cfg) -> ImageSet:
    """Return the images of the training split that DATA.VAL_FRACTION, PER_CLASS and IMAGES leave for training."""
    return _parts(cfg, DATASETS.get(cfg.DATA.NAME)(root=cfg.DATA.ROOT, split="train")[0])[0]


def plain_batches(cfg, data: Data, image_size: int, order: list[int]) -> DataLoader:
    """Return a loader of training images at these positions, whole at image_size, in the student's normalisation."""
    task = data.task
    pipeline: Any = task.pipeline(normalization=data.normalization)  # a batched one, which has `whole`
    transform = pipeline.whole(image_size)
    views = loaders.Views(training_images(cfg), transform, seed=0, check=task.check, collate=task.collate)
    addresses = [(0, index) for index in order]
    return views.loader(addresses, batch_size=PLAIN_BATCH, workers=cfg.DATA.NUM_WORKERS)


def test_files(cfg) -> list[str]:
    """Return the path of each test image, relative to DATA.ROOT; "" if the dataset does not consist of image files."""
    dataset = _split(cfg, "test")[0]
    known = getattr(dataset, "samples", None)
    return [os.path.relpath(path, cfg.DATA.ROOT) for path, _ in known] if known else [""] * len(dataset)


def scan(cfg, split: str) -> tuple[Iterator[str], int, str]:
    """Return an iterator over what is wrong with each image of a split ("" = nothing), their number, what is left out.

    Raises ValueError before any image is read, with the message of training, if training would refuse the split: if it
    cannot be divided as the options say, a part of it has nothing to learn from, or no score can be computed on one. A
    split that can only be divided by reading its images is not checked for this.
    """
    dataset, info = DATASETS.get(cfg.DATA.NAME)(root=cfg.DATA.ROOT, split=split)
    task = build_task(cfg, len(info.classes))
    if split != "train":
        _check_images(cfg, task, {"test": dataset})
    elif not cfg.DATA.PER_CLASS or known_labels(dataset):
        trained, held_out = _parts(cfg, dataset)
        _check_images(cfg, task, {"training": trained, "held-out": held_out})
    return read_all(dataset, check=task.check, workers=cfg.DATA.NUM_WORKERS), len(dataset), info.left_out


def named_normalization(key: str, name: str) -> Normalization | None:
    """Return the normalisation of a name, None for "". Raises ValueError that names the key for an unknown one."""
    if name and name not in NORMALIZATIONS:
        raise ValueError(f"{key} is {name!r}, expected one of {', '.join(NORMALIZATIONS)}")
    return NORMALIZATIONS.get(name)
