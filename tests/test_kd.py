"""Logit distillation of any student: what each term is, whom it trains, and several teachers."""

import copy

import pytest
import torch
from methods import DEIT, STUDENTS, Method, batch, make, options_of
from torch.nn import functional

from pycls_std.core.structures import Progress
from pycls_std.losses.classification import soft_target_cross_entropy
from pycls_std.losses.logit import soft_distillation, standardized
from pycls_std.models.create import create_backbone, randomize_zero_heads
from pycls_std.terms.logits import LogitLoss

SOFT = {"DISTILLATION__TYPE": "soft", "DISTILLATION__TEMPERATURE": 3.0}


@pytest.mark.defect(18)
@pytest.mark.parametrize("standard", ["false", "true"])
def test_objective_term_by_term(load, standard):
    """L = 0.5 CE + 2 w T^2 mean KL, by torch's own batch mean; w is there for standardized logits only."""
    options = {"TASK__WEIGHT": 0.5, "KD__WEIGHT": 2.0, "DISTILLATION__EXTRA_WEIGHT": 9.0}
    method = make(load, "kd", teachers=1, DISTILLATION__LOGIT_STANDARD=standard, **SOFT, **options)
    data = batch()
    losses = method.losses(data)
    sides = [model(data.images).heads["cls"] for model in (method.student, method.teachers[0])]
    torch.testing.assert_close(losses["ce"], 0.5 * soft_target_cross_entropy(sides[0], data.targets))
    if standard == "true":
        sides = [(z - z.mean(1, keepdim=True)) / (1e-7 + z.std(1, keepdim=True)) for z in sides]
    student, teacher = (functional.log_softmax(z / 3, dim=1) for z in sides)
    expected = 9 * functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
    torch.testing.assert_close(losses["kd"], 2 * expected * (9 if standard == "true" else 1))
    assert losses.keys() == {"ce", "kd"}


def test_several_teachers_are_weighted_image_by_image(load):
    method = make(load, "kd", teachers=2, **SOFT, DISTILLATION__WEIGHTING="confidence")
    data = batch()
    student = method.student(data.images).heads["cls"]
    teachers = [teacher(data.images).heads["cls"] for teacher in method.teachers]
    sure = torch.stack([(t.softmax(1) * t.log_softmax(1)).sum(1) for t in teachers]).exp()
    each = torch.stack([soft_distillation(student, t, 3.0) for t in teachers])
    expected = (each * sure / sure.sum(0)).sum(0).mean()
    torch.testing.assert_close(method.losses(data)["kd"], 0.9 * expected)
    seen = [float(weight) for weight in method.trainer.monitors.values()]
    assert seen == pytest.approx((sure / sure.sum(0)).mean(1).tolist())
    assert list(method.trainer.monitors) == ["teacher_weight/0_resnet8", "teacher_weight/1_resnet8"]


def test_a_distillation_head_takes_the_distillation(load):
    """The class head learns from the labels alone, the distillation head from the teacher alone."""
    method = make(load, "kd", DEIT, **SOFT)
    losses = method.losses(batch())
    heads = dict(zip(("ce", "kd"), method.student.backbone.get_classifier(), strict=True))
    for term, head in heads.items():
        parameters = [head.weight for head in heads.values()]
        gradients = torch.autograd.grad(losses[term], parameters, retain_graph=True, allow_unused=True)
        reached = [other for other, gradient in zip(heads.values(), gradients, strict=True) if gradient is not None]
        assert reached == [head]
    assert method.student.heads == ("cls", "dist") and list(method.trainer.prediction_heads) == ["avg", "cls", "dist"]
    assert make(load, "kd").student.heads == ("cls",)
    assert make(load, "baseline", DEIT).student.heads == ("cls",), "without one that teaches it timm's average is one"


def test_a_form_that_asks_for_what_is_no_option_is_named():
    def own(student_logits, teacher_logits, sharpness):
        return student_logits.sum(dim=-1) * sharpness

    with pytest.raises(ValueError, match="own asks for sharpness, no option of section DISTILLATION"):
        LogitLoss(own, None, options={"TEMPERATURE": 1.0})


def test_warm_up_grows_by_a_step_each_epoch(load):
    method, data = make(load, "kd", KD__WARMUP_EPOCHS=4, OPTIM__MAX_EPOCH=8), batch()
    grown = [float(method.losses(data, Progress(epoch, 0, 1, 9))["kd"].detach()) for epoch in range(6)]
    assert [value / grown[-1] for value in grown] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


