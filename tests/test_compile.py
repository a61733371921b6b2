"""Compiled steps: the numbers of eager ones, what auto chooses, names, resumes, and a compiler that fails."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from methods import CAPTURES
from processes import two_ranks
from records import SMALL as SHORT
from records import assert_same_run, load_state
from records import words as in_words

from pycls_std import config, runner
from pycls_std.builders.teachers import optimize_teachers
from pycls_std.builders.training import build_all, build_described_trainer
from pycls_std.core.structures import Batch, Progress
from pycls_std.engine import loop
from pycls_std.engine.runtime import COMPILING_PAYS, Runtime
from pycls_std.models.student import Student
from pycls_std.run.identity import refuse_other_options
from pycls_std.teachers.outputs import LiveTeachers
from pycls_std.teachers.teacher import Request
from pycls_std.terms.base import Term
from pycls_std.terms.task import TaskLoss
from pycls_std.trainers.base import Trainer

# Traces forward and backward as inductor does, and then runs torch's own kernels: in seconds, where inductor needs one
# or two minutes for the smallest of these models.
TRACED = "aot_eager"


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Let no test see what another one compiled."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def values_of_steps(cfg, count, compiler=TRACED):
    """The losses, auxiliary losses and monitors of some training steps."""
    runtime = Runtime(device="cpu", precision=cfg.PRECISION, seed=cfg.SEED, compiler=compiler)
    session, *_ = build_all(cfg, runtime, fetch=False)
    optimize_teachers(cfg, session)
    runtime.start_epoch(0)
    session.trainer.student.train()
    found = []
    for iteration, loaded in zip(range(count), session.train_loader, strict=False):
        batch = session.task.batch(runtime.to_device(loaded), Progress(0, 0, 1, 1))
        losses, extra = loop.train_step(session, batch, Progress(0, iteration, 11, 3))
        found.append({name: value.detach() for name, value in (losses | extra | session.trainer.monitors).items()})
    return found


SMALL = {"MODEL__ARGS__num_blocks": 2}
LOCALITY = {"LOCALITY__WEIGHT": 0.1, "LOCALITY__STUDENT_TAPS": "[0, last]", "LOCALITY__TEACHER_TAPS": "[0, 1]"}
OPTIONS = {
    "baseline": SMALL,
    "std": SMALL
    | {"STD__TAPS": "[0, last]", "MINE__PERIOD": "step", "MINE__SAMPLES": 4}
    | {"DISTILLATION__TYPE": "soft", "OPTIM__CLIP_NORM": 1.0},
    "convolutions": {},
    "deit": {"MODEL__ARGS__pos_drop_rate": 0.0},
    "vkd": {"MODEL__ARGS__pos_drop_rate": 0.0, "VKD__NORM": "whiten"},
    "kd": SMALL | LOCALITY | {"DISTILLATION__TYPE": "decoupled", "KD__WARMUP_EPOCHS": 2},
}
TERMS = {
    "convolutions": {"top1"},  # the labels are unmixed
    "std": {"std", "mine", "teacher_weight/0_resnet8", "teacher_weight/1_resnet8"},
    "deit": {"kd", "teacher_weight/0_resnet8"},
    "kd": {"kd", "locality", "teacher_weight/0_resnet8"},
    "vkd": {"kd", "vkd", "teacher_weight/0_resnet8"},
}


@pytest.fixture
def options(method, std, load, teacher, tmp_path):
    """Return options(kind, **overrides) of a run of a kind; std has two teachers."""

    def build(kind, **overrides):
        overrides = SHORT | OPTIONS[kind] | overrides
        if kind == "convolutions":
            return load("debug/teacher_debug", **({"OUT_DIR": tmp_path / "run"} | overrides))
        if kind != "std":
            return method(kind, **overrides)
        two = {"DISTILLATION__TEACHERS": "[resnet8, resnet8]"}
        return std(**(two | {"DISTILLATION__TEACHER_WEIGHTS": f"[{teacher}, {teacher}]"} | overrides))

    return build


@pytest.mark.parametrize(
    ("kind", "precision"),
    [("std", "fp32"), ("std", "bf16"), ("convolutions", "bf16"), ("deit", "fp32"), ("kd", "bf16"), ("vkd", "fp32")],
)
def test_compiled_steps_are_those_of_eager_ones(options, kind, precision, monkeypatch):
    """Logits and features of teachers, who are compiled apart, two heads, batch norms, a weight that grows."""
    monkeypatch.setattr("pycls_std.engine.runtime.cpu_has_bf16", lambda: True)  # products as torch has them, in both
    eager, compiled = (
        values_of_steps(options(kind, PRECISION=precision, TRAIN__COMPILE=choice), 3) for choice in ("off", "on")
    )
    assert set(eager[0]) == {"ce"} | TERMS.get(kind, set())
    for before, after in zip(eager, compiled, strict=True):
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
    assert eager[0]["ce"] != eager[2]["ce"]


@pytest.mark.slow
def test_steps_of_inductor_are_those_of_eager_ones(options, teacher):
    """Weights after a step differ by rounding, and AdamW makes much of gradients near 0; so SGD."""
    words = {
        "DISTILLATION__TEACHERS": "[resnet8]",
        "DISTILLATION__TEACHER_WEIGHTS": f"[{teacher}]",
        "OPTIM__NAME": "momentum",
        "DISTILLATION__TYPE": "hard",
        "MODEL__ARGS__num_blocks": 1,
        "STD__TAPS": "[last]",
    }
    eager, compiled = (
        values_of_steps(options("std", TRAIN__COMPILE=choice, **words), 4, "inductor") for choice in ("off", "on")
    )
    for before, after in zip(eager, compiled, strict=True):
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


def counted(seen):
    """A compiler that only notes what it is given."""

    def compiler(graph, inputs):
        seen.append(graph)
        return graph.forward

    return compiler


@pytest.mark.parametrize(("kind", "graphs"), [("std", 2), ("kd", 2), ("vkd", 2), ("baseline", 1)])
def test_the_whole_forward_pass_is_a_graph_of_teachers_and_one_of_losses(options, kind, graphs):
    """Teachers without gradient and in a precision of their own, monitors that the terms keep: nothing breaks them."""
    seen = []
    values_of_steps(options(kind, PRECISION="bf16", TRAIN__COMPILE="on"), 3, counted(seen))
    assert len(seen) == graphs


def test_a_method_that_looks_at_the_progress_is_not_compiled_at_every_step(options, monkeypatch):
    seen, forward = [], TaskLoss.forward

    def fading(self, student, teachers, batch, progress):
        own = forward(self, student, teachers, batch, progress)
        return {name: value * (1 - progress.fraction) for name, value in own.items()}

    monkeypatch.setattr(TaskLoss, "forward", fading)
    compiled = values_of_steps(options("baseline", TRAIN__COMPILE="on"), 8, counted(seen))
    assert len(seen) <= 3
    for before, after in zip(values_of_steps(options("baseline"), 8), compiled, strict=True):
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("device", "choice", "iterations", "compiled"),
    [
        *(("cpu", "auto", 10**6, "off"), ("cpu", "off", 10**6, "off"), ("cpu", "on", 1, "on")),
        *(("cuda", "auto", COMPILING_PAYS - 1, "off"), ("cuda", "auto", COMPILING_PAYS, "on")),
        *(("cuda", "off", 10**6, "off"), ("cuda", "on", 1, "on"), ("cuda", "graphs", 1, "graphs")),
        *(("cuda", "autotune", 1, "autotune"), ("cpu", "autotune", 1, "autotune")),
    ],
)
def test_what_is_chosen_and_that_it_is_said(device, choice, iterations, compiled, caplog):
    runtime = Runtime(device="cpu")
    runtime.device = torch.device(device)
    trainer = SimpleNamespace(losses=lambda batch, teachers, progress: {})
    session = SimpleNamespace(trainer=trainer, teacher_outputs=LiveTeachers([], [Request()]))
    losses, ask = trainer.losses, session.teacher_outputs.ask
    runtime.compile(session, choice, iterations=iterations)
    assert runtime.compiled == compiled
    assert (trainer.losses is losses) == (session.teacher_outputs.ask == ask) == (compiled == "off")
    lines = [line for line in caplog.messages if "TRAIN.COMPILE" in line]
    assert [line.startswith(f"TRAIN.COMPILE {choice}: {compiled}") for line in lines] == [True] * (choice != "off")


def test_graphs_need_cuda(options):
    with pytest.raises(ValueError, match="TRAIN.COMPILE is graphs, which needs DEVICE cuda"):
        values_of_steps(options("baseline", TRAIN__COMPILE="graphs"), 1)


@pytest.mark.parametrize(
    ("trainer", "own", "told"),
    [
        ("kd", {"KD__WARMUP_EPOCHS": 2}, "KD.WARMUP_EPOCHS 2, whose weight changes every epoch"),
        ("kd", {"DISTILLATION__TYPE": "ctkd"}, "DISTILLATION.TYPE ctkd, whose weight changes every epoch"),
        ("feature", {"FEATURE__WARMUP_EPOCHS": 2}, "FEATURE.WARMUP_EPOCHS 2, whose weight changes every epoch"),
    ],
)
def test_graphs_that_would_be_recorded_anew_in_each_epoch_are_refused(load, trainer, own, told):
    cfg = load("debug/kd_debug", TRAINER=trainer, TRAIN__COMPILE="graphs", OPTIM__MAX_EPOCH=3, **own)
    with pytest.raises(ValueError, match=f"^TRAIN.COMPILE is graphs, which cannot hold {told}; TRAIN.COMPILE on can$"):
        build_described_trainer(cfg, 10)
    assert build_described_trainer(load("debug/kd_debug", TRAINER=trainer, TRAIN__COMPILE="graphs"), 10)


def test_what_graphs_return_is_copied(monkeypatch):
    """A replay writes where the one before it did."""
    memory = {"ce": torch.zeros(()), "weight": torch.zeros(())}

    class Replayed(Term):
        def forward(self, student, teachers, batch, progress):
            memory["ce"] += 1
            memory["weight"] += 10
            self.monitors = {"weight": memory["weight"]}
            return {"ce": memory["ce"]}

    asked, begun = {}, []
    monkeypatch.setattr(torch, "compile", lambda losses, **options: asked.update(options) or losses)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(True))
    runtime = Runtime(device="cpu")
    runtime.device = torch.device("cuda")
    parts = {"prediction": "cls", "prediction_heads": {"cls": {"cls"}}}
    trainer = Trainer(Student(torch.nn.Identity()), {"task": Replayed(1.0)}, {}, torch.nn.ModuleList(), **parts)
    session = SimpleNamespace(trainer=trainer, teacher_outputs=LiveTeachers([], []))
    runtime.compile(session, "graphs", iterations=1)
    assert asked == {"backend": "inductor", "mode": "reduce-overhead"}
    kept = []
    for _ in range(2):
        runtime.start_step()
        batch = Batch(torch.zeros(1, 10), torch.zeros(1), None)
        kept.append((trainer.losses(batch, [], None)["ce"], trainer.monitors["weight"]))
    assert [(float(loss), float(weight)) for loss, weight in kept] == [(1, 10), (2, 20)]
    assert len(begun) == 2


@pytest.mark.parametrize(
    ("choice", "mode"), [("on", None), ("autotune", "max-autotune-no-cudagraphs"), ("graphs", "reduce-overhead")]
)
def test_a_choice_is_a_mode_of_the_compiler_for_teachers_and_losses(choice, mode, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda forward, **options: asked.append(options) or forward)
    runtime = Runtime(device="cpu")
    runtime.device = torch.device("cuda")
    trainer = SimpleNamespace(losses=lambda batch, teachers, progress: {})
    runtime.compile(
        SimpleNamespace(trainer=trainer, teacher_outputs=LiveTeachers([], [Request()])), choice, iterations=1
    )
    assert [(options["backend"], options.get("mode")) for options in asked] == [("inductor", mode)] * 2


def test_autotuning_is_part_of_what_a_run_is(load):
    before, now = (config.dump(load("debug/base_debug", TRAIN__COMPILE=choice)) for choice in ("on", "autotune"))
    with pytest.raises(ValueError, match="TRAIN.COMPILE was 'on', is 'autotune'"):
        refuse_other_options({"config": before, "processes": 1}, now, 1, Path("last.pt"))


@pytest.mark.parametrize("compiled", ["off", "on", "graphs"])
def test_no_gradient_is_left_where_the_next_replay_writes(compiled):
    """With graphs they lie in the graphs' memory; elsewhere nothing needs them to go."""
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    runtime = Runtime(device="cpu")
    runtime.compiled = compiled
    runtime.step({"ce": sum(w.sum() for w in weights)}, [torch.optim.SGD([w], lr=0.5) for w in weights])
    assert [w.tolist() for w in weights] == [[0.5, 0.5]] * 2
    assert [w.grad is None for w in weights] == [compiled == "graphs"] * 2


