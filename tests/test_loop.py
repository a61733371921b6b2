"""The loop hands every step what the options ask for: rate, order, mixing, precision, clipping, average, lines."""

import math
from types import SimpleNamespace

import pytest
import torch
from records import SMALL

from pycls_std import config, runner
from pycls_std.builders.training import build_all, build_runtime, parts_of_batch
from pycls_std.core.structures import World
from pycls_std.engine import loop
from pycls_std.engine.checkpoint import refuse_not_finite, tensors
from pycls_std.measure.operations import Operations

PLAIN = {"AUG__REPEATS": 1, "AUG__RAND_AUGMENT": "", "AUG__ERASING": 0, "AUG__CROP": "none"} | SMALL
STEPS = 8  # of an epoch


@pytest.fixture
def session(load):
    """Return session(**overrides): the debug baseline, ready to train; its trainer keeps what each step was given."""

    def build(**overrides):
        cfg = load("debug/base_debug", **(PLAIN | overrides))
        made, *_ = build_all(cfg, build_runtime(cfg))
        made.seen = []
        losses = made.trainer.losses

        def watched(batch, teachers, progress):
            made.seen.append((batch, progress, made.optimizer.param_groups[0]["lr"]))
            return losses(batch, teachers, progress)

        made.trainer.losses = watched
        return made

    return build


@pytest.mark.defect(10)
def test_every_step_has_the_rate_of_its_progress(session):
    made = session(OPTIM__MAX_EPOCH=4)
    for epoch in (0, 2):
        loop.train_epoch(made, epoch)
    rates = [rate for _, _, rate in made.seen]
    assert rates == [made.schedule(progress.fraction) for _, progress, _ in made.seen]
    assert len(set(rates)) == len(rates) == 2 * STEPS
    assert [progress.step for _, progress, _ in made.seen] == [*range(STEPS), *range(2 * STEPS, 3 * STEPS)]


def test_every_epoch_has_its_own_order(session):
    made = session(AUG__MIXUP=0, AUG__CUTMIX=0)
    for epoch in (0, 1, 1):
        loop.train_epoch(made, epoch)
    first, second, again = (
        torch.cat([b.images for b, _, _ in made.seen[i : i + STEPS]]) for i in (0, STEPS, 2 * STEPS)
    )
    assert torch.equal(second, again)
    assert not torch.equal(first, second)


def test_what_is_trained_on_is_what_was_mixed(session):
    made = session()
    mixed = []
    mixing = made.task.mixing
    made.task.mixing = lambda *words: mixed.append(mixing(*words)) or mixed[-1]
    loop.train_epoch(made, 0)
    assert [batch for batch, _, _ in made.seen] == mixed and len(mixed) == STEPS
    assert all(float(batch.targets.max()) < 1 for batch in mixed)
    assert not any(torch.equal(batch.images, batch.loaded.images) for batch in mixed)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_forward_passes_run_in_the_precision_asked_for(session, precision):
    made = session(PRECISION=precision)
    kinds = set()
    made.trainer.student.register_forward_hook(lambda module, inputs, output: kinds.add(output.heads["cls"].dtype))
    loop.train_epoch(made, 0)
    loop.evaluate_all(made, "")
    assert kinds == {{"fp32": torch.float32, "bf16": torch.bfloat16}[precision]}


