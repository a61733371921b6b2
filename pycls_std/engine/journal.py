"""What a run writes while it goes: console lines, metrics.jsonl and TensorBoard events."""

import io
import json
import logging
import sys
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from tqdm import tqdm

from pycls_std.engine import files

LOG = logging.getLogger("pycls_std")


class Journal:
    """Records one set of values for each epoch. The step of every TensorBoard scalar is the number of epochs done.

    A checkpoint holds `lines`, and every start of a run writes metrics.jsonl and the event file anew from them. So each
    value is there once, however often the run was interrupted, and whatever became of these files.

    folder: of the run. lines: those of the checkpoint that the run continues from.
    """

    def __init__(self, folder: Path, lines: list[dict] = ()):
        self.lines = list(lines)
        self.metrics = folder / "metrics.jsonl"
        files.write(self.metrics, b"".join(map(_json, self.lines)))
        outdated = list(folder.glob("*tfevents*"))
        # TensorBoard wants a number that grows and this word in the name; the host's name, usual there, it does not.
        self.events = folder / f"events.out.tfevents.{time.time_ns()}"
        start = _record(Event(wall_time=time.time(), file_version="brain.Event:2"))
        files.write(self.events, start + b"".join(map(_events, self.lines)))
        for path in outdated:
            path.unlink()

    def epoch(self, done: int, values: dict[str, float]) -> None:
        """Record the values of an epoch; done: epochs done, this one included.

        Raises OSError that names the file if it cannot be written.
        """
        line = {"epoch": done, "time": round(time.time(), 3), **values}
        files.append(self.metrics, _json(line))
        files.append(self.events, _events(line))
        self.lines.append(line)


def _json(line: dict) -> bytes:
    return (json.dumps(line) + "\n").encode()


def _events(line: dict) -> bytes:
    """Return the values of a line of metrics.jsonl as a record of an event file."""
    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in line.items() if tag not in ("epoch", "time")]
    return _record(Event(wall_time=line["time"], step=line["epoch"], summary=Summary(value=values)))


def _record(event: Event) -> bytes:
    buffer = io.BytesIO()
    RecordWriter(buffer).write(event.SerializeToString())
    return buffer.getvalue()


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
