"""The folder of a run: what in it is another's is refused and left as it is, what is damaged is written anew."""

import argparse
import json
import os
import re
import shutil
import signal
import threading
from functools import partial
from importlib.metadata import version

import pytest
import torch
from processes import ROOT, Running, called, finish, killed, two_ranks
from records import SMALL, assert_same_run, assert_same_state, damage, load_state, logged, words

from pycls_std import config, runner
from pycls_std.core.event_options import options_in
from pycls_std.engine import checkpoint, files, loop
from pycls_std.engine.snapshot import Snapshot
from pycls_std.process import signals
from pycls_std.results.read import read_run
from pycls_std.run.folder import RunFolder
from pycls_std.run.journal import events_of

CONFIG = "configs/debug/base_debug.yaml"


def options(folder, **overrides):
    # With one evaluation, the last epoch is the best one.
    own = {"OUT_DIR": folder, "OPTIM__MAX_EPOCH": 2, "TEST__PERIOD": 2} | SMALL | overrides
    return config.load(str(ROOT / CONFIG), words(**own))


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """Folder of a finished run of two epochs."""
    folder = tmp_path_factory.mktemp("once") / "run"
    runner.train(options(folder))
    return folder


@pytest.fixture
def finished(once, tmp_path):
    """A copy of it, to be damaged."""
    shutil.copytree(once, tmp_path / "run")
    return tmp_path / "run"


