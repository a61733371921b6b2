"""Event files are read as tensorboard reads them, whoever wrote them and whatever became of them."""

import io
import random

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_tensor_proto
from torch.utils.tensorboard import SummaryWriter

from pycls_std.results import events
from pycls_std.results.records import LONGEST, checksums, records
from pycls_std.run.journal import Journal


def by_tensorboard(folder):
    """What the accumulator makes of a folder; {} if it gives up."""
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    try:
        accumulator.Reload()
    except Exception:
        return {}
    return {tag: {e.step: e.value for e in accumulator.Scalars(tag)} for tag in accumulator.Tags()["scalars"]}


def write(path, *messages):
    """Write an event file."""
    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    for message in messages:
        writer.write(message.SerializeToString())
    path.write_bytes(buffer.getvalue())


def scalars(step, values):
    return Event(wall_time=step, step=step, summary=Summary(value=[Summary.Value(**value) for value in values]))


VERSIONS = [Event(wall_time=1, file_version=f"brain.Event:{number}") for number in (1, 2)]
START = Event(wall_time=1, step=3, session_log=SessionLog(status=SessionLog.START))


@pytest.fixture
def only_plain(monkeypatch):
    """Reading by tensorboard fails the test."""
    monkeypatch.setattr(events, "read_by_tensorboard", lambda folder: pytest.fail("not read as plain"))


@pytest.fixture
def short(tmp_path):
    """A folder with the events of three epochs, as a run writes them, and the path of its file."""
    journal = Journal(tmp_path, "A: 1\nB: 2\n")
    for done in (1, 2, 3):
        journal.epoch(done, 3, {"train/loss": 1 / done, "test/top1": 10.0 * done})
    return tmp_path, journal.events


def test_checksums_of_random_bytes():
    rng = np.random.default_rng(0)
    sizes = rng.permutation([*range(4, 60), LONGEST - 1, LONGEST])
    content = rng.bytes(sizes.sum())
    parts = np.split(np.frombuffer(content, np.uint8), np.cumsum(sizes)[:-1])
    assert checksums(content, sizes).tolist() == [masked_crc32c(part.tobytes()) for part in parts]


def test_what_a_run_writes_is_read_directly(short, only_plain):
    folder, _ = short
    plan = {"run/epochs": {1: 3.0, 2: 3.0, 3: 3.0}}
    expected = plan | {
        "train/loss": {1: 1.0, 2: 0.5, 3: pytest.approx(1 / 3)},
        "test/top1": {1: 10.0, 2: 20.0, 3: 30.0},
    }
    assert events.read_events(folder) == (expected, "A: 1\nB: 2\n")
    assert by_tensorboard(folder) == expected


@pytest.mark.parametrize("new_style", [False, True])
def test_what_a_summary_writer_writes(tmp_path, only_plain, new_style):
    """One scalar an event; a later writer's file goes on and replaces. New-style ones are tensors to tensorboard."""
    for start in (0, 5):
        with SummaryWriter(str(tmp_path), filename_suffix=str(start)) as writer:
            for step in range(start, start + 8):
                writer.add_scalar("test/top1", step + start, step)
                writer.add_scalar("train/loss", step / 7, step, new_style=new_style)
    found = events.read_events(tmp_path).curves
    assert len(list(tmp_path.iterdir())) == 2
    assert found == by_tensorboard(tmp_path)
    assert found["test/top1"] == {step: step if step < 5 else step + 5.0 for step in range(13)}
    assert ("train/loss" in found) is not new_style


@pytest.mark.parametrize(
    ("version", "last", "steps"),
    [(VERSIONS[1], START, {1, 2}), (VERSIONS[0], scalars(3, [{"tag": "a", "simple_value": 1.0}]), {1, 2, 3})],
)
def test_what_a_restart_took_back_is_not_read(tmp_path, version, last, steps):
    """In old files, a step that goes back is a restart."""
    values = [scalars(step, [{"tag": "a", "simple_value": 1.0}]) for step in range(1, 6)]
    write(tmp_path / "events.out.tfevents.0", version, *values, last)
    found = events.read_events(tmp_path).curves
    assert found == by_tensorboard(tmp_path)
    assert set(found["a"]) == steps


@pytest.mark.parametrize("seed", range(40))
def test_random_files_are_read_as_by_tensorboard(tmp_path, seed):
    """Several files, of old versions or none, with steps that go back, restarts, tensors, histograms, cut, damaged."""
    rng = random.Random(seed)
    for number in range(rng.choice([1, 1, 2, 3])):
        steps = sorted(rng.choices(range(12), k=6)) if rng.random() < 0.5 else rng.choices(range(12), k=6)
        messages = [rng.choice([VERSIONS[1]] * 8 + [VERSIONS[0], Event(wall_time=1)])]
        for step in steps:
            values = [{"tag": tag, "simple_value": rng.random()} for tag in rng.sample("abc", k=2)]
            messages.append(scalars(step, values))
        odd = [
            START,
            Event(),
            scalars(4, [{"tag": "d", "tensor": make_tensor_proto(1.0)}]),
            scalars(4, [{"tag": "e", "histo": HistogramProto(min=0, max=1, bucket_limit=[1], bucket=[1])}]),
            scalars(4, [{"tag": "f" * LONGEST, "simple_value": 1.0}]),
        ]
        for message in rng.sample(odd, k=rng.choice([0, 0, 0, 1, 2])):
            messages.insert(rng.randrange(1, len(messages)), message)
        path = tmp_path / f"events.out.tfevents.{number}"
        write(path, *messages)
        if rng.random() < 0.3:
            path.write_bytes(path.read_bytes()[: -rng.randrange(1, 60)])
    found = events.read_events(tmp_path).curves
    assert found == by_tensorboard(tmp_path)


@pytest.mark.fault(34)
def test_a_file_cut_at_any_byte(short):
    folder, path = short
    whole, true = path.read_bytes(), by_tensorboard(folder)
    ends = {0}
    for record in records(whole):
        ends.add(max(ends) + 16 + len(record))
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        found = events.read_events(folder).curves
        assert found == by_tensorboard(folder)
        assert all(curve.items() <= true[tag].items() for tag, curve in found.items())
        if length not in ends:
            with pytest.raises(ValueError, match="is cut"):
                records(whole[:length])


@pytest.mark.fault(34)
def test_a_file_with_any_byte_changed(short):
    folder, path = short
    whole, true = path.read_bytes(), by_tensorboard(folder)
    for position in range(len(whole)):
        for change in (1 << position % 8, 0xFF):
            damaged = bytearray(whole)
            damaged[position] ^= change
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match="is cut|is wrong"):
                records(bytes(damaged))
            found = events.read_events(folder).curves
            assert found == by_tensorboard(folder)
            assert all(curve.items() <= true[tag].items() for tag, curve in found.items())


@pytest.mark.fault(34)
def test_folders_that_hold_no_events(tmp_path):
    assert events.read_events(tmp_path) == ({}, "")
    (tmp_path / "tfevents").mkdir()
    assert events.read_events(tmp_path) == ({}, "")
