"""Runs that are killed, stopped, and started twice: the same command continues them, and ends with the same numbers.

A stop leaves the checkpoint that the undisturbed run made at that epoch; that a run is continued from one exactly is
shown for a kill, and for every method in test_run.py.
"""

import json
import os
import random
import re
import signal
import time

import pytest
import torch
from processes import Running, finish, group, killed, paused, wait_for
from records import SMALL, assert_same_run, assert_same_state, load_state, logged
from records import words as in_words
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pycls_std import runner
from pycls_std.engine import checkpoint, loop
from pycls_std.process import signals
from pycls_std.run.lock import LOCK, locked
from pycls_std.run.series import Series

WORKERS = ("DATA.LOADER=workers", "DATA.NUM_WORKERS=2")


@pytest.fixture(scope="module")
def words(teacher):
    """The options of an STD run with MINE, average, mixing and all augmentation."""
    own = in_words(DISTILLATION__TEACHER_WEIGHTS=f"[{teacher}]", OPTIM__MAX_EPOCH=3, **SMALL)
    return ["--cfg", "configs/debug/std_debug.yaml", *own]


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory):
    """Folder of the run that was never interrupted, with its checkpoints of all epochs."""
    folder = tmp_path_factory.mktemp("whole")
    finish(Running(folder, ["--mode", "train", *words, f"OUT_DIR={folder / 'run'}", "TRAIN.KEEP=3"]))
    return folder / "run"


@pytest.fixture
def run(words, tmp_path):
    """Return run(*overrides, start=Running, **options): start the training in tmp_path/run."""

    def train(*overrides, start=Running, **options):
        return start(tmp_path, ["--mode", "train", *words, f"OUT_DIR={tmp_path / 'run'}", *overrides], **options)

    return train


def paused_in_epoch_3(run, *overrides, **options):
    """Start a run and return it as soon as it is in the middle of its third epoch."""
    return run(*overrides, start=paused, epoch=2, iteration=5, **options)


@pytest.mark.fault(1)
@pytest.mark.fault(35)
def test_killed_in_the_middle_of_an_epoch(run, whole, tmp_path):
    run(start=killed, epoch=2, iteration=5)
    assert (tmp_path / "run" / LOCK).exists()
    (output,) = finish(run())
    assert f"continues from {tmp_path}/run/checkpoints/last.pt, at epoch 3 of 3" in output
    assert_same_run(whole, tmp_path / "run")
    starts = json.loads((tmp_path / "run" / "run.json").read_text())["starts"]
    assert [start["epochs_done"] for start in starts] == [0, 2]
    every_point_once(tmp_path / "run", epochs=3)
    assert not (tmp_path / "run" / LOCK).exists()


@pytest.mark.fault(1)
@pytest.mark.fault(35)
def test_killed_some_epochs_after_the_last_save(run, tmp_path):
    """Epochs 1 and 2 of 5 are saved, 3 is recorded and not saved: it is computed again, and recorded once."""
    long = ("OPTIM.MAX_EPOCH=5", "TEST.PERIOD=5")
    finish(run(*long, f"OUT_DIR={tmp_path / 'whole'}"))
    run(*long, "TRAIN.SAVE_PERIOD=2", start=killed, epoch=3, iteration=5)
    folder = tmp_path / "run"
    assert load_state(folder)["epoch"] == json.loads((folder / "run.json").read_text())["epochs_done"] == 2
    assert [line["epoch"] for line in logged(folder)] == [1, 2, 3]
    (output,) = finish(run(*long, "TRAIN.SAVE_PERIOD=2"))
    assert f"continues from {folder}/checkpoints/last.pt, at epoch 3 of 5" in output
    assert_same_run(tmp_path / "whole", folder)
    assert [line["epoch"] for line in logged(folder)] == [1, 2, 3, 4, 5]
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}, purge_orphaned_data=False).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5]
    assert len(list(folder.glob("*tfevents*"))) == 1


def test_what_is_saved_whatever_the_period_is(load, tmp_path, monkeypatch):
    """The first epoch of a start, the best one so far with its best.pt, the last one, and those of the period."""
    saved, best = [], iter([10.0, 9.0, 30.0, 9.0, 9.0, 9.0, 9.0, 9.0])
    pack = checkpoint.packed  # of best.pt, too, which has no optimizer
    kept = lambda state: [state["epoch"]] if "optimizer" in state else []  # noqa: E731
    monkeypatch.setattr(checkpoint, "packed", lambda state: saved.extend(kept(state)) or pack(state))
    scores = {"test/loss": 1.0, "test/top5": 50.0}
    monkeypatch.setattr(loop, "evaluate_all", lambda session, when: scores | {"test/top1": next(best)})
    words = {"OUT_DIR": tmp_path, "TRAIN__SAVE_PERIOD": 4, **SMALL}
    runner.train(load("debug/base_debug", OPTIM__MAX_EPOCH=6, **words))
    assert saved == [1, 3, 4, 6]
    assert load_state(tmp_path, "best")["epoch"] == 3
    runner.train(load("debug/base_debug", OPTIM__MAX_EPOCH=8, **words))
    assert saved == [1, 3, 4, 6, 7, 8], "the options of an extended run are those of its first epoch"


