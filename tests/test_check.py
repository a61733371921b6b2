"""--mode check finds what would spoil a run, and names it."""

import os
import re
from itertools import islice
from pathlib import Path

import pytest
import torch
from image_folders import write_images
from processes import Running, free_port, wait_for

from pycls_std import config, runner
from pycls_std.builders.data import build_data
from pycls_std.check import processes
from pycls_std.check import trial as trials
from pycls_std.core.registry import TRAINERS
from pycls_std.engine import distributed, files, loop
from pycls_std.terms.std import STD
from pycls_std.terms.task import TaskLoss
from pycls_std.trainers.base import Trainer

CHECKS = ["data", "models", "teachers", "terms", "parameters", "steps", "checkpoint", "processes"]


@pytest.fixture
def check(caplog, monkeypatch):
    """Return check(cfg, processes=False): {check: (ok, text)} of its lines; the two processes only where asked for."""

    def run(cfg, processes=False):
        if not processes:
            monkeypatch.setattr(trials, "spread_over_two", lambda *_: None)
        caplog.clear()
        try:
            runner.check(cfg)
            failed = 0
        except ValueError as error:
            failed = int(str(error).split()[0])
            assert str(error) == f"{failed} of 8 checks failed"
        found = {}
        for line in caplog.messages:
            verdict, _, rest = line.partition(" ")
            if verdict in ("ok", "FAIL"):
                name, _, text = rest.strip().partition(" ")
                found[name] = (verdict == "ok", text.strip())
        assert sum(not ok for ok, _ in found.values()) == failed
        return found

    return run


def test_a_run_without_fault_passes_all(check, std, tmp_path):
    """Batch norm, dropout and MINE in use, two real processes."""
    found = check(std(MODEL__DROP_PATH=0.1, DATA__NUM_WORKERS=2), processes=True)
    assert list(found) == CHECKS
    assert all(ok for ok, _ in found.values()), found
    assert found["data"][1] == "digits, 10 classes, 1437 training and 360 test images, 100 and 200 of them read"
    assert found["terms"][1] == "ce, std, mine"
    assert re.search(
        r"continued; after 3 steps all \d+ tensors of the state are the same, bit for bit$", found["checkpoint"][1]
    )
    assert found["processes"][1] == "two agree after 3 steps"
    assert list(tmp_path.iterdir()) == []


def test_teachers_are_judged_on_the_images_that_the_run_judges_them_on(check, std):
    """What is held out, where something is."""
    found = check(std(DATA__VAL_FRACTION=0.2))
    split = "1150 training, 287 held-out and 360 test images, 100 and 200 of them read"
    assert found["data"] == (True, f"digits, 10 classes, {split}")
    assert found["teachers"][0] and "on 200 of 287 held-out images" in found["teachers"][1]


@pytest.mark.parametrize("kind", sorted(set(TRAINERS.entries) - {"std"}))
def test_every_method_passes(check, method, kind):
    found = check(
        method(kind), processes=kind in ("deit", "feature", "locality", "ofa")
    )  # STD is tried in two processes above
    assert all(ok for ok, _ in found.values()), found


def test_a_folder_that_cannot_be_written_to(check, std):
    found = check(std(DISTILLATION__CACHE="/proc/nope"))
    assert [name for name, (ok, _) in found.items() if not ok] == ["teachers"]
    assert found["teachers"][1].startswith("/proc/nope could not be written")


def test_what_the_run_refuses_once_it_has_its_data_is_found(check, std, tmp_path, monkeypatch):
    """And the run refuses it before its teachers are scored, on the whole test split."""
    monkeypatch.setattr("pycls_std.runner._score_teachers", lambda *_: pytest.fail("the teachers were scored"))
    words = {"DISTILLATION__CACHE": tmp_path / "kept"}
    cfg = std(DISTILLATION__CACHE_TOP=10, MINE__SAMPLES=470, **words)
    found = check(cfg)
    top = "DISTILLATION.CACHE_TOP is 10, expected 0 (all) to 9: there are 10 classes"
    epoch = "MINE.SAMPLES is 470, an epoch has 469 images"
    assert {name: text for name, (ok, text) in found.items() if not ok} == {"teachers": top, "steps": epoch}
    with pytest.raises(ValueError, match=epoch):
        runner.train(cfg)
    monkeypatch.setattr("pycls_std.datasets.memory.store.LIMIT", 1000)
    cfg = std(**words)
    text = f"DISTILLATION.CACHE is {tmp_path}/kept, the images are not in memory (DATA.LOADER)"
    assert check(cfg)["teachers"] == (False, text)
    with pytest.raises(ValueError, match="the images are not in memory"):
        runner.train(cfg)


