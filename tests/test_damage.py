"""Checkpoints that are damaged or malicious, disks that are full, weights that are not finite."""

import os
import shutil
import subprocess
import zipfile

import pytest
import torch
from processes import Running, finish, killed
from records import SMALL, Malice, assert_same_run, damage, load_config, load_state, words

from pycls_std.engine import checkpoint
from pycls_std.results.read import read_run
from pycls_std.run.series import Series

WORDS = ["--cfg", "configs/debug/base_debug.yaml", "OPTIM.MAX_EPOCH=3", *words(**SMALL)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folder of the run that nothing happened to, with all its checkpoints."""
    folder = tmp_path_factory.mktemp("whole")
    finish(Running(folder, ["--mode", "train", *WORDS, f"OUT_DIR={folder / 'run'}", "TRAIN.KEEP=3"]))
    return folder / "run"


@pytest.fixture
def train(tmp_path):
    """Return train(*overrides, **options): exit code, output and errors of the training in tmp_path/run."""

    def run(*overrides, out=None, **options):
        own = ["--mode", "train", *WORDS, f"OUT_DIR={out or tmp_path / 'run'}", *overrides]
        return Running(tmp_path, own, **options).end()

    return run


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """Folder of a run that was killed in its third epoch."""
    folder = tmp_path_factory.mktemp("interrupted")
    killed(folder, ["--mode", "train", *WORDS, f"OUT_DIR={folder / 'run'}"], epoch=2, iteration=5)
    return folder / "run"


@pytest.fixture
def broken(interrupted, tmp_path):
    """A copy of the interrupted run, to be damaged."""
    shutil.copytree(interrupted, tmp_path / "run")
    return tmp_path / "run" / "checkpoints"


@pytest.mark.fault(5)
@pytest.mark.parametrize("options", ["there", "gone"])
def test_a_damaged_last_checkpoint_is_set_aside_and_the_one_before_it_used(broken, train, whole, options):
    """The one before it says whose they are, also where config.yaml is lost."""
    if options == "gone":
        (broken.parent / "config.yaml").unlink()
    damage(broken / "last.pt", "cut")
    bad = (broken / "last.pt").read_bytes()
    code, output, errors = train()
    assert (code, errors) == (0, "")
    assert f"checkpoint {broken}/last.pt is corrupt" in output
    assert f"continues from {broken}/last-1.pt, at epoch 2 of 3" in output
    assert (broken / "last.pt.corrupt").read_bytes() == bad
    assert "weights_only" not in output
    assert_same_run(whole, broken.parent)


@pytest.mark.fault(6)
@pytest.mark.fault(7)
@pytest.mark.fault(8)
def test_whatever_the_damage_the_checkpoint_before_it_is_used(broken, caplog):
    for how in ("cut", "flipped", "empty", "zeroed", "garbage", "pickle"):
        caplog.clear()
        shutil.copy(broken / "last-1.pt", broken / "last.pt")
        damage(broken / "last.pt", how)
        bad = (broken / "last.pt").read_bytes()
        state, path = Series(broken, keep=2).newest()
        assert (path, state["epoch"]) == (broken / "last-1.pt", 1), how
        assert f"checkpoint {broken}/last.pt is corrupt" in caplog.text
        assert "weights_only" not in caplog.text
        moved = max(broken.glob("last.pt.corrupt*"), key=lambda path: path.stat().st_mtime_ns)
        assert moved.read_bytes() == bad


@pytest.mark.fault(36)
@pytest.mark.parametrize("place", ["part", "key", "class"])
def test_names_in_a_checkpoint_do_not_steer_the_terminal(broken, tmp_path, place):
    """Of parts of its archive, of its weights, of its classes: they come from the file, and are shown."""
    evil, state = "a\x1b]0;owned\x07\n\x1b[2J", load_state(broken.parent)
    given = tmp_path / "given.pt"
    if place == "part":
        with zipfile.ZipFile(given, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(f"x/{evil}", b"12345678")
        content = given.read_bytes()
        given.write_bytes(content.replace(b"12345678", b"1234567x"))
    else:
        state |= {"student": state["student"] | {evil: torch.ones(1)}} if place == "key" else {}
        state["data"] |= {"classes": [evil] * 10} if place == "class" else {}
        torch.save(state, given)
    own = ["--mode", "test", *WORDS, f"TEST.WEIGHTS={given}"]
    code, output, errors = Running(tmp_path, own).end()
    assert code == (0 if place == "class" else 1)
    assert "\x1b" not in output + errors and "\x07" not in output + errors
    assert r"\x1b]0;owned\x07" in output + errors
    assert len(errors.splitlines()) <= 1


@pytest.mark.fault(2)
@pytest.mark.fault(5)
def test_the_only_good_checkpoint_stays_until_there_is_a_new_one(broken, monkeypatch):
    """After a fall-back the next save must not move it: a kill then would leave none."""
    damage(broken / "last.pt", "cut")
    series = Series(broken, keep=2)
    state, _ = series.newest()
    replace = type(broken).replace

    def killed(path, target):
        if path.suffix == ".tmp":
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(type(broken), "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        series.write(checkpoint.packed(state))
    monkeypatch.undo()
    assert series.newest()[1] == broken / "last-1.pt"


@pytest.mark.fault(2)
def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """No kill can show it, a loss of power would: content, then name, then the folder that holds the name."""
    done = []
    fsync, replace = os.fsync, type(tmp_path).replace

    def watched(descriptor):
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "content")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    monkeypatch.setattr(type(tmp_path), "replace", lambda *paths: done.append("name") or replace(*paths))
    checkpoint.save({"a": torch.ones(1)}, tmp_path / "x.pt")
    assert done == ["content", "name", "folder"]


@pytest.mark.fault(5)
@pytest.mark.fault(7)
def test_without_a_whole_checkpoint_nothing_starts_anew(broken, train):
    damage(broken / "last.pt", "cut")
    damage(broken / "last-1.pt", "garbage")
    files = {path.name: path.read_bytes() for path in broken.iterdir() if path.name != "best.pt"}
    for _ in range(2):
        code, output, errors = train()
        assert code == 1
        found = "last-1.pt.corrupt, last.pt.corrupt: nothing to continue from; delete the folder to start anew"
        assert errors == f"run_net.py: {broken} has no whole checkpoint, only {found}\n"
        assert "weights_only" not in output + errors
    assert {f"{name}.corrupt": content for name, content in files.items()} == {
        path.name: path.read_bytes() for path in broken.iterdir() if path.name != "best.pt"
    }


@pytest.mark.parametrize(
    ("place", "error", "reason"),
    [
        ("pycls_std.engine.checkpoint.read_bytes", OSError(5, "Input/output error"), "Input/output error"),
        ("torch.load", MemoryError(), "there is not enough memory"),
    ],
)
def test_a_file_that_cannot_be_read_is_not_called_damaged(broken, monkeypatch, place, error, reason):
    """A file system that fails, or no memory, says nothing about the file."""

    def fail(*args, **options):
        raise error

    monkeypatch.setattr(place, fail)
    with pytest.raises(OSError, match=f"last.pt could not be read: {reason}"):
        Series(broken, keep=2).newest()
    assert {path.name for path in broken.iterdir()} == {"last.pt", "last-1.pt", "best.pt"}


@pytest.mark.fault(5)
def test_a_second_damaged_file_does_not_replace_the_first(broken):
    series = Series(broken, keep=2)
    for number, content in enumerate((b"one", b"two", b"three")):
        series.last.write_bytes(content)
        assert series.newest()[1] == broken / "last-1.pt", number
    assert [(broken / f"last.pt.corrupt{n}").read_bytes() for n in ("", 1, 2)] == [b"one", b"two", b"three"]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_checkpoints_are_kept(tmp_path, keep):
    def kept():
        return {path.name: torch.load(path, weights_only=True)["epoch"] for path in tmp_path.iterdir()}

    for epoch in range(1, 5):
        Series(tmp_path, keep=keep).write(checkpoint.packed({"epoch": epoch}))
    assert kept() == dict(list({"last.pt": 4, "last-1.pt": 3, "last-2.pt": 2}.items())[:keep])
    Series(tmp_path, keep=1).write(checkpoint.packed({"epoch": 5}))
    assert kept() == {"last.pt": 5}


def test_a_run_keeps_as_many_checkpoints_as_it_is_asked_to(whole, train, tmp_path):
    names = ["last.pt", "last-1.pt", "last-2.pt"]
    assert {path.name for path in (whole / "checkpoints").iterdir()} == {*names, "best.pt"}
    assert [load_state(whole, name.removesuffix(".pt"))["epoch"] for name in names] == [3, 2, 1]
    shutil.copytree(whole, tmp_path / "run")
    assert train("TRAIN.KEEP=1", "OPTIM.MAX_EPOCH=4")[0] == 0
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"last.pt", "best.pt"}
    assert load_state(tmp_path / "run")["epoch"] == 4


@pytest.mark.fault(6)
def test_a_damaged_file_is_not_tested(broken, tmp_path):
    damage(broken / "best.pt", "flipped")
    own = ["--mode", "test", *WORDS, f"TEST.WEIGHTS={broken}/best.pt"]
    code, output, errors = Running(tmp_path, own).end()
    assert (code, output) == (1, "")
    assert errors.startswith(f"run_net.py: checkpoint {broken}/best.pt is corrupt or no checkpoint: ")
    assert len(errors.splitlines()) == 1
    assert "weights_only" not in errors


@pytest.mark.fault(8)
@pytest.mark.parametrize("place", ["last", "TEST.WEIGHTS", "teacher"])
def test_code_in_a_file_of_weights_is_not_run(broken, tmp_path, place):
    marker, evil = tmp_path / "marker", tmp_path / "evil.pt"
    torch.save({"student": {"a": torch.zeros(1)}, "optimizer": Malice(marker)}, evil)
    own = ["--mode", "train", *WORDS, f"OUT_DIR={tmp_path}/run"]
    if place == "last":
        (broken / "last-1.pt").unlink()
        evil.replace(broken / "last.pt")
    elif place == "TEST.WEIGHTS":
        own = ["--mode", "test", *WORDS, f"TEST.WEIGHTS={evil}"]
    else:
        teacher = ["DISTILLATION.TEACHERS=[resnet8]", f"DISTILLATION.TEACHER_WEIGHTS=[{evil}]"]
        own = ["--mode", "train", "--cfg", "configs/debug/std_debug.yaml", f"OUT_DIR={tmp_path}/other", *teacher]
    code, output, errors = Running(tmp_path, own).end()
    assert code == 1
    assert "last.pt.corrupt" in errors if place == "last" else f"checkpoint {evil} holds more" in errors
    assert "holds more than weights" in output + errors
    assert not marker.exists()
    torch.load(broken / "last.pt.corrupt" if place == "last" else evil, weights_only=False)
    assert marker.exists(), "the file was harmless"


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 2 MB; its function mends it."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("a file system can be mounted by root only; the limit on a file's size is tried all the same")
    yield place, lambda: subprocess.run(["mount", "-o", "remount,size=50m", place], check=True)
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.fault(9)
@pytest.mark.parametrize(
    ("filler", "name"),
    [
        (690, "checkpoints/last.pt"),
        (1300, "checkpoints/best.pt"),
        (1600, "checkpoints/last.pt"),
        (2040, "events.out.tfevents"),
    ],
)
def test_a_full_disk(train, whole, small_disk, filler, name):
    """Full at the second checkpoint, at the first best.pt, at the first checkpoint, at the event file.

    What was good stays, and the run goes on.
    """
    disk, mend = small_disk
    (disk / "filler").write_bytes(bytes(1024 * filler))
    code, _, errors = train(out=disk / "run")
    assert code == 1
    assert errors.startswith(f"run_net.py: {disk}/run/{name}")
    assert errors.endswith(" could not be written: No space left on device\n")
    assert len(errors.splitlines()) == 1
    assert not list(disk.rglob("*.tmp"))
    for path in (disk / "run").glob("checkpoints/*.pt"):
        checkpoint.read(path)
    saved = filler in (690, 1300)
    assert (disk / "run" / "checkpoints" / "last.pt").exists() == saved
    if saved:
        mend()
        code, output, errors = train(out=disk / "run")
        assert (code, errors) == (0, "")
        assert "continues from" in output
        assert_same_run(whole, disk / "run")


@pytest.mark.fault(9)
@pytest.mark.parametrize(("limit", "name"), [(500_000, "checkpoints/last.pt"), (600, "config.yaml")])
def test_a_file_that_may_not_grow(train, tmp_path, limit, name):
    """As after `ulimit -f`; afterwards the same command starts the run."""
    code, _, errors = train(hook="processes:limit_file_size", arguments=(limit,))
    assert code == 1
    assert errors == f"run_net.py: {tmp_path}/run/{name} could not be written: File too large\n"
    assert not list(tmp_path.rglob("*.tmp"))
    assert train()[0] == 0


@pytest.mark.fault(10)
@pytest.mark.parametrize("place", ["/dev/null/x", "{}/file", "{}/file/run", "/proc/run"])
def test_a_folder_that_cannot_be_written_to_is_told_before_any_work(train, tmp_path, place):
    (tmp_path / "file").write_text("mine")
    out = place.format(tmp_path)
    code, output, errors = train(out=out, hook="test_damage:refuse_work")
    assert (code, output) == (1, "")
    assert errors.startswith(f"run_net.py: OUT_DIR {out} is no folder that can be written to: ")
    assert len(errors.splitlines()) == 1
    assert (tmp_path / "file").read_text() == "mine"


def refuse_work():
    """Hook: end the process if it gets as far as to a mode."""
    from pycls_std import runner

    runner.run = lambda *_: os._exit(99)


@pytest.mark.fault(17)
def test_a_learning_rate_of_1e38(train, tmp_path):
    """The first epoch is calm, by a warm-up that starts low; the second is not."""
    calm = ["OPTIM.NAME=sgd", "OPTIM.CLIP_NORM=0", "OPTIM.SCHEDULE=step", "OPTIM.STEPS=[2]"]
    calm += ["OPTIM.BASE_LR=1e38", "OPTIM.WARMUP_LR=1e-9", "OPTIM.WARMUP_EPOCHS=1e-9"]
    code, _, errors = train(*calm, hook="test_damage:calm_first_epoch")
    assert code == 1
    assert errors.startswith("run_net.py: loss not finite at epoch 2 iteration 2, lr 1e+38: ce ")
    assert len(errors.splitlines()) == 1
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        state = torch.load(path, weights_only=True)
        assert state["epoch"] == 1
        assert all(value.isfinite().all() for value in state["student"].values())
        assert all(value.isfinite().all() for value in state["ema"].values())
    assert len(read_run(tmp_path / "run").curves["train/loss"]) == 1


def calm_first_epoch():
    """Hook: the first epoch has a learning rate of 0.001."""
    from pycls_std.engine import loop

    epoch, rate = loop.train_epoch, loop.set_learning_rate

    def train_epoch(session, number):
        loop.set_learning_rate = rate if number else lambda optimizer, lr: rate(optimizer, 0.001)
        return epoch(session, number)

    loop.train_epoch = train_epoch


@pytest.mark.fault(17)
@pytest.mark.parametrize("part", ["student", "ema"])
def test_what_the_last_step_of_an_epoch_breaks_is_not_saved(train, tmp_path, part):
    """No loss is taken after it, and with TEST.PERIOD no evaluation either."""
    code, _, errors = train("TEST.PERIOD=3", hook="test_damage:break_second_epoch", arguments=(part,))
    assert (code, errors) == (1, f"run_net.py: not finite after epoch 2: {part}.backbone.head.bias\n")
    assert load_state(tmp_path / "run")["epoch"] == 1
    assert load_config(tmp_path / "run").TEST.PERIOD == 3


def break_second_epoch(part):
    """Hook: after the second epoch one weight of the student, or of its average, is infinite."""
    from pycls_std.engine import loop

    epoch = loop.train_epoch

    def train_epoch(session, number):
        values = epoch(session, number)
        if number == 1:
            module = session.trainer.student if part == "student" else session.ema.module
            module.backbone.head.bias.data[0] = float("inf")
        return values

    loop.train_epoch = train_epoch
