"""Cache files: entries in numpy's format, followed by their CRC-32; complete or absent."""

import io
import time
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np

from pycls_std.core.regular import refuse_irregular
from pycls_std.engine import files

STALE = 24 * 3600  # seconds after which an unfinished file is removed
CHUNK = 2**24  # bytes per step of the checksum


def read_entries(path: Path, count: int, kind: np.dtype) -> np.ndarray:
    """Return the entries of a file as a memory map.

    Raises ValueError that names the file if it does not hold so many entries of this type or its checksum is wrong, and
    OSError if it is not a regular file.
    """
    refuse_irregular(path)
    try:
        entries = np.lib.format.open_memmap(path, mode="r")
        whole = (entries.shape, entries.dtype) == ((count,), kind) and _last_bytes(path) == _checksum(entries)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is damaged, delete it: {error}") from error
    if not whole:
        raise ValueError(f"{path} is damaged, delete it: it is not what was written")
    return entries


class EntryWriter:
    """Writes a file of entries; it gets its final name with the last entry."""

    def __init__(self, path: Path, count: int, kind: np.dtype):
        self.left = count
        self.sum = 0
        self.file = files.Growing(path)
        header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": (count,)}
        start = io.BytesIO()
        np.lib.format.write_array_header_1_0(start, header)
        self.file.write(start.getvalue())

    def write(self, entries: np.ndarray) -> None:
        """Append entries. Raises OSError that names the file if it cannot be written, and removes it."""
        content = entries.tobytes()
        self.file.write(content)
        self.sum = zlib.crc32(content, self.sum)
        self.left -= len(entries)
        if not self.left:
            self.file.write(self.sum.to_bytes(4, "little"))
            self.file.finish()

    def abandon(self) -> None:
        """Remove the file unless it is finished."""
        self.file.abandon()


def remove_stale(folder: Path) -> None:
    """Remove temporary files older than a day, left by runs that did not finish them."""
    for path in folder.glob(files.TEMPORARY.format("*")):
        with suppress(FileNotFoundError):  # another run has just finished it
            if time.time() - path.stat().st_mtime > STALE:
                path.unlink()


def _checksum(entries: np.ndarray) -> bytes:
    content = entries.view(np.uint8).reshape(-1) if len(entries) else entries
    total = 0
    for start in range(0, content.nbytes, CHUNK):
        total = zlib.crc32(content[start : start + CHUNK].data, total)
    return total.to_bytes(4, "little")


def _last_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-4, io.SEEK_END)
        return file.read()
