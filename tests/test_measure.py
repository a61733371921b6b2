"""--mode time: the operations and the memory of a step in closed form, and what is compared with what."""

import re
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from processes import two_ranks
from torch.autograd import DeviceType

from pycls_std import runner
from pycls_std.builders.training import build_described_trainer
from pycls_std.datasets.memory import views
from pycls_std.measure import speed


@pytest.fixture
def timed(load, caplog, monkeypatch):
    """Return timed(config, **overrides): the lines that --mode time prints, of small matrices and blocks of views."""
    monkeypatch.setitem(speed.SIDE, "cpu", 64)
    monkeypatch.setitem(views.BLOCK, "cpu", 8)

    def run(name, **overrides):
        caplog.clear()
        runner.time(load(name, TIME__STEPS=2, TIME__WARMUP=1, **overrides))
        return list(caplog.messages)

    return run


def value(lines, pattern):
    """The number that a pattern finds in the only line that has it."""
    found = [match for match in (re.search(pattern, line) for line in lines) if match]
    assert len(found) == 1, lines
    return float(found[0][1])


def test_operations_and_memory_of_a_step(timed, load):
    """A Mixer of 4 blocks, 32 wide, 16 patches of 2x2 pixels, 128 images: three times the forward pass's products, but
    for the gradient of the pixels; AdamW and the average hold five numbers for each parameter."""
    lines = timed("debug/base_debug")
    blocks = 4 * (2 * 16 * 16 * 32 + 2 * 32 * 128 * 16)  # token mixing 16 -> 16 -> 16 a channel, channel mixing a patch
    products = 3 * (blocks + 32 * 10) + 2 * 16 * 12 * 32
    assert value(lines, r"([\d.]+) GFLOPs a step") == pytest.approx(2 * 128 * products / 1e9, abs=0.06)
    student = build_described_trainer(load("debug/base_debug"), 10)[0].student
    count = sum(p.numel() for p in student.parameters())
    assert value(lines, r"memory: ([\d.]+) GiB weights") == pytest.approx(5 * 4 * count / 2**30, abs=6e-4)


def test_a_rate_is_that_of_all_processes(tmp_path):
    words = ["--mode", "time", "--cfg", "configs/debug/base_debug.yaml", "TIME.STEPS=1", "TIME.WARMUP=0"]
    first, second = (each.end() for each in two_ranks(tmp_path, [*words, "TRAIN.BATCH_SIZE=32"]))
    assert (first[0], second[0], second[1]) == (0, 0, "")
    rates = re.findall(r"(student forward|step in fp32, eager) +([\d.]+) ms +([\d.]+) images/s", first[1])
    assert [float(time) / 1e3 * float(rate) for _, time, rate in rates] == pytest.approx([32, 32], rel=0.02)


def test_what_is_kept_grows_with_the_batch(timed):
    """Twice the images, twice the values kept for the backward pass; nearly so, for weights are not among them."""
    kept = [
        value(timed("debug/base_debug", TRAIN__BATCH_SIZE=size, MODEL__ARGS__embed_dim=64), r"([\d.]+) GiB kept for")
        for size in (256, 512)
    ]
    assert kept[1] / kept[0] == pytest.approx(2, rel=0.1)


@pytest.mark.slow
def test_the_configured_step_against_the_eager_one(timed):
    """Teachers with random weights are folded and converted; both steps see the same batch and neither learns."""
    words = {"PRECISION": "bf16", "TRAIN__BATCH_SIZE": 2, "MINE__SAMPLES": 2}  # few, for some CPUs emulate bf16
    words |= {"DISTILLATION__TEACHERS": "[resnet20]", "DISTILLATION__TEACHER_WEIGHTS": "[published:cifar10_resnet20]"}
    lines = timed("debug/std_debug", **words)
    assert any(re.search("teacher 0 resnet20: 21 batch norms folded, bf16", line) for line in lines)
    names = [line.split("  ")[0].strip() for line in lines]
    for name in ("student forward", "teachers forward", "step in fp32, eager", "step in bf16"):
        assert name in names
    assert re.search(r"images/s +[\d.]+x \([\d.]+ to [\d.]+\)$", next(line for line in lines if "step in bf16" in line))
    assert value(lines, r"data, \d+ batches +[\d.]+ ms +([\d.]+) images/s") > 0
    assert len([line for line in lines if re.match(r" *[\d.]+ % .* ms ", line)]) == 10


def test_nothing_is_learnt_and_nothing_written(timed, load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []
    build = speed.build_all

    def remembered(*args, **options):
        seen.append(build(*args, **options))
        seen.append([p.detach().clone() for p in seen[0][0].trainer.student.parameters()])
        return seen[0]

    monkeypatch.setattr(speed, "build_all", remembered)
    timed("debug/base_debug", OPTIM__WEIGHT_DECAY=0)
    (session, *_), before = seen
    assert all(torch.equal(a, b) for a, b in zip(session.trainer.student.parameters(), before, strict=True))
    assert list(tmp_path.iterdir()) == []


def row(key, kind, taken, annotation=False):
    """A row of a profile, taken: microseconds on the device."""
    own = {"self_device_time_total": taken, "self_cpu_time_total": 1.0, "count": 1}
    return SimpleNamespace(key=key, device_type=kind, is_user_annotation=annotation, **own)


def profile_of(rows, monkeypatch, caplog):
    """What is shown of a step on CUDA whose profile has these rows."""
    profile = SimpleNamespace(key_averages=lambda: rows)
    monkeypatch.setattr(torch.profiler, "profile", lambda activities: nullcontext(profile))
    runtime = SimpleNamespace(device=torch.device("cuda"), synchronize=lambda: None)
    own = SimpleNamespace(session=SimpleNamespace(runtime=runtime), step=lambda: None)
    speed._show_profile(own)
    return [line.split() for line in caplog.messages]


def test_a_kernel_on_cuda_is_counted_once(monkeypatch, caplog):
    """Not again with the operation that launched it, and with what is written around that on both sides."""
    cpu, cuda = DeviceType.CPU, DeviceType.CUDA
    rows = [row("aten::mm", cpu, 3000.0), row("aten::add", cpu, 1000.0), row("step", cpu, 4000.0, annotation=True)]
    rows += [row("gemm", cuda, 3000.0), row("add", cuda, 1000.0), row("step", cuda, 4000.0, annotation=True)]
    found = profile_of(rows, monkeypatch, caplog)
    assert found == [["75.0", "%", "3.00", "ms", "gemm"], ["25.0", "%", "1.00", "ms", "add"]]


def test_a_profile_without_kernels_is_told(monkeypatch, caplog):
    profile_of([row("aten::mm", DeviceType.CPU, 0.0)], monkeypatch, caplog)
    assert "the profiler saw nothing" in caplog.text
