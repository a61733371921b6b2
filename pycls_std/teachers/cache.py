"""Keep what teachers say of every training view, for later runs that see the same views.

A file holds what one teacher said in one epoch, in the order of the epoch; it is written beside its name and renamed
when the epoch is over, so it is whole or not there, and runs that write it side by side do no harm.
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
    """Where what one teacher says is kept, and how."""

    folder: Path  # its name must stand for all that the outputs depend on, but for the epoch
    shapes: dict[str, tuple[int, ...]]  # of the outputs, see `packing.entry_type`
    kind: np.dtype  # of an entry


class CachedTeachers:
    """Says what the teachers say: read from files, or asked and written to them.

    specs: one for each teacher. views: V, of this process. world: the processes that share each batch. lag: batches
    after which what is said is written, so that nothing waits for the device; an epoch's last batch writes them all.
    """

    def __init__(self, live: LiveTeachers, specs: list[CacheSpec], *, views: int, world: World, lag: int = 0):
        self.live = live
        self.specs = specs
        self.caches = [EpochCache(spec.folder, views, spec.kind, world, lag=lag) for spec in specs]
        self.entries = views * world.size

    def __call__(self, batch: Batch, progress: Progress) -> list[Output]:
        """Return what each teacher says. Raises OSError or ValueError that names a file that cannot be used."""
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
        """Return in words what is kept of the epochs to come, counted from 0, and what will be written.

        Raises ValueError if there is not that much room.
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
        """Leave nothing of an epoch that does not come to its end."""
        for cache in self.caches:
            if cache.file:
                cache.file.abandon()


def free_space(folder: Path) -> int:
    """Return the bytes free where a folder is, which is made; so what cannot be written is told now."""
    with files.naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return shutil.disk_usage(folder).free


class EpochCache:
    """One teacher's entries, a file for each epoch and process."""

    def __init__(self, folder: Path, views: int, kind: np.dtype, world: World, *, lag: int = 0):
        self.folder = folder
        self.views = views
        self.kind = kind
        self.share = f"-{world.rank}of{world.size}" if world.size > 1 else ""
        self.entries: np.ndarray | None = None  # of the epoch, if its file is there
        self.file: EntryWriter | None = None  # of the last epoch that was not
        self.lag = lag
        self.left = 0  # views of the epoch that are not given yet
        self.unwritten: deque[Arriving] = deque()  # batches, oldest first
        remove_stale(folder)

    def path(self, epoch: int) -> Path:
        """Return the file of an epoch, counted from 0."""
        return self.folder / f"epoch-{epoch + 1:04d}{self.share}.npy"

    def open(self, epoch: int) -> None:
        """Go to the start of an epoch: read its file if it is there, otherwise begin to write it."""
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
        """Append a batch, see `packing.kept_parts`; with the last of them the file is complete."""
        assert self.file is not None, "an epoch was begun whose file is not there"
        self.left -= len(next(iter(parts.values())))
        self.unwritten.append(Arriving(parts))
        while len(self.unwritten) > (self.lag if self.left else 0):
            self.file.write(entries_of(self.unwritten.popleft().values(), self.kind))
