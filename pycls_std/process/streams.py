"""What a program prints: to streams that are there, and of which it is known whether they took it."""

import errno
import logging
import os
import sys
from functools import wraps

from pycls_std.core.text import printable
from pycls_std.process.errors import one_line


class Output:
    """Standard output that fails no write: a full disk ends no run, whose record is in files, but changes its code.

    A reader that has seen enough, such as head, is no error.
    """

    def __init__(self, stream):
        self.stream = stream
        self.error: OSError | None = None

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write, and remember what went wrong."""
        self._attempt(self.stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Flush, and remember what went wrong."""
        self._attempt(self.stream.flush)

    def _attempt(self, call, *words):
        try:
            call(*words)
        except OSError as error:
            if error.errno != errno.EPIPE:
                self.error = self.error or error

    def end(self) -> None:
        """Flush for the last time; what cannot be written goes nowhere, or Python tries again as it ends, and fails."""
        try:
            self.stream.flush()
        except OSError:
            self.flush()
            _drop(self.stream)


class Printable(logging.Formatter):
    """Messages whose control characters are escaped, for names of files and classes are in them; lines stay lines."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        return "\n".join(map(printable, super().format(record).split("\n")))


def program(name: str):
    """Decorate the main of a program, which returns its exit code: make its streams whole, at first and at last.

    A closed descriptor is opened on the null device: the next file that is opened would be standard error else, and C
    libraries would write into it. Code 0 becomes 1, with a line, if standard output could not be written. Usage errors
    and Ctrl-C become codes, too.
    """

    def decorate(main):
        @wraps(main)
        def guarded(argv: list[str] | None = None) -> int:
            open_missing()
            output = sys.stdout = Output(sys.stdout)
            try:
                code = main(argv)
            except SystemExit as usage:  # argparse's
                code = usage.code or 0
            except KeyboardInterrupt:
                complain(f"{name}: stopped by SIGINT")
                code = 130
            finally:
                output.end()
                sys.stdout = output.stream
            if output.error and code == 0:
                complain(f"{name}: standard output could not be written: {output.error.strerror}")
                code = 1
            return code

        return guarded

    return decorate


def open_missing() -> None:
    """Open the null device where standard input, output or errors are closed; let no character fail to be shown."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest that is free: this one
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def complain(error: BaseException | str) -> None:
    """Print a line about an error to standard error, if it takes one."""
    try:
        sys.stderr.write((printable(error) if isinstance(error, str) else one_line(error)) + "\n")
        sys.stderr.flush()
    except OSError:
        _drop(sys.stderr)


def _drop(stream) -> None:
    """Let what is still to be written to a stream go nowhere."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except (OSError, ValueError):  # no stream of a file
        pass