def parameters(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_steps_are_clipped_to_the_norm_asked_for(session):
    made = session(OPTIM__NAME="momentum", OPTIM__MOMENTUM=0, OPTIM__WEIGHT_DECAY=0, OPTIM__CLIP_NORM=0.001)
    places = [parameters(made.trainer.student)]
    made.optimizer.register_step_post_hook(lambda *_: places.append(parameters(made.trainer.student)))
    loop.train_epoch(made, 1)
    steps = [float((after - before).norm()) for before, after in zip(places, places[1:], strict=False)]
    rates = [rate for _, _, rate in made.seen]
    assert steps == pytest.approx([0.001 * rate for rate in rates], rel=0.05)  # of differences of fp32 weights


def by_hand(made, decays, epochs):
    """The average of a session's weights after some epochs, by decays(n) in step n, counted from 0; and the steps."""
    average, places = parameters(made.trainer.student), []
    made.optimizer.register_step_post_hook(lambda *_: places.append(parameters(made.trainer.student)))
    for epoch in range(epochs):
        loop.train_epoch(made, epoch)
    for number, place in enumerate(places):
        decay = decays(number)
        average = decay * average + (1 - decay) * place
    return average, places


@pytest.mark.defect(9)
def test_average_in_closed_form(session):
    made = session(TRAIN__EMA_DECAY=0.9, TRAIN__EMA_WARMUP="false")
    expected, _ = by_hand(made, lambda number: 0.9, epochs=1)
    torch.testing.assert_close(parameters(made.ema.module), expected, rtol=1e-5, atol=1e-6)
    assert session(TRAIN__EMA_DECAY=0).ema is None


def test_average_that_starts_short_in_closed_form(session):
    """timm's warm-up: the decay in step n, counted from 0 over the run, is 1 - (1 + n)^(-2/3), at most EMA_DECAY."""
    made = session(TRAIN__EMA_DECAY=0.8, TRAIN__EMA_WARMUP="true", OPTIM__MAX_EPOCH=2, OPTIM__WARMUP_EPOCHS=0)
    expected, places = by_hand(made, lambda number: min(0.8, 1 - (1 + number) ** (-2 / 3)), epochs=2)
    assert len(places) == 2 * STEPS > (1 - 0.8) ** -1.5 > STEPS, "both parts are seen, in both epochs"
    torch.testing.assert_close(parameters(made.ema.module), expected, rtol=1e-5, atol=1e-6)
    assert float((expected - places[-1]).abs().max()) > 1e-3, "the average is not the weights"


@pytest.mark.parametrize(("period", "lines"), [(0, 0), (3, 2), (STEPS, 1)])
def test_progress_lines(session, caplog, period, lines):
    made = session(LOG_PERIOD=period)
    loop.train_epoch(made, 0)
    assert sum("eta" in line for line in caplog.messages) == lines


@pytest.mark.parametrize(("better", "expected"), [("higher", [1, 3]), ("lower", [1, 2])])
def test_the_best_epoch_is_that_of_the_better_result(session, monkeypatch, better, expected):
    """Whichever direction is better in the task; an equal result is no better one."""
    made = session(OPTIM__MAX_EPOCH=4)
    made.task.scores = {"top1": {"label": "x", "better": better}}
    results = iter([40.0, 30.0, 50.0, 30.0])
    monkeypatch.setattr(loop, "evaluate_all", lambda session, when: {"test/top1": next(results)})
    monkeypatch.setattr(loop, "train_epoch", lambda session, epoch: {"train/loss": 1, "train/images_per_second": 1})
    best = []
    loop.fit(made, start_epoch=0, record=lambda done, values, is_best: best.append(done) if is_best else None)
    assert best == expected
    assert made.best == {"epoch": expected[-1], "top1": {"higher": 50.0, "lower": 30.0}[better]}


def test_the_best_epoch_is_chosen_on_what_is_held_out(session, monkeypatch):
    made = session(DATA__VAL_FRACTION=0.5, OPTIM__MAX_EPOCH=3, MODEL__ARGS__num_blocks=1)
    scripted = {"test": iter([90.0, 20, 30]), "val": iter([10.0, 50, 40])}
    score = loop.evaluate

    def scores(model, task, loader, runtime):
        found = score(model, task, loader, runtime)
        split = "val" if loader is made.val_loader else "test"
        if model is made.trainer.student:
            found["cls"]["top1"] = next(scripted[split])
        return found

    monkeypatch.setattr(loop, "evaluate", scores)
    told = []
    loop.fit(made, start_epoch=0, record=lambda done, values, best: told.append((done, best, values)))
    assert [(done, best) for done, best, _ in told] == [(1, True), (2, True), (3, False)]
    assert made.judge == "val" and made.best == {"epoch": 2, "top1": 50.0}
    assert [values["val/top1"] for *_, values in told] == [10, 50, 40]
    assert [values["test/top1"] for *_, values in told] == [90, 20, 30]


def test_the_seconds_of_an_epoch_have_all_but_its_own_record(session, monkeypatch, caplog):
    made, told = session(OPTIM__MAX_EPOCH=2), []
    clock = SimpleNamespace(now=100.0)

    def takes(seconds, values=None):
        clock.now += seconds
        return values

    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    ran = {"train/loss": 1, "train/images_per_second": 1}
    monkeypatch.setattr(loop, "train_epoch", lambda session, epoch: takes(1, ran))
    monkeypatch.setattr(loop, "evaluate_all", lambda session, when: takes(4, {"test/top1": 1.0}))
    loop.fit(made, start_epoch=0, record=lambda done, values, _: takes(20, told.append(values)))
    assert [values["run/epoch_seconds"] for values in told] == [5, 25]
    lines = [message for message in caplog.messages if message.startswith("epoch ")]
    assert [line.split("  ")[-1] for line in lines] == ["0:00:05", "0:00:25"]


@torch.no_grad()
def test_the_scores_of_what_is_held_out_are_those_of_its_images(session):
    made = session(DATA__VAL_FRACTION=0.5, MODEL__INIT="torch")  # logits that are not all alike
    values = loop.evaluate_all(made, "")
    images, labels = zip(*((loaded.images, loaded.targets) for loaded in made.val_loader), strict=True)
    logits, labels = made.trainer.student.eval()(torch.cat(images)).heads["cls"], torch.cat(labels)
    assert len(labels) == 718
    assert values["val/top1"] == pytest.approx(100 * float((logits.argmax(1) == labels).float().mean()))
    assert values["val/loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-5)
    assert session().judge == "test" and "val/top1" not in loop.evaluate_all(session(), "")


def test_of_several_processes_the_first_alone_shows_its_progress(session, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    for rank in (0, 1):
        made = session(LOG_PERIOD=1)
        monkeypatch.setattr(made.runtime.world, "rank", rank)
        loop.train_epoch(made, 0)
        assert ("epoch 1/" in capsys.readouterr().err) == (rank == 0)


# ------------------------------------------------------------------------------------------------- parts of a batch
@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_parts_of_a_batch_are_the_batch(session, clip):
    """With mixing, in momentum SGD, without batch norm: weights, average and what is logged, within rounding."""
    words = {"OPTIM__NAME": "momentum", "OPTIM__BASE_LR": 0.05, "OPTIM__CLIP_NORM": clip, "TRAIN__EMA_DECAY": 0.9}
    whole, parts = (session(**words, TRAIN__ACCUMULATE=count) for count in (1, 4))
    logged = [loop.train_epoch(made, 0) for made in (whole, parts)]
    assert [len(made.seen) for made in (whole, parts)] == [STEPS, 4 * STEPS]
    assert [rate for *_, rate in whole.seen] == [rate for *_, rate in parts.seen[::4]]
    for first, second in ((whole.trainer.student, parts.trainer.student), (whole.ema.module, parts.ema.module)):
        torch.testing.assert_close(parameters(first), parameters(second), rtol=1e-4, atol=1e-6)
    assert logged[0].keys() == logged[1].keys()
    for tag in ("train/ce", "train/loss", "train/lr"):
        assert logged[0][tag] == pytest.approx(logged[1][tag], rel=1e-5)
    images = torch.cat([batch.images for batch, *_ in parts.seen])
    assert torch.equal(images, torch.cat([batch.images for batch, *_ in whole.seen]))


def test_teachers_and_mine_are_asked_of_the_whole_batch(std):
    """STD with MINE: a teacher says of a part what it said of the batch, and the samples of MINE stay what they are."""
    found = []
    for count in (1, 2):
        cfg = std(TRAIN__ACCUMULATE=count, OPTIM__NAME="momentum", AUG__REPEATS=1, **SMALL)
        made, *_ = build_all(cfg, build_runtime(cfg))
        made.runtime.start_epoch(0)
        found.append((loop.train_epoch(made, 0), parameters(made.trainer.student)))
    (first, own), (second, other) = found
    assert first.keys() == second.keys() and "train/mine" in first
    for tag in first.keys() - {"train/images_per_second"}:
        assert first[tag] == pytest.approx(second[tag], rel=1e-4, abs=1e-5), tag
    torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-5)


def test_batch_norms_see_each_part(session):
    made = session(MODEL__NAME="resnet8", MODEL__ARGS="null", MODEL__DROP_PATH=0, TRAIN__ACCUMULATE=2)
    loop.train_epoch(made, 0)
    norms = [m for m in made.trainer.student.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {int(norm.num_batches_tracked) for norm in norms} == {2 * STEPS}


def test_parts_that_the_share_of_a_process_cannot_have(load):
    """Though the batch of all could be parted so."""
    cfg, world = load("debug/base_debug", TRAIN__BATCH_SIZE=16, TRAIN__ACCUMULATE=16), World()
    assert parts_of_batch(cfg, world) == 16
    world.size = 2
    line = "TRAIN.BATCH_SIZE is 16, 8 for each of 2 processes, TRAIN.ACCUMULATE 16 does not divide that"
    with pytest.raises(ValueError, match=line):
        parts_of_batch(cfg, world)


def test_a_loss_of_a_part_that_is_not_finite_stops_the_run_before_a_parameter_changes(session):
    made = session(TRAIN__ACCUMULATE=4)
    before, losses, calls = parameters(made.trainer.student), made.trainer.losses, []

    def broken(*words):
        calls.append(0)
        return {name: value * (float("nan") if len(calls) == 3 else 1) for name, value in losses(*words).items()}

    made.trainer.losses = broken
    with pytest.raises(FloatingPointError, match="loss not finite at epoch 1 iteration 1"):
        loop.train_epoch(made, 0)
    assert len(calls) == 4 and torch.equal(parameters(made.trainer.student), before)


# ------------------------------------------------------------------------------------------------------------ freezing
@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_what_is_frozen_stays_and_is_in_no_optimizer(session, decay):
    frozen = "['blocks.[01]', stem, norm.bias]"
    made = session(MODEL__FREEZE=frozen, OPTIM__WEIGHT_DECAY=decay, OPTIM__WARMUP_EPOCHS=0)
    named = dict(made.trainer.student.backbone.named_parameters())
    still = {n for n in named if n.startswith(("blocks.0.", "blocks.1.", "stem.")) or n == "norm.bias"}
    assert {n for n, p in named.items() if not p.requires_grad} == still
    held = {id(p) for group in made.optimizer.param_groups for p in group["params"]}
    assert {n for n, p in named.items() if id(p) in held} == named.keys() - still
    before = {n: p.detach().clone() for n, p in named.items()}
    loop.train_epoch(made, 0)
    assert {n for n, p in named.items() if torch.equal(p, before[n])} == still


def test_mine_steps_on_nothing_that_is_frozen(std):
    cfg = std(MODEL__FREEZE="[blocks.0]")
    made, *_ = build_all(cfg, build_runtime(cfg))
    held = [p for o in made.trainer.auxiliary_optimizers for group in o.param_groups for p in group["params"]]
    assert held and all(p.requires_grad for p in held)


@pytest.mark.parametrize(
    ("patterns", "line"),
    [
        ("[head, block.0]", r"MODEL.FREEZE has 'block.0', which no parameter fits; parts of the backbone: stem, bl"),
        ("['*']", r"MODEL.FREEZE \['\*'\] leaves no parameter of the backbone to train"),
    ],
)
def test_names_that_freeze_nothing_or_all(load, patterns, line):
    with pytest.raises(config.ConfigError, match=line):
        runner.run("info", load("debug/base_debug", MODEL__FREEZE=patterns))


def test_the_state_is_checked_in_a_few_operations(std):
    """Not some for each of its tensors: weights, average, optimizer, critics."""
    made, *_ = build_all(std(MINE__SAMPLES=4, **SMALL), build_runtime(std()))
    made.runtime.start_epoch(0)
    loop.train_epoch(made, 0)
    count = len(tensors(made.state_dict()))
    with Operations() as seen:
        refuse_not_finite(made.state_dict(), "")
    assert seen.operations.total() < 20 < 100 < count


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_one_number_that_is_not_finite_is_found_and_named(value, kind):
    """Beside the largest finite ones, whose squares are none, whole numbers, and nothing at all."""
    state = {"large": torch.full((3,), torch.finfo(kind).max, dtype=kind), "whole": torch.tensor(3)}
    state |= {"none": torch.zeros(0), "broken": torch.zeros(2, 3, dtype=kind)}
    refuse_not_finite({"student": state}, "")
    state["broken"][1, 2] = value
    with pytest.raises(FloatingPointError, match="^not finite after epoch 1: student.broken$"):
        refuse_not_finite({"student": state}, "after epoch 1")
