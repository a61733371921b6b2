"""The values of each epoch of a run: metrics.jsonl and TensorBoard events."""

import io
import json
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.summary.writer.record_writer import RecordWriter

from pycls_std.core import event_options
from pycls_std.engine import files

METRICS = "metrics.jsonl"
# TensorBoard needs an increasing number and this word in the name, but not the host's name, which is usual there.
EVENTS = re.compile(r"events\.out\.tfevents\.(\d{19})")
# In the values of an epoch: the number of epochs that the run was to have, which grows when it is extended.
EPOCHS = "run/epochs"


class Journal:
    """Records one set of values for each epoch. The step of every TensorBoard scalar is the number of epochs done.

    A checkpoint holds `lines`, and every start of a run rewrites metrics.jsonl and the event file from them. So each
    value is there once, however often the run was interrupted, and whatever happened to these files.

    folder: of the run. options: as YAML. lines: those of the checkpoint that the run resumes from. before: the options
    of that checkpoint, which the event file has until the first new epoch. outdated: event files that the new one
    replaces.
    """

    def __init__(
        self, folder: Path, options: str, lines: Sequence[dict] = (), *, before: str = "", outdated: Sequence[Path] = ()
    ):
        self.folder = folder
        self.options = options
        self.lines = list(lines)
        self.metrics = folder / METRICS
        files.write(self.metrics, metrics_of(self.lines))
        self._begin(before or options, outdated)

    def epoch(self, done: int, epochs: int, values: dict[str, float]) -> None:
        """Record the values of an epoch; done: epochs done, this one included. epochs: of the run.

        Raises OSError that names the file if it cannot be written.
        """
        line = {"epoch": done, "time": round(time.time(), 3), EPOCHS: epochs, **values}
        files.append(self.metrics, _json(line))
        self.lines.append(line)
        if self.written == self.options:
            files.append(self.events, _values(line))
        else:
            self._begin(self.options, [self.events])

    def _begin(self, options: str, outdated: Iterable[Path]) -> None:
        self.written = options
        self.events = self.folder / f"events.out.tfevents.{time.time_ns():019d}"
        files.write(self.events, events_of(self.events.name, options, self.lines))
        for path in outdated:
            path.unlink()


def metrics_of(lines: list[dict]) -> bytes:
    """Return the content of metrics.jsonl."""
    return b"".join(map(_json, lines))


def events_of(name: str, options: str, lines: list[dict]) -> bytes:
    """Return the content of the event file of a name: the options, then the values of each epoch."""
    named = EVENTS.fullmatch(name)
    assert named, name
    start = int(named[1]) / 1e9
    head = [Event(wall_time=start, file_version="brain.Event:2")]
    head += [_text(start, tag, piece) for tag, piece in event_options.pieces(options).items()]
    return b"".join(map(_record, head)) + b"".join(map(_values, lines))


def _text(when: float, tag: str, text: str) -> Event:
    """Return an event whose text TensorBoard shows as it is."""
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    tensor = TensorProto(dtype=DT_STRING, string_val=[text.encode()])
    return Event(wall_time=when, summary=Summary(value=[Summary.Value(tag=tag, metadata=metadata, tensor=tensor)]))


def _json(line: dict) -> bytes:
    return (json.dumps(line) + "\n").encode()


def _values(line: dict) -> bytes:
    """Return the values of a line of metrics.jsonl as a record of an event file."""
    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in line.items() if tag not in ("epoch", "time")]
    return _record(Event(wall_time=line["time"], step=line["epoch"], summary=Summary(value=values)))


def _record(event: Event) -> bytes:
    buffer = io.BytesIO()
    RecordWriter(buffer).write(event.SerializeToString())
    return buffer.getvalue()
