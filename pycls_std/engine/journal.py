"""What a run writes while it goes: console lines, metrics.jsonl and TensorBoard events."""

import json
import logging
import math
import sys
import time
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

LOG = logging.getLogger("pycls_std")


class Journal:
    """Records one set of values for each epoch. The step of every TensorBoard scalar is the number of epochs done.

    folder: of the run. start_epoch: epochs already done; what an interrupted run wrote beyond them is dropped.
    """

    def __init__(self, folder: Path, *, start_epoch: int = 0):
        self.metrics = folder / "metrics.jsonl"
        lines = self.metrics.read_text().splitlines() if self.metrics.exists() else []
        temporary = self.metrics.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in lines if _epoch_of(line) <= start_epoch))
        temporary.replace(self.metrics)
        self.writer = SummaryWriter(folder, purge_step=start_epoch + 1)

    def epoch(self, done: int, values: dict[str, float]) -> None:
        """Record the values of an epoch; done: epochs done, this one included."""
        with self.metrics.open("a") as file:
            file.write(json.dumps({"epoch": done, **values}) + "\n")
        for tag, value in values.items():
            self.writer.add_scalar(tag, value, done)
        self.writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self.writer.close()


def _epoch_of(line: str) -> float:
    try:
        return json.loads(line)["epoch"]
    except ValueError:  # the last line of a run that was killed while it wrote
        return math.inf


class ProgressBar:
    """A bar on a terminal, a line every `period` iterations elsewhere (0 = none).

    total: iterations of the epoch. done, run_total: iterations of the whole run, for the estimate of the time left.
    """

    def __init__(self, label: str, total: int, *, period: int, done: int, run_total: int):
        self.label = label
        self.total = total
        self.period = period
        self.left = run_total - done
        self.start = time.perf_counter()
        self.bar = tqdm(total=total, desc=label, leave=False, disable=not sys.stderr.isatty())

    def due(self, iteration: int) -> bool:
        """Say whether values should be read and shown after this iteration, counted from 0."""
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
