"""Statistics over the finished runs of a row: curves over seeds, last values, the main score."""

import math
from statistics import mean, stdev
from typing import NamedTuple

from pycls_std.core.text import first_of, printable
from pycls_std.results.read import Run

Rows = dict[str, list[Run]]  # the runs of each row of a table, one a seed, in the table's order


class Band(NamedTuple):
    """A curve over the seeds of a row: for each number of completed epochs, mean, minimum and maximum of n runs."""

    epochs: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]
    n: int


def finished(runs: list[Run]) -> list[Run]:
    """Return the finished runs, whose values count as results."""
    return [run for run in runs if run.status == "finished"]


def left_out(rows: Rows) -> str:
    """Return as text which runs are excluded, and why; "" if none is."""
    names = [f"{name} {run.seed} ({run.status})" for name, runs in rows.items() for run in runs]
    gone = [run.status != "finished" for runs in rows.values() for run in runs]
    return first_of(name for name, out in zip(names, gone, strict=True) if out)


def band(runs: list[Run], tag: str) -> Band | None:
    """Return a curve over all finished runs, at the epochs that each of them has; None if one of them has none."""
    curves = [run.curves.get(tag, {}) for run in finished(runs)]
    shared = set.intersection(*map(set, curves)) if curves else set()
    epochs = sorted(epoch for epoch in shared if all(math.isfinite(curve[epoch]) for curve in curves))
    if not epochs:
        return None
    values = [[curve[epoch] for curve in curves] for epoch in epochs]
    return Band(epochs, [mean(v) for v in values], [min(v) for v in values], [max(v) for v in values], len(curves))


def last(runs: list[Run], tag: str) -> list[float]:
    """Return the last value of each finished run; [] if one of them has none, or one that is not finite."""
    curves = [run.curves.get(tag, {}) for run in finished(runs)]
    values = [curve[max(curve)] for curve in curves] if all(curves) else []
    return values if all(map(math.isfinite, values)) else []


def spread(values: list[float]) -> tuple[float, float]:
    """Return mean and sample standard deviation, for plots; the unknown one of a single value is 0."""
    return mean(values), stdev(values) if len(values) > 1 else 0.0


def result_of(catalogue, runs: list[Run]) -> str:
    """Return the name of the main score of a row's task, "" if its options are missing. catalogue: of options."""
    names = {run.options["TASK.NAME"] for run in runs if run.options}
    tasks = [catalogue.tasks[name] for name in names if name in catalogue.tasks]
    return tasks[0].attributes["RESULT"] if len(tasks) == 1 else ""


def heading(catalogue, score: str) -> str:
    """Return the label of a score with its unit, for an axis."""
    facts = catalogue.scores.get(score, {})
    unit = f" ({facts['unit']})" if facts.get("unit") else ""
    return printable(f"{facts.get('label', score)}{unit}")


def best_epoch(curve: dict[int, float], better: str) -> int:
    """Return the first epoch with the best value of a curve, 0 if none is finite. better: higher or lower."""
    best = max if better == "higher" else min
    finite = sorted(epoch for epoch in curve if math.isfinite(curve[epoch]))
    return best(finite, key=lambda epoch: curve[epoch], default=0)


def selected_epoch(run: Run, score: str, better: str) -> int | None:
    """Return the first epoch with the best held-out score, of those with a score on the test split; None if none."""
    held_out, test = (run.curves.get(f"{split}/{score}", {}) for split in ("val", "test"))
    return best_epoch({epoch: value for epoch, value in held_out.items() if epoch in test}, better) or None
