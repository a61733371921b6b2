"""Pictures of a table's rows: each a function of rows and baseline that returns a matplotlib figure, or None.

None means that no row has values for it. A row is drawn from its finished runs alone; the caption names the others.
"""

from collections.abc import Callable
from itertools import combinations
from typing import NamedTuple

from pycls_std import config
from pycls_std.core.text import first_of
from pycls_std.results.picture_style import (
    BACKGROUND,
    COLUMN,
    MOST,
    PAGE,
    canvas,
    epochs_axis,
    logarithmic,
    look,
    styled,
    title,
)
from pycls_std.results.plots_of_scores import cost, gains, parameters
from pycls_std.results.seeds import Band, Rows, band, finished, heading, left_out, result_of

# What train/ has beside the terms of the objective.
NO_TERMS = ("train/loss", "train/lr", "train/images_per_second")
WEIGHTS = "train/teacher_weight/"
ESTIMATE = "train/mine"


class Picture(NamedTuple):
    """A picture that can be drawn of rows. needs_baseline: it compares with that row, and there is none without."""

    title: str
    draw: Callable
    needs_baseline: bool = False


def draw(rows: Rows, *, baseline: str = "", names: list[str] = ()) -> dict:
    """Return the figures of these names of PICTURES, by default of all, but for those that no row has values for.

    baseline: name of a row; "" = none. Raises ValueError for a name that is not there.
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
    """The score that counts over epochs, on the test split, and on what is held out where that is evaluated."""
    catalogue = config.Catalogue()
    score, rows = _alike(catalogue, rows)
    splits = {split: _bands(rows, f"{split}/{score}") for split in ("test", "val")}
    words = {"test": "test", "val": "held-out"}
    name = heading(catalogue, score)
    shown = {f"{words[split]} {name}": bands for split, bands in splits.items() if bands}
    return _over_epochs(rows, shown, baseline)


@styled
def modes(rows: Rows, baseline: str = ""):
    """The score that counts over epochs, of the rows of one trainer that differ in its mode, named by it.

    A trainer has modes if one of its options presets others, as those of DeiT.
    """
    catalogue = config.Catalogue()
    score, rows = _alike(catalogue, rows)
    options = {name: runs[0].options for name, runs in rows.items() if finished(runs)}
    for trainer in catalogue.trainers.values():
        own = {name: each for name, each in options.items() if each["TRAINER"] == trainer.name}
        switches = [key for key, option in trainer.options.items() if option.presets]
        if len({tuple(each[key] for key in switches) for each in own.values()}) > 1:
            names = {name: _settings(catalogue, switches, own, name) for name in own}
            clear = len(set(names.values())) == len(names)
            chosen = {names[name] if clear else name: rows[name] for name in own}
            shown = {f"test {heading(catalogue, score)}": _bands(chosen, f"test/{score}")}
            return _over_epochs(chosen, {key: bands for key, bands in shown.items() if bands}, "")
    return None


@styled
def losses(rows: Rows, baseline: str = ""):
    """The terms of the objective over epochs, each weighted as it is minimised: a panel for each row."""
    panels = {name: {tag: band(runs, tag) for tag in objective(runs)} for name, runs in rows.items()}
    panels = {name: own for name, own in panels.items() if own}
    said = "Terms of the objective on training images, weighted: they add up to what is minimised."
    return _panels(rows, panels, "weighted loss", said, log=True)


@styled
def weights(rows: Rows, baseline: str = ""):
    """The mean weight of each teacher over epochs, of rows with several teachers: a panel for each row."""
    panels = {}
    for name, runs in rows.items():
        tags = sorted({tag for run in finished(runs) for tag in run.curves if tag.startswith(WEIGHTS)})
        own = {tag: curve for tag in tags if (curve := band(runs, tag))}
        panels |= {name: own} if len(own) > 1 else {}
    said = "Weight of each teacher, its mean over the images of an epoch; those of an image add up to 1."
    return _panels(rows, panels, "weight", said)


@styled
def mine(rows: Rows, baseline: str = ""):
    """The estimate of the mutual information of STD's tokens over epochs."""
    bands = _bands(rows, ESTIMATE)
    return _over_epochs(rows, {"estimate (nats)": bands} if bands else {}, baseline)


def objective(runs: list) -> list[str]:
    """Return the tags of the terms of a row's objective: those under train/ that add up to the loss at every epoch.

    What a method logs beside them, such as the estimate of MINE, does not belong to the sum.
    """
    total = band(runs, "train/loss")
    tags = sorted({tag for run in finished(runs) for tag in run.curves if tag.startswith("train/")} - set(NO_TERMS))
    bands = {tag: own for tag in tags if "/" not in tag.removeprefix("train/") and (own := band(runs, tag))}
    bands = {tag: own for tag, own in bands.items() if total and own.epochs == total.epochs}
    for size in range(len(bands), 0, -1) if len(bands) <= 10 else ():
        for chosen in combinations(bands, size):
            sums = [sum(values) for values in zip(*(bands[tag].mean for tag in chosen), strict=True)]
            if all(abs(a - b) <= 1e-5 * abs(b) for a, b in zip(sums, total.mean, strict=True)):
                return list(chosen)
    return list(bands)


def _alike(catalogue, rows: Rows) -> tuple[str, Rows]:
    """Return the score that counts for the first row that has one, and the rows for which it is the same."""
    scores = {name: result_of(catalogue, runs) for name, runs in rows.items()}
    score = next(filter(None, scores.values()), "")
    return score, {name: runs for name, runs in rows.items() if scores[name] in (score, "")}


