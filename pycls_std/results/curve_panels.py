"""Plots of curves over epochs: all rows in one panel, or one panel per row."""

from pycls_std.results.picture_style import (
    BACKGROUND,
    COLUMN,
    MOST,
    PAGE,
    canvas,
    epochs_axis,
    logarithmic,
    look,
    title,
)
from pycls_std.results.seeds import Band, Rows, left_out

WEIGHTS = "train/teacher_weight/"  # prefix of tags, which legends omit


def over_epochs(rows: Rows, panels: dict[str, dict[str, Band]], baseline: str):
    """Return a figure with a panel per named set of curves, or per row if there are more rows than MOST."""
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
    """Return a figure with a panel per row, with the other rows' lines in grey behind its own."""
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


def row_panels(rows: Rows, panels: dict[str, dict[str, Band]], unit: str, said: str, log: bool = False):
    """Return a figure with a panel per row and a line per tag, in the same style in all panels."""
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
    """Draw mean and band; markers of different lines are staggered."""
    every = max(1, len(curve.epochs) // 6)
    axes.plot(curve.epochs, curve.mean, **style, markevery=(position % every, every))
    if curve.n > 1:
        axes.fill_between(curve.epochs, curve.low, curve.high, color=style["color"], alpha=0.18, linewidth=0)


def _said(bands: list[Band], rows: Rows) -> str:
    """Return the caption: what lines and bands show, and which runs are excluded."""
    counts = sorted({curve.n for curve in bands})
    seeds = "one seed" if counts == [1] else f"n = {counts[0]} seeds" if len(counts) == 1 else "n seeds"
    said = f"Line: {'' if counts == [1] else 'mean over '}{seeds}"
    said += "." if counts == [1] else "; band: lowest to highest."
    gone = left_out(rows)
    return f"{said} Left out: {gone}." if gone else said
