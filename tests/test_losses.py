"""Losses and weights against closed forms and torch's own."""

import math

import pytest
import torch
from torch.nn import functional

from pycls_std.losses.classification import soft_target_cross_entropy
from pycls_std.losses.confidence import confidence_weights, entropy_weights, negative_entropy, uniform_weights
from pycls_std.losses.logit import hard_distillation, soft_distillation

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


@pytest.mark.parametrize("loss", [hard_distillation, soft_distillation])
def test_distillation_of_many_heads_is_that_of_each(loss):
    heads, teachers = torch.randn(3, 6, 5), torch.randn(3, 6, 5)
    each = torch.stack([loss(s, t) for s, t in zip(heads, teachers, strict=True)])
    torch.testing.assert_close(loss(heads, teachers), each)


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
