"""The newer forms of logit distillation: against plain loops, and each with several teachers and on STD's heads."""

import math
from functools import partial

import pytest
import torch
from methods import batch, logit_loss, make, two_steps
from records import SMALL, load_state
from shares import FEW, apart, steps_of, steps_of_two
from test_check import check  # noqa: F401  (a fixture)

from pycls_std import runner
from pycls_std.core.registry import LOGIT_LOSSES
from pycls_std.core.structures import Progress
from pycls_std.engine.runtime import Runtime
from pycls_std.losses.confidence import confidence_weights
from pycls_std.losses.curriculum import curriculum_distillation, with_gradient
from pycls_std.losses.logit import decoupled_distillation, normalized_distillation, soft_distillation, standardized
from pycls_std.losses.logit_relations import correlation, relation_distillation
from pycls_std.losses.logit_targets import (
    enhanced_distillation,
    transformed_distillation,
    weighted_transformed_distillation,
)

GENERATOR = torch.Generator().manual_seed(0)
STUDENT = torch.randn(6, 5, generator=GENERATOR)
TEACHER = 2 * torch.randn(6, 5, generator=GENERATOR)
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])
FORMS = sorted(LOGIT_LOSSES.entries)
STUDENTS = ("mixer_nano4", "deit_tiny_patch16_224", "resnet14")
ALL_TERMS = {"STD__WEIGHT": 0.5, "KD__WEIGHT": 0.5, "EXITS__WEIGHT": 0.5, "MINE__SAMPLES": 0}  # that read logits


def probabilities(logits, temperature=1.0):
    """Softmax of one row, in Python's numbers."""
    exponents = [math.exp(float(z) / temperature) for z in logits]
    return [e / sum(exponents) for e in exponents]


def pearson(x, y):
    centred = [[value - sum(each) / len(each) for value in each] for each in (x, y)]
    product = sum(a * b for a, b in zip(*centred, strict=True))
    return product / math.sqrt(sum(a * a for a in centred[0]) * sum(b * b for b in centred[1]))


# --------------------------------------------------------------------------------------------------------- plain loops
def test_relations_are_correlations_over_classes_and_images():
    s, t = ([probabilities(row, 3.0) for row in logits] for logits in (STUDENT, TEACHER))
    of_images = [1 - pearson(a, b) for a, b in zip(s, t, strict=True)]
    columns = [[[row[k] for row in rows] for k in range(5)] for rows in (s, t)]
    of_classes = sum(1 - pearson(a, b) for a, b in zip(*columns, strict=True)) / 5
    expected = [9 * (2 * each + 0.5 * of_classes) for each in of_images]
    found = relation_distillation(STUDENT, TEACHER, 3.0, dist_beta=2.0, dist_gamma=0.5)
    assert found.tolist() == pytest.approx(expected, rel=1e-4)


