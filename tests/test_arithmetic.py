"""How products are computed: what CUDA has switches for, and bf16 on a CPU."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode
from waits import Products

from pycls_std import config
from pycls_std.builders import training
from pycls_std.core.precision import without_tf32
from pycls_std.datasets.memory import geometry
from pycls_std.engine import runtime as engine_runtime
from pycls_std.engine.arithmetic import WideAttention, WideProducts
from pycls_std.engine.runtime import Runtime
from pycls_std.layers.deformable_decoder import DecoderLayer, DecoderSizes, memory_of
from pycls_std.layers.reconfigured_attention import ReconfiguredAttention
from pycls_std.models.create import create_backbone
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
    assert deterministic() == (False, False, ":4096:8")  # torch looks at it once, and a later run may want it
    assert on_cuda(CUDA__DETERMINISTIC=True).exact
    assert deterministic() == (True, True, ":4096:8")
    assert not torch.utils.deterministic.fill_uninitialized_memory
    assert not on_cuda().exact
    assert deterministic()[:2] == (False, False)


def test_a_cpu_is_exact_and_is_not_slowed_down(deterministic, load):
    assert training.build_runtime(load("debug/base_debug", DEVICE="cpu", CUDA__DETERMINISTIC=True)).exact
    assert deterministic() == (False, False, None)


def test_a_run_is_continued_with_the_kernels_it_was_begun_with(load):
    before, now = (config.dump(load("debug/base_debug", CUDA__DETERMINISTIC=value)) for value in (True, False))
    with pytest.raises(ValueError, match="CUDA.DETERMINISTIC was True, is False"):
        refuse_other_options({"config": before, "processes": 1}, now, 1, Path("last.pt"))


# ------------------------------------------------------------------------------------------------------- bf16 on a CPU
BF16_ULP = 2**-7  # the largest relative distance of two neighbours
FORMS = {
    "linear": (functional.linear, (2, 5, 64), (32, 64), (32,)),
    "linear without bias": (functional.linear, (2, 5, 64), (32, 64)),
    "matmul": (torch.matmul, (2, 3, 7, 16), (2, 3, 16, 9)),
    "baddbmm": (lambda a, b, c: torch.baddbmm(c, a, b), (3, 7, 16), (3, 16, 9), (3, 7, 9)),
    "convolution": (lambda x, w, b: functional.conv2d(x, w, b, padding=1), (2, 8, 6, 6), (4, 8, 3, 3), (4,)),
    "depthwise": (lambda x, w: functional.conv2d(x, w, groups=8), (2, 8, 6, 6), (8, 1, 3, 3)),
    "attention": (functional.scaled_dot_product_attention, *3 * ((2, 3, 16, 32),)),
}


def forward_and_backward(function, inputs, dtype):
    inputs = [value.to(dtype).requires_grad_() for value in inputs]
    output = function(*inputs)
    weight = torch.linspace(-1, 1, output.numel()).view(output.shape).bfloat16().to(dtype)
    return [output.detach(), *torch.autograd.grad(output, inputs, weight)]


@pytest.mark.parametrize("form", FORMS)
def test_products_of_bf16_are_those_of_fp32_rounded_once(form):
    function, *shapes = FORMS[form]
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]
    with Products() as seen, WideProducts():
        found = forward_and_backward(function, inputs, torch.bfloat16)
        with torch.no_grad():
            assert torch.equal(function(*inputs), found[0])
    assert len(seen.products) >= 3 and {dtype for _, dtype in seen.products} == {torch.float32}
    exact = forward_and_backward(function, inputs, torch.float32)
    own = forward_and_backward(function, inputs, torch.bfloat16)
    for value, wide, torch_own in zip(found, exact, own, strict=True):
        assert value.dtype is torch.bfloat16
        # attention's gradient is of its own output, which is rounded before
        near = {"rtol": 2 * BF16_ULP, "atol": 0.02} if form == "attention" else {"rtol": BF16_ULP / 2, "atol": 1e-6}
        torch.testing.assert_close(value.float(), wide, **near)
        torch.testing.assert_close(value, torch_own, rtol=2 * BF16_ULP, atol=0.05)  # some of torch's sums are in bf16


@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_bf16_is_that_of_fp32_rounded(masked):
    """With a mask that is added; what is not in bf16 is left alone."""
    mask = torch.randn(16, 16).bfloat16() if masked else None
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 3, 16, 32, generator=generator).bfloat16() for _ in range(3)]

    def attention(query, key, value):
        kind = query.dtype if not torch.is_autocast_enabled("cpu") else torch.bfloat16
        return functional.scaled_dot_product_attention(query, key, value, mask if mask is None else mask.to(kind))

    exact = forward_and_backward(attention, inputs, torch.float32)
    with WideAttention():
        assert all(map(torch.equal, forward_and_backward(attention, inputs, torch.float32), exact))
        found = forward_and_backward(attention, inputs, torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            assert all(map(torch.equal, forward_and_backward(attention, inputs, torch.bfloat16), found))
    for value, wide in zip(found, exact, strict=True):
        assert value.dtype is torch.bfloat16 and torch.equal(value, wide.bfloat16())


def deit(images):
    return create_backbone("deit_tiny_patch16_224", num_classes=4, image_size=32, depth=2, embed_dim=24)(images)


def cvt(images):
    return create_backbone("cvt_13", num_classes=4, image_size=32, depths=(1, 1, 1), channels=(6, 6, 12))(images)


def decoder_layer(images):
    layer = DecoderLayer(DecoderSizes(hidden=16, decoder_heads=2, dropout=0.0), maps=1)
    maps = images[:, :, :4, :4].repeat(1, 6, 1, 1)[:, :16]
    queries = maps.flatten(2).transpose(1, 2)
    return layer(queries, queries, torch.rand(2, 16, 1, 2), memory_of([maps], [None]))


def detection_tokens(images):
    patches = images[:, 0, :, :16]  # (B, P, C), of which the last are padding
    attended = (torch.arange(32) < 20).expand(2, -1)
    return ReconfiguredAttention(16, 2, window_size=4).detect(patches[:, :5], patches, attended)


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("model", [deit, cvt, decoder_layer, detection_tokens])
def test_a_step_in_bf16_attends_in_fp32(model, there, monkeypatch):
    """On any CPU, forward and backward; a teacher within the student's context, too."""
    seen, names = [], ("", "_backward")
    kernels = [getattr(torch.ops.aten, f"_scaled_dot_product_flash_attention_for_cpu{name}").default for name in names]

    class Kernels(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function in kernels:
                seen.append((kernels.index(function), args[0].dtype))
            return function(*args, **kwargs or {})

    monkeypatch.setattr(engine_runtime, "cpu_has_bf16", lambda: there)
    runtime = Runtime(device="cpu", precision="bf16")
    values = torch.randn(1, 2, 4, 8).bfloat16()
    bias = torch.zeros((), requires_grad=True)
    with Kernels():
        with runtime.autocast():
            output = model(torch.randn(2, 3, 32, 32))
            with runtime.full_precision():
                assert functional.scaled_dot_product_attention(*3 * [values]).dtype is torch.bfloat16
        runtime.step({"loss": output.float().square().mean() + bias}, [torch.optim.SGD([bias], lr=0.1)])
    assert set(seen) == {(0, torch.float32), (1, torch.float32)}


def test_attention_of_what_is_compiled_or_of_no_bf16_is_left_alone(monkeypatch):
    """Torch refuses mixed arguments outside autocast, and converts those of a student in fp16."""
    monkeypatch.setattr(engine_runtime, "cpu_has_bf16", lambda: True)
    attend, values = functional.scaled_dot_product_attention, torch.randn(1, 2, 4, 8).bfloat16()
    runtime = Runtime(device="cpu", precision="bf16")
    runtime.compiled = "on"
    with runtime.autocast():
        assert "WideAttention" not in {type(mode).__name__ for mode in _get_current_function_mode_stack()}
    with WideAttention():
        with pytest.raises(RuntimeError, match="dtype"):
            attend(values.float(), values, values)
        with torch.autocast("cpu", torch.float16):
            assert attend(values, values, values).dtype is torch.float16


@pytest.mark.parametrize("there", [True, False])
def test_a_cpu_without_bf16_computes_its_products_in_fp32(there, monkeypatch, caplog):
    monkeypatch.setattr(engine_runtime, "cpu_has_bf16", lambda: there)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 4))
    runtime = Runtime(device="cpu", precision="bf16")
    teacher = runtime.convert(nn.Linear(4, 4), "bf16")
    with Products() as seen:
        with runtime.autocast():
            output = net(torch.randn(2, 3, 8, 8))
            loss = (output + teacher(output)).float().square().mean()
        runtime.step({"loss": loss}, [torch.optim.SGD(net.parameters(), lr=0.1)])
    assert len(seen.products) == 8
    assert {dtype for _, dtype in seen.products} == {torch.bfloat16 if there else torch.float32}
    assert caplog.messages == [] if there else [m for m in caplog.messages if "no instructions for it" in m]
    assert len(caplog.messages) == (not there)


def test_other_precisions_and_compiled_steps_are_left_alone(monkeypatch):
    """What is compiled is not seen product by product."""
    monkeypatch.setattr(engine_runtime, "cpu_has_bf16", lambda: False)
    assert not isinstance(Runtime(device="cpu", precision="fp32").products(), WideProducts)
    runtime = Runtime(device="cpu", precision="bf16")
    assert isinstance(runtime.products(), WideProducts)
    runtime.compiled = "on"
    assert not isinstance(runtime.products(), WideProducts)