def _settings(catalogue, switches: list[str], options: dict[str, dict], name: str) -> str:
    """Return what sets a row apart in words: its mode, and the options with a column that differ where they are read.

    options: those of every row, by its name.
    """
    shown = [key for key, option in catalogue.options.items() if option.column and key not in switches]
    unread = {row: catalogue.unread(each) for row, each in options.items()}
    read = {key: {row: str(each[key]) for row, each in options.items() if key not in unread[row]} for key in shown}
    differing = [key for key in shown if len(set(read[key].values())) > 1 and name in read[key]]
    return ", ".join(dict.fromkeys([str(options[name][key]) for key in switches] + [read[k][name] for k in differing]))


def _bands(rows: Rows, tag: str) -> dict[str, Band]:
    return {name: curve for name, runs in rows.items() if (curve := band(runs, tag))}


def _over_epochs(rows: Rows, panels: dict[str, dict[str, Band]], baseline: str):
    """Return one panel for each named set of curves; where there are more rows than MOST, one for each row."""
    drawn = [name for name in rows if any(name in bands for bands in panels.values())]
    if not drawn:
        return None
    said = _said([bands[name] for bands in panels.values() for name in bands], rows)
    if len(drawn) > MOST:
        return _apart(drawn, panels, baseline, said)
    looks = {name: look(position) for position, name in enumerate(drawn)}
    n = {name: next(bands[name].n for bands in panels.values() if name in bands) for name in drawn}
    legend = [(name + (f", n = {n[name]}" if len(set(n.values())) > 1 else ""), looks[name]) for name in drawn]
    figure, axes = canvas(len(panels), height=2.3, legend=legend, caption=said, sharex=True)
    for each, (name, bands) in zip(axes, panels.items(), strict=True):
        for row, curve in bands.items():
            _line(each, curve, looks[row], drawn.index(row))
        each.set_ylabel(name)
        epochs_axis(each)
    axes[-1].set_xlabel("epochs")
    return figure


def _apart(drawn: list[str], panels: dict[str, dict[str, Band]], baseline: str, said: str):
    """Return a panel for each row, with the lines of all others in grey behind its own."""
    looks = [look(position) | {"marker": ""} for position in range(len(panels))]
    legend = list(zip(panels, looks, strict=True)) if len(panels) > 1 else []
    ground = look(4) | {"linestyle": (0, (1, 1)), "marker": ""}
    legend += [(f"baseline {baseline}", ground)] if baseline in drawn else []
    legend += [("the other rows", {"color": BACKGROUND})]
    figure, axes = canvas(
        len(drawn), height=1.45, width=PAGE, columns=4, legend=legend, caption=said, sharex=True, sharey=True
    )
    first = next(iter(panels.values()))
    for position, (each, row) in enumerate(zip(axes, drawn, strict=True)):
        for other in (name for name in first if name != row):
            style = ground if other == baseline else {"color": BACKGROUND, "linewidth": 0.6}
            each.plot(first[other].epochs, first[other].mean, **style, zorder=1.5)
        for style, bands in zip(looks, panels.values(), strict=True):
            if row in bands:
                _line(each, bands[row], style, 0)
        each.set_title(title(row, 1.5))
        epochs_axis(each)
        if position % 4 == 0:
            each.set_ylabel(next(iter(panels)) if len(panels) == 1 else "score")
    for each in axes[-4:]:
        each.set_xlabel("epochs")
    return figure


def _panels(rows: Rows, panels: dict[str, dict[str, Band]], unit: str, said: str, log: bool = False):
    """Return a panel for each row, with a line for each tag; a tag looks alike in all."""
    if not panels:
        return None
    tags = list(dict.fromkeys(tag for own in panels.values() for tag in own))
    looks = {tag: look(position) for position, tag in enumerate(tags)}
    legend = [(tag.removeprefix(WEIGHTS).removeprefix("train/"), looks[tag]) for tag in tags]
    columns = 2 if len(panels) <= MOST else 4
    width = COLUMN if len(panels) <= MOST else PAGE
    said = f"{said} {_said([curve for own in panels.values() for curve in own.values()], rows)}"
    columns = min(columns, len(panels))
    figure, axes = canvas(
        len(panels), height=1.5, width=width, columns=columns, legend=legend, caption=said, sharex=True, sharey=True
    )
    values = [value for own in panels.values() for curve in own.values() for value in (*curve.low, *curve.high)]
    for position, (each, (row, own)) in enumerate(zip(axes, panels.items(), strict=True)):
        for tag, curve in own.items():
            _line(each, curve, looks[tag], tags.index(tag))
        each.set_title(title(row, width / columns - 0.25))
        epochs_axis(each)
        if position % columns == 0:
            each.set_ylabel(unit)
        if log:
            logarithmic(each, "y", values)
    for each in axes[-columns:]:
        each.set_xlabel("epochs")
    return figure


def _line(axes, curve: Band, style: dict, position: int) -> None:
    """Draw mean and band; the markers of a line stand beside those of its neighbours."""
    every = max(1, len(curve.epochs) // 6)
    axes.plot(curve.epochs, curve.mean, **style, markevery=(position % every, every))
    if curve.n > 1:
        axes.fill_between(curve.epochs, curve.low, curve.high, color=style["color"], alpha=0.18, linewidth=0)


def _said(bands: list[Band], rows: Rows) -> str:
    """Return what lines and bands are, and which runs are not in them."""
    counts = sorted({curve.n for curve in bands})
    seeds = "one seed" if counts == [1] else f"n = {counts[0]} seeds" if len(counts) == 1 else "n seeds"
    said = f"Line: {'' if counts == [1] else 'mean over '}{seeds}"
    said += "." if counts == [1] else "; band: lowest to highest."
    gone = left_out(rows)
    return f"{said} Left out: {gone}." if gone else said


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
