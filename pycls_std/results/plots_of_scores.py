"""Figures of scores: by class, against deployed parameters, against training cost."""

import math
from statistics import mean, stdev
from typing import Any

from pycls_std import config
from pycls_std.core.text import first_of
from pycls_std.results.costs import device_hours, of_starts
from pycls_std.results.picture_style import COLUMN, LINE, MOST, PAGE, canvas, label, logarithmic, look, styled, title
from pycls_std.results.read import Run, is_number
from pycls_std.results.rows import known_files, other_files
from pycls_std.results.seeds import Rows, finished, heading, last, left_out, result_of, spread

NAMED = 10  # number of classes with the largest, and with the smallest gains, that are shown if there are many

OPEN = {"markerfacecolor": "none", "markeredgewidth": 1.2}  # so that overlapping points are visible


def by_class(runs: list[Run]) -> tuple[list[str], dict[str, list[float | None]]]:
    """Return the class names, and per-class scores in percent by the seed of each finished run.

    A score is None for a class without images. Both are empty unless all finished runs have analyses, with the same
    classes.
    """
    found = {run.seed: run.analysis for run in finished(runs)}
    classes = [each.get("classes") for each in found.values()]
    if not found or not classes[0] or any(names != classes[0] for names in classes):
        return [], {}
    values = {seed: each["predictions"][each["prediction"]]["per_class"] for seed, each in found.items()}
    return [str(name) for name in classes[0]], values


def gain_by_class(runs: list[Run], baseline: list[Run]) -> list[tuple[str, float, float]]:
    """Return class, mean gain over the seeds that both have, and its standard error, by ascending gain.

    The error is NaN with one seed; [] without analyses of both with the same classes, or without a common seed.
    """
    (names, own), (others, ground) = by_class(runs), by_class(baseline)
    seeds = sorted(own.keys() & ground.keys())
    if not seeds or names != others:
        return []
    gains = []
    for place, name in enumerate(names):
        pairs = [(own[seed][place], ground[seed][place]) for seed in seeds]
        found = [after - before for after, before in pairs if after is not None and before is not None]
        if len(found) < len(pairs):
            continue
        error = stdev(found) / math.sqrt(len(found)) if len(found) > 1 else math.nan
        gains.append((name, mean(found), error))
    return sorted(gains, key=lambda each: each[1])


def comparable(runs: list[Run], baseline: list[Run]) -> bool:
    """Return whether two rows were trained on the same images for the same epochs; a teacher's row may not be."""
    keys = ("DATA.PER_CLASS", "DATA.IMAGES", "DATA.VAL_FRACTION", "OPTIM.MAX_EPOCH")
    sides = [run.options for run in (finished(runs)[:1] + finished(baseline)[:1])]
    if other_files(*(known_files(finished(each)) for each in (runs, baseline))):
        return False
    return len({(config.dataset_name(flat), *map(flat.get, keys)) for flat in sides}) == 1


@styled
def gains(rows: Rows, baseline: str = ""):
    """Sorted bars of each class's gain over the baseline, a panel for each row; only the extremes of many classes.

    Rows that were trained on other images, or for other epochs, are not shown.
    """
    if not baseline or not finished(rows[baseline]):
        return None
    alike = {name: runs for name, runs in rows.items() if name != baseline and comparable(runs, rows[baseline])}
    panels = {name: gain_by_class(runs, rows[baseline]) for name, runs in alike.items()}
    panels = {name: own for name, own in panels.items() if own}
    if not panels:
        return None
    most = max(map(len, panels.values()))
    columns = 1 if len(panels) == 1 else 2 if len(panels) <= 4 else 3
    width = COLUMN if len(panels) <= 1 else PAGE
    bars = min(most, 2 * NAMED + 1)
    said = f"Gain of each class over {label(baseline)}, mean over the seeds of both"
    said += "; thin line: its standard error. " if any(e == e for own in panels.values() for *_, e in own) else ". "
    said += "Dotted line: mean over all classes."
    said += f" Of {most} classes the {NAMED} of either end." if most > 2 * NAMED + 1 else ""
    gone = left_out(rows)
    said += f" Left out: {gone}." if gone else ""
    figure, axes = canvas(
        len(panels), height=0.75 + 0.14 * bars, width=width, columns=columns, caption=said, sharex=True
    )
    for each, (row, own) in zip(axes, panels.items(), strict=True):
        _bars(each, own)
        each.set_title(title(row, width / columns - 0.8))
    for each in axes[-columns:]:
        each.set_xlabel("gain (points)")
    return figure