def content(folder):
    """Content of every file of a folder, by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def events(folder):
    (path,) = folder.glob("*tfevents*")
    return path


# ------------------------------------------------------------------------------------------------- what is another's
def test_a_record_without_checkpoints_is_not_started_anew(finished):
    """As tools/keep_run.py makes them: it was wiped, and trained once more."""
    shutil.rmtree(finished / "checkpoints")
    before = content(finished)
    with pytest.raises(ValueError, match="OUT_DIR .*run has the record of a run, and no checkpoint to continue from"):
        runner.train(options(finished))
    (finished / "run.json").unlink()
    with pytest.raises(ValueError, match="run has a record of 2 epochs, and no checkpoint to continue from"):
        runner.train(options(finished))
    before.pop("run.json")
    assert content(finished) == before


def test_a_begun_run_of_other_options_is_refused_with_a_name_for_this_one(finished):
    """It was killed in its first epoch, before there was a checkpoint to continue from."""
    shutil.rmtree(finished / "checkpoints")
    (finished / "run.json").unlink()
    first, _ = (finished / "metrics.jsonl").read_text().splitlines()
    (finished / "metrics.jsonl").write_text(first + "\n")
    before = content(finished)
    with pytest.raises(ValueError) as caught:
        runner.train(options(finished, OPTIM__BASE_LR=7))
    reason = f"{finished / 'config.yaml'} is a run of other options: OPTIM.BASE_LR was 0.002, is 7.0. "
    assert str(caught.value) == reason + f"Choose another OUT_DIR, as with OUT_DIR={finished}_base_lr-7.0"
    assert content(finished) == before
    (finished / "config.yaml").write_text("?")
    with pytest.raises(ValueError, match="config.yaml is not what a run writes. Choose another OUT_DIR$"):
        runner.train(options(finished))


@pytest.mark.parametrize("left", ["config.yaml", "checkpoints/best.pt", "metrics.jsonl"])
def test_a_single_file_that_no_killed_run_leaves_alone_is_not_replaced(finished, left):
    """Options that somebody wrote, a deployable file that somebody kept, a line of values without its options."""
    for path in [path for path in finished.rglob("*") if path.is_file() and path != finished / left]:
        path.unlink()
    if left == "config.yaml":
        (finished / left).write_text("_BASE_: configs/debug/base_debug.yaml\n")
    elif left == "metrics.jsonl":
        (finished / left).write_text((finished / left).read_text().splitlines()[0] + "\n")
    before = content(finished)
    foreign = f"holds what is not this run's: {left}"
    with pytest.raises(ValueError, match="is not what a run writes" if left == "config.yaml" else foreign):
        runner.train(options(finished))
    assert content(finished) == before


def test_a_kept_record_is_not_written_to(finished, tmp_path):
    assert called("tools/keep_run.py", tmp_path / "logs", finished)[0] == 0
    kept = tmp_path / "logs" / "base_debug" / "seed0"
    before = content(kept)
    with pytest.raises(ValueError, match="has the record of a run, and no checkpoint to continue from"):
        runner.train(options(kept))
    assert content(kept) == before


@pytest.mark.parametrize(
    "name", ["notes.txt", ".hidden", ".notes.tmp", "events.out.tfevents.1700000000.host", "plots/a.png", "last.pt"]
)
def test_a_folder_with_something_elses_files_is_refused(tmp_path, name):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    with pytest.raises(ValueError, match=f"run holds what is not this run's: {re.escape(name.split('/')[0])}"):
        runner.train(options(tmp_path / "run"))
    assert content(tmp_path / "run") == {name: b"mine"}
    (tmp_path / "run" / "checkpoints").mkdir()
    path.rename(tmp_path / "run" / "checkpoints" / "other.pt")
    shutil.rmtree(tmp_path / "run" / "plots", ignore_errors=True)
    with pytest.raises(ValueError, match="run holds what is not this run's: checkpoints/other.pt"):
        runner.train(options(tmp_path / "run"))


@pytest.mark.parametrize("name", ["last.pt", "last-1.pt", "last.pt.corrupt"])
def test_a_checkpoint_of_another_program_keeps_its_name(tmp_path, name):
    """It holds more than weights; it was renamed as damaged, with the advice to delete the folder."""
    path = tmp_path / "run" / "checkpoints" / name
    path.parent.mkdir(parents=True)
    torch.save({"args": argparse.Namespace(lr=1), "model": {}}, path)
    before = content(tmp_path / "run")
    with pytest.raises(ValueError, match=f"run holds what is not this run's: checkpoints/{name}. Move it away"):
        runner.train(options(tmp_path / "run"))
    (tmp_path / "run" / "config.yaml").write_text("lr: 1\n")
    with pytest.raises(ValueError, match="config.yaml is not what a run writes. Choose another OUT_DIR$"):
        runner.train(options(tmp_path / "run"))
    assert content(tmp_path / "run") == before | {"config.yaml": b"lr: 1\n"}


@pytest.mark.parametrize("kind", ["another program's", "another run's"])
def test_event_files_of_others_are_not_removed(finished, tmp_path, kind):
    """They would stand beside this run's curves, and were deleted when it went on."""
    name = f"events.out.tfevents.{1_600_000_000 * 10**9}"
    if kind == "another run's":
        other = config.dump(options(tmp_path / "other", SEED=7))
        line = {"epoch": 1, "time": 1.0, "test/top1": 5.0}
        (finished / name).write_bytes(events_of(name, other, [line]))
    else:
        (finished / name).write_bytes(b"mine")
    before = content(finished)
    for epochs in (2, 3):
        with pytest.raises(ValueError, match=f"holds what is not this run's: {name}"):
            runner.train(options(finished, OPTIM__MAX_EPOCH=epochs))
    assert content(finished) == before


def test_other_files_beside_a_run_that_goes_on_are_left(finished):
    mine = ("notes.txt", ".notes.tmp", ".x.pt.tmp", "checkpoints/last-good.pt", "checkpoints/last-01.pt")
    for name in mine:
        (finished / name).write_bytes(b"mine")
    (finished / ".run.json.tmp").write_bytes(b"half of it, of a run that was killed")
    runner.train(options(finished, OPTIM__MAX_EPOCH=3))
    assert [(finished / name).read_bytes() for name in mine] == [b"mine"] * len(mine)
    assert not (finished / ".run.json.tmp").exists()


def test_the_best_weights_before_are_there_until_the_last_checkpoint_knows_of_better_ones(tmp_path, monkeypatch):
    """The disk is full for best.pt, or a kill comes before it: the next start makes it of last.pt."""
    write = files.write

    def full(path, *more, **options):
        if path.name == "best.pt" and load_state(tmp_path / "run")["epoch"] == 2:  # which is safe by now
            raise OSError(f"{path} could not be written: No space left on device")
        write(path, *more, **options)

    monkeypatch.setattr(loop, "_is_best", lambda *_: True)
    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        patched.setattr(files, "write", full)
        runner.train(options(tmp_path / "run", OPTIM__MAX_EPOCH=3, TEST__PERIOD=1))
    assert load_state(tmp_path / "run", "best")["epoch"] == 1

    def no_steps(*_, **__):
        raise OSError("the end of this test")

    monkeypatch.setattr(loop, "fit", no_steps)
    with pytest.raises(OSError, match="the end"):
        runner.train(options(tmp_path / "run", OPTIM__MAX_EPOCH=3, TEST__PERIOD=1))
    assert load_state(tmp_path / "run", "best")["epoch"] == 2


