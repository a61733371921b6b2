"""Choose how the images of a split are loaded: from memory, augmented in batches, or one by one, by workers."""

import logging
import time

from pycls_std.core.text import counted
from pycls_std.datasets import loader as loaders
from pycls_std.datasets.memory import NotInMemory, store
from pycls_std.datasets.memory.views import MemoryViews

LOG = logging.getLogger("pycls_std")


def data_seed(cfg) -> int:
    """Return the seed of shuffling, augmentation and mixing."""
    return cfg.SEED if cfg.DATA.SEED < 0 else cfg.DATA.SEED


def train_views(cfg, dataset, task, normalization, *, device, crops: bool) -> loaders.Views | MemoryViews:
    """Return the augmented training images: in memory if DATA.LOADER is memory, or is auto and it is possible."""
    pipeline = task.pipeline(normalization=normalization)
    reason, start = "", time.perf_counter()
    if cfg.DATA.LOADER != "workers":
        try:
            pixels, targets = _pixels(cfg, dataset, task, pipeline)
        except NotInMemory as error:
            if cfg.DATA.LOADER == "memory":
                raise ValueError(f"DATA.LOADER is memory: {error}") from error
            reason = f": {error}"
        else:
            taken, seconds = pixels.numel() / 2**20, time.perf_counter() - start
            LOG.info(
                "training images: %d in memory (%.0f MiB, read in %.1f s), augmented in batches on %s (DATA.LOADER)",
                *(len(targets), taken, seconds, device.type),
            )
            augment = pipeline.batch_augmentation(device, crops=crops)
            return MemoryViews(pixels.to(device), targets.to(device), augment, size=cfg.DATA.IMAGE_SIZE)
    number = cfg.DATA.NUM_WORKERS
    by = f"by {counted(number, 'worker', 'workers')}" if number else "in this process"
    LOG.info("training images: one by one, %s (DATA.LOADER)%s", by, reason)
    return loaders.Views(
        dataset,
        pipeline.train_transform(),
        seed=data_seed(cfg),
        check=task.check,
        collate=task.collate,
        crops=crops,
    )


def _pixels(cfg, dataset, task, pipeline):
    """Return pixels and targets of the training images, at the size that the crop needs, or at their own if too large.

    Raises NotInMemory if they cannot be held in memory.
    """
    if not pipeline.batched:
        raise NotInMemory(f"TASK.NAME {cfg.TASK.NAME} has no augmentation in batches")
    prepare = pipeline.resized()
    if prepare:
        try:
            store.check_room(dataset, (cfg.DATA.IMAGE_SIZE, cfg.DATA.IMAGE_SIZE))
        except NotInMemory:
            prepare = None
    if not prepare:
        width, height = dataset[0][0].size
        store.check_room(dataset, (width, height))
        if not pipeline.takes(width, height):
            raise NotInMemory(f"images of {width}x{height} pixels are cropped one by one (DATA.FIT)")
    pixels, targets = store.read(dataset, prepare, check=task.check, workers=cfg.DATA.NUM_WORKERS)
    return pixels, task.stack(targets)


def test_views(cfg, dataset, task, normalization, *, device) -> loaders.Views | MemoryViews:
    """Return the test images, in memory if possible; the pixels are the same either way."""
    pipeline, size, workers = task.pipeline(normalization=normalization), cfg.DATA.IMAGE_SIZE, cfg.DATA.NUM_WORKERS
    if cfg.DATA.LOADER != "workers" and pipeline.batched:
        try:
            store.check_room(dataset, (size, size))
        except NotInMemory:
            pass
        else:
            pixels, targets = store.read(dataset, pipeline.test_pixels(), check=task.check, workers=workers)
            targets = task.stack(targets).to(device)
            return MemoryViews(pixels.to(device), targets, pipeline.plain(device), size=size)
    transform = pipeline.test_transform()
    return loaders.Views(dataset, transform, seed=data_seed(cfg), check=task.check, collate=task.collate)