def test_an_auxiliary_term_without_effect(check, std):
    found = check(std(MINE__CRITIC_LR=0, MINE__STUDENT_LR=0))
    assert found["terms"] == (False, "the term mine changes no parameter (MINE.CRITIC_LR 0.0)")
    assert [name for name, (ok, _) in found.items() if not ok] == ["terms"]


def test_a_term_that_is_constant(check, std, monkeypatch):
    """One that forgets the graph, and one that a new method adds."""
    forward = STD.forward

    def without_graph(self, *args):
        return {name: value.detach() for name, value in forward(self, *args).items()} | {"extra": torch.tensor(1.0)}

    monkeypatch.setattr(STD, "forward", without_graph)
    text = "the term std changes no parameter (STD.WEIGHT 0.5); the term extra changes no parameter (STD.WEIGHT 0.5)"
    assert check(std())["terms"] == (False, text)


def test_a_term_that_returns_no_dictionary(check, load, monkeypatch):
    """A tensor of a value for each image, as a newcomer's own term may return at first."""
    monkeypatch.setattr(TaskLoss, "forward", lambda self, student, *_: student.heads["cls"].square().mean(dim=1))
    text = "the term task (pycls_std.terms.task.TaskLoss) returns Tensor of shape (12,)"
    found = check(load("debug/base_debug"))["terms"]
    assert found == (False, f"{text}, expected a dictionary of scalars by name, tensors of shape ()")


def test_a_parameter_without_gradient(check, load, monkeypatch):
    make = TaskLoss.__init__

    def with_idle_layer(self, *args):
        make(self, *args)
        self.idle = torch.nn.Linear(2, 2)

    monkeypatch.setattr(TaskLoss, "__init__", with_idle_layer)
    assert check(load("debug/base_debug"))["parameters"] == (
        False,
        "2 parameters are in no loss: terms.task.idle.weight, terms.task.idle.bias",
    )


def test_a_teacher_below_its_floor(check, std, teacher, tmp_path):
    state = torch.load(teacher, weights_only=True)
    state["student"]["backbone.fc.weight"].zero_()
    torch.save(state, tmp_path / "untrained_head.pt")
    ok, text = check(std(DISTILLATION__TEACHER_WEIGHTS=f"[{tmp_path}/untrained_head.pt]"))["teachers"]
    assert not ok
    assert text.startswith("teacher 0 resnet8 top-1 ")
    assert text.endswith(" on 200 of 360 test images, below DISTILLATION.TEACHER_MIN_ACC 32.50")


def test_a_teacher_that_moves(check, std, monkeypatch):
    """As in the reference whose trainer puts the teacher in training mode."""
    losses = Trainer.losses

    def waking(self, *args):
        for module in self.teachers.modules():
            module.training = True
        return losses(self, *args)

    monkeypatch.setattr(Trainer, "losses", waking)
    ok, text = check(std(DISTILLATION__TEACHER_FOLD=False))["steps"]  # a folded one has nothing that could wake
    assert not ok
    assert "the teachers changed while they taught: 0.backbone.bn1.running_mean" in text


def test_a_state_that_is_not_loaded(check, std, monkeypatch):
    monkeypatch.setattr(Trainer, "load_state_dict", lambda self, state: None)
    ok, text = check(std(MINE__PERIOD="step", MINE__SAMPLES=8, MINE__MOMENTUM=0.9))["checkpoint"]
    assert not ok
    assert "of a loaded run differs by" in text


def test_a_state_that_a_new_method_forgets_to_save(check, load, monkeypatch):
    """It weighs its loss by how often it was called: a run that continues would start again at 1."""
    forward = TaskLoss.forward

    def counting(self, *args):
        self.calls = getattr(self, "calls", 0) + 1
        return {name: self.calls * value for name, value in forward(self, *args).items()}

    monkeypatch.setattr(TaskLoss, "forward", counting)
    ok, text = check(load("debug/base_debug", OPTIM__NAME="momentum", OPTIM__CLIP_NORM=0))["checkpoint"]
    assert not ok
    assert text.startswith("student.backbone.") and "of a loaded run differs by" in text


