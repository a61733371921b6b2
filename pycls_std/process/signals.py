"""SIGTERM and SIGINT: end a run at a place where nothing is lost, with the exit code that shells expect."""

import signal
import time
from contextlib import contextmanager

# Signals are the whole process's, and so is this state: whether a loop asked to be told later, the signal that came
# meanwhile, the one that came at any time, and whether a signal may end the process without a word until then.
_state = {"waits": False, "pending": 0, "received": 0, "quiet": False}
NUMBERS = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
    """A signal asked the process to end. Not an Exception, so that no handler of errors takes it for one."""

    def __init__(self, number: int, where: str = ""):
        super().__init__(f"stopped by {signal.Signals(number).name}{where and ' ' + where}")
        self.code = 128 + number  # 143 for SIGTERM, 130 for SIGINT


def install(*, quiet: bool = False) -> None:
    """Let both signals raise Stopped: at once, or within `deferred` when `pending` is asked next.

    quiet: before and after `deferred` they end the process as it is. For processes beside the first, which has the
    lock, the log and the word.
    """
    _state.update(waits=False, pending=0, received=0, quiet=quiet)
    for number in NUMBERS:
        signal.signal(number, signal.SIG_DFL if quiet else _receive)


def uninstall() -> None:
    """Let either signal end the process, without a word: it has said all, and Python is about to end.

    Stopped, raised from there, would be told as an exception that is ignored.
    """
    for number in NUMBERS:
        if signal.getsignal(number) is _receive:
            signal.signal(number, signal.SIG_DFL)


def received() -> int:
    """Return the signal that asked the process to end, 0 for none.

    Stopped, raised within an import, can come out as another error, or be lost in code that ignores what is raised.
    """
    return _state["received"]


def ignore_interrupt(worker: int) -> None:
    """Leave Ctrl-C, which a terminal sends to all processes of a run, to the main one. worker: of a loader, counted."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def deferred():
    """Hold the first signal back until the block asks, or ends; a second one is not held back.

    A signal to all processes of a run also ends loaders' workers and other ranks; that they are gone is no error then.
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
    """Return the signal that came, 0 for none."""
    return _state["pending"]


def _receive(number, frame):
    _state["received"] = number
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler takes the end of a loader's worker for an error
    if not _state["waits"] or _state["pending"]:
        raise Stopped(number)
    _state["pending"] = number