# ------------------------------------------------------------------------------------------------ beside training
@pytest.fixture
def beside(monkeypatch):
    """Runs write their checkpoints beside training, as on CUDA; what was begun and what ended, in order."""
    monkeypatch.setattr(runner, "RunFolder", lambda path, **how: RunFolder(path, **how | {"beside": True}))
    story, write, append, step = [], files.write, files.append, loop.train_epoch

    def told(way, path, *args, **options):
        story.append(f"+{path.name}")
        way(path, *args, **options)
        story.append(f"-{path.name}")

    monkeypatch.setattr(files, "write", partial(told, write))
    monkeypatch.setattr(files, "append", partial(told, append))
    monkeypatch.setattr(loop, "train_epoch", lambda session, epoch: story.append(epoch) or step(session, epoch))
    return story


def test_what_is_written_beside_training_is_what_is_written_before_it_goes_on(beside, tmp_path, once):
    runner.train(options(tmp_path / "run"))
    assert_same_run(once, tmp_path / "run")
    runner.train(options(tmp_path / "run", OPTIM__MAX_EPOCH=3))
    assert load_state(tmp_path / "run")["epoch"] == 3


def test_training_goes_on_while_a_checkpoint_is_made_and_written_and_nothing_overtakes_it(
    beside, tmp_path, once, monkeypatch
):
    """The second epoch is trained before the first one's last.pt is made, of the state as it was, and is on the disk;
    its values come after that.
    """
    fsync, step, pack, trained = os.fsync, loop.train_epoch, checkpoint.packed, threading.Event()

    def made(state):
        assert trained.wait(60)
        beside.append("packed")
        return pack(state)

    def slow(descriptor):
        if "last.pt" in os.readlink(f"/proc/self/fd/{descriptor}"):
            assert trained.wait(60)
        fsync(descriptor)

    def tells(session, epoch):
        values = step(session, epoch)
        if epoch == 1:
            trained.set()
        return values

    monkeypatch.setattr(checkpoint, "packed", made)
    monkeypatch.setattr(os, "fsync", slow)
    monkeypatch.setattr(loop, "train_epoch", tells)
    runner.train(options(tmp_path / "run"))
    second, packed, begun, ended = (beside.index(each) for each in (1, "packed", "+last.pt", "-last.pt"))
    assert second < packed < begun < ended < beside.index("-run.json") < beside.index("+metrics.jsonl", second)
    assert_same_state((once, "last-1"), (tmp_path / "run", "last-1"))


def test_a_snapshot_is_the_state_as_it_was_and_its_file_the_same():
    """What shares memory does so in it, and all of that memory is there; nothing else of a state is shared with it."""
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    model[2].weight = model[1].weight
    whole = torch.arange(12.0).view(3, 4)
    parts = {"column": whole[:, 1], "turned": whole.T, "none": torch.empty(0), "half": torch.ones(2).bfloat16()}
    state = {"student": model.state_dict(), "parts": parts, "optimizer": {0: {"step": torch.tensor(1.0)}}, "lines": [1]}
    content = bytes(checkpoint.packed(state))
    snapshot = Snapshot(state)
    whole.zero_()
    for value in (*model.parameters(), *model.buffers(), parts["half"]):
        value.data.zero_()
    state["lines"].append(2)
    state["optimizer"][0]["step"] += 1
    assert bytes(checkpoint.packed(snapshot.values())) == content


def test_a_checkpoint_that_cannot_be_written_beside_training_ends_it_after_the_next_epoch(
    beside, tmp_path, monkeypatch
):
    write = files.write

    def full(path, *more, **options):
        if path.name == "last.pt":
            raise OSError(f"{path} could not be written: No space left on device")
        write(path, *more, **options)

    monkeypatch.setattr(files, "write", full)
    with pytest.raises(OSError, match="last.pt could not be written: No space left"):
        runner.train(options(tmp_path / "run", OPTIM__MAX_EPOCH=4))
    assert [each for each in beside if isinstance(each, int)] == [0, 1]
    assert not (tmp_path / "run" / "run.json").exists()
    assert len(logged(tmp_path / "run")) == 1


