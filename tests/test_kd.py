"""Logit distillation of any student: what each term is, whom it trains, and several teachers."""

import copy

import pytest
import torch
from test_trainers import DEIT, START, STUDENTS, batch, make
from torch.nn import functional
from yacs.config import CfgNode

from pycls_std.builders.models import build_backbone
from pycls_std.core.structures import Progress
from pycls_std.losses.classification import soft_target_cross_entropy
from pycls_std.losses.logit import soft_distillation
from pycls_std.models.create import create_backbone, wake_zero_heads

SOFT = {"DISTILLATION__TYPE": "soft", "DISTILLATION__TEMPERATURE": 3.0}


@pytest.mark.defect(18)
@pytest.mark.parametrize("standard", ["false", "true"])
def test_objective_term_by_term(load, standard):
    """L = 0.5 CE + 2 w T^2 mean KL, by torch's own batch mean; w is there for standardized logits only."""
    options = {"KD__CE_WEIGHT": 0.5, "KD__KD_WEIGHT": 2.0, "DISTILLATION__EXTRA_WEIGHT": 9.0}
    method = make(load, "kd", teachers=1, DISTILLATION__LOGIT_STANDARD=standard, **SOFT, **options)
    data = batch()
    losses = method.losses(data, START)
    sides = [method.student(data.images).logits, method.teachers[0](data.images).logits]
    torch.testing.assert_close(losses["ce"], 0.5 * soft_target_cross_entropy(sides[0], data.targets))
    if standard == "true":
        sides = [(z - z.mean(1, keepdim=True)) / (1e-7 + z.std(1, keepdim=True)) for z in sides]
    student, teacher = (functional.log_softmax(z / 3, dim=1) for z in sides)
    expected = 9 * functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
    torch.testing.assert_close(losses["distill"], 2 * expected * (9 if standard == "true" else 1))
    assert losses.keys() == {"ce", "distill"}


def test_several_teachers_are_weighted_image_by_image(load):
    method = make(load, "kd", teachers=2, **SOFT, DISTILLATION__WEIGHTING="confidence")
    data = batch()
    student = method.student(data.images).logits
    teachers = [teacher(data.images).logits for teacher in method.teachers]
    sure = torch.stack([(t.softmax(1) * t.log_softmax(1)).sum(1) for t in teachers]).exp()
    each = torch.stack([soft_distillation(student, t, 3.0) for t in teachers])
    expected = (each * sure / sure.sum(0)).sum(0).mean()
    torch.testing.assert_close(method.losses(data, START)["distill"], 0.9 * expected)
    seen = [float(weight) for weight in method.monitors.values()]
    assert seen == pytest.approx((sure / sure.sum(0)).mean(1).tolist())
    assert list(method.monitors) == ["teacher_weight/0_resnet8", "teacher_weight/1_resnet8"]


def test_a_distillation_head_takes_the_distillation(load):
    """The class head learns from the labels alone, the distillation head from the teacher alone."""
    method = make(load, "kd", DEIT, **SOFT)
    losses = method.losses(batch(), START)
    heads = dict(zip(("ce", "distill"), method.student.backbone.get_classifier(), strict=True))
    for term, head in heads.items():
        parameters = [head.weight for head in heads.values()]
        gradients = torch.autograd.grad(losses[term], parameters, retain_graph=True, allow_unused=True)
        reached = [other for other, gradient in zip(heads.values(), gradients, strict=True) if gradient is not None]
        assert reached == [head]
    assert method.PREDICTIONS == ("avg", "cls", "dist")
    assert make(load, "kd").PREDICTIONS == ("cls",)


@pytest.mark.parametrize(("weights", "terms"), [((1.0, 0.0), {"ce"}), ((0.0, 1.0), {"distill"})])
def test_what_weighs_nothing_is_not_computed(load, weights, terms):
    method = make(load, "kd", KD__CE_WEIGHT=weights[0], KD__KD_WEIGHT=weights[1])
    assert method.losses(batch(), START).keys() == terms


def test_warm_up_grows_by_a_step_each_epoch(load):
    method, data = make(load, "kd", KD__WARMUP_EPOCHS=4), batch()
    grown = [float(method.losses(data, Progress(epoch, 0, 1, 9))["distill"].detach()) for epoch in range(6)]
    assert [value / grown[-1] for value in grown] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