def test_a_compiler_that_fails_is_told_in_a_line(options):
    def fails(graph, inputs):
        raise KeyError("no such kernel\nand a page of it")

    with pytest.raises(RuntimeError, match="^the compiler failed, TRAIN.COMPILE=off does without it: .*") as caught:
        values_of_steps(options("baseline", TRAIN__COMPILE="on"), 1, fails)
    assert "\n" not in str(caught.value)
    assert "no such kernel" in str(caught.value)


def test_errors_of_the_step_itself_stay_as_they_are(options, monkeypatch):
    def broken(self, student, teachers, batch, progress):
        raise ValueError("a method's own")

    monkeypatch.setattr(TaskLoss, "forward", broken)
    with pytest.raises(ValueError, match="^a method's own$"):
        values_of_steps(options("baseline", TRAIN__COMPILE="on"), 1)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("kind", ["baseline", "std"])
def test_a_compiled_run_is_saved_and_continued_as_any_other(options, tmp_path, monkeypatch, kind):
    """Interrupted in epoch 2; its checkpoints have the names of an eager run's."""
    compiled = lambda cfg: Runtime(device="cpu", seed=cfg.SEED, compiler=CAPTURES)  # noqa: E731
    monkeypatch.setattr(runner, "build_runtime", compiled)
    words = {"TRAIN__COMPILE": "on", "TRAIN__EMA_DECAY": 0.9, "MODEL__DROP_PATH": 0.1, "OPTIM__MAX_EPOCH": 2}
    runner.train(options(kind, **words, OUT_DIR=tmp_path / "whole"))
    step = loop.train_step

    def interrupt(session, batch, progress):
        if (progress.epoch, progress.iteration) == (1, 5):
            raise Interrupted
        return step(session, batch, progress)

    broken = options(kind, **words, OUT_DIR=tmp_path / "broken")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(loop, "train_step", interrupt)
        runner.train(broken)
    torch._dynamo.reset()  # another process has nothing compiled yet
    runner.train(broken)
    assert_same_run(tmp_path / "whole", tmp_path / "broken")
    state = load_state(tmp_path / "whole")
    eager, *_ = build_all(options(kind, **words | {"TRAIN__COMPILE": "off"}), Runtime(device="cpu"))
    assert state["student"].keys() == eager.trainer.student.state_dict().keys()
    assert state["ema"].keys() == eager.ema.module.state_dict().keys()