def test_what_is_being_written_is_on_the_disk_when_a_run_is_stopped(beside, tmp_path, monkeypatch):
    step = loop.train_epoch

    def stops(session, epoch):
        if epoch == 1:
            raise signals.Stopped(signal.SIGTERM, "in a test")
        return step(session, epoch)

    monkeypatch.setattr(loop, "train_epoch", stops)
    with pytest.raises(signals.Stopped):
        runner.train(options(tmp_path / "run", OPTIM__MAX_EPOCH=3))
    assert load_state(tmp_path / "run")["epoch"] == 1 and (tmp_path / "run" / "run.json").exists()


@pytest.mark.fault(1)
def test_a_run_is_continued_that_was_not_evaluated_yet(tmp_path):
    """It has no best epoch then."""
    line = ["--mode", "train", "--cfg", CONFIG, f"OUT_DIR={tmp_path}/run", "OPTIM.MAX_EPOCH=3", "TEST.PERIOD=3"]
    line += words(**SMALL)
    killed(tmp_path, line, epoch=2, iteration=3)
    assert load_state(tmp_path / "run")["best"] == {}
    assert "continues from" in finish(Running(tmp_path, line))[0]
    finish(Running(tmp_path, [*line, f"OUT_DIR={tmp_path}/whole"]))
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("value", [[1, 1, 1], {"a": 1}, "x", None])
def test_values_of_an_epoch_that_are_no_numbers(finished, value):
    state = load_state(finished)
    state["journal"][0]["test/top5"] = value
    torch.save(state, finished / "checkpoints" / "last.pt")
    with pytest.raises(ValueError, match="last.pt is no checkpoint of a run: it.journal.0..test/top5 is a"):
        runner.train(options(finished))


@pytest.mark.fault(1)
def test_a_start_that_came_to_no_epoch_is_replaced(tmp_path, once):
    """By the same run, and by one of other options: nothing was recorded."""
    for seed in (5, 0):
        line = ["--mode", "train", "--cfg", CONFIG, f"OUT_DIR={tmp_path}/run", "OPTIM.MAX_EPOCH=2", "TEST.PERIOD=2"]
        killed(tmp_path, [*line, *words(**SMALL), f"SEED={seed}"], epoch=0, iteration=3)
        assert list((tmp_path / "run").glob("*tfevents*"))
    runner.train(options(tmp_path / "run"))
    assert_same_run(once, tmp_path / "run")


@pytest.mark.fault(27)
@pytest.mark.parametrize("kind", ["link", "link to nothing", "pipe", "folder", "another program's"])
def test_a_lock_that_is_none(tmp_path, kind):
    """A link's target was emptied; at a pipe the run waited for ever."""
    (tmp_path / "run").mkdir()
    lock, target = tmp_path / "run" / ".lock", tmp_path / "target"
    target.write_text("mine")
    make = {
        "link": lambda: lock.symlink_to(target),
        "link to nothing": lambda: lock.symlink_to(tmp_path / "none"),
        "pipe": lambda: os.mkfifo(lock),
        "folder": lock.mkdir,
        "another program's": lambda: lock.write_bytes(b"12345\xff"),
    }
    make[kind]()
    line = ["--mode", "train", "--cfg", CONFIG, f"OUT_DIR={tmp_path}/run", "OPTIM.MAX_EPOCH=1"]
    code, output, errors = Running(tmp_path, line).end()
    what = "run's" if kind == "another program's" else "regular file"
    assert (code, output) == (1, "")
    assert errors == f"run_net.py: OUT_DIR {tmp_path}/run holds a .lock that is no {what}. Choose another OUT_DIR\n"
    assert target.read_text() == "mine" and not (tmp_path / "none").exists()
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    if kind == "another program's":
        assert lock.read_bytes() == b"12345\xff"


