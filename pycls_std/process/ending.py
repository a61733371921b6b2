"""How a program ends: without taking apart what it has loaded, which takes Python two seconds where torch is."""

import atexit
import contextlib
import ctypes
import os
import sys
import threading
from typing import NoReturn


def leave(code: int) -> NoReturn:
    """End this process with an exit code, once its threads and all that `atexit` keeps for its end are done.

    So do the processes of `multiprocessing` end; the system frees the memory. A profiler, a debugger or `python -i`,
    which wait for the end of the program itself, see it end as any other.
    """
    if sys.getprofile() or sys.gettrace() or sys.flags.interactive:
        sys.exit(code)
    threading._shutdown()  # type: ignore[attr-defined]  # of which only multiprocessing is meant to know
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    ctypes.CDLL(None).fflush(None)  # what C libraries have printed
    os._exit(code)