def test_compiling_is_part_of_what_a_run_is(options, tmp_path):
    """It changes the last digits."""
    runner.train(options("baseline", OPTIM__MAX_EPOCH=1))
    with pytest.raises(ValueError, match="TRAIN.COMPILE was 'auto', is 'on'"):
        runner.train(options("baseline", OPTIM__MAX_EPOCH=2, TRAIN__COMPILE="on"))


def test_what_auto_chose_is_kept_by_an_extended_run(options, tmp_path, monkeypatch):
    """As on CUDA, where the longer run would be compiled; the first one was not."""
    words = {"TRAIN__COMPILE": "auto"}
    runner.train(options("baseline", **words, OPTIM__MAX_EPOCH=1))
    assert load_state(tmp_path / "run")["compiled"] == "off"
    chosen = []
    build = runner.build_all
    monkeypatch.setattr(
        runner, "build_all", lambda cfg, *a, **o: chosen.append(cfg.TRAIN.COMPILE) or build(cfg, *a, **o)
    )
    as_begun, cuda = runner.as_begun, SimpleNamespace(device=torch.device("cuda"))
    monkeypatch.setattr(runner, "as_begun", lambda cfg, saved, runtime: as_begun(cfg, saved, cuda))
    runner.train(options("baseline", **words, OPTIM__MAX_EPOCH=2))
    assert chosen == ["off"]
    assert load_state(tmp_path / "run")["epoch"] == 2
    assert "COMPILE: auto\n" in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("choice", "device", "saved", "found"),
    [
        ("auto", "cuda", {"compiled": "on"}, "on"),
        ("auto", "cpu", {"compiled": "on"}, "auto"),  # where it is off
        ("auto", "cuda", {}, "auto"),  # of a checkpoint that does not say
        ("auto", "cuda", None, "auto"),
        ("on", "cuda", {"compiled": "off"}, "on"),  # which is refused, as another option
    ],
)
def test_what_auto_chose_is_kept_by_a_run_that_goes_on(load, choice, device, saved, found):
    cfg = load("debug/base_debug", TRAIN__COMPILE=choice)
    runtime = SimpleNamespace(device=torch.device(device))
    assert found == runner.as_begun(cfg, saved, runtime).TRAIN.COMPILE
    assert choice == cfg.TRAIN.COMPILE


