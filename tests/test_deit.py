"""DeiT distillation: two heads as timm has them, and what each mode asks of them."""

import json
import math

import pytest
import timm
import torch
from methods import DEIT, Method, batch, make, options_of

from pycls_std import runner
from pycls_std.builders.training import build_schedule
from pycls_std.losses.classification import soft_target_cross_entropy
from pycls_std.losses.logit import hard_distillation, soft_distillation
from pycls_std.models.create import create_backbone
from pycls_std.models.student import Student, has_distillation_head

PLAIN = "deit_tiny_patch16_224"
SMALL = {"depth": 2, "embed_dim": 24, "patch_size": 8}
TWO_HEADS = [  # at several image and patch sizes
    (DEIT, 32, SMALL),
    (DEIT, 48, {"depth": 2, "patch_size": 6}),
    (DEIT, 224, {"depth": 2}),
    ("pit_ti_distilled_224", 32, {"patch_size": 4, "stride": 2}),
    ("pit_ti_distilled_224", 224, {}),
    ("levit_128s", 96, {}),
]
MODES = {  # mode -> the terms, and their weights
    "none": {"ce": 1.0},
    "class": {"ce": 1.0},
    "soft": {"ce": 0.5, "kd": 0.5},
    "hard": {"ce": 0.5, "kd": 0.5},
    "distill": {"kd": 1.0},
    "both": {"ce": 0.5, "kd": 0.5},
}


def make_mode(load, mode, **overrides):
    """A DeiT method with one teacher, if the mode has one."""
    teachers = 0 if mode in ("none", "class") else 1
    taught = {"DISTILLATION__TEMPERATURE": 2.0} if teachers else {}
    return make(load, "deit", DEIT if mode == "both" else PLAIN, teachers, DEIT__MODE=mode, **(taught | overrides))


@pytest.mark.parametrize(("name", "size", "args"), TWO_HEADS)
def test_heads_are_timms(name, size, args):
    """In eval the average is timm's own prediction; in training the two are timm's own two outputs."""
    backbone = create_backbone(name, num_classes=10, image_size=size, **args)
    for parameter in backbone.parameters():  # a head may start at zero
        torch.nn.init.normal_(parameter, std=0.05) if parameter.ndim > 1 else parameter.data.add_(0.01)
    assert has_distillation_head(backbone)
    student, images = Student(backbone, split_heads=True), torch.randn(4, 3, size, size)
    student.eval()
    heads = student(images).heads
    assert not torch.allclose(heads["cls"], heads["dist"])
    assert torch.equal((heads["cls"] + heads["dist"]) / 2, backbone(images))
    assert not backbone.training
    backbone.set_distilled_training(True)
    student.train()
    torch.manual_seed(0)
    expected = backbone(images)
    torch.manual_seed(0)
    torch.testing.assert_close(tuple(student(images).heads.values()), expected)


def test_published_weights_of_timm_have_the_same_names():
    """At timm's own size, so that its files load: the student adds nothing to the backbone."""
    backbone = create_backbone(DEIT, num_classes=1000, image_size=224)
    assert backbone.state_dict().keys() == timm.create_model(DEIT).state_dict().keys()
    student = Student(backbone, split_heads=True)
    assert {name.removeprefix("backbone.") for name in student.state_dict()} == backbone.state_dict().keys()
    assert sum(p.numel() for p in student.parameters()) == 5_910_800  # as timm counts them


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "pit_ti_224", "mixer_nano4", "resnet8", "convit_tiny"])
def test_students_with_one_head_are_plain(name):
    backbone = create_backbone(name, num_classes=10, image_size=32)
    assert not has_distillation_head(backbone)


def test_dropout_is_off_at_test():
    backbone = create_backbone(DEIT, num_classes=10, image_size=32, **SMALL, drop_rate=0.9, pos_drop_rate=0.5)
    student, images = Student(backbone, split_heads=True).eval(), torch.randn(2, 3, 32, 32)
    first, second = student(images).heads, student(images).heads
    assert first.keys() == {"cls", "dist"} and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.defect(27)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", ["hard", "soft"])
def test_objective_of_each_mode(load, mode, form):
    """A mode that says the form itself needs no DISTILLATION.TYPE."""
    said = mode in ("soft", "hard", "none", "class")
    method, data = make_mode(load, mode, **({} if said else {"DISTILLATION__TYPE": form})), batch()
    losses, heads = method.losses(data), method.student(data.images).heads
    expected = {}
    if "ce" in MODES[mode]:
        expected["ce"] = MODES[mode]["ce"] * soft_target_cross_entropy(heads["cls"], data.targets)
    if "kd" in MODES[mode]:
        learner = heads["dist" if mode == "both" else "cls"]
        teacher = method.teachers[0](data.images).heads["cls"]
        soft = (mode if mode in ("soft", "hard") else form) == "soft"
        each = soft_distillation(learner, teacher, 2.0) if soft else hard_distillation(learner, teacher)
        expected["kd"] = MODES[mode]["kd"] * each.mean()
    assert losses.keys() == expected.keys()
    for term, value in expected.items():
        torch.testing.assert_close(losses[term], value)


