"""Schedules, optimizers, precision, meters and checkpoint files."""

import math
import pickle

import pytest
import timm.scheduler
import torch
from records import Malice
from torch import nn

from pycls_std.builders.training import build_schedule
from pycls_std.config.page import PAGE
from pycls_std.core.meters import Meters
from pycls_std.core.structures import Progress, World
from pycls_std.engine import checkpoint
from pycls_std.engine.optim import create_optimizer, kernels_kept, set_learning_rate
from pycls_std.engine.progress import ProgressBar, duration
from pycls_std.engine.runtime import Runtime
from pycls_std.engine.schedule import PERIODS, SCHEDULES, cosine, learning_rate, step
from pycls_std.engine.structure import optimizer_differences
from pycls_std.metrics.accuracy import Accuracy


# ------------------------------------------------------------------------------------------------------------ schedules
@pytest.mark.defect(10)
def test_cosine_with_warmup_is_timms_without_its_lag(load):
    """The rate at the start of epoch e is timm's at e: WARMUP_LR at 0, above it at 1, on the cosine at 5."""
    schedule = build_schedule(load("mixer/mixer-s4_c100_base", OPTIM__LR_PERIOD="step"))
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=5e-4 * 128 / 512)
    reference = timm.scheduler.CosineLRScheduler(
        optimizer, t_initial=300, lr_min=1e-5, warmup_t=5, warmup_lr_init=1e-6, warmup_prefix=False
    )
    for epoch in range(300):
        reference.step(epoch)
        assert schedule(epoch / 300) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
    assert schedule(0) == pytest.approx(1e-6)
    assert schedule(1 / 300) == pytest.approx(1e-6 + (1.25e-4 - 1e-6) / 5)


# Configs whose source sets the rate after each epoch: how timm's cosine is built there, and what it is then told.
LOOPS = {
    "std/_reproduction": (5e-4 * 128 / 512, 300, {"lr_min": 1e-5, "warmup_t": 5, "warmup_lr_init": 1e-6}, "this epoch"),
    "mixer/mixer-s16_in1k_base": (5e-4, 300, {"lr_min": 1e-5, "warmup_t": 5, "warmup_lr_init": 1e-6}, "this epoch"),
    "vidt/swin-nano_coco_base": (1e-4, 50, {"lr_min": 1e-7}, "this epoch"),
    "deit/deit-ti_c100_base": (5e-4, 300, {"lr_min": 5e-6, "warmup_t": 20, "warmup_lr_init": 5e-7}, "the next one"),
    "resnet/r-56_c100_strong": (0.1, 300, {}, "the next one"),
}


@pytest.mark.parametrize("name", LOOPS)
def test_every_step_has_the_rate_of_the_published_loop(load, name):
    """Also at the last step of an epoch. An epoch late, the first two begin alike."""
    peak, epochs, options, told = LOOPS[name]
    cfg = load(name)
    schedule = build_schedule(cfg)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak)
    reference = timm.scheduler.CosineLRScheduler(optimizer, t_initial=epochs, warmup_prefix=False, **options)
    assert epochs == cfg.OPTIM.MAX_EPOCH
    for epoch in range(epochs):
        expected = optimizer.param_groups[0]["lr"]
        for iteration in (0, 1, 389):
            rate = schedule(Progress(epoch, iteration, 390, epochs).fraction)
            assert rate == pytest.approx(expected, rel=1e-12, abs=0), (epoch, iteration)
        reference.step({"this epoch": epoch, "the next one": epoch + 1}[told])


def test_an_epoch_begins_with_its_first_step_and_not_before():
    """However shares of a run are rounded."""
    steps = [(0, 7), (6, 7), (389, 390), (10**7 - 1, 10**7)]  # of so many in an epoch
    for epochs in [*range(1, 201), 300, 1000]:
        for epoch in range(epochs):
            for step_of_epoch in steps:
                progress = Progress(epoch, *step_of_epoch, epochs).fraction
                assert PERIODS["epoch"](progress, epochs) == epoch / epochs
                assert PERIODS["epoch_late"](progress, epochs) == max(epoch - 1, 0) / epochs
        assert PERIODS["epoch"](1.0, epochs) == 1


