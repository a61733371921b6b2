"""The commands as users type them."""

import errno
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import Running

import pycls_std
import run_net as run_net_module
from pycls_std import config, runner
from pycls_std.process import signals

ROOT = Path(__file__).resolve().parents[1]


def run_net(*words, python=()):
    """Run run_net.py; returns exit code, output, errors."""
    command = [sys.executable, *python, str(ROOT / "run_net.py"), *map(str, words)]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # tiny models; threads that wait for each other are slow
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=one_thread)
    return done.returncode, done.stdout, done.stderr


CONFIG = "configs/debug/base_debug.yaml"


def told(errors):
    """What a command started with -X importtime complains of; fail if it imported what takes long."""
    lines = errors.splitlines()
    modules = {line.rsplit("|", 1)[1].strip() for line in lines if line.startswith("import time:")}
    assert "yacs.config" in modules and not modules & {"torch", "torchvision", "timm", "pandas"}
    return "\n".join(line for line in lines if not line.startswith("import time:"))


def test_help_lists_modes_and_points_to_the_options():
    code, text, errors = run_net("--help", python=("-X", "importtime"))
    assert (code, told(errors)) == (0, "")
    assert run_net("--version") == (0, f"pycls-std {pycls_std.__version__}\n", "")
    for word in ("train", "test", "info", "time", "pycls_std/config/page.py", "OPTIONS"):
        assert word in text
    assert (ROOT / "pycls_std/config/page.py").is_file()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--mode", "train", "--cfg", CONFIG, "OPTIM.BASE_LRR", "1"], "did you mean OPTIM.BASE_LR?"),
        (["--mode", "train", "--cfg", CONFIG, "OPTIM.BASE_LR"], "OPTIM.BASE_LR has no value"),
        (["--mode", "train", "--cfg", CONFIG, "DATA.NAME=nothing"], "DATA.NAME is 'nothing'"),
        (["--mode", "train", "--cfg", "configs/none.yaml"], "configs/none.yaml: cannot be read"),
        (["--mode", "fly", "--cfg", CONFIG], "invalid choice: 'fly'"),
        (["--mode", "train"], "--cfg"),
        (["--mode", "train", "--cfg", CONFIG, "--colour"], "--colour"),
    ],
)
def test_usage_and_configuration_errors_exit_2_and_import_no_torch(words, text):
    code, output, errors = run_net(*words, python=("-X", "importtime"))
    assert (code, output) == (2, "")
    assert text in told(errors) and "Traceback" not in errors


def test_a_complaint_is_one_line(capsys):
    assert (
        run_net_module.complain(
            RuntimeError("Caught OSError in worker 0.\nTraceback\n  x\nOSError: a.png cannot be read"), 1
        )
        == 1
    )
    assert capsys.readouterr().err == (
        "run_net.py: Caught OSError in worker 0. OSError: a.png cannot be read (--traceback shows where)\n"
    )
    run_net_module.complain(ValueError(), 1)
    assert capsys.readouterr().err == "run_net.py: ValueError\n"


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (signals.Stopped(signal.SIGINT), 130, "stopped by SIGINT"),
        (OSError("disk"), 1, "disk"),
        (OSError(errno.EMFILE, "Too many open files", "a\nb"), 1, None),
        (MemoryError(), 1, "memory ran out"),
        (MemoryError("Unable to allocate 1 TiB"), 1, "memory ran out: Unable to allocate 1 TiB"),
        (ValueError("a \x1b[31mb"), 1, r"a \x1b[31mb"),
        (config.ConfigError("key"), 2, "key"),
        (SyntaxError("'(' was never closed", ("new.py", 3, 5, "x = (1")), 2, "new.py:3: '(' was never closed"),
    ],
)
def test_exit_codes(monkeypatch, capsys, error, code, text):
    def fail(mode, cfg):
        raise error

    monkeypatch.setattr(runner, "run", fail)
    monkeypatch.setattr(signals, "install", lambda **_: None)
    monkeypatch.setattr(logging, "raiseExceptions", True)
    monkeypatch.setattr(logging.getLogger("pycls_std"), "setLevel", lambda level: None)
    words = ["--mode", "train", "--cfg", str(ROOT / CONFIG)]
    assert run_net_module.main(words) == code
    text = text or "[Errno 24] Too many open files: 'a\\nb'; the limit is "
    errors = capsys.readouterr().err
    assert errors.startswith(f"run_net.py: {text}") and errors.endswith("\n") and errors[:-1].isprintable()
    if code in (1, 2):
        with pytest.raises(type(error)):
            run_net_module.main([*words, "--traceback"])


def test_a_reader_that_stops_is_no_error():
    command = f"{sys.executable} run_net.py --mode info --cfg {CONFIG} | head -1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.startswith("baseline, mixer_nano4")
    assert "Traceback" not in done.stderr


def test_train_then_test_with_flags_in_any_place(tmp_path):
    """Both spellings of an override, flags before, between and after; a failure is one line and exit code 1."""
    folder = tmp_path / "a run"
    code, text, errors = run_net(
        "OPTIM.MAX_EPOCH", 1, "--mode", "train", f"OUT_DIR={folder}", "--cfg", CONFIG, "SEED", 3
    )
    assert code == 0, errors
    assert "epoch 1/1" in text
    weights = folder / "checkpoints" / "best.pt"
    code, text, errors = Running(tmp_path, ["--cfg", CONFIG, f"TEST.WEIGHTS={weights}", "--mode", "test"]).end()
    assert code == 0, errors
    assert "* cls  top-1" in text
    gone = ["--mode", "test", "--cfg", CONFIG, "TEST.WEIGHTS", folder / "gone.pt"]
    code, text, errors = Running(tmp_path, gone).end()
    assert (code, text) == (1, "")
    assert errors == f"run_net.py: there is no checkpoint {folder / 'gone.pt'}\n"


def test_what_another_mode_reads_alone_is_told(caplog):
    def said(mode, *words):
        caplog.clear()
        config.load(CONFIG, words, mode=mode)
        return caplog.messages

    assert said("train", "TEST.JSON=true", "TIME.STEPS=2", "TEST.PERIOD=1") == [
        "command line: TEST.JSON is read by --mode test alone",
        "command line: TIME.STEPS is read by --mode time alone",
    ]
    assert said("test", "TEST.JSON=true") == said("", "TEST.JSON=true") == []