def test_the_share_of_teachers_is_an_option(load):
    weights = make_mode(load, "both", TASK__WEIGHT=0.7, KD__WEIGHT=0.3).trainer.terms
    assert (weights["task"].weight, weights["kd"].weight) == (0.7, 0.3)


@pytest.mark.parametrize("mode", MODES)
def test_gradients_of_each_mode_reach_the_heads_they_should_and_no_others(load, mode):
    method = make_mode(load, mode)
    heads = method.student.backbone.get_classifier()
    heads = dict(zip(("cls", "dist"), heads if mode == "both" else (heads, None), strict=True))
    for term, loss in method.losses(batch()).items():
        method.student.zero_grad(set_to_none=True)
        loss.backward(retain_graph=True)
        reached = {name for name, head in heads.items() if head is not None and head.weight.grad is not None}
        assert reached == ({"dist"} if mode == "both" and term == "kd" else {"cls"})
        assert all(teacher.weight.grad is None for teacher in (t.backbone.fc for t in method.teachers))


def test_predictions_and_what_they_deploy(load):
    method = make_mode(load, "both")
    heads = method.student.eval()(torch.randn(2, 3, 32, 32))
    predictions = method.task.predictions(heads)
    assert predictions.keys() == {"avg", "cls", "dist"} == set(method.trainer.prediction_heads)
    assert method.trainer.prediction == "avg"
    torch.testing.assert_close(predictions["avg"], (heads.heads["cls"] + heads.heads["dist"]) / 2)
    everything = sum(p.numel() for p in method.student.parameters())
    assert method.trainer.deployed_parameters() == everything
    for name in ("cls", "dist"):
        alone = make_mode(load, "both", TEST__PREDICTION=name).trainer
        assert alone.deployed_parameters() == everything - (24 + 1) * 10
    assert list(make_mode(load, "soft").trainer.prediction_heads) == ["cls"]


def test_distillation_tokens_are_not_decayed(load):
    assert {"backbone.dist_token", "backbone.cls_token"} <= make_mode(load, "both").student.no_weight_decay()


def test_a_class_token_that_no_head_reads_is_none(load):
    with pytest.raises(ValueError, match="DEIT.MODE class needs a model whose head reads a class token"):
        make_mode(load, "class", MODEL__ARGS__global_pool="avg")


@pytest.mark.parametrize(
    ("mode", "overrides", "text"),
    [
        ("none", {"teachers": 1}, r"DISTILLATION.TEACHERS is \['resnet8'\], which TRAINER deit does not read"),
        ("both", {"teachers": 0}, "KD.WEIGHT needs at least one teacher, DISTILLATION.TEACHERS is empty"),
        ("both", {"name": PLAIN}, f"DEIT.MODE both needs a model with a distillation head .* MODEL.NAME is .*{PLAIN}"),
        ("soft", {"name": DEIT}, "DEIT.MODE soft needs a model with one head, MODEL.NAME is"),
        ("class", {"name": "resnet8", "teachers": 0}, "DEIT.MODE class needs a model whose head reads a class token"),
        ("soft", {"DISTILLATION__TYPE": "decoupled"}, "DEIT.MODE soft says the form itself, DISTILLATION.TYPE is dec"),
        ("soft", {"KD__WEIGHT": 0, "teachers": 0}, "KD.WEIGHT is 0.0; with DEIT.MODE soft teachers teach"),
        ("class", {"KD__WEIGHT": 0.5}, "KD.WEIGHT is 0.5; with DEIT.MODE class none teaches, it must be 0"),
        ("soft", {"name": "repvit_m0_9"}, "the two heads of RepVit cannot be kept apart"),
        ("both", {"MINE__SAMPLES": 4}, r"MINE.SAMPLES is 4, the student has no tokens \(STD.WEIGHT\)"),
    ],
)
def test_models_and_teachers_that_a_mode_cannot_use(load, mode, overrides, text):
    options = {"name": DEIT if mode == "both" else PLAIN, "teachers": 1, "DEIT__MODE": mode} | overrides
    with pytest.raises(ValueError, match=text):
        Method(load("debug/base_debug", **options_of("deit", **options)))


def test_accuracies_of_all_heads_are_logged(method, tmp_path):
    runner.train(method("deit", OPTIM__MAX_EPOCH=1))
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    values = json.loads(line)
    scores = {f"{name}_{score}" for name in ("avg", "cls", "dist") for score in ("top1", "top5", "loss")}
    for kind in ("test", "ema"):
        assert {f"{kind}/{score}" for score in scores} <= values.keys()
    assert values["test/top1"] == values["test/avg_top1"]
    assert values["train/loss"] == pytest.approx(values["train/ce"] + values["train/kd"])


@pytest.mark.defect(28)
def test_the_first_epoch_of_the_published_recipe_learns(load):
    """Its rate is, within a tenth, that of the published 50-epoch schedule at the same epochs, but for the first."""
    cfg = load("deit/deit-ti_c10_none")
    schedule = build_schedule(cfg)
    peak = 6.25e-5
    assert schedule(0) > 0
    for epoch in range(1, 20):
        published = peak * (epoch / 5 if epoch < 5 else (1 + math.cos(math.pi * (epoch - 5) / 45)) / 2)
        assert schedule(epoch / 20) == pytest.approx(published, rel=0.1), epoch
