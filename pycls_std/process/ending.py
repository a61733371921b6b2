"""End the program without Python's teardown of loaded modules, which takes two seconds with torch."""

import atexit
import contextlib
import ctypes
import os
import sys
import threading
from typing import NoReturn


def leave(code: int) -> NoReturn:
    """End this process with an exit code, after its threads and the functions of `atexit` are done.

    The processes of `multiprocessing` end in the same way; the system frees the memory. Under a profiler, a debugger or
    `python -i`, which act at the end of the program, it ends as any other.
    """
    if sys.getprofile() or sys.gettrace() or sys.flags.interactive:
        sys.exit(code)
    threading._shutdown()  # type: ignore[attr-defined]  # private, meant for multiprocessing
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    ctypes.CDLL(None).fflush(None)  # what C libraries have printed
    os._exit(code)
