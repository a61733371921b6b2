"""Normalisations of a teacher's features: each against its formula, entry by entry, and what it does not depend on."""

import math

import pytest
import torch
from torch.nn.functional import layer_norm

from pycls_std.core.registry import FEATURE_NORMS
from pycls_std.losses.feature_norm import layer, none, standardize, whiten

GENERATOR = torch.Generator().manual_seed(0)
MIX = torch.randn(6, 6, generator=GENERATOR)
MANY = torch.randn(40, 6, generator=GENERATOR) @ MIX + 3  # correlated channels, of another mean than 0
FEATURES = MANY[:5]


def covariance(features):
    """Entry by entry, with N in it."""
    count, mean = len(features), features.sum(dim=0) / len(features)
    rows = [
        [sum((z[i] - mean[i]) * (z[j] - mean[j]) for z in features) / count for j in range(features.shape[1])]
        for i in range(features.shape[1])
    ]
    return torch.tensor(rows)


def test_layer_is_over_the_channels_of_each_image():
    for image, found in zip(FEATURES, layer(FEATURES, FEATURES), strict=True):
        mean = sum(image) / 6
        variance = sum((value - mean) ** 2 for value in image) / 6
        torch.testing.assert_close(found, torch.stack([(value - mean) / math.sqrt(variance + 1e-5) for value in image]))
    assert torch.equal(layer(FEATURES, MANY), layer_norm(FEATURES, (6,)))


def test_standardize_is_over_the_images_of_each_channel():
    found = standardize(FEATURES, MANY)
    for channel in range(6):
        values = MANY[:, channel]
        mean = sum(values) / 40
        deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / 39)
        torch.testing.assert_close(found[:, channel], (FEATURES[:, channel] - mean) / deviation, rtol=1e-4, atol=1e-5)


def test_a_channel_that_does_not_vary_is_0():
    """A rectified channel of a teacher may be 0 for a whole batch; the reference of detection then has NaN."""
    features = FEATURES.clone()
    features[:, 2] = 0
    found = standardize(features, features)
    assert found.isfinite().all() and not found[:, 2].any()


@pytest.mark.parametrize("images", [40, 6, 5])
@pytest.mark.parametrize("shrinkage", [0.05, 0.5, 1.0])
def test_whiten_is_by_the_root_of_the_shrunk_covariance(shrinkage, images):
    """In double, by eigenvalues of the covariance itself; of more images than channels, and of fewer."""
    population = MANY[:images]
    found = whiten(FEATURES, population, shrinkage=shrinkage)
    own = covariance(population.double()).double()
    shrunk = (1 - shrinkage) * own + shrinkage * own.trace() / 6 * torch.eye(6).double()
    values, vectors = torch.linalg.eigh(shrunk)
    root = vectors @ torch.diag(values.sqrt()) @ vectors.T
    torch.testing.assert_close(root @ root, shrunk)
    expected = torch.stack([torch.linalg.solve(root, (z - population.mean(dim=0)).double()) for z in FEATURES])
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("images", [40, 5])
def test_whiten_does_not_depend_on_the_order_of_channels(images):
    order = [3, 0, 5, 1, 4, 2]
    found = whiten(FEATURES, MANY[:images], shrinkage=0.01)
    reordered = whiten(FEATURES[:, order], MANY[:images, order], shrinkage=0.01)
    torch.testing.assert_close(reordered, found[:, order], rtol=1e-3, atol=1e-4)


def test_whitened_channels_are_uncorrelated_and_of_variance_1():
    found = covariance(whiten(MANY, MANY, shrinkage=1e-4))
    torch.testing.assert_close(found, torch.eye(6), rtol=0, atol=0.02)
    assert covariance(MANY).fill_diagonal_(0).abs().max() > 1


def test_whitening_does_not_see_shift_and_scale():
    found = whiten(FEATURES, MANY, shrinkage=0.1)
    for scale in (1e-6, 1e6, 1e25):
        moved = (scale * x + 7 * scale for x in (FEATURES, MANY))
        torch.testing.assert_close(whiten(*moved, shrinkage=0.1), found, rtol=1e-3, atol=1e-4)


def test_without_correlation_shrinkage_1_only_centres_and_scales():
    expected = (FEATURES - MANY.mean(dim=0)) / covariance(MANY).diagonal().mean().sqrt()
    torch.testing.assert_close(whiten(FEATURES, MANY, shrinkage=1.0), expected)


@pytest.mark.parametrize("shrinkage", [0.001, 0.01, 1.0])
def test_fewer_images_than_channels(shrinkage):
    """512 channels of 32 images, some of them alike: finite, and what is whitened does not grow beyond all bounds."""
    features = torch.randn(32, 64, generator=GENERATOR) @ torch.randn(64, 512, generator=GENERATOR)
    features[:, 100:110] = features[:, :10]
    found = whiten(features, features, shrinkage=shrinkage)
    assert found.isfinite().all()
    assert float(found.square().mean()) <= 1.01


def test_features_that_are_all_alike_are_0():
    features = torch.ones(4, 6)
    assert torch.equal(whiten(features, features, shrinkage=0.1), torch.zeros(4, 6))


@pytest.mark.parametrize("name", FEATURE_NORMS.entries)
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_they_are_fp32_within_autocast(name, precision):
    norm = FEATURE_NORMS.get(name)
    options = {"shrinkage": 0.1} if name == "whiten" else {}
    expected = norm(FEATURES, MANY, **options)
    with torch.autocast("cpu", precision):
        found = norm(FEATURES, MANY, **options)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_none_is_what_it_says():
    assert torch.equal(none(FEATURES, MANY), FEATURES)


@pytest.mark.parametrize("name", ["standardize", "whiten"])
def test_statistics_need_two_images(name):
    options = {"shrinkage": 0.1} if name == "whiten" else {}
    with pytest.raises(ValueError, match="statistics over a batch need at least 2 images, this one has 1"):
        FEATURE_NORMS.get(name)(FEATURES[:1], FEATURES[:1], **options)
    assert [name for name, norm in FEATURE_NORMS.entries.items() if getattr(norm, "of_population", False)] == [
        *("standardize", "whiten")
    ]
