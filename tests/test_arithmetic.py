"""How CUDA computes: the switches that the options set, on a CPU, where they can be read and change nothing."""

from types import SimpleNamespace

import pytest
import torch

from pycls_std.builders import training
from pycls_std.core.precision import without_tf32
from pycls_std.datasets.memory import geometry
from pycls_std.engine.runtime import Runtime

CUDA = torch.device("cuda")


@pytest.fixture
def switches():
    """Return switches(): what is switched on, of TF32 in convolutions and in products."""
    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    yield lambda: tuple(backend.allow_tf32 for backend in backends)
    for backend, value in zip(backends, before, strict=True):
        backend.allow_tf32 = value


@pytest.fixture
def on_cuda(load, monkeypatch):
    """Return on_cuda(**overrides): build the runtime of these options as if there were a device."""

    def build(**overrides):
        runtime = Runtime(device="cpu")
        runtime.device = CUDA
        monkeypatch.setattr(training, "Runtime", lambda **options: runtime)
        return training.build_runtime(load("debug/base_debug", **overrides))

    return build


def test_fp32_is_one_thing_in_convolutions_and_products(switches, on_cuda):
    """torch's own default is TF32 in the ones alone."""
    torch.backends.cudnn.allow_tf32 = True
    on_cuda()
    assert switches() == (False, False)
    on_cuda(CUDA__TF32=True)
    assert switches() == (True, True)


def test_a_cpu_is_left_alone(switches, load):
    torch.backends.cudnn.allow_tf32 = True
    before = switches()
    training.build_runtime(load("debug/base_debug", DEVICE="cpu", CUDA__TF32=True))
    assert switches() == before


def test_images_are_resized_in_full_fp32(switches, monkeypatch):
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


def test_what_is_resized_on_a_cpu_changes_no_switch(switches):
    torch.backends.cuda.matmul.allow_tf32 = True
    with without_tf32(torch.device("cpu")):
        assert switches()[1]
