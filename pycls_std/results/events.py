"""Read the event files of a folder: directly if they are intact and hold only scalars, otherwise by tensorboard."""

from pathlib import Path
from typing import NamedTuple

from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.tensor_pb2 import TensorProto

from pycls_std.core import event_options
from pycls_std.core.regular import read_bytes
from pycls_std.results.records import records

VERSION = "brain.Event:2"  # of a file in which only a session start discards earlier values


class Events(NamedTuple):
    """The content of event files."""

    curves: dict[str, dict[int, float]]  # all scalars, {tag: {step: value}}; {} if none can be read
    options: str  # of the run that wrote them, as YAML; "" if they are not recorded


def read_events(folder: Path) -> Events:
    """Return the scalars of a folder's event files, and the options recorded with them.

    A later value of a step replaces an earlier one. A damaged file is read up to the damage.
    """
    found = sorted(folder.glob("*tfevents*"))
    files = [path for path in found if path.is_file()]
    if not files:
        return Events({}, "")
    try:
        return _read_plain(files)
    except (OSError, ValueError, DecodeError):
        if any(not path.is_file() and not path.is_dir() for path in found):  # tensorboard would block forever on a pipe
            return Events({}, "")
        return read_by_tensorboard(folder)


def _read_plain(files: list[Path]) -> Events:
    """Read intact files of scalars, as a run writes them. Raises ValueError, DecodeError or OSError for any others."""
    curves: dict[str, dict[int, float]] = {}
    texts: dict[str, TensorProto] = {}
    version = ""
    for path in files:
        own = {}
        for record in records(read_bytes(path)):
            event = Event.FromString(record)
            what = event.WhichOneof("what")
            version = event.file_version if what == "file_version" else version
            if version != VERSION or what not in ("file_version", "summary"):
                raise ValueError(f"{path} is not plain")
            for value in event.summary.value:
                kind = value.WhichOneof("value")
                if kind == "simple_value":
                    curves.setdefault(value.tag, {})[event.step] = value.simple_value
                elif kind != "tensor":  # not a scalar to tensorboard's accumulator
                    raise ValueError(f"{path} has more than scalars")
                elif value.tag.startswith(event_options.TAG):
                    own[value.tag] = value.tensor
        texts = own or texts
    return Events(curves, _options(texts))


def read_by_tensorboard(folder: Path) -> Events:
    """Return the same as `read_events`, for files of any kind and in any state; several files count as one."""
    # Imported here, since the import is slow and rarely needed.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    try:
        events.Reload()
    except Exception:  # tensorboard may raise anything for a damaged file
        return Events({}, "")
    curves = {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
    texts = {
        tag: events.Tensors(tag)[-1].tensor_proto
        for tag in events.Tags()["tensors"]
        if tag.startswith(event_options.TAG)
    }
    return Events(curves, _options(texts))


def _options(texts: dict[str, TensorProto]) -> str:
    try:
        return event_options.joined({tag: tensor.string_val[0].decode() for tag, tensor in texts.items()})
    except (IndexError, UnicodeDecodeError):
        return ""
