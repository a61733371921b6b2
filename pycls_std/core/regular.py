"""Regular files: read them alone, for a pipe, a socket or a device may let its reader wait for ever; replace them."""

import errno
import os
import shutil
import stat
from contextlib import suppress
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
    """Write a text to a file, replacing it in one step, or to a pipe or a device.

    Raises OSError that names the path if it cannot be written; a file is then as it was.
    """
    place = Path(os.path.realpath(path))  # a link stays one
    temporary = place.with_name(f".{place.name}.{uuid4().hex}.tmp")  # two may write the same
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # by its own name: that of a pipe leads nowhere
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
