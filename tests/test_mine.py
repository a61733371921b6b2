"""The mutual-information estimate against Gaussians, whose information is known, and the choice of its samples."""

import math

import pytest
import torch
from torch import nn

from pycls_std.builders.training import build_all, build_runtime
from pycls_std.core.structures import Loaded, Progress, World
from pycls_std.engine import loop
from pycls_std.layers.statistics_net import StatisticsNet
from pycls_std.losses.mine import mutual_information, shifted
from pycls_std.terms import mine
from pycls_std.terms.mine import Mine


def correlated(rho, count, generator):
    """Pairs (x, y) of unit Gaussians with correlation rho; their information is -log(1 - rho^2) / 2 nats."""
    x = torch.randn(count, 1, generator=generator)
    noise = torch.randn(count, 1, generator=generator)
    return x, rho * x + math.sqrt(1 - rho**2) * noise


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_information_of_correlated_gaussians(rho):
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    critic = StatisticsNet(2, width=64, depth=3)
    optimizer = torch.optim.Adam(critic.parameters(), lr=5e-3, maximize=True)
    for _ in range(300):
        x, y = correlated(rho, 1024, generator)
        estimate = mutual_information(critic(x, y), critic(x, shifted(y)))
        optimizer.zero_grad()
        estimate.backward()
        optimizer.step()
    x, y = correlated(rho, 20000, generator)
    with torch.no_grad():
        value = float(mutual_information(critic(x, y), critic(x, shifted(y))))
    assert value == pytest.approx(-math.log(1 - rho**2) / 2, abs=0.05)


def test_information_in_closed_form():
    """mean(1, 3) - log mean(e^0, e^2)."""
    value = mutual_information(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 2.0]))
    assert float(value) == pytest.approx(2 - math.log((1 + math.exp(2)) / 2), abs=1e-6)


@pytest.mark.defect(8)
def test_information_of_large_scores_is_finite():
    assert float(mutual_information(torch.full((4,), 1000.0), torch.full((4,), 1000.0))) == pytest.approx(0, abs=1e-3)


def test_no_sample_keeps_its_place():
    samples = torch.arange(5)
    assert sorted(shifted(samples).tolist()) == samples.tolist()
    assert not (shifted(samples) == samples).any()
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        shifted(torch.zeros(1))


def test_size_of_the_critic():
    count = lambda net: sum(p.numel() for p in net.parameters())  # noqa: E731
    assert count(StatisticsNet(512 + 64)) == 558_593
    assert count(StatisticsNet(512 + 196)) == 626_177


def epoch_batches(iterations, size):
    """Batches of an epoch, whose images carry their own number."""
    for iteration in range(iterations):
        numbers = torch.arange(iteration * size, (iteration + 1) * size, dtype=torch.float)
        images = numbers.view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
        yield Loaded(images, numbers, numbers), Progress(0, iteration, iterations, 1)


@pytest.mark.defect(8)
@pytest.mark.parametrize("samples", [2, 7, 40])
def test_samples_of_an_epoch_are_as_many_as_asked_distinct_and_unmixed(samples):
    mine = Mine(nn.ModuleList(), [], samples=samples, period="epoch")
    collected = [mine.collect(*pair, World()) for pair in epoch_batches(5, 8)]
    assert all(images is None for images in collected[:-1])
    numbers = collected[-1][:, 0, 0, 0].tolist()
    assert len(numbers) == len(set(numbers)) == samples
    assert min(numbers) >= 0


def test_samples_of_a_step():
    mine = Mine(nn.ModuleList(), [], samples=6, period="step")
    for loaded, progress in epoch_batches(3, 8):
        numbers = mine.collect(loaded, progress, World())[:, 0, 0, 0].tolist()
        assert len(set(numbers)) == 6
        assert set(numbers) <= set(loaded.images[:, 0, 0, 0].tolist())


@pytest.mark.parametrize("period", ["epoch", "step"])
def test_samples_are_distinct_images_under_repeated_augmentation(period):
    """Each image stands in three views side by side: views 0, 1, 2 are one image."""
    mine = Mine(nn.ModuleList(), [], samples=3, period=period, repeats=3)
    for _ in range(20):
        for loaded, progress in epoch_batches(5, 12):
            images = mine.collect(loaded, progress, World())
            if images is not None:
                assert len({int(number) // 3 for number in images[:, 0, 0, 0]}) == 3


@pytest.mark.parametrize(
    ("period", "text"), [("epoch", "MINE.SAMPLES is 50, an epoch has 40"), ("step", "a batch has 8")]
)
def test_more_samples_than_images_is_an_error(period, text):
    mine = Mine(nn.ModuleList(), [], samples=50, period=period)
    with pytest.raises(ValueError, match=text):
        mine.collect(*next(iter(epoch_batches(5, 8))), World())


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_its_step_is_in_the_precision_of_the_run(std, monkeypatch, precision, dtype):
    """But for the estimate itself, which is in fp32."""
    cfg = std(MINE__SAMPLES=4, MINE__PERIOD="step", PRECISION=precision)
    session, *_ = build_all(cfg, build_runtime(cfg))
    seen = []
    information = mine.mutual_information
    monkeypatch.setattr(mine, "mutual_information", lambda *scores: seen.extend(scores) or information(*scores))
    batch = session.task.batch(next(iter(session.train_loader)), Progress(0, 0, 8, 3))
    _, extra = loop.train_step(session, batch, Progress(0, 0, 8, 3))
    assert {scores.dtype for scores in seen} == {dtype}
    assert extra["mine"].dtype == torch.float32
