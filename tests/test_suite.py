"""The suite itself: where its tests run, and what a test leaves behind."""

from types import SimpleNamespace

import conftest
import modes
import pytest
import torch


def start(marked, monkeypatch, device=True):
    """Begin a test, marked cuda or not, on a machine with a device or without."""
    monkeypatch.setattr(conftest, "CUDA", lambda: device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device)
    conftest.pytest_runtest_setup(SimpleNamespace(get_closest_marker=lambda name: marked or None))


def test_only_what_is_marked_finds_a_device(monkeypatch):
    start(False, monkeypatch)
    assert not torch.cuda.is_available()
    start(True, monkeypatch)
    assert torch.cuda.is_available()


def test_what_is_marked_is_skipped_without_a_device(monkeypatch):
    with pytest.raises(pytest.skip.Exception, match="needs a CUDA device"):
        start(True, monkeypatch, device=False)
    start(False, monkeypatch, device=False)


@pytest.mark.parametrize("device", [False, True])
def test_it_says_where_it_ran(monkeypatch, device):
    monkeypatch.setattr(conftest, "CUDA", lambda: device)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A100")
    lines = []
    conftest.pytest_terminal_summary(SimpleNamespace(write_line=lines.append))
    end = "on A100" if device else "skipped, for there is no device"
    assert lines == [f"tests ran on the CPU; those marked cuda {end}"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threads", 2),
        ("gradients", False),
        ("type of numbers", torch.float64),
        ("deterministic kernels", True),
        ("deterministic convolutions", True),
        ("TF32 in convolutions", False),
        ("TF32 in products", True),
    ],
)
def test_a_test_that_fails_leaves_no_mode_behind(name, value):
    before = modes.read()
    assert before[name] != value
    with pytest.raises(ZeroDivisionError), modes.kept():
        modes.MODES[name][1](value)
        assert modes.read()[name] == value
        raise ZeroDivisionError
    assert modes.read() == before
