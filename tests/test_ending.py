"""How a program ends: at once, with nothing lost."""

import subprocess
import sys

import pytest
from processes import ROOT

PROGRAM = """
import atexit, ctypes, sys, threading, time
sys.path.insert(0, {root!r})
from pycls_std.process.ending import leave

class Large:
    def __del__(self):
        print("taken apart")

kept = Large()
atexit.register(print, "at exit")
threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
ctypes.CDLL(None).printf(b"of C\\n")
sys.stderr.write("an error without end of line")
leave({code})
"""


def run(*words, code=3):
    program = PROGRAM.format(root=str(ROOT), code=code)
    command = [sys.executable, *words, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env={"PATH": ""})
    return done.returncode, set(done.stdout.splitlines()), done.stderr


@pytest.mark.parametrize("code", [0, 3])
def test_threads_handlers_and_streams_come_first_and_nothing_is_taken_apart(code):
    assert run(code=code) == (code, {"thread", "at exit", "of C"}, "an error without end of line")


def test_python_that_stays_open_ends_as_any_other():
    """So do a profiler and a debugger, which look at the program when it has ended."""
    code, output, errors = run("-i")
    assert {"thread", "at exit", "of C", "taken apart"} <= output and "SystemExit: 3" in errors and code == 0


def test_a_profile_is_shown():
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pycls_std.process.ending import leave; leave(0)"
    command = [sys.executable, "-c", f"import cProfile; cProfile.run({program!r})"]
    assert "function calls" in subprocess.run(command, capture_output=True, text=True).stdout
