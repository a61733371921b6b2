"""Regular files: read nothing else, as a pipe, a socket or a device may block for ever; replace them atomically."""

import errno
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path
from uuid import uuid4


def refuse_irregular(path: Path | str) -> None:
    """Raise OSError that names a path if it does not exist, or is not a regular file (a link to one is)."""
    _refuse(os.stat(path).st_mode, path)


def read_bytes(path: Path | str) -> bytes:
    """Return the content of a regular file. Raises OSError that names the path for anything else."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # so that opening a pipe does not block
    try:
        _refuse(os.fstat(descriptor).st_mode, path)
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def replace_text(path: Path | str, text: str) -> None:
    """Write a text to a file, replacing it atomically, or to a pipe or a device.

    Raises OSError that names the path if it cannot be written; a file is then unchanged.
    """
    place = Path(os.path.realpath(path))  # a link stays a link
    temporary = place.with_name(f".{place.name}.{uuid4().hex}.tmp")  # two may write the same
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # by the given name: a pipe has no real path
            Path(path).write_text(text, encoding="utf-8")
            return
        temporary.write_text(text, encoding="utf-8")
        if place.exists():
            shutil.copymode(place, temporary)
        temporary.replace(place)
    except OSError as error:
        raise OSError(f"{path} could not be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _refuse(mode: int, path: Path | str) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
