"""Cache teacher outputs for every training view, for later runs with the same views.

A file holds one teacher's outputs of one epoch, in the order of the epoch. It is written to a temporary file and
renamed when the epoch is over, so it is complete or absent, and concurrent runs may write it safely.
Shapes: B views of a batch, V views of an epoch.
"""

import shutil
from collections import deque
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from pycls_std.core.structures import Batch, Output, Progress, World
from pycls_std.engine import files
from pycls_std.engine.arriving import Arriving
from pycls_std.teachers.entries import EntryWriter, read_entries, remove_stale
from pycls_std.teachers.outputs import LiveTeachers
from pycls_std.teachers.packing import entries as entries_of
from pycls_std.teachers.packing import kept_parts, restored, unpack


class CacheSpec(NamedTuple):
    """Where and in which format one teacher's outputs are cached."""

    folder: Path  # its name must identify everything that the outputs depend on, except the epoch
    shapes: dict[str, tuple[int, ...]]  # of the outputs, see `packing.entry_type`
    kind: np.dtype  # of an entry, the outputs for one view


class CachedTeachers:
    """Teacher outputs, read from the cache, or computed and written to it.

    specs: one for each teacher. views: V, of this process. world: the processes that share each batch. lag: batches by
    which writing is delayed, to avoid device synchronization; the last batch of an epoch writes all that remain.
    """

    def __init__(self, live: LiveTeachers, specs: list[CacheSpec], *, views: int, world: World, lag: int = 0):
        self.live = live
        self.specs = specs
        self.caches = [EpochCache(spec.folder, views, spec.kind, world, lag=lag) for spec in specs]
        self.entries = views * world.size

    def __call__(self, batch: Batch, progress: Progress) -> list[Output]:
        """Return each teacher's outputs. Raises OSError or ValueError that names a file that cannot be used."""
        assert isinstance(batch.images, Tensor), "views in memory are of one size"
        count, device = len(batch.images), batch.images.device
        outputs = []
        rows = zip(self.live.teachers, self.live.requests, self.specs, self.caches, strict=True)
        for teacher, request, spec, cache in rows:
            if progress.iteration == 0:
                cache.open(progress.epoch)
            entries = cache.read(progress.iteration * count, count)
            if entries is None:
                parts = kept_parts(teacher(batch.images, request), cache.kind)
                cache.write(parts)
                outputs.append(restored(parts, spec.shapes))
            else:
                outputs.append(unpack(entries, spec.shapes, device))
        return outputs

    def check_room(self, epochs: range) -> str:
        """Return as text how many of the epochs' files exist, and how much will be written; epochs count from 0.

        Raises ValueError if there is not enough disk space.
        """
        missing = [(cache, epoch) for cache in self.caches for epoch in epochs if not cache.path(epoch).exists()]
        size = sum(self.entries * cache.kind.itemsize for cache, _ in missing)
        free = free_space(self.caches[0].folder)
        total = len(self.caches) * len(epochs)
        needed = size / 2**20
        if size > free:
            raise ValueError(
                f"DISTILLATION.CACHE {self.caches[0].folder.parent} has {free / 2**20:.1f} MiB free, "
                f"{needed:.1f} are needed"
            )
        text = f"{total - len(missing)} of {total} files are there and will be read (one for each teacher and epoch)"
        written = f", {len(missing)} will be written, of {self.entries} views each, {needed:.1f} MiB in all"
        return text + written if missing else text

    def close(self) -> None:
        """Remove the files of an unfinished epoch."""
        for cache in self.caches:
            if cache.file:
                cache.file.abandon()


def free_space(folder: Path) -> int:
    """Create a folder and return the bytes free on its disk. Raises OSError if it cannot be created."""
    with files.naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return shutil.disk_usage(folder).free


class EpochCache:
    """One teacher's cached outputs, one file per epoch and process."""

    def __init__(self, folder: Path, views: int, kind: np.dtype, world: World, *, lag: int = 0):
        self.folder = folder
        self.views = views
        self.kind = kind
        self.share = f"-{world.rank}of{world.size}" if world.size > 1 else ""
        self.entries: np.ndarray | None = None  # of the epoch, if its file exists
        self.file: EntryWriter | None = None  # of the last epoch whose file did not exist
        self.lag = lag
        self.left = 0  # views of the epoch that `write` has not received yet
        self.unwritten: deque[Arriving] = deque()  # batches, oldest first
        remove_stale(folder)

    def path(self, epoch: int) -> Path:
        """Return the file of an epoch, counted from 0."""
        return self.folder / f"epoch-{epoch + 1:04d}{self.share}.npy"

    def open(self, epoch: int) -> None:
        """Start an epoch: open its file for reading if it exists, otherwise start writing it."""
        self.entries, path = None, self.path(epoch)
        if path.exists():
            self.entries = read_entries(path, self.views, self.kind)
        else:
            self.file = EntryWriter(path, self.views, self.kind)
            self.left = self.views
            self.unwritten.clear()

    def read(self, start: int, count: int) -> np.ndarray | None:
        """Return entries of the epoch; None if they are being written."""
        return None if self.entries is None else np.array(self.entries[start : start + count])

    def write(self, parts: dict[str, Tensor]) -> None:
        """Append a batch, see `packing.kept_parts`; the epoch's last batch completes the file."""
        assert self.file is not None, "an epoch was begun whose file is not there"
        self.left -= len(next(iter(parts.values())))
        self.unwritten.append(Arriving(parts))
        while len(self.unwritten) > (self.lag if self.left else 0):
            self.file.write(entries_of(self.unwritten.popleft().values(), self.kind))
