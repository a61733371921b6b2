"""What several tests share: one thread, a way to load shipped configs, and a trained teacher."""

from functools import partial
from pathlib import Path

import processes
import pytest
import torch
from records import words

from pycls_std import config, runner

ROOT = Path(__file__).resolve().parents[1]
torch.set_num_threads(1)  # the models are tiny, and threads that wait for each other are slow


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
    runner.train(config.load(str(path), [f"OUT_DIR={folder}"]))
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
