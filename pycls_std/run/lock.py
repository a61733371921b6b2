"""One owner of a run's folder: a lock that dies with the process that holds it."""

import errno
import fcntl
import os
import re
import socket
import stat
from contextlib import contextmanager, suppress
from pathlib import Path

from pycls_std.process import signals

LOCK = ".lock"


@contextmanager
def locked(folder: Path):
    """Make a folder and own it within the block.

    The lock is the kernel's and belongs to this process alone: a kill does not leave it behind, nor do children, which
    would keep a lock of filelock's. It works across machines where their shared file system knows POSIX locks. A folder
    still empty at the end goes again.
    Raises ValueError that names the holder if another process owns it, and OUT_DIR if it cannot be written to, or has a
    file of the lock's name that is none.
    """
    made, lock = [path for path in (folder, *folder.parents) if not path.exists()], None
    try:
        with signals.deferred():  # until it is known whose the lock is, so that a stop leaves none behind
            lock = _owned(folder)
        yield
    finally:
        if lock:
            (folder / LOCK).unlink(missing_ok=True)  # while it is still held, so that nobody's lock is removed
            lock.close()
        _remove(made)


def _owned(folder: Path):
    """Return the lock of a folder, which is made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _lock(folder / LOCK)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR) and not folder.is_symlink():
            raise ValueError(
                f"OUT_DIR {folder} holds a {LOCK} that is no regular file. Choose another OUT_DIR"
            ) from error
        raise ValueError(f"OUT_DIR {folder} is no folder that can be written to: {error.strerror}") from error


def _lock(path: Path):
    while True:
        # Not through a link, whose target would be written to, and without waiting at a pipe.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.ELOOP, "")
        file = open(descriptor, "r+", errors="replace")  # noqa: SIM115  (held as long as the lock)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(path.stat(), os.fstat(descriptor)):
                    break
        except OSError as error:
            in_use = error.errno in (errno.EACCES, errno.EAGAIN)
            holder = in_use and (file.read(200).strip() or "another process")
            file.close()
            if in_use:
                raise ValueError(f"OUT_DIR {path.parent} is in use by {holder}") from None
            raise
        file.close()  # its last holder has just removed it
    left = file.read(200)  # by a holder that was killed
    if left and not re.fullmatch(r"process \d+ on .*\n", left):
        file.close()
        raise ValueError(f"OUT_DIR {path.parent} holds a {LOCK} that is no run's. Choose another OUT_DIR")
    file.seek(0)
    file.truncate()
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):  # something is in it
            folder.rmdir()
