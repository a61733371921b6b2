"""What training starts from: MODEL.WEIGHTS of a run, a plain file, timm; a head of other classes is new."""

import logging

import pytest
import safetensors.torch
import timm
import torch
from records import load_state

from pycls_std import check, runner
from pycls_std.builders import weights as sources
from pycls_std.builders.method import build_backbone
from pycls_std.builders.models import find_pretrained, start_from
from pycls_std.builders.training import build_all, build_runtime
from pycls_std.builders.weights import Weights
from pycls_std.models.contract import classifier_names
from pycls_std.models.create import create_backbone


def backbone_of(cfg, **options):
    """State of the student's backbone as training would start."""
    session, *_ = build_all(cfg, build_runtime(cfg), **options)
    return session.trainer.student.backbone.state_dict()


def same(one, other):
    """Keys of two states whose tensors are equal."""
    assert one.keys() == other.keys()
    return {key for key in one if torch.equal(one[key], other[key])}


def resnet8(classes):
    torch.manual_seed(7)
    state = create_backbone("resnet8", num_classes=classes, image_size=8).state_dict()
    return {key: value + 0.5 if value.is_floating_point() else value for key, value in state.items()}


HEAD = {"fc.weight", "fc.bias"}


def test_a_checkpoint_of_this_runner(load, teacher, caplog):
    started = backbone_of(load("debug/teacher_debug", MODEL__WEIGHTS=teacher))
    saved = torch.load(teacher, weights_only=True)["student"]
    assert same(started, {key.removeprefix("backbone."): value for key, value in saved.items()}) == started.keys()
    assert "is new" not in caplog.text


def test_another_input_or_other_arguments_than_those_of_the_weights_are_told(load, tmp_path, caplog):
    run = {"OUT_DIR": tmp_path, "OPTIM__MAX_EPOCH": 1, "DATA__NORMALIZATION": "half", "MODEL__NORM_EPS": 0.01}
    runner.train(load("debug/base_debug", **run))
    path = tmp_path / "checkpoints" / "last.pt"
    for options, parts in (
        ({key: run[key] for key in ("DATA__NORMALIZATION", "MODEL__NORM_EPS")}, []),
        (
            {"MODEL__ARGS__drop_rate": 0.1},
            ["ARGS.drop_rate -, here 0.1;", "NORM_EPS 0.01, here 0.0;", "mean (0.5, 0.5, 0.5)"],
        ),
    ):
        caplog.clear()
        backbone_of(load("debug/base_debug", MODEL__WEIGHTS=path, **options))
        told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert len(told) == bool(parts)
        assert all(part in text for part in parts for text in told)


def test_an_std_student_starts_from_a_plain_one_and_the_rest_follows_from_the_seed(std, load, tmp_path):
    runner.train(load("debug/base_debug", OUT_DIR=tmp_path / "base", OPTIM__MAX_EPOCH=1))
    path = tmp_path / "base" / "checkpoints" / "last.pt"
    given, random = (
        build_all(cfg, build_runtime(cfg))[0].trainer.student.state_dict() for cfg in (std(MODEL__WEIGHTS=path), std())
    )
    saved = torch.load(path, weights_only=True)["student"]
    assert same({key: given[key] for key in saved}, saved) == saved.keys()
    assert same(given, random) >= random.keys() - saved.keys()


def test_a_head_of_other_classes_is_new_and_seeded(load, tmp_path, caplog):
    state = resnet8(classes=7)
    torch.save(state, tmp_path / "seven.pt")
    started = backbone_of(load("debug/teacher_debug", MODEL__WEIGHTS=tmp_path / "seven.pt"))
    random = backbone_of(load("debug/teacher_debug"))
    assert same(started, random) >= HEAD
    assert same(started, state) >= started.keys() - HEAD
    told = f"MODEL.WEIGHTS {tmp_path}/seven.pt: the classifier fc is new, 7 -> 10 classes"
    assert caplog.messages.count(told) == 1


@pytest.mark.parametrize(("named", "count"), [("", 1), ("imagenet", 0)])
def test_what_is_assumed_of_a_file_is_told(load, tmp_path, caplog, named, count):
    torch.save(resnet8(classes=10), tmp_path / "file.pt")
    backbone_of(load("debug/teacher_debug", MODEL__WEIGHTS=tmp_path / "file.pt", DATA__NORMALIZATION=named))
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    where = f"MODEL.WEIGHTS: {tmp_path}/file.pt does not say what input it was trained on"
    assert told == [f"{where}; assumed: the normalisation of the dataset (DATA.NORMALIZATION)"] * count


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """timm's hub, which holds a RegNet of 1000 classes; returns its state."""
    torch.manual_seed(7)
    state = timm.create_model("regnetx_004_tv", pretrained=False).state_dict()
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    monkeypatch.setattr("timm.models._hub.hf_hub_download", lambda *a, **k: str(tmp_path / "model.safetensors"))
    return state


def test_timm(hub, load, caplog):
    cfg = load("regnet/regnetx-400mf_c10")
    backbone = build_backbone(cfg, 10)
    own = {key: value.clone() for key, value in backbone.head.fc.state_dict().items()}
    start_from(backbone, find_pretrained(cfg).student)
    told = ["MODEL.WEIGHTS: timm, downloaded unless cached"]
    told += ["MODEL.WEIGHTS timm regnetx_004_tv: the classifier head.fc is new, 1000 -> 10 classes"]
    assert [record.getMessage() for record in caplog.records if record.name == "pycls_std"] == told
    assert same(backbone.head.fc.state_dict(), own) == own.keys()
    started = backbone.state_dict()
    assert all(torch.equal(started[key], hub[key]) for key in hub if not key.startswith("head.fc."))