@pytest.mark.parametrize("exact", [True, False])
def test_what_is_compared_is_said_and_how_far_it_may_be_apart(check, load, monkeypatch, exact):
    """On CUDA, unless its kernels are deterministic, up to 1e-2."""
    loads = loop.Session.load_state_dict

    def load_nearly(self, state, source):
        loads(self, state, source)
        self.runtime.exact = exact
        with torch.no_grad():
            self.trainer.student.backbone.head.bias += 1e-3

    monkeypatch.setattr(loop.Session, "load_state_dict", load_nearly)
    ok, text = check(load("debug/base_debug", OPTIM__NAME="momentum", OPTIM__CLIP_NORM=0))["checkpoint"]
    assert ok is not exact
    wanted = (
        r"^student.backbone.* of a loaded run differs by .* after 3 steps, at most 0 is allowed$"
        if exact
        else r"^.* MiB, saved, loaded and continued; after 3 steps all \d+ tensors of the state are within 0.01, the "
        r"largest difference 0.00\d+ \(CUDA.DETERMINISTIC\)$"
    )
    assert re.match(wanted, text), text


def test_no_room_for_checkpoints(check, std, monkeypatch):
    monkeypatch.setattr(trials.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 5 << 20}))
    ok, text = check(std())["checkpoint"]
    assert not ok
    assert "has 5 MiB left, checkpoints need " in text


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("base drifts", "objective.student.backbone.stem.proj.weight differs by "),
        ("mine", "they agree"),
        ("mine drifts", "objective.student.backbone.stem.proj.weight differs by "),
    ],
)
def test_processes_that_drift_apart(tmp_path, teacher, kind, wanted):
    """A method that goes round the wrapped student; MINE with drop path, whose gradients the engine must average."""
    arguments = (str(tmp_path), free_port(), kind, str(teacher))
    for rank in range(2):
        env = {"RANK": str(rank)}
        Running(tmp_path / f"rank{rank}", [], hook="test_check:train_share", arguments=arguments, env=env)
    for rank in range(2):
        found = wait_for((tmp_path / f"result{rank}").exists) and (tmp_path / f"result{rank}").read_text()
        assert found.startswith(wanted)


def train_share(folder, port, kind, teacher):
    """Hook: be one of the two processes, with a method that drifts or does not; note what became of it."""
    if kind == "mine drifts":
        distributed.Processes.average_gradients = lambda self, parameters: None
    if kind == "base drifts":
        Trainer.losses = lambda self, batch, teachers, progress: self.objective(batch, teachers, progress)
    words = ["MINE.PERIOD=step", "MINE.SAMPLES=4", "MODEL.DROP_PATH=0.3", "OPTIM.CLIP_NORM=0", "MINE.STUDENT_LR=1"]
    words = [*words, "MINE.CRITIC_LR=1", f"DISTILLATION.TEACHER_WEIGHTS=[{teacher}]"] if "mine" in kind else []
    cfg = trials.reduced(config.load(f"configs/debug/{'std' if words else 'base'}_debug.yaml", words))
    data = build_data(cfg)
    rank = int(os.environ["RANK"])
    try:
        share = data._replace(train=list(islice(data.train, 3)), test=None)
        processes._train_share(rank, port, 1, cfg, share, cfg.TRAIN.BATCH_SIZE // cfg.AUG.REPEATS)
        found = "they agree"
    except ValueError as error:
        found = str(error)
    files.write(Path(folder) / f"result{rank}", found.encode())
    os._exit(0)


def test_without_data_nothing_further_is_checked(check, load, caplog, tmp_path):
    found = check(load("debug/base_debug", DATA__NAME="image_folder", DATA__ROOT=tmp_path))
    line = f"image_folder: DATA.ROOT {tmp_path} has no folder val or test; there is none in it"
    assert found == {"data": (False, line)}
    assert "not checked: models, teachers, terms, parameters, steps, checkpoint, processes" in caplog.text


def test_a_corrupt_image_is_found(check, load, tmp_path):
    words = write_images(tmp_path, train=12, val=12) | {"TRAIN__BATCH_SIZE": 16}
    (tmp_path / "val" / "dog" / "3.png").write_bytes(b"no image")
    ok, text = check(load("debug/base_debug", **words))["data"]
    assert not ok
    assert f"image {tmp_path}/val/dog/3.png cannot be read" in text


def test_steps_that_are_not_finite(check, load):
    words = {"OPTIM__NAME": "sgd", "OPTIM__BASE_LR": 1e38, "OPTIM__WARMUP_EPOCHS": 0, "OPTIM__CLIP_NORM": 0}
    ok, text = check(load("debug/base_debug", **words))["steps"]
    assert not ok
    assert text.startswith("loss not finite at epoch 1 iteration 2, lr 9.7e+37: ce ")
