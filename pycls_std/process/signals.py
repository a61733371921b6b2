"""SIGTERM and SIGINT: end a run at a point where nothing is lost, with the exit code that shells expect."""

import signal
import time
from contextlib import contextmanager

# Signals belong to the whole process, and so does this state: whether a loop defers them, the signal that was deferred,
# the one that was received at any time, and whether outside of `deferred` a signal ends the process silently.
_state = {"waits": False, "pending": 0, "received": 0, "quiet": False}
NUMBERS = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
    """A signal asked the process to end. Not an Exception, so that no handler of errors catches it."""

    def __init__(self, number: int, where: str = ""):
        super().__init__(f"stopped by {signal.Signals(number).name}{where and ' ' + where}")
        self.code = 128 + number  # 143 for SIGTERM, 130 for SIGINT


def install(*, quiet: bool = False) -> None:
    """Let both signals raise Stopped at once; within `deferred`, they are deferred.

    quiet: outside of `deferred`, they end the process silently. For ranks other than 0, which has the lock and the log,
    and reports.
    """
    _state.update(waits=False, pending=0, received=0, quiet=quiet)
    for number in NUMBERS:
        signal.signal(number, signal.SIG_DFL if quiet else _receive)


def uninstall() -> None:
    """Let either signal end the process silently: all is reported, and Python is about to exit.

    Stopped, raised then, would be printed as an ignored exception.
    """
    for number in NUMBERS:
        if signal.getsignal(number) is _receive:
            signal.signal(number, signal.SIG_DFL)


def received() -> int:
    """Return the signal that asked the process to end, 0 for none.

    Stopped, raised within an import, can surface as another error, or be lost in code that ignores exceptions.
    """
    return _state["received"]


def ignore_interrupt(worker: int) -> None:
    """Leave Ctrl-C, which a terminal sends to all processes of a run, to the main one. worker: number of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def deferred():
    """Defer the first signal until the block asks for it by `pending`, or ends; a second one is not deferred.

    A signal to all processes of a run also ends DataLoader workers and other ranks; their loss is not an error then.
    """
    if _state["received"]:
        raise Stopped(_state["received"])
    _state["waits"] = True
    try:
        for number in NUMBERS if _state["quiet"] else ():
            signal.signal(number, _receive)
        yield
        if _state["pending"]:
            raise Stopped(_state["pending"])
    except RuntimeError as error:
        time.sleep(0.2)  # such a signal may reach this process last
        if _state["pending"]:
            raise Stopped(_state["pending"]) from error
        raise
    finally:
        _state.update(waits=False, pending=0, received=0)
        if _state["quiet"]:
            uninstall()


def pending() -> int:
    """Return the signal that was deferred, 0 for none."""
    return _state["pending"]


def _receive(number, frame):
    _state["received"] = number
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler takes the end of a DataLoader worker for an error
    if not _state["waits"] or _state["pending"]:
        raise Stopped(number)
    _state["pending"] = number
