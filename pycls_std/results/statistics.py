"""Significance of a difference between two rows: confidence intervals over seeds and over test images, and tests.

Shapes: N images.
"""

import math
from collections.abc import Hashable, Mapping
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 2000  # of the bootstrap
BATCH = 4_000_000  # images drawn at once, to bound the memory


class Difference(NamedTuple):
    """A mean difference and its 95 % interval.

    n: seeds or images. kind: `t` over seeds, `bootstrap` over images.
    """

    mean: float
    low: float
    high: float
    n: int
    kind: str

    @property
    def noise(self) -> bool:
        """Whether the interval contains 0."""
        return self.low <= 0 <= self.high


def paired(values: Mapping[Hashable, float], baseline: Mapping[Hashable, float]) -> Difference:
    """Return the mean difference over the seeds that both have, with Student's t interval, n - 1 degrees of freedom.

    values, baseline: scores by seed; the difference has their unit.
    Raises ValueError with fewer than 2 common seeds, or for a score that is not finite.
    """
    seeds = [seed for seed in values if seed in baseline]
    if len(seeds) < 2:
        raise ValueError(f"an interval over seeds needs at least 2 that both rows have, there are {len(seeds)}")
    differences = np.array([values[seed] - baseline[seed] for seed in seeds], dtype=float)
    if not np.isfinite(differences).all():
        raise ValueError("a score is not finite")
    from scipy.stats import t  # here, since it takes a second to import

    mean = float(differences.mean())
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(seeds) - 1) * differences.std(ddof=1)) / math.sqrt(len(seeds))
    return Difference(mean, mean - half, mean + half, len(seeds), "t")


def bootstrap(correct: np.ndarray, baseline: np.ndarray) -> Difference:
    """Return the difference of two accuracies on the same images, in percentage points, for one seed.

    correct, baseline: (N,) whether each is right. A paired percentile bootstrap over images, with fixed draws. The
    interval covers the sampling of test images, not of seeds.
    Raises ValueError unless both are of the same images.
    """
    differences = 100.0 * _each(correct, baseline)
    from scipy.stats import bootstrap as resampled

    found = resampled(
        (differences,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, BATCH // len(differences)),
        vectorized=True,
        confidence_level=CONFIDENCE,
        method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return Difference(float(differences.mean()), float(found.low), float(found.high), len(differences), "bootstrap")


def mcnemar(correct: np.ndarray, baseline: np.ndarray) -> float:
    """Return the p-value of McNemar's test, on the images on which exactly one of the two is right.

    Two-sided and exact; 1 if there is no such image.
    Source: McNemar, Psychometrika 1947.
    """
    each = _each(correct, baseline)
    gained, lost = int((each > 0).sum()), int((each < 0).sum())
    if not gained + lost:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost, 0.5).pvalue)


def _each(correct: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """Return 1, 0 or -1 for each image (N,)."""
    correct, baseline = np.asarray(correct, dtype=bool), np.asarray(baseline, dtype=bool)
    if correct.shape != baseline.shape or correct.ndim != 1 or len(correct) < 2:
        raise ValueError(f"two predictions are compared on the same images, found {correct.shape} and {baseline.shape}")
    return correct.astype(np.int8) - baseline.astype(np.int8)