def test_decoupled_distillation_of_a_mixed_image_has_the_class_it_has_most_of(load):
    options = {"DISTILLATION__TYPE": "decoupled", "DISTILLATION__DKD_BETA": 0.0}
    method = make(load, "kd", teachers=1, **options)
    data = batch()
    target = data.targets.argmax(1)
    assert (target != data.labels).any(), "no image has most of another one"
    student, teacher = method.student(data.images).logits, method.teachers[0](data.images).logits
    q, p = (z.softmax(1).gather(1, target[:, None]).squeeze(1) for z in (student, teacher))
    expected = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    torch.testing.assert_close(method.losses(data, START)["distill"], 0.9 * expected.mean())


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({"teachers": 0}, "TRAINER kd needs at least one teacher"),
        ({"MINE__SAMPLES": 4}, "TRAINER kd has no MINE, MINE.SAMPLES is 4"),
        ({"KD__CE_WEIGHT": -0.1}, "KD.CE_WEIGHT is -0.1, expected at least 0"),
        ({"KD__CE_WEIGHT": 0, "KD__KD_WEIGHT": 0}, "KD.CE_WEIGHT and KD.KD_WEIGHT are 0"),
        ({"TEST__PREDICTION": "dist"}, "TEST.PREDICTION is 'dist', TRAINER kd offers cls"),
    ],
)
def test_options_that_contradict_each_other(load, overrides, text):
    with pytest.raises(ValueError, match=text):
        make(load, "kd", **overrides)


@pytest.mark.parametrize("name", STUDENTS)
def test_standardized_logits_of_a_fresh_student_have_sane_gradients(load, name):
    """A head that starts at zero, as timm's mixers have it, would have 1e7 times the gradient."""
    cfg = load("debug/kd_debug", MODEL__NAME=name, DATA__IMAGE_SIZE=32)
    cfg.defrost()
    cfg.MODEL.ARGS = CfgNode(STUDENTS[name])
    method = make(
        load, "kd", name, teachers=1, **SOFT, DISTILLATION__LOGIT_STANDARD="true", backbone=build_backbone(cfg, 10)
    )
    method.losses(batch(), START)["distill"].backward()
    norm = torch.cat([p.grad.flatten() for p in method.student.parameters() if p.grad is not None]).norm()
    assert 0 < norm < 1e4


def test_only_heads_that_are_all_zero_are_woken():
    mixer, deit = (
        create_backbone(name, num_classes=10, image_size=32, **STUDENTS[name]) for name in ("mixer_nano4", DEIT)
    )
    before = copy.deepcopy(deit.state_dict())
    assert not mixer.head.weight.any()
    for backbone in (mixer, deit):
        wake_zero_heads(backbone)
    assert 0.01 < mixer.head.weight.std() < 0.03
    assert all(torch.equal(value, before[key]) for key, value in deit.state_dict().items())


@pytest.mark.parametrize("trainer", ["kd", "deit"])
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_two_heads_both_need_a_loss(load, trainer, weight):
    """Otherwise the average would be with a head of random weights, and DDP would stop at it."""
    if trainer == "kd":
        options, key = {"KD__CE_WEIGHT": weight, "KD__KD_WEIGHT": 1 - weight}, r"KD\.\w+_WEIGHT"
    else:
        options, key = {"DISTILLATION__ALPHA": weight, "DEIT__MODE": "both"}, r"DISTILLATION\.ALPHA"
    with pytest.raises(ValueError, match=f"{key}: (ce|distill) weighs 0, and one of two heads would not learn"):
        make(load, trainer, DEIT, **options)


@pytest.mark.defect(24)
def test_standardized_logits_on_the_heads_of_std(load):
    """Terms are a sum: STD's heads take the same options, and LOGIT_STANDARD turns on what it says."""
    method = make(load, "std", teachers=1, **SOFT, DISTILLATION__LOGIT_STANDARD="true", DISTILLATION__EXTRA_WEIGHT=2.0)
    data = batch()
    before = method.losses(data, START)["distill"]
    method.student.heads[0].weight.data *= 3  # its logits are three times what they were
    method.student.heads[0].bias.data *= 3
    torch.testing.assert_close(method.losses(data, START)["distill"], before)
    method.term.standardize = False
    assert not torch.allclose(method.losses(data, START)["distill"], before)