def every_point_once(folder, epochs):
    """The event files, without what TensorBoard itself would purge, have each value of each epoch once."""
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0}, purge_orphaned_data=False)
    accumulator.Reload()
    tags = accumulator.Tags()["scalars"]
    assert "test/top1" in tags
    for tag in tags:
        assert [event.step for event in accumulator.Scalars(tag)] == list(range(1, epochs + 1))
    assert len(list(folder.glob("*tfevents*"))) == 1


def save_for_ever(folder):
    """Hook: save checkpoints, one after the other."""
    series = Series(folder, keep=2)
    epoch = 0
    while True:
        epoch += 1
        state = {"optimizer": {}, "epoch": epoch, "weights": torch.full((200_000,), float(epoch))}
        series.write(checkpoint.packed(state))


@pytest.mark.fault(2)
def test_killed_10_times_while_it_saves(tmp_path):
    """Whenever it happens, every file under a final name is whole, and nothing older than the last but one is left."""
    folder = tmp_path / "checkpoints"
    moments = random.Random(0)
    torn = 0
    for _ in range(10):
        done = _epoch(folder)
        running = Running(tmp_path, [], hook="test_interruptions:save_for_ever", arguments=(folder,))
        wait_for(lambda done=done: _epoch(folder) > done)
        time.sleep(moments.random() / 20)
        running.signal(signal.SIGKILL)
        running.end()
        torn += len(list(folder.glob(".*.tmp")))
        for path in folder.glob("last*.pt"):
            state = checkpoint.read(path)
            assert (state["weights"] == state["epoch"]).all()
        assert not list(folder.glob("*.corrupt*"))
        state, _ = Series(folder, keep=2).newest()
        assert state["epoch"] >= 1
    assert torn, "no kill came in the middle of a save"


def _epoch(folder):
    """Time of the newest checkpoint, 0 if there is none at this moment."""
    try:
        return (folder / "last.pt").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