def test_step_and_constant_schedules(load):
    cfg = load("resnet/r-20_c10", OPTIM__SCHEDULE="step", OPTIM__STEPS="[100, 150]")
    schedule = build_schedule(cfg)
    rates = [round(schedule(epoch / 200), 9) for epoch in (0, 99.9, 100, 149, 150, 199)]
    assert rates == [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    constant = build_schedule(load("resnet/r-20_c10", OPTIM__SCHEDULE="constant", OPTIM__WARMUP_EPOCHS=10))
    assert [constant(epoch / 200) for epoch in (10, 199)] == [0.1, 0.1]
    assert constant(5 / 200) == pytest.approx((0.1 + 1e-6) / 2, rel=1e-4)


def test_shapes_are_functions_of_progress():
    assert tuple(SCHEDULES) == PAGE["OPTIM.SCHEDULE"].choices
    assert tuple(PERIODS) == PAGE["OPTIM.LR_PERIOD"].choices
    assert [cosine(x) for x in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    assert [step(x, (0.5, 0.75), 0.1) for x in (0.4, 0.5, 0.8)] == pytest.approx([1, 0.1, 0.01])
    rates = [learning_rate(x, shape=cosine, peak=1, lowest=0.2, warmup=0, warmup_lr=9) for x in (0, 0.5, 1)]
    assert rates == pytest.approx([1, 0.6, 0.2])


# ----------------------------------------------------------------------------------------------------------- optimizers
class Spared(nn.Module):
    """A module one of whose matrices asks to be spared from weight decay."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.norm = nn.LayerNorm(2)
        self.token = nn.Parameter(torch.ones(2, 2))

    def no_weight_decay(self):
        return {"token"}


@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw", "lamb"])
def test_weight_decay_spares_vectors_and_what_asks_for_it(name):
    module = Spared()
    optimizer = create_optimizer(module, name=name, lr=0.1, weight_decay=0.05)
    decayed = [p for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]]
    assert [p is module.linear.weight for p in decayed] == [True]
    module.linear.bias.requires_grad_(False)
    optimizer = create_optimizer(module, name=name, lr=0.1, weight_decay=0.05, decay_all=True)
    decayed = {p for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {p for p in module.parameters() if p.requires_grad} and len(decayed) == 4


def test_how_a_step_is_computed_is_not_of_the_state():
    """A run that moves between a CPU and CUDA, where MINE's optimizers are fused."""
    module = Spared()
    own, other = (torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, fused=kind) for kind in (None, True))
    assert optimizer_differences(other.state_dict(), own, "optimizer") == []
    saved = other.state_dict()
    saved["param_groups"][0]["lr"] = 0.3
    with kernels_kept([own]):
        own.load_state_dict(saved)
    assert (own.param_groups[0]["fused"], own.param_groups[0]["lr"]) == (None, 0.3)


class WithGenerator(torch.optim.SGD):
    """Has a generator of its own, as timm's kron."""

    def state_dict(self):
        return super().state_dict() | {"rng_state": torch.zeros(16, dtype=torch.uint8)}


def test_an_optimizer_may_have_more_than_the_usual_state():
    own = WithGenerator(Spared().parameters(), lr=0.1)
    assert optimizer_differences(own.state_dict(), own, "optimizer") == []
    (line,) = optimizer_differences(own.state_dict() | {"rng_state": torch.zeros(4)}, own, "optimizer")
    assert line.startswith("optimizer.rng_state is ")
    (line,) = optimizer_differences(torch.optim.SGD.state_dict(own), own, "optimizer")
    assert line == "optimizer is no state of an optimizer, which has param_groups and rng_state and state"


def test_sgd_is_nesterov_and_momentum_is_not():
    assert create_optimizer(Spared(), name="sgd", lr=0.1).param_groups[0]["nesterov"]
    assert not create_optimizer(Spared(), name="momentum", lr=0.1).param_groups[0]["nesterov"]


def test_unknown_optimizer():
    with pytest.raises(ValueError, match="OPTIM.NAME is 'adamww'.*near it: adamw"):
        create_optimizer(Spared(), name="adamww", lr=0.1)


def test_an_optimizer_whose_package_refuses(monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("CUDA required\nand more")

    monkeypatch.setattr("pycls_std.engine.optim.get_optimizer_class", refuse)
    with pytest.raises(ValueError, match="OPTIM.NAME adamw cannot be built: CUDA required$"):
        create_optimizer(Spared(), name="adamw", lr=0.1)


@pytest.mark.parametrize("name", ["adahessian", "sgd"])
def test_an_optimizer_that_cannot_be_had(name):
    """One needs second derivatives, the other a momentum for its Nesterov form."""
    with pytest.raises(ValueError, match=f"OPTIM.NAME {name} (needs second derivatives|cannot be built: Nesterov)"):
        create_optimizer(Spared(), name=name, lr=0.1, momentum=0.0)


def test_first_adamw_step_in_closed_form():
    """The first Adam step moves every weight by lr, after the weight has shrunk by lr * decay."""
    module = nn.Linear(2, 1, bias=False)
    before = module.weight.detach().clone()
    optimizer = create_optimizer(module, name="adamw", lr=0.1, weight_decay=0.5)
    set_learning_rate(optimizer, 0.01)
    Runtime(device="cpu").step({"loss": module.weight.sum()}, [optimizer])
    torch.testing.assert_close(module.weight.detach(), before * (1 - 0.01 * 0.5) - 0.01)


# -------------------------------------------------------------------------------------------------------------- runtime
@pytest.mark.parametrize(
    ("precision", "clip_norm"), [("fp32", 0.0), ("fp32", 1.0), ("bf16", 1.0), ("fp16", 0.0), ("fp16", 1.0)]
)
def test_every_precision_trains_on_a_cpu(precision, clip_norm):
    torch.manual_seed(0)
    runtime = Runtime(device="cpu", precision=precision)
    module = nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Linear(16, 2))
    optimizer = create_optimizer(module, name="adamw", lr=0.05)
    x, y = torch.randn(64, 4), torch.randint(0, 2, (64,))
    losses = []
    for _ in range(30):
        with runtime.autocast():
            output = module(x)
        assert output.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        losses.append(nn.functional.cross_entropy(output.float(), y))
        runtime.step({"ce": losses[-1]}, [optimizer], clip_norm=clip_norm)
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_gradient_is_clipped_to_its_norm(precision):
    weight = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    Runtime(device="cpu", precision=precision).step(
        {"loss": (weight * torch.tensor([3.0, 4.0])).sum()}, [optimizer], clip_norm=1.0
    )
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.6, -0.8]))


