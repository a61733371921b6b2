"""Atomic file writes: to a temporary file in the same folder, synced to the disk, then renamed."""

import os
import uuid
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = ".{}.tmp"  # name of a file while it is written


def write(path: Path, content: bytes | memoryview, before_rename: Callable[[], None] = lambda: None) -> None:
    """Write a file, replacing it atomically; it survives a power failure.

    before_rename: called when the content is safe on the disk.
    Raises OSError that names the path if it cannot be written; the file is then unchanged.
    """
    temporary = path.with_name(TEMPORARY.format(path.name))
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            before_rename()
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # a rename is on the disk only with its folder
        finally:
            os.close(folder)


def append(path: Path, content: bytes) -> None:
    """Append to a file; it survives a power failure.

    Raises OSError that names the path if it cannot be written; a part of the content may then be there.
    """
    with naming(path), path.open("ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


class Growing:
    """A file that is written piece by piece, and gets its name when it is finished.

    Several processes, also of several machines, may write the same file; the last to finish wins.
    Each method raises OSError that names the path if it cannot be written, and then removes the temporary file.
    """

    def __init__(self, path: Path):
        self.path = path
        self.temporary = path.with_name(TEMPORARY.format(f"{path.name}.{uuid.uuid4().hex}"))
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.temporary.open("wb")

    def write(self, content: bytes) -> None:
        """Append."""
        with self._or_nothing():
            self.file.write(content)

    def finish(self) -> None:
        """Sync the file to the disk and give it its name."""
        with self._or_nothing():
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
            self.temporary.replace(self.path)

    def abandon(self) -> None:
        """Remove the temporary file, unless it is finished."""
        self.temporary.unlink(missing_ok=True)

    @contextmanager
    def _or_nothing(self):
        try:
            with naming(self.path):
                yield
        except OSError:
            self.abandon()
            raise


def clean(paths: list[Path]) -> None:
    """Remove the temporary files that a killed process has left of these files."""
    for path in paths:
        path.with_name(TEMPORARY.format(path.name)).unlink(missing_ok=True)


@contextmanager
def naming(path: Path):
    """Re-raise an OSError of the block with the path in its text, which, for example, that of a full disk lacks."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path} could not be written: {error.strerror or error}") from error