def _bars(axes, gains: list[tuple[str, float, float]]) -> None:
    shown = gains if len(gains) <= 2 * NAMED + 1 else [*gains[:NAMED], ("...", 0.0, math.nan), *gains[-NAMED:]]
    heights = [gain for _, gain, _ in shown]
    errors = [0.0 if math.isnan(error) else error for *_, error in shown]
    colours = [look(0)["color"] if gain >= 0 else look(1)["color"] for gain in heights]
    axes.barh(range(len(shown)), heights, 0.75, color=colours, xerr=errors, error_kw={"elinewidth": 0.7})
    axes.set_yticks(range(len(shown)), [label(name, 16) for name, *_ in shown])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(-0.7, len(shown) - 0.3)
    axes.grid(False, axis="y")
    axes.axvline(0, color="black", linewidth=0.6)
    axes.axvline(mean(gain for _, gain, _ in gains), color="black", linestyle=":", linewidth=0.9)


@styled
def parameters(rows: Rows, baseline: str = ""):
    """The main score against deployed parameters."""
    points = {name: [_fact(run, "parameters", "deployed") for run in finished(runs)] for name, runs in rows.items()}
    millions = {name: [value / 1e6 for value in own if value] for name, own in points.items() if all(own)}
    return _against(rows, millions, "deployed parameters (millions)", "")


@styled
def cost(rows: Rows, baseline: str = ""):
    """The main score against training hours, summed over devices, including evaluations."""
    hours = {name: [device_hours(run) for run in finished(runs)] for name, runs in rows.items()}
    known = {name: [value for value in own if value] for name, own in hours.items() if all(own)}
    own = [run for name in known for run in finished(rows[name])]
    devices = sorted({device for run in own for device in of_starts(run.facts, "device") or ["unknown"]})
    said = "Hours of one run, without those of its teachers, on "
    said += f"{devices[0]}." if len(devices) == 1 else f"different devices ({first_of(devices, 3)}): do not compare."
    if any(run.options.get("DISTILLATION.CACHE") for run in own):
        said += " What teachers said was kept: only the run that asked them first has the hours of it."
    return _against(rows, known, "training (hours)", said)


def _against(rows: Rows, across: dict[str, list[float]], unit: str, said: str):
    """Return a figure with a point per row: last score against `across`, as means and sample standard deviations."""
    catalogue = config.Catalogue()
    scores = {name: result_of(catalogue, runs) for name, runs in rows.items()}
    score = next(filter(None, scores.values()), "")
    alike = [name for name in rows if scores[name] == score and across.get(name)]
    values = {name: own for name in alike if (own := last(rows[name], f"test/{score}"))}
    if not values:
        return None
    gone = left_out(rows)
    several = any(len(own) > 1 for own in values.values())
    said += " Point: mean over seeds; bars: sample standard deviation." if several else " One seed each."
    said += f" Left out: {gone}." if gone else ""
    points = {name: (*spread(across[name]), *spread(own)) for name, own in values.items()}
    looks = {name: look(position) for position, name in enumerate(values)}
    few = len(values) <= MOST
    legend = [(name, looks[name] | {"linestyle": ""} | OPEN) for name in values] if few else []
    height = 2.3 if few else max(2.5, 0.6 + LINE * len(values))
    figure, (axes,) = canvas(1, height=height, width=COLUMN if few else PAGE, legend=legend, caption=said.strip())
    for name, (x, x_error, y, y_error) in points.items():
        style = looks[name] | {"linestyle": "", "markersize": 5.5, "elinewidth": 0.8, "capsize": 2} | OPEN
        errors = {"xerr": x_error or None, "yerr": y_error or None}
        axes.errorbar([x], [y], **errors, **style, label=label(name))
    axes.margins(0.08)
    axes.set(xlabel=unit, ylabel=f"test {heading(catalogue, score)}")
    logarithmic(axes, "x", [x for x, *_ in points.values()])
    if not few:
        _name_points(axes, {name: (x, y) for name, (x, _, y, _) in points.items()})
    return figure


def _name_points(axes, points: dict[str, tuple[float, float]]) -> None:
    """Write the names in a column to the right, in the vertical order of their points, each with a thin line."""
    order = sorted(points, key=lambda name: points[name][1])
    for place, name in enumerate(order):
        axes.annotate(
            label(name),
            points[name],
            xytext=(1.06, (place + 0.5) / len(order)),
            textcoords="axes fraction",
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "linewidth": 0.4,
                "color": "#808080",
                "shrinkA": 1,
                "shrinkB": 3,
                "relpos": (0, 0.5),
            },
        )


def _fact(run: Run, *keys: str) -> float | None:
    """Return a positive number from a run's run.json, None if it is missing."""
    value: Any = run.facts
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if is_number(value) and value > 0 else None
