"""Differences between two rows, with the interval that they are known to."""

from typing import NamedTuple

LEVEL = 0.95


class Difference(NamedTuple):
    """A mean difference and its 95 % interval, in the unit of the scores. n: what it is of, as `kind` says."""

    mean: float
    low: float
    high: float
    n: int
    kind: str

    @property
    def noise(self) -> bool:
        """Whether the interval holds 0: the two may as well be alike."""
        return self.low <= 0 <= self.high


def paired(values: dict[int, float], baseline: dict[int, float]) -> Difference | None:
    """Return the mean difference over the seeds that both have, its interval by Student's t; None for fewer than two.

    values, baseline: {seed: score}.
    """
    common = sorted(values.keys() & baseline.keys())
    if len(common) < 2:
        return None
    from scipy.stats import ttest_1samp  # here, since the import takes a while and few tables need it

    gains = [values[seed] - baseline[seed] for seed in common]
    mean = sum(gains) / len(gains)
    if max(gains) == min(gains):  # of no spread, which t knows no interval of
        return Difference(mean, mean, mean, len(common), "seeds")
    interval = ttest_1samp(gains, 0.0).confidence_interval(LEVEL)
    return Difference(mean, float(interval.low), float(interval.high), len(common), "seeds")
