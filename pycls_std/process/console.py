"""Keep what a run tells on the console in a file, too, from its first message on."""

import logging
import os
import stat
from pathlib import Path

from pycls_std.process.streams import Printable

LOG = logging.getLogger("pycls_std")


class Kept(logging.Handler):
    """Holds messages back until it is known where they go; from then on each is in the file once it is told."""

    def __init__(self):
        super().__init__()
        self.setFormatter(Printable())
        self.held: list[str] | None = []  # None = they go to the file, or nowhere
        self.descriptor = -1

    def emit(self, record: logging.LogRecord) -> None:
        """Take a message."""
        self.add(self.format(record))

    def add(self, text: str) -> None:
        """Take a line; a file that cannot be written, on a full disk, ends no run and gets no more of them."""
        if self.held is not None:
            self.held.append(text)
        elif self.descriptor >= 0:
            try:
                os.write(self.descriptor, f"{text}\n".encode())  # at once, for the process may be killed
            except OSError:
                self.close()

    def begin(self, path: Path) -> None:
        """Append to a file from now on, what was held back first; raise OSError if it cannot be, and keep nothing."""
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


# The console is the whole process's, and so is what keeps it.
_kept: list[Kept] = []


def listen() -> None:
    """Hold back what is told from now on, until `keep` says where it goes."""
    stop()
    _kept.append(Kept())
    logging.getLogger().addHandler(_kept[0])


def keep(path: Path) -> None:
    """Append what was told since `listen`, and what will be, to a file; without `listen`, do nothing."""
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