def test_decoupled_distillation_of_a_mixed_image_has_the_class_it_has_most_of(load):
    options = {"DISTILLATION__TYPE": "decoupled", "DISTILLATION__DKD_BETA": 0.0}
    method = make(load, "kd", teachers=1, **options)
    data = batch()
    target = data.targets.argmax(1)
    assert (target != data.loaded.targets).any(), "no image has most of another one"
    student, teacher = (model(data.images).heads["cls"] for model in (method.student, method.teachers[0]))
    q, p = (z.softmax(1).gather(1, target[:, None]).squeeze(1) for z in (student, teacher))
    expected = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    torch.testing.assert_close(method.losses(data)["kd"], 0.9 * expected.mean())


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({"KD__WEIGHT": -0.1}, "KD.WEIGHT is -0.1, expected at least 0"),
        ({"KD__WEIGHT": 0, "TASK__WEIGHT": 0, "teachers": 0}, "TASK.WEIGHT is 0.0, expected a weight above 0"),
        ({"KD__WEIGHT": 0, "teachers": 1}, r"DISTILLATION.TEACHERS is \['resnet8'\], which TRAINER kd does not read"),
        ({"TEST__PREDICTION": "dist"}, "TEST.PREDICTION is 'dist', TRAINER kd offers cls"),
    ],
)
def test_options_that_contradict_each_other(load, overrides, text):
    with pytest.raises(ValueError, match=text):
        make(load, "kd", **overrides)


@pytest.mark.parametrize("form", [SOFT | {"DISTILLATION__LOGIT_STANDARD": "true"}, {"DISTILLATION__TYPE": "dist"}])
@pytest.mark.parametrize("name", STUDENTS)
def test_a_form_that_needs_unlike_logits_has_sane_gradients_for_a_fresh_student(load, name, form):
    """A head that starts at zero, as timm's mixers have it, would have 1e5 to 1e7 times the gradient."""
    method = make(load, "kd", name, teachers=1, **form)
    method.losses(batch())["kd"].backward()
    norm = torch.cat([p.grad.flatten() for p in method.student.parameters() if p.grad is not None]).norm()
    assert 0 < norm < 1e4


@pytest.mark.parametrize("trainer", ["kd", "std", "ofa"])
def test_standardized_logits_of_two_classes_are_refused(load, trainer):
    """(a, b) becomes (0.71, -0.71) or (-0.71, 0.71), without gradient."""
    logits = torch.tensor([[1.0, 3.0], [2.0, -7.0]], requires_grad=True)
    standard = standardized(logits)
    torch.testing.assert_close(standard, torch.tensor([[-1.0, 1.0], [1.0, -1.0]]) * 0.5**0.5)
    assert torch.autograd.grad(standard[:, 0].sum(), logits)[0].abs().max() < 1e-5
    cfg = load("debug/base_debug", **options_of(trainer, DISTILLATION__LOGIT_STANDARD="true"))
    with pytest.raises(ValueError, match="LOGIT_STANDARD needs at least 3 classes, the data has 2: of two logits"):
        Method(cfg, classes=2)
    assert Method(cfg, classes=3).losses(batch(classes=3))


def test_only_heads_that_are_all_zero_are_changed():
    mixer, deit = (
        create_backbone(name, num_classes=10, image_size=32, **STUDENTS[name]) for name in ("mixer_nano4", DEIT)
    )
    before = copy.deepcopy(deit.state_dict())
    assert not mixer.head.weight.any()
    for backbone in (mixer, deit):
        randomize_zero_heads(backbone)
    assert 0.01 < mixer.head.weight.std() < 0.03
    assert all(torch.equal(value, before[key]) for key, value in deit.state_dict().items())


def test_two_heads_that_do_not_both_have_a_lesson_are_one(load):
    """timm's average of them, or it would be with a head of random weights, and DDP would stop at that."""
    for teachers, off in ((0, "KD__WEIGHT"), (1, "TASK__WEIGHT")):
        method, data = make(load, "kd", DEIT, teachers=teachers, **{off: 0}), batch()
        assert method.student.heads == ("cls",)
        (loss,) = method.losses(data).values()
        loss.backward()
        assert all(head.weight.grad.any() for head in method.student.backbone.get_classifier())


@pytest.mark.defect(24)
def test_standardized_logits_on_the_heads_of_std(load):
    """STD's heads take the same options, and LOGIT_STANDARD turns on what it says."""
    method = make(load, "std", teachers=1, **SOFT, DISTILLATION__LOGIT_STANDARD="true", DISTILLATION__EXTRA_WEIGHT=2.0)
    data, (classifier,) = batch(), method.student.branches["std"].classifiers
    before = method.losses(data)["std"]
    classifier.weight.data *= 3  # its logits are three times what they were
    classifier.bias.data *= 3
    torch.testing.assert_close(method.losses(data)["std"], before)
    method.trainer.terms["std"].loss.standardize = False
    assert not torch.allclose(method.losses(data)["std"], before)