@pytest.mark.fault(27)
def test_a_lock_that_a_kill_left_behind(once, tmp_path):
    """It says who held it; the kernel let it go with its holder."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").write_text("process 4000000 on a-machine\n")
    line = ["--mode", "train", "--cfg", CONFIG, f"OUT_DIR={tmp_path}/run", "OPTIM.MAX_EPOCH=1", *words(**SMALL)]
    finish(Running(tmp_path, line))
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "config.yaml", "checkpoints/last.pt", "events"])
def test_a_pipe_in_the_place_of_a_record(finished, tmp_path, name):
    """Nobody writes to it, and whoever reads it waits for ever: the run, and tables of it."""
    path = events(finished) if name == "events" else finished / name
    path.unlink()
    os.mkfifo(path)
    line = ["--mode", "train", "--cfg", CONFIG, f"OUT_DIR={finished}", "OPTIM.MAX_EPOCH=2", "TEST.PERIOD=2"]
    table = Running(tmp_path / "table", [finished], hook="test_folder:tabulate", arguments=(str(finished),))
    assert table.end(patience=30)[0] == (2 if name == "config.yaml" else 1 if name == "events" else 0)
    code, output, errors = Running(tmp_path, [*line, *words(**SMALL)]).end()
    if name.endswith(".pt"):
        assert (code, errors) == (1, f"run_net.py: {path} could not be read: it is no regular file\n")
    else:
        assert (code, errors) == (0, "") and "anew" in output


def tabulate(folder):
    """Hook: make a table of a folder, and end."""
    os._exit(called("tools/make_table.py", folder)[0])


# -------------------------------------------------------------------------------------------------------------- damaged
@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "run.json", "events", "best.pt"])
@pytest.mark.parametrize("how", ["gone", "empty", "cut", "flipped", "added to"])
def test_a_finished_run_is_repaired(finished, once, caplog, name, how):
    """By the same command, which says so; the second time there is nothing to say."""
    path = {"events": events(finished), "best.pt": finished / "checkpoints" / "best.pt"}.get(name, finished / name)
    before = content(finished)
    state = load_state(finished)
    old = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif (name, how) == ("best.pt", "flipped"):
        damage(path, how)
    else:
        middle = len(old) // 2
        flipped = old[:middle] + bytes([old[middle] ^ 1]) + old[middle + 1 :]
        path.write_bytes({"empty": b"", "cut": old[:-40], "flipped": flipped, "added to": old + b"x"}[how])
    for told in (True, False):
        caplog.clear()
        runner.train(options(finished))
        assert caplog.messages[-1] == f"{finished}: already finished, 2 epochs"
        harmless = name == "best.pt" and how == "added to"  # which a zip archive does not mind
        assert (len(caplog.messages) == 2) is (told and not harmless)
        assert ("anew" in caplog.text) is (told and not harmless)
    after = content(finished)
    if name == "events":
        names = [next(n for n in each if "tfevents" in n) for each in (before, after)]
        own = state["config"]
        assert after.pop(names[1]) == events_of(names[1], own, state["journal"])
        before.pop(names[0])
    if name == "best.pt":
        assert checkpoint.read(path)["epoch"] == 2
        before.pop("checkpoints/best.pt"), after.pop("checkpoints/best.pt")
    assert after == before
    assert_same_run(once, finished)


def test_a_best_checkpoint_that_cannot_be_made_anew_is_told(finished, caplog):
    """Its epoch is not the last one, whose weights last.pt has."""
    last = finished / "checkpoints" / "last.pt"
    state = load_state(finished)
    state["best"]["epoch"] = 1
    state["record"]["best"]["epoch"] = 1
    checkpoint.save(state, last)
    damage(finished / "checkpoints" / "best.pt", "flipped")
    runner.train(options(finished))
    assert "best.pt is corrupt" in caplog.text and "so it cannot be made anew" in caplog.text


def test_what_is_appended_is_on_the_disk(tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")) or fsync(descriptor)
    )
    files.append(tmp_path / "metrics.jsonl", b"line\n")
    assert synced == [str(tmp_path / "metrics.jsonl")]


def test_the_record_of_a_run_that_lost_its_own_goes_on(finished):
    """Starts, commands and commits are in the checkpoint, too."""
    starts = json.loads((finished / "run.json").read_text())["starts"]
    (finished / "run.json").unlink()
    runner.train(options(finished, OPTIM__MAX_EPOCH=3))
    facts = json.loads((finished / "run.json").read_text())
    assert facts["starts"][:1] == starts
    assert [(s["epochs_done"], s["epochs"]) for s in facts["starts"]] == [(0, 2), (2, 3)]


def test_what_an_older_record_says_beside_its_starts_is_of_the_last_of_them(finished):
    """As records of before December 2026 had it."""
    state = load_state(finished)
    aside = {"device": "Loom", "versions": {"torch": "1.0"}, "threads": 9, "precision": "bf16", "compiled": "on"}
    starts = [{"epochs_done": done, "epochs": 2, "commit": "c0ffee"} for done in (0, 1)]
    state["record"] |= {"starts": starts, **aside}
    checkpoint.save(state, finished / "checkpoints" / "last.pt")
    runner.train(options(finished, OPTIM__MAX_EPOCH=3))
    facts = json.loads((finished / "run.json").read_text())
    first, second, third = facts["starts"]
    assert (first, second) == (starts[0], starts[1] | aside)
    assert third.keys() >= aside.keys() and third["device"] != "Loom"
    assert not facts.keys() & aside.keys()


# ------------------------------------------------------------------------------------------------------------- identity
def test_event_files_say_what_their_values_are_of(finished):
    assert options_in(events(finished)) == (finished / "config.yaml").read_text()
    assert read_run(finished).curves["run/epochs"] == {1: 2.0, 2: 2.0}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(finished), size_guidance={"tensors": 0})
    accumulator.Reload()
    tags = [tag for tag in accumulator.Tags()["tensors"] if tag.startswith("options/")]
    (text,) = accumulator.Tensors(tags[0])
    assert text.tensor_proto.string_val[0].decode().startswith("```yaml\nAUG:\n")
    assert {accumulator.SummaryMetadata(tag).plugin_data.plugin_name for tag in tags} == {"text"}


@pytest.mark.fault(1)
def test_an_extension_killed_while_it_writes_its_first_epoch(finished, once, monkeypatch):
    """The event file has a value more than the checkpoint; neither command takes it for another run's."""

    class Killed(BaseException):
        pass

    def kill(*_):
        raise Killed

    for epochs in (2, 3):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr("pycls_std.run.series.Series.write", kill)
            runner.train(options(finished, OPTIM__MAX_EPOCH=3))
        assert read_run(finished).curves["run/epochs"] == {1: 2.0, 2: 2.0, 3: 3.0}
        runner.train(options(finished, OPTIM__MAX_EPOCH=epochs))
        assert read_run(finished).status == ("finished" if epochs == 2 else "extended to 3 epochs after epoch 2")
        if epochs == 2:
            assert_same_run(once, finished)