def trace():
    """Hook: compile by what takes seconds."""
    Runtime.__init__.__kwdefaults__["compiler"] = TRACED


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["baseline", "std"])
def test_two_processes_compile_what_they_share(teacher, tmp_path, kind):
    """The wrapped student, whose backward pass averages the gradients, is within what is compiled."""
    words = ["--mode", "train", "--cfg", f"configs/debug/{'base' if kind == 'baseline' else 'std'}_debug.yaml"]
    words += ["OPTIM.MAX_EPOCH=1", "OPTIM.NAME=momentum", "OPTIM.BASE_LR=0.1", *in_words(**SHORT, **SMALL)]
    words += [f"DISTILLATION.TEACHER_WEIGHTS=[{teacher}]", "STD.TAPS=[0, last]", "MINE.SAMPLES=4"] * (kind == "std")
    states = []
    for choice in ("off", "on"):
        running = two_ranks(
            tmp_path, [*words, f"TRAIN.COMPILE={choice}", f"OUT_DIR={tmp_path / choice}"], hook="test_compile:trace"
        )
        ends = [one.end() for one in running]  # with warnings of torch's
        assert [code for code, *_ in ends] == [0, 0], ends
        states.append(load_state(tmp_path / choice)["student"])
    eager, compiled = states
    assert eager.keys() == compiled.keys()
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-5, atol=1e-5, msg=name)
