"""Regular files: read them alone, for a pipe, a socket or a device may let its reader wait for ever; replace them."""

import errno
import os
import stat
from pathlib import Path
from uuid import uuid4


def refuse_irregular(path: Path | str) -> None:
    """Raise OSError that names a path if it is not there, or is no regular file (a link to one is)."""
    _refuse(os.stat(path).st_mode, path)


def read_bytes(path: Path | str) -> bytes:
    """Return the content of a regular file. Raises OSError that names the path for anything else."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a pipe does not wait then
    try:
        _refuse(os.fstat(descriptor).st_mode, path)
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def replace_text(path: Path | str, text: str) -> None:
    """Write a text to a file, replacing it in one step, or to a pipe or a device. Raises OSError if it cannot be."""
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")  # two may write the same
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _refuse(mode: int, path: Path | str) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
