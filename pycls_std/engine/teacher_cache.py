"""Keep what teachers say of every training view, for later runs that see the same views.

A file holds what one teacher said in one epoch, in the order of the epoch; it is written beside its name and renamed
when the epoch is over, so it is whole or not there, and runs that write it side by side do no harm.
Shapes: B views of a batch, V views of an epoch, K classes.
"""

import io
import shutil
import time
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from pycls_std.core.structures import Batch, Progress
from pycls_std.engine import files
from pycls_std.engine.kept_logits import pack, unpack
from pycls_std.engine.runtime import Runtime

STALE = 24 * 3600  # seconds after which a file that nobody finished is removed


class TeacherCache:
    """Gives batches with their teachers' logits, which are read, or computed and written.

    folders: of each teacher; its name must stand for all that the logits depend on, but for the epoch. views: V, of
    this process. kind: of an entry, see `kept_logits.form`.
    """

    def __init__(self, teachers: nn.ModuleList, folders: list[Path], *, views: int, kind: np.dtype, runtime: Runtime):
        self.teachers = teachers
        self.runtime = runtime
        self.tapes = [Tape(folder, views, kind, runtime.world) for folder in folders]

    def __call__(self, batch: Batch, progress: Progress) -> Batch:
        """Return the batch with `taught`. Raises OSError or ValueError that names a file that cannot be used."""
        taught = tuple(self._say(*pair, batch, progress) for pair in zip(self.teachers, self.tapes, strict=True))
        return batch._replace(taught=taught)

    def _say(self, teacher, tape, batch, progress) -> Tensor:
        if progress.iteration == 0:
            tape.open(progress.epoch)
        count, classes = batch.targets.shape
        entries = tape.read(progress.iteration * count, count)
        if entries is None:
            entries = pack(teacher(batch.images).logits, tape.kind)
            tape.write(entries, last=progress.iteration == progress.iterations - 1)
        return unpack(entries, classes, batch.images.device)

    def check_room(self, epochs: range) -> str:
        """Return in words what is kept of the epochs to come, counted from 0, and what will be written.

        Raises ValueError if there is not that much room.
        """
        missing = sum(not tape.path(epoch).exists() for tape in self.tapes for epoch in epochs)
        entries = self.tapes[0].views * self.runtime.world.size
        size = entries * self.tapes[0].kind.itemsize
        folder = self.tapes[0].folder
        with files.naming(folder):
            folder.mkdir(parents=True, exist_ok=True)  # what cannot be written is told now
        free = shutil.disk_usage(folder).free
        total = len(self.tapes) * len(epochs)
        needed = missing * size / 2**20
        if missing * size > free:
            raise ValueError(
                f"DISTILLATION.CACHE {folder.parent} has {free / 2**20:.1f} MiB free, {needed:.1f} are needed"
            )
        text = f"{total - missing} of {total} files are there and will be read (one for each teacher and epoch)"
        return (
            f"{text}, {missing} will be written, of {entries} views each, {needed:.1f} MiB in all" if missing else text
        )

    def close(self) -> None:
        """Leave nothing of an epoch that does not come to its end."""
        for tape in self.tapes:
            if tape.file:
                tape.file.abandon()


class Tape:
    """One teacher's entries, a file for each epoch and process: in numpy's format, and behind it their CRC-32."""

    def __init__(self, folder: Path, views: int, kind: np.dtype, world):
        self.folder = folder
        self.views = views
        self.kind = kind
        self.share = f"-{world.rank}of{world.size}" if world.size > 1 else ""
        self.entries = self.file = None
        for path in folder.glob(files.TEMPORARY.format("*")):
            with suppress(FileNotFoundError):  # another run has just finished it
                if time.time() - path.stat().st_mtime > STALE:
                    path.unlink()

    def path(self, epoch: int) -> Path:
        """Return the file of an epoch, counted from 0."""
        return self.folder / f"epoch-{epoch + 1:04d}{self.share}.npy"

    def open(self, epoch: int) -> None:
        """Go to the start of an epoch: read its file if it is there, otherwise begin to write it."""
        self.entries, path = None, self.path(epoch)
        if path.exists():
            try:
                self.entries = np.load(path, mmap_mode="r")
                fits = (self.entries.shape, self.entries.dtype) == ((self.views,), self.kind)
                whole = fits and _last_bytes(path) == _checksum(zlib.crc32(self.entries))
            except (ValueError, EOFError) as error:
                raise ValueError(f"{path} is damaged, delete it: {error}") from error
            if not whole:
                raise ValueError(f"{path} is damaged, delete it: it is not what was written")
        else:
            self.file = files.Growing(path)
            header = {"descr": np.lib.format.dtype_to_descr(self.kind), "fortran_order": False, "shape": (self.views,)}
            start = io.BytesIO()
            np.lib.format.write_array_header_1_0(start, header)
            self.file.write(start.getvalue())
            self.sum = 0

    def read(self, start: int, count: int) -> np.ndarray | None:
        """Return entries of the epoch; None if they are being written."""
        return None if self.entries is None else np.array(self.entries[start : start + count])

    def write(self, entries: np.ndarray, *, last: bool) -> None:
        """Append entries; with the last of them the file is complete."""
        content = entries.tobytes()
        self.file.write(content)
        self.sum = zlib.crc32(content, self.sum)
        if last:
            self.file.write(_checksum(self.sum))
            self.file.finish()


def _last_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-4, io.SEEK_END)
        return file.read()


def _checksum(crc: int) -> bytes:
    return crc.to_bytes(4, "little")
