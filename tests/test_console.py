"""console.log: what a run tells, start after start, in its folder and in no other one."""

import errno
import os
import signal
from pathlib import Path

import pytest
from processes import Running, called, finish, killed, paused
from records import SMALL, words

from pycls_std import config, notebook
from pycls_std.process import console

CONFIG = "configs/debug/base_debug.yaml"


@pytest.fixture
def train(tmp_path):
    """Return train(*words, start=Running): start a run of two epochs in tmp_path/run."""

    def train_(*more, start=Running, **options):
        own = words(OUT_DIR=tmp_path / "run", OPTIM__MAX_EPOCH=2, LOG_PERIOD=4, **SMALL)
        return start(tmp_path, ["--mode", "train", "--cfg", CONFIG, *own, *more], **options)

    return train_


def kept(tmp_path):
    return (tmp_path / "run" / "console.log").read_text()


@pytest.mark.slow
def test_it_has_all_starts_of_a_run_and_why_each_ended(train, tmp_path):
    """Killed, then stopped, then finished; what was told before the folder was looked at is there, too."""
    idle = "OPTIM.WARMUP_LR=0.5"  # has no effect, and is told first
    first = train(idle, "OPTIM.WARMUP_EPOCHS=0", start=killed, epoch=1, iteration=3)
    assert kept(tmp_path) == first and first.startswith("command line: OPTIM.WARMUP_LR is 0.5, which has no effect")
    assert "epoch 1/2  4/8  loss " in first and "epoch 1/2  loss " in first

    running = train("OPTIM.WARMUP_EPOCHS=0", start=paused, epoch=1, iteration=3, seconds=0.3)
    running.signal(signal.SIGTERM)
    code, second, errors = running.end()
    assert code == 143 and errors.startswith("run_net.py: stopped by SIGTERM at epoch 2 ")
    assert kept(tmp_path) == first + second + errors

    code, third, _ = train("OPTIM.WARMUP_EPOCHS=0").end()
    assert code == 0 and kept(tmp_path) == first + second + errors + third and "continues from" in third
    assert "already finished" in train("OPTIM.WARMUP_EPOCHS=0").end()[1]
    assert kept(tmp_path) == first + second + errors + third


def test_a_start_that_the_folder_refuses_is_not_in_it(train, tmp_path):
    finish(train())
    before = kept(tmp_path)
    code, _, errors = train("OPTIM.BASE_LR=0.1").end()
    assert code == 1 and "is a run of other options" in errors
    assert kept(tmp_path) == before


def test_a_run_that_came_to_no_epoch_gives_way_to_another(train, tmp_path):
    first = train(start=killed, epoch=0, iteration=1)
    code, second, _ = train("SEED=3").end()
    assert code == 0 and kept(tmp_path) == first + second


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_file_is_left_as_it_is(train, tmp_path, kind):
    (tmp_path / "run").mkdir()
    path, target = tmp_path / "run" / "console.log", tmp_path / "target"
    target.write_text("mine")
    {"link": lambda: path.symlink_to(target), "pipe": lambda: os.mkfifo(path), "folder": path.mkdir}[kind]()
    (output,) = finish(train("OPTIM.MAX_EPOCH=1", "OPTIM.WARMUP_EPOCHS=0"))
    assert f"{path} is not written, what is told here is not kept: " in output
    assert target.read_text() == "mine"


def test_a_full_disk_ends_no_run(tmp_path, monkeypatch):
    def full(descriptor, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    console.listen()
    try:
        console.add("first")
        console.keep(tmp_path / "console.log")
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            console.add("second")
        console.add("third")  # no hole is left
    finally:
        console.stop()
    assert (tmp_path / "console.log").read_text() == "first\n"


def test_control_characters_and_several_lines(tmp_path, caplog):
    console.listen()
    try:
        console.keep(tmp_path / "console.log")
        console.LOG.error("a\x1b[31mb\nc")
    finally:
        console.stop()
    console.LOG.error("later")
    assert (tmp_path / "console.log").read_text() == "a\\x1b[31mb\nc\n"


def test_from_python_and_not_in_a_kept_record(tmp_path, capsys):
    own = words(OUT_DIR=tmp_path / "run", OPTIM__MAX_EPOCH=1, OPTIM__WARMUP_EPOCHS=0, **SMALL)
    with pytest.raises(config.ConfigError, match="OUT_DIR is None, expected text"):
        notebook.train(CONFIG, OUT_DIR=None)
    notebook.train(Path(CONFIG), *own)
    assert "epoch 1/1  loss " in kept(tmp_path)
    assert called("tools/keep_run.py", tmp_path / "logs", tmp_path / "run") == (0, "", "")
    names = {path.name for path in (tmp_path / "logs" / "base_debug" / "seed0").iterdir()}
    assert "run.json" in names and "console.log" not in names