def test_relations_do_not_change_with_a_scale_or_shift_of_the_probabilities():
    first, second = STUDENT.softmax(1), TEACHER.softmax(1)
    for dim in (0, 1):
        before = correlation(first, second, dim)
        torch.testing.assert_close(correlation(0.3 * first + 2, 5 * second - 1, dim), before, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(correlation(-first, second, dim), -before)
    torch.testing.assert_close(relation_distillation(TEACHER, TEACHER + 3), torch.zeros(6), atol=1e-5, rtol=0)


def test_a_batch_of_one_and_logits_that_are_alike_are_finite():
    student = torch.zeros(1, 5).requires_grad_()
    value = relation_distillation(student, TEACHER[:1])
    value.sum().backward()
    assert value.isfinite().all() and student.grad.isfinite().all()


def test_normalized_distillation_is_two_cross_entropies():
    found = normalized_distillation(STUDENT, TEACHER, LABELS, 2.0, nkd_gamma=3.0)
    for s, t, y, value in zip(STUDENT, TEACHER, LABELS.tolist(), found, strict=True):
        expected = -probabilities(t)[y] * math.log(probabilities(s)[y])
        rest = [[float(z) for k, z in enumerate(row) if k != y] for row in (s, t)]
        own, other = (probabilities(row, 2.0) for row in rest)
        expected -= 3 * 4 * sum(b * math.log(a) for a, b in zip(own, other, strict=True))
        assert float(value) == pytest.approx(expected, rel=1e-4)


def test_the_others_of_nkd_are_those_of_dkd_but_for_the_teachers_entropy():
    student = STUDENT.clone().requires_grad_()
    forms = [
        (partial(normalized_distillation, nkd_gamma=1.0), partial(normalized_distillation, nkd_gamma=0.0)),
        (partial(decoupled_distillation, dkd_alpha=0.0, dkd_beta=1.0), lambda *_: torch.zeros(6)),
    ]
    gradients = []
    for whole, rest in forms:
        value = (whole(student, TEACHER, LABELS, 2.0) - rest(student, TEACHER, LABELS, 2.0)).sum()
        gradients.append(torch.autograd.grad(value, student)[0])
    torch.testing.assert_close(*gradients)


def test_the_teachers_probabilities_to_a_power():
    found = [
        form(STUDENT, TEACHER, ttm_gamma=0.3) for form in (transformed_distillation, weighted_transformed_distillation)
    ]
    for s, t, plain, weighted in zip(STUDENT, TEACHER, *found, strict=True):
        powers = [p**0.3 for p in probabilities(t)]
        q = [p / sum(powers) for p in powers]
        expected = sum(b * math.log(b / a) for a, b in zip(probabilities(s), q, strict=True))
        assert float(plain) == pytest.approx(expected, rel=1e-3)
        assert float(weighted) == pytest.approx(expected * sum(powers), rel=1e-3)
    torch.testing.assert_close(
        transformed_distillation(STUDENT, TEACHER, ttm_gamma=1.0), soft_distillation(STUDENT, TEACHER)
    )
    once = weighted_transformed_distillation(STUDENT, TEACHER, ttm_gamma=1.0)
    torch.testing.assert_close(once, soft_distillation(STUDENT, TEACHER))


@pytest.mark.parametrize("eps", [1.0, 1.5])
def test_the_labels_weight_is_made_larger(eps):
    found = enhanced_distillation(STUDENT, TEACHER, LABELS, ofa_eps=eps)
    for s, t, y, value in zip(STUDENT, TEACHER, LABELS.tolist(), found, strict=True):
        weights = [(p + (k == y)) ** eps - (k == y) for k, p in enumerate(probabilities(t))]
        expected = -sum(w * math.log(q) for w, q in zip(weights, probabilities(s), strict=True))
        assert float(value) == pytest.approx(expected, rel=1e-4)


def test_with_eps_1_it_teaches_what_soft_distillation_teaches():
    student = STUDENT.clone().requires_grad_()
    values = enhanced_distillation(student, TEACHER, LABELS), soft_distillation(student, TEACHER)
    gradients = [torch.autograd.grad(value.sum(), student)[0] for value in values]
    torch.testing.assert_close(*gradients)
    entropy = -(TEACHER.softmax(1) * TEACHER.log_softmax(1)).sum(1)
    torch.testing.assert_close(values[0] - values[1], entropy)


@pytest.mark.parametrize(("epoch", "factor"), [(0, (math.cos(math.pi / 10) - 1) / 2), (4, -0.5), (9, -1), (30, -1)])
def test_the_temperature_learns_by_its_reversed_gradient(epoch, factor):
    """theta 1 is T = 1 + 20 / (1 + 1/e); its gradient is -1 times the true one from the tenth epoch on."""
    temperature = 1 + 20 / (1 + math.exp(-1))
    theta, plain = torch.tensor(1.0, requires_grad=True), torch.tensor(temperature, requires_grad=True)
    student = STUDENT.clone().requires_grad_()
    value = curriculum_distillation(student, TEACHER, theta, Progress(epoch, 0, 5, 40)).sum()
    expected = soft_distillation(student, TEACHER, plain).sum()
    torch.testing.assert_close(value, expected)
    found = torch.autograd.grad(value, [theta, student])
    true = torch.autograd.grad(expected, [plain, student])
    slope = 20 * math.exp(-1) / (1 + math.exp(-1)) ** 2
    torch.testing.assert_close(found[0], factor * slope * true[0])
    torch.testing.assert_close(found[1], true[1])


def test_options_of_the_temperature():
    theta, late = torch.tensor(0.0, requires_grad=True), Progress(0, 0, 1, 1)
    value = curriculum_distillation(STUDENT, TEACHER, theta, late, ctkd_epochs=0, ctkd_least=2.0, ctkd_range=4.0)
    torch.testing.assert_close(value, soft_distillation(STUDENT, TEACHER, 4.0))
    value.sum().backward()
    other = torch.tensor(4.0, requires_grad=True)
    soft_distillation(STUDENT, TEACHER, other).sum().backward()
    torch.testing.assert_close(theta.grad, -4.0 / 4 * other.grad)
    assert float(with_gradient(theta, 0.0).detach()) == 0.0


@pytest.mark.parametrize("form", FORMS)
def test_many_heads_are_each_as_one(form):
    heads, teachers = torch.randn(3, 6, 5), torch.randn(3, 6, 5)
    each = torch.stack([logit_loss(form, s, t, LABELS) for s, t in zip(heads, teachers, strict=True)])
    torch.testing.assert_close(logit_loss(form, heads, teachers, LABELS), each)


@pytest.mark.parametrize("form", FORMS)
def test_a_shift_of_the_logits_of_an_image_changes_nothing(form):
    shifts = 3 * torch.randn(2, 6, 1)
    moved = logit_loss(form, STUDENT + shifts[0], TEACHER + shifts[1], LABELS)
    torch.testing.assert_close(moved, logit_loss(form, STUDENT, TEACHER, LABELS), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_sure_logits_are_finite(form):
    student = (200 * torch.randn(6, 5)).requires_grad_()
    value = logit_loss(form, student, 200 * torch.randn(6, 5), LABELS)
    value.sum().backward()
    assert value.isfinite().all() and student.grad.isfinite().all()


# ------------------------------------------------------------------------------------------------------------- methods
@pytest.mark.parametrize("standard", ["false", "true"])
@pytest.mark.parametrize("form", FORMS)
def test_several_teachers_standardized_or_not(load, form, standard):
    """sum_m w_m D(student, teacher m), on the one head and on STD's two."""
    options = {"DISTILLATION__TYPE": form, "DISTILLATION__LOGIT_STANDARD": standard}
    kd, std = make(load, "kd", **options), make(load, "std", **options)
    data = batch()
    labels = data.targets.argmax(1)
    for method, term, share in ((kd, "kd", 0.9), (std, "std", 0.5)):
        heads = method.student(data.images).heads
        teachers = torch.stack([teacher(data.images).heads["cls"] for teacher in method.teachers])
        weights, total = confidence_weights(teachers), 0.0
        for m, logits in enumerate(teachers):
            own = heads["cls"] if term == "kd" else heads[f"std{m}"]
            pair = (standardized(own), standardized(logits)) if standard == "true" else (own, logits)
            total = total + (weights[:, m] * logit_loss(form, *pair, labels)).mean()
        torch.testing.assert_close(method.losses(data)[term], share * total, rtol=1e-4, atol=1e-5)


def test_classes_of_data_that_is_not_read_yet_are_not_taken_for_two(method):
    """Whose logits cannot be standardized."""
    runner.run("info", method("kd", MODEL__NUM_CLASSES=0, DISTILLATION__LOGIT_STANDARD="true"))


def learned(form):
    """Names of the scalars that a form trains beside the student."""
    return set(getattr(LOGIT_LOSSES.get(form), "learned", {}))


WAYS = [(name, way) for name in STUDENTS for way in ("fp32", "bf16")] + [("mixer_nano4", "compiled")]


@pytest.mark.parametrize(("name", "way"), WAYS)
@pytest.mark.parametrize("form", FORMS)
def test_it_trains_student_and_scalars_and_nothing_else(load, form, name, way):
    method = make(load, "std", name, KD__WEIGHT=0.5, DISTILLATION__TYPE=form)
    for head in (method.student.backbone.get_classifier(), *method.student.branches["std"].classifiers):
        torch.nn.init.normal_(head.weight)  # a student that is sure of something
    teachers = {key: value.clone() for key, value in method.teachers.state_dict().items()}
    two_steps(method, way)
    trainer = method.trainer
    scalars = dict(trainer.terms.named_parameters())
    assert set(scalars) == {f"{term}.loss.learned.{own}" for own in learned(form) for term in ("kd", "std")}
    assert all(float(p.grad) != 0.0 for p in scalars.values())
    monitors = {f"{term}_{own}" for own in learned(form) for term in ("kd", "std")}
    assert {key for key in trainer.monitors if not key.startswith("teacher_weight/")} == monitors
    assert all(torch.equal(value, teachers[key]) for key, value in method.teachers.state_dict().items())
    assert not any(p.grad is not None for p in method.teachers.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_what_it_learns_is_not_deployed(load, form):
    trainer = make(load, "kd", "resnet14", 1, DISTILLATION__TYPE=form).trainer
    assert trainer.deployed_parameters() == make(load, "baseline", "resnet14").trainer.deployed_parameters()
    assert trainer.trained_parameters() - trainer.deployed_parameters() == len(learned(form))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("form", FORMS)
def test_a_run_in_small_passes_all_checks(check, method, form, precision):  # noqa: F811
    """On all heads that can learn from logits; among the checks that a saved run goes on exactly."""
    found = check(method("std", DISTILLATION__TYPE=form, PRECISION=precision, **ALL_TERMS))
    assert all(ok for ok, _ in found.values()), found
    assert found["terms"][1] == "ce, exits, kd, std"


@pytest.mark.slow
def test_two_processes_train_what_one_trains(method, tmp_path):
    """But for `dist`, whose correlations over the images of a class are of each process's share of them."""
    methods = {form: method("std", DISTILLATION__TYPE=form, **ALL_TERMS, **FEW) for form in FORMS}
    for form, two in steps_of_two(tmp_path, methods).items():
        assert apart(steps_of(methods[form], parts=2 if form == "dist" else 1), two) < 1e-5, form


def test_the_temperature_goes_where_the_loss_is_larger(load):
    method, data = make(load, "kd", teachers=1, DISTILLATION__TYPE="ctkd", DISTILLATION__CTKD_EPOCHS=0), batch()
    (theta,) = method.trainer.terms.parameters()
    torch.nn.init.normal_(method.student.backbone.head.weight)
    before = method.losses(data)["kd"]
    Runtime(device="cpu").step({"kd": before}, [torch.optim.SGD([theta], lr=100.0)])
    assert float(method.losses(data)["kd"].detach()) > float(before.detach())


def test_the_temperature_is_saved_and_not_deployed(method, tmp_path):
    own = {"DISTILLATION__TYPE": "ctkd", "DISTILLATION__LOGIT_STANDARD": "false", "DISTILLATION__CTKD_EPOCHS": 1}
    runner.train(method("kd", OPTIM__MAX_EPOCH=1, **SMALL, **own))
    state = load_state(tmp_path / "run")
    assert list(state["trainer"]["terms"]) == ["kd.loss.learned.theta"]
    assert float(state["trainer"]["terms"]["kd.loss.learned.theta"]) != 1.0
    assert not any("theta" in key for key in load_state(tmp_path / "run", "best")["student"])
    assert "train/kd_theta" in (tmp_path / "run" / "metrics.jsonl").read_text()
