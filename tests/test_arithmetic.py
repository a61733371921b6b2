"""How CUDA computes: the switches that the options set, on a CPU, where they can be read and change nothing."""

import os
from pathlib import Path

import pytest
import torch

from pycls_std import config
from pycls_std.builders import training
from pycls_std.core.precision import without_tf32
from pycls_std.datasets.memory import geometry
from pycls_std.engine.runtime import Runtime
from pycls_std.run.identity import refuse_other_options

CUDA = torch.device("cuda")


def switches():
    """What is switched on, of TF32 in convolutions and in products."""
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


@pytest.fixture
def on_cuda(load, monkeypatch):
    """Return on_cuda(**overrides): build the runtime of these options as if there were a device."""

    def build(**overrides):
        runtime = Runtime(device="cpu")
        runtime.device = CUDA
        monkeypatch.setattr(training, "Runtime", lambda **options: runtime)
        return training.build_runtime(load("debug/base_debug", **overrides))

    return build


def test_fp32_is_one_thing_in_convolutions_and_products(on_cuda):
    """torch's own default is TF32 in the ones alone."""
    torch.backends.cudnn.allow_tf32 = True
    on_cuda()
    assert switches() == (False, False)
    on_cuda(CUDA__TF32=True)
    assert switches() == (True, True)


def test_a_cpu_is_left_alone(load):
    torch.backends.cudnn.allow_tf32 = True
    before = switches()
    training.build_runtime(load("debug/base_debug", DEVICE="cpu", CUDA__TF32=True))
    assert switches() == before


def test_images_are_resized_in_full_fp32(monkeypatch):
    seen = []
    rounded = geometry._rounded
    monkeypatch.setattr(geometry, "without_tf32", lambda device: without_tf32(CUDA))
    monkeypatch.setattr(geometry, "_rounded", lambda values: seen.append(switches()[1]) or rounded(values))
    torch.backends.cuda.matmul.allow_tf32 = True
    images = torch.zeros(2, 8, 8, 4, dtype=torch.uint8)
    corner, side = torch.zeros(1, dtype=torch.int32), torch.full((1,), 8, dtype=torch.int32)
    geometry.resample(images, corner, corner, side, side, 4)
    assert seen == [False, False]
    assert switches()[1]


def test_what_is_resized_on_a_cpu_changes_no_switch():
    torch.backends.cuda.matmul.allow_tf32 = True
    with without_tf32(torch.device("cpu")):
        assert switches()[1]


@pytest.fixture
def deterministic(monkeypatch):
    """Return deterministic(): whether cuDNN and torch are, and what cuBLAS is told."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is set back
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    return lambda: (
        torch.backends.cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    )


def test_kernels_are_deterministic_where_it_is_asked_for(deterministic, on_cuda):
    assert not on_cuda().exact
    assert deterministic() == (False, False, None)
    assert on_cuda(CUDA__DETERMINISTIC=True).exact
    assert deterministic() == (True, True, ":4096:8")
    assert not on_cuda().exact
    assert deterministic()[:2] == (False, False)


def test_a_cpu_is_exact_and_is_not_slowed_down(deterministic, load):
    assert training.build_runtime(load("debug/base_debug", DEVICE="cpu", CUDA__DETERMINISTIC=True)).exact
    assert deterministic() == (False, False, None)


def test_a_run_is_continued_with_the_kernels_it_was_begun_with(load):
    before, now = (config.dump(load("debug/base_debug", CUDA__DETERMINISTIC=value)) for value in (True, False))
    with pytest.raises(ValueError, match="CUDA.DETERMINISTIC was True, is False"):
        refuse_other_options({"config": before, "processes": 1}, now, 1, Path("last.pt"))