def test_a_second_step_forgets_the_gradient_of_the_first():
    """MINE steps the student right after the main step, with another optimizer and with its own gradient alone."""
    student, critic = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    main, first, second = (torch.optim.SGD([p], lr=1.0) for p in (student, critic, student))
    runtime = Runtime(device="cpu")
    runtime.step({"ce": 5 * student.sum()}, [main])
    for _ in range(2):
        runtime.step({"mine": 2 * student.sum() + 3 * critic.sum()}, [first, second])
    assert (float(student.detach()), float(critic.detach())) == (-5 - 2 * 2, -3 * 2)


def test_a_loss_that_is_not_finite_stops_before_the_step():
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    losses = {"ce": weight.sum(), "kd": (weight * math.inf).sum()}
    with pytest.raises(FloatingPointError, match="not finite at epoch 2 iteration 7, lr 1: ce 1, kd inf"):
        Runtime(device="cpu").step(losses, [optimizer], where="epoch 2 iteration 7, lr 1")
    assert float(weight.detach()) == 1


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_batch_norm_keeps_its_numbers_when_its_module_is_converted(precision):
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4)))
    for value in module.state_dict().values():
        value.copy_(torch.rand(value.shape) + 1.001)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    own = list(module.parameters())
    module = Runtime(device="cpu").convert(module, precision)
    assert all(now is then for now, then in zip(module.parameters(), own, strict=True))
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name].to(value.dtype)), name
        assert (value.dtype == before[name].dtype) == (not name.startswith("0."))


