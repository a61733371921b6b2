"""Read the scalars of a folder's event files: directly if all of them are whole and plain, else by tensorboard."""

from pathlib import Path

from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event

from pycls_std.results.records import records

VERSION = "brain.Event:2"  # of a file in which only the start of a session takes earlier values back


def read_events(folder: Path) -> dict[str, dict[int, float]]:
    """Return all scalars of a folder's event files, {tag: {step: value}}; {} if there are none that can be read.

    A later value of a step replaces an earlier one. Of a damaged file, what stands before the damage counts.
    """
    files = sorted(folder.glob("*tfevents*"))
    if not files:
        return {}
    try:
        return _read_plain(files)
    except (OSError, ValueError, DecodeError):
        return _read_by_tensorboard(folder)


def _read_plain(files: list[Path]) -> dict[str, dict[int, float]]:
    """Raise ValueError, DecodeError or OSError for whatever is not a whole file of scalars, such as a run writes."""
    curves, version = {}, ""
    for path in files:
        for record in records(path.read_bytes()):
            event = Event.FromString(record)
            what = event.WhichOneof("what")
            version = event.file_version if what == "file_version" else version
            if version != VERSION or what not in ("file_version", "summary"):
                raise ValueError(f"{path} is not plain")
            for value in event.summary.value:
                kind = value.WhichOneof("value")
                if kind == "simple_value":
                    curves.setdefault(value.tag, {})[event.step] = value.simple_value
                elif kind != "tensor":  # which is no scalar to tensorboard's accumulator
                    raise ValueError(f"{path} has more than scalars")
    return curves


def _read_by_tensorboard(folder: Path) -> dict[str, dict[int, float]]:
    # Here, since the import takes a while and few need it.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    try:
        events.Reload()
    except Exception:  # tensorboard raises whatever a damaged file leads to; no scalars says it all
        return {}
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
