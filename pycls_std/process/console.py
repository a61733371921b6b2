"""Copy the console messages of a run to a file, from the first message on."""

import logging
import os
import stat
from pathlib import Path

from pycls_std.process.streams import Printable

LOG = logging.getLogger("pycls_std")


class Kept(logging.Handler):
    """Buffers messages until the file is known; from then on, writes each one to it at once."""

    def __init__(self):
        super().__init__()
        self.setFormatter(Printable())
        self.held: list[str] | None = []  # None = not buffered: written to the file, if there is one
        self.descriptor = -1

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        self.add(self.format(record))

    def add(self, text: str) -> None:
        """Keep a line; if the file cannot be written, on a full disk, the run goes on, and the file gets no more."""
        if self.held is not None:
            self.held.append(text)
        elif self.descriptor >= 0:
            try:
                os.write(self.descriptor, f"{text}\n".encode())  # at once, for the process may be killed
            except OSError:
                self.close()

    def begin(self, path: Path) -> None:
        """Append to a file from now on, buffered lines first; if it cannot be opened, raise OSError, keep nothing."""
        held, self.held = self.held or [], None
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o666)  # not through a link, and without waiting at a pipe
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError("it is no regular file")
        self.descriptor = descriptor
        for text in held:
            self.add(text)

    def close(self) -> None:
        """Keep nothing any more."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
        super().close()


# The console belongs to the whole process, and so does its handler.
_kept: list[Kept] = []


def listen() -> None:
    """Buffer messages from now on, until `keep` names their file."""
    stop()
    _kept.append(Kept())
    logging.getLogger().addHandler(_kept[0])


def keep(path: Path) -> None:
    """Append the messages since `listen`, and all later ones, to a file; without `listen`, do nothing."""
    try:
        for handler in _kept:
            handler.begin(path)
    except OSError as error:
        LOG.warning("%s is not written, what is told here is not kept: %s", path, error.strerror or error)


def add(text: str) -> None:
    """Keep a line that goes to standard error."""
    for handler in _kept:
        handler.add(text)


def stop() -> None:
    """Keep nothing any more."""
    while _kept:
        handler = _kept.pop()
        logging.getLogger().removeHandler(handler)
        handler.close()
