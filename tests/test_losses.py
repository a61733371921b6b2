"""Losses and weights against closed forms and torch's own."""

import math

import pytest
import torch
from torch.nn import functional

from pycls_std.losses.classification import soft_target_cross_entropy
from pycls_std.losses.confidence import confidence_weights, entropy_weights, negative_entropy, uniform_weights
from pycls_std.losses.logit import decoupled_distillation, hard_distillation, soft_distillation, standardized

STUDENT = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
TEACHER = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))


def test_cross_entropy_with_probabilities():
    targets = TEACHER.softmax(dim=1)
    torch.testing.assert_close(soft_target_cross_entropy(STUDENT, targets), functional.cross_entropy(STUDENT, targets))


def test_hard_distillation_is_cross_entropy_with_the_teachers_label():
    expected = functional.cross_entropy(STUDENT, TEACHER.argmax(dim=1), reduction="none")
    torch.testing.assert_close(hard_distillation(STUDENT, TEACHER), expected)


def test_soft_distillation_of_equal_logits_is_nothing():
    torch.testing.assert_close(soft_distillation(TEACHER, TEACHER, 3.0), torch.zeros(6))


def test_soft_distillation_of_two_classes_in_closed_form():
    """Two classes, logits (0, a): p = sigmoid(a / T), KL of two coins."""
    a, b, temperature = 1.3, -0.4, 2.0
    p, q = (1 / (1 + math.exp(-x / temperature)) for x in (b, a))
    expected = temperature**2 * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
    value = soft_distillation(torch.tensor([[0.0, a]]), torch.tensor([[0.0, b]]), temperature)
    torch.testing.assert_close(value, torch.tensor([expected]))


@pytest.mark.defect(20)
def test_soft_distillation_averages_over_images_not_logits():
    expected = functional.kl_div(
        STUDENT.log_softmax(dim=1), TEACHER.log_softmax(dim=1), reduction="batchmean", log_target=True
    )
    torch.testing.assert_close(soft_distillation(STUDENT, TEACHER).mean(), expected)


def test_soft_distillation_at_a_high_temperature_compares_centred_logits():
    """T -> infinity: the gradient tends to (centred student - centred teacher) / K, whatever T is."""
    student = STUDENT.clone().double().requires_grad_()
    soft_distillation(student, TEACHER.double(), 1e3).sum().backward()
    difference = (STUDENT - STUDENT.mean(1, keepdim=True)) - (TEACHER - TEACHER.mean(1, keepdim=True))
    torch.testing.assert_close(student.grad.float(), difference / 5, rtol=5e-3, atol=1e-3)


def test_standardized_logits_have_mean_0_and_deviation_1():
    values = standardized(STUDENT * 7 + 3)
    torch.testing.assert_close(values.mean(dim=1), torch.zeros(6), atol=1e-6, rtol=0)
    torch.testing.assert_close(values.square().sum(dim=1), torch.full((6,), 4.0))  # K - 1
    assert torch.equal(standardized(torch.full((1, 5), 3.0)), torch.zeros(1, 5))


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_standardization_is_invariant_to_scale_and_shift_of_either_side(side):
    def loss(scale, shift):
        student, teacher = (x * scale + shift if name == side else x for name, x in sides)
        return soft_distillation(standardized(student), standardized(teacher), 2.0)

    sides = (("student", STUDENT), ("teacher", TEACHER))
    torch.testing.assert_close(loss(5.0, -3.0), loss(1.0, 0.0))
    torch.testing.assert_close(loss(0.1, 40.0), loss(1.0, 0.0), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(loss(-1.0, 0.0), loss(1.0, 0.0))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_decoupled_distillation_splits_soft_distillation_exactly(temperature):
    """KD = TCKD + (1 - p_t) NCKD, p_t the teacher's probability of the target class."""
    labels = torch.arange(6) % 5
    parts = {"dkd_alpha": 1.0, "dkd_beta": 0.0}, {"dkd_alpha": 0.0, "dkd_beta": 1.0}
    target, others = (decoupled_distillation(STUDENT, TEACHER, labels, temperature, **part) for part in parts)
    p = (TEACHER / temperature).softmax(dim=1).gather(1, labels[:, None]).squeeze(1)
    torch.testing.assert_close(target + (1 - p) * others, soft_distillation(STUDENT, TEACHER, temperature))
    both = decoupled_distillation(STUDENT, TEACHER, labels, temperature, dkd_alpha=2.0, dkd_beta=3.0)
    torch.testing.assert_close(both, 2 * target + 3 * others)


def test_parts_of_decoupled_distillation_in_closed_form():
    """Teacher (1/2, 1/4, 1/4), student uniform, target the first: KL(1/2 || 1/3), and nothing among the others."""
    teacher = torch.tensor([[0.5, 0.25, 0.25]]).log()
    target = decoupled_distillation(torch.zeros(1, 3), teacher, torch.tensor([0]), dkd_alpha=1.0, dkd_beta=0.0)
    torch.testing.assert_close(target, torch.tensor([0.5 * math.log(1.5) + 0.5 * math.log(0.75)]))
    others = decoupled_distillation(torch.zeros(1, 3), teacher, torch.tensor([0]), dkd_alpha=0.0, dkd_beta=1.0)
    torch.testing.assert_close(others, torch.zeros(1))
    others = decoupled_distillation(torch.zeros(1, 3), teacher, torch.tensor([1]), dkd_alpha=0.0, dkd_beta=1.0)
    expected = 2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3)  # (2/3, 1/3) against a coin
    torch.testing.assert_close(others, torch.tensor([expected]))


@pytest.mark.parametrize("classes", [2, 10])
def test_decoupled_distillation_of_sure_logits_is_finite(classes):
    student = (200 * torch.randn(8, classes)).requires_grad_()
    value = decoupled_distillation(student, 200 * torch.randn(8, classes), torch.arange(8) % classes)
    value.sum().backward()
    assert value.isfinite().all() and student.grad.isfinite().all()


def test_negative_entropy_of_a_fair_die():
    torch.testing.assert_close(negative_entropy(torch.zeros(1, 6)), torch.tensor([-math.log(6)]))


@pytest.mark.defect(2)
@pytest.mark.defect(3)
def test_weights_of_a_sure_and_an_ignorant_teacher():
    """Entropies 0 and log K: softmax(0, -log K) = K / (K + 1), 1 / (K + 1)."""
    sure, ignorant = torch.tensor([[200.0, 0, 0, 0]]), torch.zeros(1, 4)
    weights = confidence_weights(torch.stack([sure, ignorant]))
    torch.testing.assert_close(weights, torch.tensor([[0.8, 0.2]]))
    torch.testing.assert_close(entropy_weights(torch.stack([sure, ignorant])), torch.tensor([[0.2, 0.8]]))


def test_weights_of_every_image_sum_to_one():
    logits = torch.randn(3, 7, 5)
    for weighting in (confidence_weights, entropy_weights, uniform_weights):
        weights = weighting(logits)
        assert weights.shape == (7, 3)
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(7))
    torch.testing.assert_close(uniform_weights(logits), torch.full((7, 3), 1 / 3))


@pytest.mark.defect(1)
def test_weights_of_an_image_do_not_depend_on_its_batch():
    """The reference sums the entropies of a batch before the softmax: 128 images leave one teacher all the weight."""
    logits = torch.randn(2, 128, 10)
    together = confidence_weights(logits)
    apart = torch.cat([confidence_weights(logits[:, [image]]) for image in range(128)])
    torch.testing.assert_close(together, apart)
    assert together.min() > 0.1 and together.max() < 0.9
