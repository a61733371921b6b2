"""A process that is forked with torch loaded, and whose streams are at first and at last as those of a fresh Python."""

import os
import runpy
import sys


def _pipe_of_no_reader():
    read, write = os.pipe()
    os.close(read)
    return write


REDIRECTED = {
    ">/dev/full": lambda: os.dup2(os.open("/dev/full", os.O_WRONLY), 1),
    "|true": lambda: os.dup2(_pipe_of_no_reader(), 1),
}


KEPT = []  # the streams from before, for who lets them go closes the descriptors


def be_python(streams, command):
    """Hook: run a file as Python does that is started with these streams, and end as it does.

    streams: words of REDIRECTED. command: the file and its words.
    """
    KEPT.extend((sys.stdout, sys.stderr))
    for word in streams:
        REDIRECTED[word]()
    sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__ = list(map(_stream, range(3)))
    sys.argv, code = command, 0
    try:
        runpy.run_path(command[0], run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
    written = [_flushed(stream) for stream in (sys.stdout, sys.stderr)]
    os._exit(code if all(written) else 120)  # all else that Python does at its end takes seconds


def _stream(descriptor):
    """Standard input, output or errors as Python makes them."""
    errors, buffering = ("backslashreplace", 1) if descriptor == 2 else (None, -1)
    return open(descriptor, "rww"[descriptor], buffering, errors=errors, closefd=False)


def _flushed(stream):
    """Whether what is still to be written can be, which is all that Python looks at."""
    try:
        return stream.closed or stream.flush() is None
    except OSError:
        return False
