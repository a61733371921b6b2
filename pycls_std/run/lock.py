"""Exclusive ownership of a run's folder: a lock that is released when the process that holds it ends."""

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
    """Create a folder and own it within the block.

    It is a POSIX lock of this process alone: the kernel releases it after a kill, and children do not hold it, as they
    would a lock of filelock's. It works across machines if their shared file system supports POSIX locks. A folder that
    is still empty at the end is removed.
    Raises ValueError that names the holder if another process owns it, and one that names OUT_DIR if it is not
    writable, or has a file of the lock's name that is not a lock.
    """
    made, lock = [path for path in (folder, *folder.parents) if not path.exists()], None
    try:
        with signals.deferred():  # so that a stop in between does not leave a lock file behind
            lock = _owned(folder)
        yield
    finally:
        if lock:
            (folder / LOCK).unlink(missing_ok=True)  # while still held, so that no other process's lock is removed
            lock.close()
        _remove(made)


def _owned(folder: Path):
    """Create a folder and return its lock."""
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
        # Not through a link, whose target would be written to, and without blocking on a pipe.
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