def test_a_run_that_goes_on_with_other_threads_says_so(finished, caplog):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        runner.train(options(finished, OPTIM__MAX_EPOCH=3))
    finally:
        torch.set_num_threads(before)
    assert (
        f"last.pt was computed by {before} threads, it goes on with {before + 1}: sums round otherwise" in caplog.text
    )
    starts = json.loads((finished / "run.json").read_text())["starts"]
    assert [start["threads"] for start in starts] == [before, before + 1]
    assert [start["device"].partition(", ")[2] for start in starts] == [f"{n} threads" for n in (before, before + 1)]
    assert [start["versions"]["torch"] for start in starts] == [version("torch")] * 2
    caplog.clear()
    torch.set_num_threads(before + 1)
    try:
        runner.train(options(finished, OPTIM__MAX_EPOCH=4))
    finally:
        torch.set_num_threads(before)
    assert "threads" not in caplog.text


@pytest.mark.fault(29)
@pytest.mark.parametrize("mode", ["train", "test"])
def test_ranks_of_other_options_are_refused(finished, tmp_path, mode):
    """They would train on other images, or by other weights, and average that."""
    words_ = ["--mode", mode, "--cfg", CONFIG, f"OUT_DIR={tmp_path}/other", *words(**SMALL)]
    words_ += [f"TEST.WEIGHTS={finished}/checkpoints/last.pt"]
    ranks = two_ranks(tmp_path, words_, second=["AUG.FLIP=0.25"])
    ended = [rank.end() for rank in ranks]
    assert [code for code, *_ in ended] == [1, 1]
    text = "the processes of this run have other options: process 1 has AUG.FLIP 0.25, process 0 has 0.0"
    assert any(text in errors for *_, errors in ended)
    assert not list((tmp_path / "other").glob("*"))
