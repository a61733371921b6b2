"""Standard streams that are always open, and remember whether writing to them failed."""

import errno
import logging
import os
import sys
from functools import wraps

from pycls_std.core.text import printable
from pycls_std.process.errors import one_line


class Output:
    """Standard output whose writes never raise: a full disk does not end a run, whose record is in files.

    It changes the exit code, though. A reader that closes the pipe, such as head, is not an error.
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
        """Flush for the last time; discard what cannot be written, or Python would try again at exit, and fail."""
        try:
            self.stream.flush()
        except OSError:
            self.flush()
            _drop(self.stream)


class Printable(logging.Formatter):
    """Escapes control characters in messages, as names of files and classes are in them; line breaks are kept."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        return "\n".join(map(printable, super().format(record).split("\n")))


def program(name: str):
    """Decorate the main function of a program, which returns its exit code, to handle its standard streams.

    A closed descriptor is opened on the null device: otherwise, the next file that is opened would become standard
    error, and C libraries would write into it. Exit code 0 becomes 1, with a message, if standard output could not be
    written. Usage errors and Ctrl-C become exit codes, too.
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
    """Open the null device for closed standard streams; escape characters that a stream cannot encode."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest free descriptor: this one
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
    """Discard what is still to be written to a stream."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except (OSError, ValueError):  # not a stream of a file
        pass