@pytest.mark.fault(38)
def test_cuda_without_a_device_is_refused():
    with pytest.raises(ValueError, match="DEVICE is cuda"):
        Runtime(device="cuda")
    assert Runtime(device="auto").device.type == "cpu"


# --------------------------------------------------------------------------------------------------------------- meters
def test_means_are_weighted_by_images():
    meters = Meters()
    meters.add({"loss": torch.tensor(1.0)}, 6)
    meters.add({"loss": torch.tensor(4.0), "extra": torch.tensor(7.0)}, 2)
    assert meters.read(World()) == {"loss": 1.75, "extra": 7.0}
    meters.add({"loss": torch.tensor([2.0, 4.0])}, 2)
    assert meters.read(World())["loss"] == 2.0
    assert Meters().read(World()) == {}


def test_accuracies():
    logits = torch.eye(6)[[0, 1, 2, 3]] + torch.linspace(0, 0.1, 6)  # the least of each other row is class 0
    scores = Accuracy().each(logits, torch.tensor([0, 1, 0, 5]))
    assert {name: value.tolist() for name, value in scores.items()} == {
        "top1": [100.0, 100.0, 0.0, 0.0],
        "top5": [100.0, 100.0, 0.0, 100.0],
    }
    assert (Accuracy().each(torch.rand(4, 3), torch.tensor([0, 1, 2, 0]))["top5"] == 100.0).all()


def test_duration():
    assert [duration(seconds) for seconds in (0, 61.4, 36005)] == ["0:00:00", "0:01:01", "10:00:05"]


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(terminal, monkeypatch, caplog, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    bar = ProgressBar("epoch 2/3", 10, period=5, done=10, run_total=30)
    for iteration in range(10):
        bar.advance()
        if bar.due(iteration):
            bar.show(iteration, "loss 1.234")
    bar.close()
    if terminal:
        assert caplog.messages == []
        assert "loss 1.234" in capsys.readouterr().err
    else:
        starts = [f"epoch 2/3  {done}/10  loss 1.234  eta 0:00:0" for done in (5, 10)]
        assert [message[:-1] for message in caplog.messages] == starts


# ---------------------------------------------------------------------------------------------------------- checkpoints
STATE = {"epoch": 3, "weights": {"w": torch.arange(1000.0)}, "list": [1.5, "text"]}


def test_checkpoint_round_trip(tmp_path):
    checkpoint.save(STATE, tmp_path / "deep" / "last.pt")
    state = checkpoint.read(tmp_path / "deep" / "last.pt")
    assert torch.equal(state["weights"]["w"], STATE["weights"]["w"])
    assert (state["epoch"], state["list"]) == (3, [1.5, "text"])
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["last.pt"]


@pytest.mark.defect(11)
def test_a_save_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    checkpoint.save(STATE, path)
    before = path.read_bytes()

    def half(state, file):
        file.write(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(STATE, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.defect(12)
@pytest.mark.parametrize("writer", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_code_in_a_checkpoint_does_not_run(tmp_path, writer):
    writer({"student": Malice(tmp_path / "marker")}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="evil.pt"):
        checkpoint.read(tmp_path / "evil.pt")
    assert not (tmp_path / "marker").exists()


@pytest.mark.defect(23)
@pytest.mark.fault(19)
def test_weights_that_do_not_fit_are_listed():
    module = nn.Sequential(*(nn.Linear(2, 2) for _ in range(8)))
    weights = {key.replace("0.", "new."): value for key, value in module.state_dict().items()}
    weights["1.weight"] = torch.zeros(3, 2)
    with pytest.raises(ValueError) as error:
        checkpoint.load_weights(module, weights, "x.pt")
    text = str(error.value)
    assert text.startswith("x.pt does not fit the model: 1.weight is (3, 2) in the file, (2, 2) in the model; ")
    assert "missing 0.weight" in text
    assert "unexpected new.bias" in text
    with pytest.raises(ValueError, match="and 6 more"):
        checkpoint.load_weights(module, {}, "x.pt")
