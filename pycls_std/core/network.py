"""Time-outs for servers that stall."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def patience(seconds: float = 60) -> Iterator[None]:
    """Set a socket time-out for the connections that are made in the block.

    For libraries that set none of their own. It raises TimeoutError, which is an OSError.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
