"""The progress of an epoch: a bar on a terminal, lines elsewhere."""

import logging
import sys
import time

from tqdm import tqdm

LOG = logging.getLogger("pycls_std")


class ProgressBar:
    """A bar on a terminal, a line every `period` iterations elsewhere (0 = none).

    total: iterations of the epoch. done, run_total: iterations of the whole run, for the estimate of the time left.
    shown: whether this process shows any of it.
    """

    def __init__(self, label: str, total: int, *, period: int, done: int, run_total: int, shown: bool = True):
        self.label = label
        self.total = total
        self.period = period if shown else 0
        self.left = run_total - done
        self.start = time.perf_counter()
        self.bar = tqdm(total=total, desc=label, leave=False, disable=not (shown and sys.stderr.isatty()))

    def due(self, iteration: int) -> bool:
        """Return whether values should be read and shown after this iteration, counted from 0."""
        return self.period > 0 and (iteration + 1) % self.period == 0

    def advance(self) -> None:
        """Count one iteration."""
        self.bar.update()

    def show(self, iteration: int, text: str) -> None:
        """Show values after an iteration."""
        each = (time.perf_counter() - self.start) / (iteration + 1)
        eta = duration(each * (self.left - iteration - 1))
        if self.bar.disable:
            LOG.info("%s  %d/%d  %s  eta %s", self.label, iteration + 1, self.total, text, eta)
        else:
            self.bar.set_postfix_str(f"{text}  run eta {eta}")

    def close(self) -> float:
        """Remove the bar; return the seconds since its start."""
        self.bar.close()
        return time.perf_counter() - self.start


def duration(seconds: float) -> str:
    """Return seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