def test_nothing_is_downloaded_where_it_may_not_be(load, monkeypatch):
    monkeypatch.setattr(sources, "find_weights", lambda *_: pytest.fail("fetched"))
    words = {"MODEL__NAME": "resnet18.a1_in1k", "MODEL__WEIGHTS": "timm"}
    random = backbone_of(load("debug/teacher_debug", MODEL__NAME="resnet18.a1_in1k"))
    assert same(backbone_of(load("debug/teacher_debug", **words), fetch=False), random) == random.keys()


@pytest.mark.parametrize(("classes", "new"), [(10, set()), (7, {"head", "head_dist"})])
def test_both_heads_of_a_distilled_model(classes, new):
    def deit(classes):
        return create_backbone("deit_tiny_distilled_patch16_224", num_classes=classes, image_size=32, depth=1)

    given, backbone = deit(classes).state_dict(), deit(10)
    assert classifier_names(backbone) == ["head", "head_dist"]
    for name in ("head", "head_dist"):
        torch.nn.init.normal_(given[f"{name}.bias"])
    start_from(backbone, Weights(given, "a file"))
    started = backbone.state_dict()
    changed = {key.partition(".")[0] for key in given if not torch.equal(started[key], given[key][: len(started[key])])}
    assert changed == new


@pytest.mark.parametrize("classes", [10, 7])
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda state: state.pop("bn1.weight"), "missing bn1.weight"),
        (lambda state: state.update(extra=torch.zeros(1)), "unexpected extra"),
        (
            lambda state: state.update({"conv1.weight": torch.zeros(16, 3, 5, 5)}),
            r"conv1.weight is \(16, 3, 5, 5\) in the file, \(16, 3, 3, 3\) in the model",
        ),
    ],
)
def test_what_does_not_fit_is_named(load, tmp_path, classes, change, text):
    state = resnet8(classes)
    change(state)
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=f"^MODEL.WEIGHTS .*other.pt does not fit the model: {text}$"):
        runner.train(load("debug/teacher_debug", MODEL__WEIGHTS=tmp_path / "other.pt", OUT_DIR=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_head_without_weights_does_not_pass_for_one_of_other_classes(load, tmp_path):
    state = resnet8(10)
    torch.save({key: value for key, value in state.items() if key not in HEAD}, tmp_path / "none.pt")
    with pytest.raises(ValueError, match="none.pt does not fit the model: missing fc.weight; missing fc.bias"):
        backbone_of(load("debug/teacher_debug", MODEL__WEIGHTS=tmp_path / "none.pt"))


def test_an_absent_file_and_another_model_are_told_before_the_data_is_read(load, teacher, tmp_path):
    words = {"DATA__NAME": "image_folder", "DATA__ROOT": "nowhere", "OUT_DIR": tmp_path / "run"}
    with pytest.raises(ValueError, match="^MODEL.WEIGHTS: there is no checkpoint gone.pt$"):
        runner.train(load("debug/teacher_debug", MODEL__WEIGHTS="gone.pt", **words))
    with pytest.raises(ValueError, match="^MODEL.WEIGHTS: .*best.pt holds a resnet8 and no mixer_nano4$"):
        runner.train(load("debug/base_debug", MODEL__WEIGHTS=teacher, **words))
    assert not (tmp_path / "run").exists()


def test_a_run_from_weights_continues_and_is_tested_and_described_without_the_file(load, tmp_path, caplog):
    torch.save(resnet8(7), tmp_path / "start.pt")

    def options(folder, **words):
        words = {"MODEL__WEIGHTS": tmp_path / "start.pt", "OPTIM__SCHEDULE": "constant"} | words
        return load("debug/teacher_debug", OUT_DIR=tmp_path / folder, **words)

    runner.train(options("whole", OPTIM__MAX_EPOCH=2))
    runner.train(options("halves", OPTIM__MAX_EPOCH=1))
    (tmp_path / "start.pt").unlink()
    runner.train(options("halves", OPTIM__MAX_EPOCH=2))
    whole, halves = (load_state(tmp_path / folder)["student"] for folder in ("whole", "halves"))
    assert same(whole, halves) == whole.keys()
    with pytest.raises(ValueError, match="MODEL.WEIGHTS was '.*start.pt', is ''"):
        runner.train(options("halves", MODEL__WEIGHTS=""))
    cfg = options("halves", TEST__WEIGHTS=tmp_path / "halves" / "checkpoints" / "last.pt")
    runner.run("test", cfg)
    runner.run("info", cfg)
    assert "* cls  top-1" in caplog.text
    assert "parameters  " in caplog.text


@pytest.mark.slow
def test_check_starts_from_them_too(load, tmp_path, caplog):
    torch.save(resnet8(7), tmp_path / "start.pt")
    check.check(load("debug/teacher_debug", MODEL__WEIGHTS=tmp_path / "start.pt"), tmp_path / "run")
    with pytest.raises(ValueError, match="1 of 8 checks failed"):
        check.check(load("debug/teacher_debug", MODEL__WEIGHTS="gone.pt"), tmp_path / "run")
    assert "the classifier fc is new, 7 -> 10 classes" in caplog.text
    assert "FAIL  models      MODEL.WEIGHTS: there is no checkpoint gone.pt" in caplog.messages
