"""SIGTERM and SIGINT: end a run at a place where nothing is lost, with the exit code that shells expect."""

import signal
import time
from contextlib import contextmanager

# Signals are the whole process's, and so is this state: the signal that came while a loop asked to be told later.
_state = {"waits": False, "pending": 0}


class Stopped(BaseException):
    """A signal asked the process to end. Not an Exception, so that no handler of errors takes it for one."""

    def __init__(self, number: int, where: str = ""):
        super().__init__(f"stopped by {signal.Signals(number).name}{where and ' ' + where}")
        self.code = 128 + number  # 143 for SIGTERM, 130 for SIGINT


def install() -> None:
    """Let both signals raise Stopped: at once, or within `deferred` when `pending` is asked next."""
    _state.update(waits=False, pending=0)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _receive)


def ignore_interrupt() -> None:
    """Leave Ctrl-C, which a terminal sends to all processes of a run, to the main one. For a loader's worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def deferred():
    """Hold the first signal back until the block asks, or ends; a second one is not held back.

    A signal to all processes of a run also ends loaders' workers and other ranks; that they are gone is no error then.
    """
    _state["waits"] = True
    try:
        yield
        if _state["pending"]:
            raise Stopped(_state["pending"])
    except RuntimeError as error:
        time.sleep(0.2)  # such a signal may reach this process last
        if _state["pending"]:
            raise Stopped(_state["pending"]) from error
        raise
    finally:
        _state.update(waits=False, pending=0)


def pending() -> int:
    """Return the signal that came, 0 for none."""
    return _state["pending"]


def _receive(number, frame):
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler takes the end of a loader's worker for an error
    if not _state["waits"] or _state["pending"]:
        raise Stopped(number)
    _state["pending"] = number
