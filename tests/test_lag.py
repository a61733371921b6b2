"""Steps that are not waited for: what went wrong is told late, of the right step, and before anything is saved."""

import math
import os
import signal
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from methods import batch, make
from processes import two_ranks, wait_for
from records import SMALL, load_state, same, words
from test_feature import build as with_memory
from torch import nn
from torch.utils._pytree import tree_leaves
from waits import NoReads

from pycls_std import runner
from pycls_std.builders.training import build_all, build_runtime
from pycls_std.core.meters import Meters
from pycls_std.core.registry import FEATURE_LOSSES, LOGIT_LOSSES
from pycls_std.core.structures import Progress
from pycls_std.engine import loop
from pycls_std.engine.optim import create_optimizer, fused
from pycls_std.engine.runtime import Runtime
from pycls_std.layers.orthogonal import MAPS
from pycls_std.process import signals
from pycls_std.terms.task import TaskLoss

LAG = 3


@pytest.fixture
def weight():
    return nn.Parameter(torch.ones(1))


@pytest.fixture
def take(weight):
    """Return take(runtime, number, factor): a step on factor * weight, called `step <number>`."""
    optimizer = torch.optim.SGD([weight], lr=0.1)
    return lambda runtime, number, factor=1.0: runtime.step(
        {"ce": weight.detach().sum() * 0 + number, "loss": (weight * factor).sum()}, [optimizer], where=f"step {number}"
    )


def test_a_loss_that_is_not_finite_is_told_with_its_place_and_terms(take):
    """All later ones are not finite either."""
    runtime = Runtime(device="cpu", lag=LAG)
    with pytest.raises(FloatingPointError, match="^loss not finite at step 2: ce 2, loss inf$"), runtime.watched():
        for number in range(10):
            taken = number
            take(runtime, number, math.inf if number == 2 else 1.0)
    assert taken == 2 + LAG


@pytest.mark.parametrize("failure", [None, ValueError, KeyError])
def test_what_is_not_yet_read_is_read_at_the_end(take, failure):
    """Also if something else fails meanwhile, which may follow from it."""
    runtime = Runtime(device="cpu", lag=LAG)
    with pytest.raises(FloatingPointError, match="not finite at step 1: ") as caught, runtime.watched():
        take(runtime, 0)
        take(runtime, 1, math.nan)
        if failure:
            raise failure
    assert isinstance(caught.value.__context__, failure or type(None))


def test_other_failures_are_told_as_they_are(take):
    runtime = Runtime(device="cpu", lag=LAG)
    with pytest.raises(KeyError), runtime.watched():
        take(runtime, 0)
        raise KeyError


def test_nothing_is_left_of_steps_that_ended(take):
    runtime = Runtime(device="cpu", lag=LAG)
    with pytest.raises(FloatingPointError), runtime.watched():
        for number in range(10):
            take(runtime, number, math.nan)
    with runtime.watched():
        pass
    take(runtime, 0, math.nan)  # taken outside, and forgotten
    with runtime.watched():
        pass


def test_a_signal_stops_within_the_lag(take, monkeypatch):
    runtime = Runtime(device="cpu", lag=LAG)
    with pytest.raises(signals.Stopped, match="stopped by SIGTERM at step 4"), runtime.watched():
        for number in range(20):
            if number == 4:
                monkeypatch.setattr(signals, "pending", lambda: 15)
            taken = number
            take(runtime, number)
    assert taken == 4 + LAG


def test_no_graph_is_kept_for_a_message(take):
    runtime = Runtime(device="cpu", lag=LAG)
    for number in range(LAG):
        take(runtime, number)
    assert len(runtime.step_monitor.unread) == LAG
    terms = [value for outcome in runtime.step_monitor.unread for value in tree_leaves(outcome.terms)]
    assert terms and not any(value.requires_grad for value in terms)


def test_a_cpu_has_no_lag():
    assert Runtime(device="cpu").step_monitor.lag == 0


def test_a_run_that_breaks_in_its_last_steps_saves_nothing(load, tmp_path, monkeypatch):
    """Iteration 7 of 8, so that only the end of the epoch can tell."""
    forward = TaskLoss.forward

    def broken(self, student, teachers, batch, progress):
        factor = math.inf if (progress.epoch, progress.iteration) == (1, 6) else 1.0
        return {name: factor * value for name, value in forward(self, student, teachers, batch, progress).items()}

    monkeypatch.setattr(TaskLoss, "forward", broken)
    monkeypatch.setattr(runner, "build_runtime", lambda cfg: Runtime(device="cpu", seed=cfg.SEED, lag=LAG))
    saved = []
    monkeypatch.setattr(loop, "refuse_not_finite", lambda state, when: saved.append(when))
    with pytest.raises(FloatingPointError, match="loss not finite at epoch 2 iteration 7, lr .*: ce inf"):
        runner.train(load("debug/base_debug", OUT_DIR=tmp_path, **SMALL))
    assert saved == ["after epoch 1"]
    assert load_state(tmp_path)["epoch"] == 1


