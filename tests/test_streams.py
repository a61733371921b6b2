"""What a command prints, where it cannot: a full device, closed descriptors, a limit of open files, signals."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch
from processes import PATIENCE, ROOT, Running, called, finish, wait_for
from records import SMALL, assert_same_run, words

PYTHON = sys.executable
CONFIG = "configs/debug/base_debug.yaml"
TRAIN = ["--mode", "train", "--cfg", CONFIG, *words(**SMALL), "OPTIM.MAX_EPOCH=1"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def shell(line, *arguments, env=()):
    """Exit code, output and errors of a line of sh, in which $@ are the arguments."""
    command = ["sh", "-c", line, "sh", *map(str, arguments)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=PATIENCE,
        env=ENVIRONMENT | dict(env),
        errors="replace",
    )
    return done.returncode, done.stdout, done.stderr


def forked(folder, streams, *command):
    """The same of a Python file whose streams are redirected so, without the seconds in which Python loads torch.

    streams: words of tests/pythons.py. What Python itself does with the streams that it is given is tried by `shell`.
    """
    arguments = (streams.split(), [str(word) for word in command])
    return Running(folder, [], hook="pythons:be_python", arguments=arguments).end()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folder of the run of TRAIN that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    finish(Running(folder, [*TRAIN, f"OUT_DIR={folder / 'run'}"]))
    return folder / "run"


# ------------------------------------------------------------------------------------------------------- a full device
@pytest.mark.slow
@pytest.mark.fault(9)
def test_a_run_whose_output_cannot_be_written_goes_on_and_says_so(whole, tmp_path):
    ended = shell("exec $0 run_net.py $@ > /dev/full".replace("$0", PYTHON), *TRAIN, f"OUT_DIR={tmp_path}/run")
    assert ended == (1, "", "run_net.py: standard output could not be written: No space left on device\n")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "finished"
    assert_same_run(whole, tmp_path / "run")


FULL = "standard output could not be written: No space left on device"


@pytest.mark.fault(9)
@pytest.mark.parametrize(
    "command",
    [
        ["run_net.py", "--help"],
        ["tools/make_table.py", "--help"],
        ["tools/make_table.py", "logs/cifar10-jpeg_std"],
        ["tools/keep_run.py", "--help"],
        ["tools/analyze.py", "--help"],
    ],
)
def test_no_output_is_lost_silently(command):
    told = f"{command[0].removeprefix('tools/')}: {FULL}\n"
    assert shell(f"exec {PYTHON} $@ > /dev/full", *command) == (1, "", told)
    code, _, errors = shell(f"( {PYTHON} $@; echo $? >&2 ) | true", *command)
    assert (code, errors) == (0, "0\n"), "a reader that has seen enough is no error"


@pytest.mark.fault(9)
@pytest.mark.parametrize(
    "command",
    [
        ["run_net.py", "--mode", "info", "--cfg", CONFIG],
        ["tools/check_data.py", "--cfg", CONFIG],
        ["tools/import_weights.py", "{}/x.pt", "{}/y.pt"],
    ],
)
def test_no_output_of_a_program_that_loads_torch_is_lost_silently(tmp_path, command):
    torch.save({"a": torch.ones(1)}, tmp_path / "x.pt")
    words = [word.format(tmp_path) for word in command]
    told = f"{command[0].removeprefix('tools/')}: {FULL}\n"
    assert forked(tmp_path, ">/dev/full", *words) == (1, "", told)
    (tmp_path / "y.pt").unlink(missing_ok=True)
    assert forked(tmp_path, "|true", *words) == (0, "", ""), "a reader that has seen enough is no error"


@pytest.mark.parametrize("words", [["OPTIM.BASE_LRR=1"], ["--colour"]])
@pytest.mark.parametrize("errors", ["2>&-", "2>/dev/full"])
def test_a_mistake_that_nobody_hears(words, errors):
    assert shell(f"exec {PYTHON} run_net.py $@ {errors}", *TRAIN, *words) == (2, "", "")


# -------------------------------------------------------------------------------------------------- closed descriptors
@pytest.mark.fault(2)
@pytest.mark.parametrize("closed", ["2>&-", "1>&-", "<&- 1>&- 2>&-"])
def test_files_are_whole_where_descriptors_are_closed(whole, tmp_path, closed):
    """The next file that is opened would be standard error, and what C libraries say would stand in it."""
    hook = "import os, sys; sys.path.insert(0, '.'); import run_net; sync = os.fsync; "
    hook += "os.fsync = lambda file: (os.write(2, b'a word of C'), sync(file)); run_net.program()"
    line = f'exec {PYTHON} -c "$0" $@ {closed}'.replace("$0", hook)
    code, output, errors = shell(line, *TRAIN, f"OUT_DIR={tmp_path}/run")
    assert (code, errors.replace("a word of C", "")) == (0, "")
    assert ("a word of C" in errors) == ("2>&-" not in closed)
    assert ("finished, best" in output) == ("1>&-" not in closed)
    assert_same_run(whole, tmp_path / "run")
    assert not [
        path for path in (tmp_path / "run").rglob("*") if path.is_file() and b"a word of C" in path.read_bytes()
    ]


def test_a_name_that_the_terminal_cannot_show(tmp_path):
    ended = shell(f"exec {PYTHON} run_net.py $@", *TRAIN, f"OUT_DIR={tmp_path}/ä", env={"PYTHONIOENCODING": "ascii"})
    assert (ended[0], ended[2]) == (0, "")
    assert f"{tmp_path}/\\xe4: finished" in ended[1]


# ---------------------------------------------------------------------------------------------------- names from files
def test_names_do_not_steer_the_terminal(tmp_path):
    code, output, errors = Running(tmp_path / "logs", [*TRAIN, f"OUT_DIR={tmp_path}/a\x1b[31mb"]).end()
    assert (code, errors) == (0, "")
    assert r"/a\x1b[31mb: finished" in output
    assert output.replace("\n", "").isprintable()


@pytest.mark.parametrize("word", ["--x\x1b[31m", "--" + "x" * 10_000, "--mode=" + "x" * 10_000])
def test_a_usage_error_is_short_and_printed(word):
    code, output, errors = shell(f'exec {PYTHON} run_net.py --mode train --cfg "$1" "$2"', CONFIG, word)
    assert (code, output) == (2, "")
    assert errors.replace("\n", "").isprintable() and len(errors) < 1000


# -------------------------------------------------------------------------------------------------------- files, limits
@pytest.mark.fault(14)
@pytest.mark.parametrize("command", [["run_net.py", "--mode", "train"], ["tools/check_data.py"]])
@pytest.mark.parametrize("kind", ["pipe", "large"])
def test_a_config_that_is_none_is_told_at_once(tmp_path, command, kind):
    path = tmp_path / "x.yaml"
    path.write_bytes(b"#" * 2_000_000) if kind == "large" else os.mkfifo(path)
    code, output, errors = shell(f"exec {PYTHON} $@", *command, "--cfg", path)
    reason = "cannot be read: it is no regular file" if kind == "pipe" else "has 2000000 bytes"
    assert (code, output) == (2, "")
    assert errors.startswith(f"{command[0].removeprefix('tools/')}: {path}: {reason}") and errors.count("\n") == 1


@pytest.mark.fault(33)
@pytest.mark.parametrize("loader", ["workers", "memory"])
def test_too_few_open_files_are_told_before_work(tmp_path, loader):
    own = [f"OUT_DIR={tmp_path}/run", f"DATA.LOADER={loader}"]
    ended = shell(f"ulimit -n 40; exec {PYTHON} run_net.py $@", *TRAIN, *own, "DATA.NUM_WORKERS=8")
    told = "run_net.py: DATA.NUM_WORKERS 8 may need 160 open files, the limit is 40 (ulimit -n)\n"
    assert ended == (1, "", told)
    assert not (tmp_path / "run").exists()


@pytest.mark.fault(33)
@pytest.mark.parametrize("limits", [(20, None), (64, 64)], ids=["soft", "hard"])
def test_as_many_open_files_as_there_may_be(tmp_path, limits):
    """The soft limit is raised; what is asked of the hard one is enough."""
    own = [f"OUT_DIR={tmp_path}/run", "DATA.LOADER=workers", "DATA.NUM_WORKERS=2"]
    running = Running(tmp_path, [*TRAIN, *own], hook="test_streams:limit_open_files", arguments=limits)
    code, _, errors = running.end()
    assert (code, errors) == (0, "")


def limit_open_files(soft, hard):
    """Hook: let the process have so many open files; hard: None = as many as before."""
    _, before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before if hard is None else hard))


def test_an_environment_of_no_numbers():
    for name, value in (("WORLD_SIZE", "x"), ("RANK", "-1"), ("LOCAL_RANK", "")):
        env = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"} | {name: value}
        ended = shell(f"exec {PYTHON} run_net.py $@", *TRAIN, env=env)
        told = f"run_net.py: the environment variable {name} is {value!r}, expected a whole number\n"
        assert ended == (1, "", told)


# -------------------------------------------------------------------------------------------------------------- signals
@pytest.mark.fault(4)
def test_interrupted_before_it_has_begun(tmp_path):
    """While its own modules are imported: it ends by the signal, without a traceback."""
    (tmp_path / "yacs.py").write_text(
        "import pathlib, time; pathlib.Path(__file__).with_name('here').touch()\ntime.sleep(30)"
    )
    env = ENVIRONMENT | {"PYTHONPATH": str(tmp_path)}
    command = [PYTHON, "run_net.py", *TRAIN]
    process = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
    wait_for((tmp_path / "here").exists)
    process.send_signal(signal.SIGINT)
    assert (process.communicate(timeout=20)[1], process.returncode) == ("", -signal.SIGINT)


@pytest.mark.fault(3)
def test_a_signal_that_comes_out_as_another_error(tmp_path):
    """As one in the middle of an import of torch: it ended with an exceeded recursion depth, and code 1."""
    ended = Running(tmp_path, [*TRAIN, f"OUT_DIR={tmp_path}/run"], hook="test_streams:lose_the_signal").end()
    assert ended == (143, "", "run_net.py: stopped by SIGTERM\n")


@pytest.mark.fault(3)
def test_a_signal_that_is_lost_stops_the_run_before_its_first_step(tmp_path):
    ended = Running(tmp_path, [*TRAIN, f"OUT_DIR={tmp_path}/run"], hook="test_streams:ignore_the_signal").end()
    assert (ended[0], ended[2]) == (143, "run_net.py: stopped by SIGTERM\n")
    assert not (tmp_path / "run" / "checkpoints" / "last.pt").exists()


def lose_the_signal():
    """Hook: a signal raises something else in the end."""
    from pycls_std import runner

    def run(mode, cfg):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except BaseException:
            raise RecursionError("maximum recursion depth exceeded") from None

    runner.run = run


def ignore_the_signal():
    """Hook: a signal is raised where Python ignores what is."""
    from pycls_std.engine import loop

    fit = loop.fit

    class Swallows:
        def __del__(self):
            import contextlib

            with contextlib.suppress(BaseException):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)

    def late_fit(*args, **options):
        Swallows()
        return fit(*args, **options)

    loop.fit = late_fit


@pytest.mark.fault(3)
def test_a_signal_at_the_very_end_tells_nothing():
    code = "import atexit, os, sys, time; sys.path.insert(0, '.'); import run_net; "
    code += "atexit.register(lambda: (os.kill(os.getpid(), 15), time.sleep(5))); run_net.program()"
    command = [PYTHON, "-c", code, *TRAIN, "OPTIM.BASE_LRR=1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE, env=ENVIRONMENT)
    told = "run_net.py: command line: no option OPTIM.BASE_LRR, did you mean OPTIM.BASE_LR?\n"
    assert (done.returncode, done.stderr) == (-signal.SIGTERM, told)


def test_a_tool_that_is_interrupted(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pycls_std.config.load", interrupt)
    assert called("tools/check_data.py", "--cfg", CONFIG) == (130, "", "check_data.py: stopped by SIGINT\n")
