"""Writes to the disk that go on while the next epoch is trained, in the order in which they came."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Writes:
    """Carries out one write at a time: at once, or in a thread.

    beside: in a thread. What it raises is raised where it is waited for, so that nothing is written after a failure.
    """

    def __init__(self, *, beside: bool):
        self.pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="writes") if beside else None
        self.pending: Future | None = None

    def begin(self, write: Callable[[], None]) -> None:
        """Carry out a write, or begin it, when the one before has ended."""
        self.wait()
        if self.pool:
            self.pending = self.pool.submit(write)
        else:
            write()

    def wait(self) -> None:
        """Wait until nothing is being written. Raises what the write raised."""
        pending, self.pending = self.pending, None
        if pending:
            pending.result()
