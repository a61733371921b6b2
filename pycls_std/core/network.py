"""Give up on a server that stalls."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def patience(seconds: float = 60) -> Iterator[None]:
    """Let each connection that is made in the block wait at most so many seconds for an answer, or for more of one.

    For libraries that set no time-out of their own. Such a wait ends in TimeoutError, which is an OSError.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
