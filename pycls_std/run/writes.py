"""Writes to the disk in the background, while the next epoch is trained, in their order."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from pycls_std.engine.checkpoint import refuse_unreadable
from pycls_std.engine.snapshot import Snapshot


class Writes:
    """Carries out one write at a time: at once, or in a thread.

    beside: in a thread. Its errors are raised by `wait`, so that nothing is written after a failure.
    """

    def __init__(self, *, beside: bool):
        self.pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="writes") if beside else None
        self.pending: Future | None = None

    def begin(self, write: Callable[[dict], None], state: dict) -> None:
        """Carry out a write of a state, or start it in the thread, when the one before has ended.

        The thread writes a copy, as training goes on and changes the state.
        """
        self.wait()
        if self.pool:
            refuse_unreadable(state)  # now, and not an epoch later
            snapshot = Snapshot(state)
            self.pending = self.pool.submit(lambda: write(snapshot.values()))
        else:
            write(state)

    def wait(self) -> None:
        """Wait until nothing is being written. Raises what the write raised."""
        pending, self.pending = self.pending, None
        if pending:
            pending.result()