def test_the_numbers_are_those_without_a_lag(std):
    """With a second objective after each step."""
    states = []
    for lag in (0, LAG):
        cfg = std(MINE__PERIOD="step", MINE__SAMPLES=4, OPTIM__CLIP_NORM=1.0, **SMALL)
        session, *_ = build_all(cfg, Runtime(device="cpu", seed=0, lag=lag))
        session.runtime.start_epoch(0)
        loop.train_epoch(session, 0)
        states.append(session.state_dict() | {"seconds": None})
    assert same(*states)


def lag_and_pause(folder):
    """Hook: a CPU lags, as a GPU does; each process notes its steps in a folder of its own, and takes time for each."""
    from processes import pause

    Runtime.__init__.__kwdefaults__["lag"] = LAG
    place = f"{folder}/steps{os.environ['RANK']}"
    os.mkdir(place)
    pause(place, 2, 1, seconds=0.2)


@pytest.mark.fault(30)
def test_a_signal_to_one_process_stops_both_after_as_many_steps(tmp_path):
    own = words(OUT_DIR=tmp_path / "run", **SMALL)
    own = ["--mode", "train", "--cfg", "configs/debug/base_debug.yaml", *own]
    both = two_ranks(tmp_path, own, hook="test_lag:lag_and_pause", arguments=(str(tmp_path),))
    wait_for(lambda: all((tmp_path / f"steps{rank}" / "paused").exists() for rank in range(2)))
    both[1].signal(signal.SIGTERM)
    ends = [one.end() for one in both]
    assert [code for code, *_ in ends] == [143, 143]
    places = [errors.partition("stopped by SIGTERM at ")[2].splitlines()[0] for _, _, errors in ends]
    assert places[0] == places[1]
    assert ends[1][2].startswith("run_net.py [process 1]: ")
    steps = [(tmp_path / f"steps{rank}" / "steps").read_text() for rank in range(2)]
    assert steps[0] == steps[1]
    asked = int(places[0].split()[3].rstrip(","))  # iteration, counted from 1
    assert steps[0].splitlines()[-1] == f"2 {asked - 1 + LAG}"
    assert load_state(tmp_path / "run")["epoch"] == 2


# ------------------------------------------------------------------------------------------------ nothing waits
@pytest.mark.parametrize(
    ("clip_norm", "mine"), [(0.0, {"MINE__SAMPLES": 0}), (1.0, {"MINE__SAMPLES": 4, "MINE__PERIOD": "step"})]
)
def test_a_training_step_reads_nothing_from_the_device(std, teacher, clip_norm, mine):
    """Two teachers, mixup, the average of the weights, with and without MINE."""
    cfg = std(
        DISTILLATION__TEACHERS="[resnet8, resnet8]",
        DISTILLATION__TEACHER_WEIGHTS=f"[{teacher}, {teacher}]",
        DISTILLATION__TYPE="soft",
        OPTIM__CLIP_NORM=clip_norm,
        **mine,
        **SMALL,
    )
    session, *_ = build_all(cfg, Runtime(device="cpu", lag=100))
    assert session.ema and session.task.mixing.mixup
    session.trainer.student.train()
    meters = Meters()
    batches = iter(session.train_loader)
    for iteration in range(3):
        loaded, progress = next(batches), Progress(0, iteration, 8, 3)
        with NoReads() as seen:
            batch = session.task.batch(session.runtime.to_device(loaded), progress)
            losses, extra = loop.train_step(session, batch, progress)
            meters.add(losses | session.trainer.monitors, len(loaded.index))
            meters.add(extra)
    assert bool(extra) == bool(mine["MINE__SAMPLES"])
    assert seen.operations["fused_adamw_"] == len(session.optimizer.param_groups)


OF_METHODS = {f"kd-{name}": ("kd", {"DISTILLATION__TYPE": name}) for name in LOGIT_LOSSES.entries}
OF_METHODS |= {f"feature-{name}": ("feature", name) for name in FEATURE_LOSSES.entries}
OF_METHODS |= {f"vkd-{name}": ("vkd", {"VKD__MAP": name}) for name in MAPS}
OF_METHODS |= {f"vkd-{name}": ("vkd", {"VKD__NORM": name}) for name in ("layer", "standardize", "whiten", "none")}
OF_METHODS |= {"locality": ("locality", {}), "ofa": ("ofa", {})}


@pytest.mark.parametrize("name", OF_METHODS)
def test_no_method_reads_from_the_device(load, name):
    """Losses, what they ask of the teacher, and the backward pass; what of VkD waits, its options say."""
    trainer, options = OF_METHODS[name]
    build = partial(make, teachers=1, **options) if trainer != "feature" else with_memory
    method = build(load, trainer if trainer != "feature" else options, "resnet8")
    data, progress = batch(), Progress(1, 0, 1, 2)
    asks = {"vkd-matrix_exp": "matrix_exp", "vkd-whiten": "eigh"}.get(name)
    waits = pytest.raises(AssertionError, match=f"{asks}.* reads from") if asks else nullcontext()
    with waits, NoReads():
        sum(method.losses(data, progress).values()).backward()