@pytest.mark.fault(2)
def test_killed_at_random_moments_of_a_run(run, whole, tmp_path):
    moments = random.Random(1)
    for _ in range(4):
        running = run()
        time.sleep(0.1 + 0.6 * moments.random())
        if running.process.is_alive():
            running.signal(signal.SIGKILL)
        running.end()
        for path in (tmp_path / "run" / "checkpoints").glob("*.pt"):
            checkpoint.read(path)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True, exist_ok=True)
    strays = [tmp_path / "run" / ".run.json.tmp", tmp_path / "run" / "checkpoints" / ".last.pt.tmp"]
    for stray in strays:
        stray.write_bytes(b"half")
    finish(run())
    assert_same_run(whole, tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.tmp"))


@pytest.mark.fault(3)
@pytest.mark.fault(4)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_within_a_batch(run, whole, tmp_path, number, code):
    running = paused_in_epoch_3(run, seconds=0.3)
    running.signal(number)
    started = len((tmp_path / "steps").read_text().splitlines())
    ended, output, errors = running.end()
    assert ended == code
    assert len((tmp_path / "steps").read_text().splitlines()) <= started + 1
    assert errors.startswith(f"run_net.py: stopped by {signal.Signals(number).name} at epoch 3 iteration ")
    assert len(errors.splitlines()) == 1
    assert output.splitlines()[-1].startswith("epoch 2/3 ")
    assert [line["epoch"] for line in logged(tmp_path / "run")] == [1, 2]
    every_point_once(tmp_path / "run", epochs=2)
    assert_same_state((tmp_path / "run", "last"), (whole, "last-1"))


@pytest.mark.fault(4)
def test_interrupted_twice_as_a_terminal_does_it(run, tmp_path):
    """Ctrl-C goes to all processes, the loader's workers too; a second one does not wait for the batch."""
    running = paused_in_epoch_3(run, *WORKERS)
    assert len(group(running.pid)) >= 3
    os.killpg(running.pid, signal.SIGINT)
    time.sleep(0.3)
    os.killpg(running.pid, signal.SIGINT)
    code, _, errors = running.end()
    assert code == 130
    assert errors == "run_net.py: stopped by SIGINT\n"
    wait_for(lambda: not group(running.pid), patience=10)
    assert load_state(tmp_path / "run")["epoch"] == 2


@pytest.mark.fault(3)
def test_stopped_with_its_workers(run, tmp_path):
    """As torchrun and a closing terminal do it: the workers die of the same signal, and that is no error."""
    running = paused_in_epoch_3(run, *WORKERS, seconds=0.3)
    os.killpg(running.pid, signal.SIGTERM)
    code, _, errors = running.end()
    assert code == 143
    assert errors.startswith("run_net.py: stopped by SIGTERM") and len(errors.splitlines()) == 1
    assert load_state(tmp_path / "run")["epoch"] == 2


@pytest.mark.fault(3)
def test_stopped_before_the_first_epoch(run, tmp_path):
    running = run()
    wait_for((tmp_path / "run" / ".lock").exists)
    running.signal(signal.SIGTERM)
    code, _, errors = running.end()
    assert (code, errors) == (143, "run_net.py: stopped by SIGTERM\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.fault(3)
def test_stopped_while_the_lock_is_taken(tmp_path, monkeypatch):
    """Its file is there already, and who owns it is not written in it yet."""
    monkeypatch.setattr("socket.gethostname", lambda: os.kill(os.getpid(), signal.SIGTERM) or "here")
    before = [signal.getsignal(number) for number in signals.NUMBERS]
    signals.install()
    try:
        with pytest.raises(signals.Stopped, match="^stopped by SIGTERM$"), locked(tmp_path / "run"):
            pass
    finally:
        for number, handler in zip(signals.NUMBERS, before, strict=True):
            signal.signal(number, handler)
    assert not (tmp_path / "run").exists()


@pytest.mark.fault(3)
def test_stopped_in_an_evaluation(run, tmp_path):
    running = run("TEST.BATCH_SIZE=1", hook="test_interruptions:slow_evaluation", arguments=(tmp_path,))
    wait_for((tmp_path / "evaluates").exists)
    running.signal(signal.SIGTERM)
    code, _, errors = running.end()
    assert (code, errors) == (143, "run_net.py: stopped by SIGTERM in an evaluation\n")
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == ""
    assert not (tmp_path / "run" / "checkpoints").exists()


def slow_evaluation(folder):
    """Hook: from the first evaluation of the student on, take a second for each batch."""
    from pycls_std.engine import loop
    from pycls_std.tasks.classification import Classification

    evaluate_all, predictions = loop.evaluate_all, Classification.predictions

    def slow(*args):
        (folder / "evaluates").touch()
        time.sleep(1)
        return predictions(*args)

    def watched(*args):
        Classification.predictions = slow
        return evaluate_all(*args)

    loop.evaluate_all = watched


@pytest.mark.fault(27)
def test_two_processes_in_one_folder(run, tmp_path):
    first = paused_in_epoch_3(run)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    code, _, errors = run().end(patience=10)
    assert code == 1
    assert f"OUT_DIR {tmp_path}/run is in use by process {first.pid} on " in errors
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}


@pytest.mark.fault(27)
def test_a_killed_owner_with_living_workers_leaves_no_lock(run, tmp_path):
    """The lock is not inherited: a loader's worker may outlive its run for some seconds."""
    first = paused_in_epoch_3(run, *WORKERS)
    first.signal(signal.SIGKILL)
    first.end()
    with locked(tmp_path / "run"):
        assert group(first.pid), "the workers were gone before the lock was taken"
    wait_for(lambda: not group(first.pid), patience=30)


@pytest.mark.fault(33)
def test_a_worker_that_dies(run, tmp_path):
    running = paused_in_epoch_3(run, *WORKERS, seconds=0.2)
    worker = next(pid for pid in group(running.pid) if pid != running.pid)
    os.kill(worker, signal.SIGKILL)
    code, _, errors = running.end()
    assert code == 1
    # By torch, which says either: that it heard of the signal, or that nothing came of the worker.
    assert re.search(
        r"DataLoader worker \(pid(\(s\))? \d+\) (is killed by signal: Killed|exited unexpectedly)", errors
    ), errors
    assert "try a smaller DATA.NUM_WORKERS" in errors
    assert len(errors.splitlines()) == 1
    assert load_state(tmp_path / "run")["epoch"] == 2
    wait_for(lambda: not group(running.pid), patience=10)


@pytest.mark.fault(21)
def test_a_finished_run_is_left_alone(run, whole, words):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    again = Running(whole.parent, ["--mode", "train", *words, f"OUT_DIR={whole}"])
    assert finish(again, patience=10) == [f"{whole}: already finished, 3 epochs\n"]
    assert {path for path in whole.rglob("*")} == set(before)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items() if path.is_file())
