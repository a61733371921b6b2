"""Figures of a table's rows: each a function of rows and baseline that returns a matplotlib figure, or None.

None means that no row has values for it. Only finished runs of a row are drawn; the caption names the others.
"""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import NamedTuple

from pycls_std import config
from pycls_std.core.text import first_of
from pycls_std.results.curve_panels import WEIGHTS, over_epochs, row_panels
from pycls_std.results.picture_style import styled
from pycls_std.results.plots_of_scores import cost, gains, parameters
from pycls_std.results.seeds import Band, Rows, band, finished, heading, result_of

# Scalars under train/ that are not terms of the objective.
NO_TERMS = ("train/loss", "train/lr", "train/images_per_second")
ESTIMATE = "train/mine"


class Picture(NamedTuple):
    """A figure that can be drawn of rows. needs_baseline: it is only drawn with a baseline."""

    title: str
    draw: Callable
    needs_baseline: bool = False


def draw(rows: Rows, *, baseline: str = "", names: Sequence[str] = ()) -> dict:
    """Return the figures with these names of PICTURES, by default all, except those that no row has values for.

    baseline: name of a row; "" = none. Raises ValueError for an unknown name.
    """
    if baseline and baseline not in rows:
        raise ValueError(f"no row {baseline!r}, there are {first_of(rows)}")
    for name in names:
        if name not in PICTURES:
            raise ValueError(f"no picture {name!r}, there are {', '.join(PICTURES)}")
    drawn = {name: PICTURES[name].draw(rows, baseline) for name in (names or PICTURES)}
    return {name: figure for name, figure in drawn.items() if figure is not None}


@styled
def accuracy(rows: Rows, baseline: str = ""):
    """The main score over epochs, on the test split, and on held-out images if they are evaluated."""
    catalogue = config.Catalogue()
    score, rows = _alike(catalogue, rows)
    splits = {split: _bands(rows, f"{split}/{score}") for split in ("test", "val")}
    words = {"test": "test", "val": "held-out"}
    name = heading(catalogue, score)
    shown = {f"{words[split]} {name}": bands for split, bands in splits.items() if bands}
    return over_epochs(rows, shown, baseline)


@styled
def modes(rows: Rows, baseline: str = ""):
    """The main score over epochs, of the rows of one trainer that differ in its mode, named by mode.

    A trainer has modes if its presets depend on an option of its own, as for DeiT.
    """
    catalogue = config.Catalogue()
    score, rows = _alike(catalogue, rows)
    options = {name: runs[0].options for name, runs in rows.items() if finished(runs)}
    for trainer in catalogue.trainers.values():
        own = {name: each for name, each in options.items() if each["TRAINER"] == trainer.name}
        switches = [key for key in trainer.options if any(way.startswith(f"{key}=") for way in trainer.presets)]
        if len({tuple(each[key] for key in switches) for each in own.values()}) > 1:
            names = {name: _settings(catalogue, switches, own, name) for name in own}
            clear = len(set(names.values())) == len(names)
            chosen = {names[name] if clear else name: rows[name] for name in own}
            shown = {f"test {heading(catalogue, score)}": _bands(chosen, f"test/{score}")}
            return over_epochs(chosen, {key: bands for key, bands in shown.items() if bands}, "")
    return None


@styled
def losses(rows: Rows, baseline: str = ""):
    """The weighted terms of the objective over epochs: a panel for each row."""
    found = {name: {tag: band(runs, tag) for tag in objective(runs)} for name, runs in rows.items()}
    panels = {name: {tag: curve for tag, curve in own.items() if curve} for name, own in found.items() if own}
    said = "Terms of the objective on training images, weighted: they add up to what is minimised."
    return row_panels(rows, panels, "weighted loss", said, log=True)


@styled
def weights(rows: Rows, baseline: str = ""):
    """The mean weight of each teacher over epochs, of rows with several teachers: a panel for each row."""
    panels: dict[str, dict[str, Band]] = {}
    for name, runs in rows.items():
        tags = sorted({tag for run in finished(runs) for tag in run.curves if tag.startswith(WEIGHTS)})
        own = {tag: curve for tag in tags if (curve := band(runs, tag))}
        panels |= {name: own} if len(own) > 1 else {}
    said = "Weight of each teacher, its mean over the images of an epoch; those of an image add up to 1."
    return row_panels(rows, panels, "weight", said)


@styled
def mine(rows: Rows, baseline: str = ""):
    """The estimate of the mutual information of STD's tokens over epochs."""
    bands = _bands(rows, ESTIMATE)
    return over_epochs(rows, {"estimate (nats)": bands} if bands else {}, baseline)


def objective(runs: list) -> list[str]:
    """Return the tags of the terms of a row's objective: those under train/ that add up to the loss at every epoch.

    Other logged values, such as the estimate of MINE and training scores, are not in the sum.
    """
    total = band(runs, "train/loss")
    if total is None:
        return []
    others = {*NO_TERMS, *(f"train/{score}" for score in config.Catalogue().scores)}
    tags = sorted({tag for run in finished(runs) for tag in run.curves if tag.startswith("train/")} - others)
    bands = {tag: own for tag in tags if "/" not in tag.removeprefix("train/") and (own := band(runs, tag))}
    bands = {tag: own for tag, own in bands.items() if own.epochs == total.epochs}
    for size in range(len(bands), 0, -1) if len(bands) <= 10 else ():
        for chosen in combinations(bands, size):
            sums = [sum(values) for values in zip(*(bands[tag].mean for tag in chosen), strict=True)]
            if all(abs(a - b) <= 1e-5 * abs(b) for a, b in zip(sums, total.mean, strict=True)):
                return list(chosen)
    return list(bands)


def _alike(catalogue, rows: Rows) -> tuple[str, Rows]:
    """Return the main score of the first row that has one, and the rows with the same main score, or none."""
    scores = {name: result_of(catalogue, runs) for name, runs in rows.items()}
    score = next(filter(None, scores.values()), "")
    return score, {name: runs for name, runs in rows.items() if scores[name] in (score, "")}


def _settings(catalogue, switches: list[str], options: dict[str, dict], name: str) -> str:
    """Return a row's distinguishing settings as text: its mode, and differing options with a column that are in use.

    options: those of every row, by its name.
    """
    shown = [key for key, option in catalogue.options.items() if option.column and key not in switches]
    unread = {row: catalogue.unread(each) for row, each in options.items()}
    read = {key: {row: str(each[key]) for row, each in options.items() if key not in unread[row]} for key in shown}
    differing = [key for key in shown if len(set(read[key].values())) > 1 and name in read[key]]
    return ", ".join(dict.fromkeys([str(options[name][key]) for key in switches] + [read[k][name] for k in differing]))


def _bands(rows: Rows, tag: str) -> dict[str, Band]:
    return {name: curve for name, runs in rows.items() if (curve := band(runs, tag))}


PICTURES = {
    "accuracy": Picture("Score over epochs", accuracy),
    "modes": Picture("Score over epochs by mode", modes),
    "losses": Picture("Loss terms over epochs", losses),
    "gains": Picture("Gain over the baseline by class", gains, needs_baseline=True),
    "weights": Picture("Weights of the teachers over epochs", weights),
    "mine": Picture("Mutual information of the tokens over epochs", mine),
    "parameters": Picture("Score against deployed parameters", parameters),
    "cost": Picture("Score against training cost", cost),
}
