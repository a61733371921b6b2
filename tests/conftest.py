"""What several tests share: where they run, one thread, shipped configs, a trained teacher, records of runs."""

import gc
import os
from collections import Counter
from functools import partial
from pathlib import Path

import modes
import processes
import pytest
import torch

pytest.register_assert_rewrite("records")
from records import words, write_record  # noqa: E402

from pycls_std import config, runner  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
torch.set_num_threads(1)  # the models are tiny, and threads that wait for each other are slow
gc.freeze()  # what is imported stays, and to look through it takes a fifth of a second each time
CUDA = torch.cuda.is_available


def pytest_collection_modifyitems(items):
    """Begin with the files of most slow tests, one of which would otherwise be under way when all others are done."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_xdist_auto_num_workers():
    """Two more than there are cores, for many tests wait for processes that they have started."""
    return (os.cpu_count() or 1) + 2


def pytest_unconfigure():
    """Let Python end as it does, or libraries complain of what they still find."""
    gc.unfreeze()


def pytest_terminal_summary(terminalreporter):
    """Say where the tests ran."""
    device = f"on {torch.cuda.get_device_name()}" if CUDA() else "skipped, for there is no device"
    terminalreporter.write_line(f"tests ran on the CPU; those marked cuda {device}")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Let a test find a device only if it is marked cuda; skip that where there is none.

    All others are on the CPU, as the processes are that they start, with which they are compared bit for bit.
    """
    marked = item.get_closest_marker("cuda") is not None
    if marked and not CUDA():
        pytest.skip("needs a CUDA device")
    if CUDA():
        torch.cuda.is_available = CUDA if marked else lambda: False


@pytest.fixture(scope="session", autouse=True)
def server():
    """Start the server of processes before a test in this process starts one of its own, by which all would be slow."""
    processes.serve()


@pytest.fixture(autouse=True)
def no_mode_is_left():
    """Set torch's modes back to what they were before a test, also one that failed."""
    with modes.kept():
        yield


@pytest.fixture(autouse=True)
def no_process_is_left():
    """End what a test that failed left running."""
    yield
    processes.end_all()


@pytest.fixture
def load():
    """Return load(name, **overrides): options of configs/<name>.yaml; OPTIM__BASE_LR stands for OPTIM.BASE_LR."""

    def load_config(name, **overrides):
        return config.load(str(ROOT / "configs" / f"{name}.yaml"), words(**overrides))

    return load_config


@pytest.fixture(scope="session")
def teacher(tmp_path_factory):
    """Path of the checkpoint of a trained ResNet-8 on digits at 8 px."""
    folder = tmp_path_factory.mktemp("teacher")
    path = ROOT / "configs" / "debug" / "teacher_debug.yaml"
    runner.train(config.load(str(path), [f"OUT_DIR={folder}", "DEVICE=cpu"]))
    return folder / "checkpoints" / "best.pt"


@pytest.fixture
def method(load, teacher, tmp_path):
    """Return method(name, **overrides): a method's debug run with a trained teacher, recorded in tmp_path."""

    def load_method(name, **overrides):
        own = {"OUT_DIR": tmp_path / "run"}
        own |= {} if name == "baseline" else {"DISTILLATION__TEACHER_WEIGHTS": f"[{teacher}]"}
        return load("debug/base_debug" if name == "baseline" else f"debug/{name}_debug", **(own | overrides))

    return load_method


@pytest.fixture
def std(method):
    """Return std(**overrides): options of the debug STD run with a trained teacher, recorded in tmp_path."""
    return partial(method, "std")


# Options of a run of few epochs.
SHORT = {"OPTIM__WARMUP_EPOCHS": 0, "KD__WARMUP_EPOCHS": 0, "OPTIM__SCHEDULE": "constant", "OPTIM__STEPS": "[]"}


@pytest.fixture
def record(load, tmp_path):
    """Return record(name, seed, top1s, **overrides): write a run whose epochs end with these accuracies.

    epochs: of the run, None = as many as its config has, of which these are the last. plans: how many each epoch was
    recorded to be one of. edit: changes the text of the options.
    """

    def write(
        name, seed, top1s, of="std/mixer-s4_c100_multi", finished=True, epochs=3, plans=(), edit=str, **overrides
    ):
        cfg = load(
            of, **({"NAME": name, "SEED": seed} | (SHORT | {"OPTIM__MAX_EPOCH": epochs} if epochs else {}) | overrides)
        )
        top1s = top1s if epochs else [0.0] * (cfg.OPTIM.MAX_EPOCH - len(top1s)) + top1s
        values = [{"train/loss": 1.0, "test/top1": top1, "test/top5": top1 + 10} for top1 in top1s]
        facts = {"status": "finished" if finished else "running"}
        plans = plans or [cfg.OPTIM.MAX_EPOCH] * len(top1s)
        folder = tmp_path / "logs" / name / f"seed{seed}"
        return write_record(folder, edit(config.dump(cfg)), values, plans=plans, facts=facts)

    return write
