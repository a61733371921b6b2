"""What a run writes while it goes: metrics.jsonl and TensorBoard events."""

import io
import json
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from pycls_std.engine import files


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