def test_mine_in_fp16_waits_for_nothing_where_its_optimizers_are_fused(std):
    """As on CUDA; one that is not fused asks the host whether gradients are finite."""
    cfg = std(PRECISION="fp16", MINE__SAMPLES=4, MINE__PERIOD="step", OPTIM__CLIP_NORM=1.0, **SMALL)
    session, *_ = build_all(cfg, Runtime(device="cpu", precision="fp16", lag=100))
    critic, (mine,) = torch.randn(4, 2, requires_grad=True), session.trainer.auxiliary.values()
    runtime, plain = session.runtime, mine.optimizers

    def step(optimizers):
        losses = {"mine": critic.square().mean() + sum(p.square().mean() for p in mine.critics.parameters())}
        with NoReads():
            runtime.step(losses, optimizers, average=True)

    assert [optimizer.param_groups[0]["fused"] for optimizer in plain] == [None, None]
    with pytest.raises(AssertionError, match="reads from the device"):
        step(plain)
    runtime.scaler = torch.amp.GradScaler("cpu")
    runtime.device = torch.device("cuda")
    step(runtime.place_optimizers(plain[:1]))


def test_auxiliary_optimizers_of_a_session_are_placed(std, monkeypatch):
    """By which they are fused on CUDA."""
    placed = []

    def place(runtime, optimizers):
        placed.append([fused(each) for each in optimizers])
        return placed[-1]

    monkeypatch.setattr(Runtime, "place_optimizers", place)
    session, *_ = build_all(std(MINE__SAMPLES=4, **SMALL), Runtime(device="cpu"))
    assert [term.optimizers for term in session.trainer.auxiliary.values()] == placed


def test_a_fused_optimizer_is_the_same_optimizer():
    plain = torch.optim.SGD([{"params": [nn.Parameter(torch.ones(3))], "lr": 0.3}], lr=0.1, maximize=True)
    own = fused(plain)
    assert own.param_groups[0] == plain.param_groups[0] | {"fused": True}
    assert own.param_groups[0]["params"][0] is plain.param_groups[0]["params"][0]
    assert own.state_dict().keys() == plain.state_dict().keys()
    Runtime(device="cpu").step({"loss": own.param_groups[0]["params"][0].sum()}, [own])
    torch.testing.assert_close(own.param_groups[0]["params"][0].detach(), torch.full((3,), 1.3))


@pytest.mark.parametrize(
    ("read", "told"),
    [
        (lambda value: value.cpu(), "Tensor.cpu copies to the host"),
        (lambda value: value.to("cpu"), "Tensor.to copies to the host"),
        (lambda value: value * float(value.detach().numpy()), "Tensor.numpy copies to the host"),
        (lambda value: value * max(value.detach().tolist(), 1), "Tensor.tolist copies to the host"),
        (lambda value: value * torch.tensor(2.0, device=value.device), "values of the host are not sent by `send`"),
        (lambda value: value.expand(2)[[1, 0]].sum(), "values of the host are not sent by `send`"),
    ],
)
def test_a_term_that_copies_to_the_host_or_from_it_is_found(load, monkeypatch, read, told):
    method, forward = make(load, "kd", teachers=1), TaskLoss.forward

    def reads(self, *args):
        return {name: read(value) for name, value in forward(self, *args).items()}

    monkeypatch.setattr(TaskLoss, "forward", reads)
    with pytest.raises(AssertionError, match=told), NoReads():
        sum(method.losses(batch(), Progress(1, 0, 1, 2)).values()).backward()


def test_a_read_is_found():
    """The test above can fail."""
    with pytest.raises(AssertionError, match="reads from the device"), NoReads():
        float(torch.ones(1) + 1)
    with pytest.raises(AssertionError, match="a mask is read"), NoReads():
        torch.ones(3)[torch.ones(3) > 0]


def test_the_average_moves_in_a_few_operations(std):
    """Not one for each of its parameters."""
    session, *_ = build_all(std(**SMALL), build_runtime(std()))
    with NoReads() as seen:
        session.ema.update(session.trainer.student, step=1)
    count = len(list(session.trainer.student.parameters()))
    assert seen.operations.total() < 10 < count, seen.operations


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "momentum"])
def test_optimizers_of_torch_are_fused(name):
    assert create_optimizer(nn.Linear(2, 2), name=name, lr=0.1).param_groups[0]["fused"]


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_training_step_on_cuda_waits_for_nothing(std, precision):
    cfg = std(PRECISION=precision, DEVICE="cuda", MINE__SAMPLES=8, MINE__PERIOD="step", OPTIM__CLIP_NORM=1.0)
    session, *_ = build_all(cfg, build_runtime(cfg))
    batches = [session.runtime.to_device(loaded) for loaded in session.train_loader]
    session.trainer.student.train()
    with session.runtime.watched():
        for iteration, loaded in enumerate(batches):
            strict = 2 <= iteration < session.runtime.step_monitor.lag // 2
            torch.cuda.set_sync_debug_mode("error" if strict else "default")
            progress = Progress(0, iteration, 11, 3)
            loop.train_step(session, session.task.batch(loaded, progress), progress)
        torch.cuda.set_sync_debug_mode("default")  # what ends the block waits
