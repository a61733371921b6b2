"""A table as one HTML page: its numbers, figures and configs, with links from each row to its runs."""

from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from pycls_std import config
from pycls_std.core.regular import read_bytes, replace_text
from pycls_std.core.text import first_of, printable
from pycls_std.results.costs import commits_of, device_hours, of_starts
from pycls_std.results.fidelity import fidelity
from pycls_std.results.page import Html, anchor, cell, folded, grid, listing, page
from pycls_std.results.picture_style import PAGE, inlined, rendered
from pycls_std.results.plots import PICTURES, draw
from pycls_std.results.read import Run
from pycls_std.results.render import cells, link_from
from pycls_std.results.rows import rows_of
from pycls_std.results.seeds import Rows, best_epoch, heading, result_of, selected_epoch

NOTE = (
    "Mean and sample standard deviation over the n finished runs of a row, on the test split, after the last epoch. "
    "What is selected is marked: on held-out images of the training split, or on the test split itself, which flatters."
)


def report_html(
    *, title: str, notes: list[str], table, rows: Rows, baseline: str, figures: dict, link: Callable[[Path], str]
) -> str:
    """Return the page, which is self-contained; its links lead to the records.

    notes: paragraphs above the table. table: DataFrame of text, as `render.cells` returns it, the names of the rows in
    its first column. rows: the runs of each row. baseline: a row's name, "" = none. figures: matplotlib figures, or SVG
    files, by title. link: from a folder to its URL relative to the page.
    """
    catalogue = config.Catalogue()
    places = {name: f"row-{number}" for number, name in enumerate(rows, start=1)}
    lines = [
        [anchor(f"#{places[first]}", first) if first in places else first, *others]
        for first, *others in table.itertuples(index=False)
    ]
    parts = [f"<h1>{cell(title)}</h1>", *(f"<p>{cell(note)}</p>" for note in notes)]
    parts += ["<h2>Table</h2>", "<p>The name of a row leads to its runs.</p>", grid(title, list(table.columns), lines)]
    if figures:
        pictures = [_picture(f"p{number}", *each) for number, each in enumerate(figures.items(), start=1)]
        parts += ["<h2>Pictures</h2>", '<div class="pictures">', *pictures, "</div>"]
    parts += ["<h2>Runs</h2>"]
    for name, runs in rows.items():
        said = "<p>The baseline.</p>\n" if name == baseline else ""
        parts += [
            f'<section id="{places[name]}">\n<h3>{cell(name)}</h3>\n{said}{_row(catalogue, runs, link)}</section>'
        ]
    return page(title, "\n".join(parts))


def write_report(out: Path, table, runs: list[Run], *, title: str, notes: list[str], baseline: str, columns=()) -> None:
    """Write the page of a table that `aggregate` made of runs, with its figures.

    columns: see `columns.chosen`. Raises OSError that names the file if it cannot be written.
    """
    found = rows_of(runs)
    rows = {name: found[name] for name in table["run"] if name in found}
    compared = baseline if baseline in rows else ""
    text = report_html(
        title=title,
        notes=[NOTE, *notes],
        table=cells(table, columns),
        rows=rows,
        baseline=compared,
        figures={PICTURES[name].title: each for name, each in draw(rows, baseline=compared).items()},
        link=link_from(out),
    )
    replace_text(out, text)


def _picture(prefix: str, title: str, figure) -> Html:
    """Return a figure element; its caption is also its description for screen readers."""
    text, wide = title, False
    if not isinstance(figure, str):
        text = " ".join([f"{title}.", *(line.get_text() for line in figure.texts)])
        wide = figure.get_size_inches()[0] >= PAGE
        figure = rendered(figure, "svg").decode()
    scroll = f' tabindex="0" role="region" aria-label="{cell(title)}"' if wide else ""
    return Html(
        f"<figure{' class=wide' if wide else ''}>\n<figcaption>{cell(title)}</figcaption>\n"
        f'<div class="picture"{scroll}>{inlined(figure, prefix, text)}</div>\n</figure>'
    )


def _row(catalogue, runs: list[Run], link) -> str:
    """Return the content of a row's section, on its runs."""
    score = result_of(catalogue, runs)
    better = catalogue.scores[score]["better"] if score else "higher"
    lines = [_seed(run, score, better, link) for run in runs]
    columns = [key for key in lines[0] if any(line[key] for line in lines)]
    name = heading(catalogue, score) if score else "score"
    shown = [key.replace("SCORE", name) for key in columns]
    parts: list[str] = [grid("Runs by seed", shown, [[line[key] or "-" for key in columns] for line in lines])]
    parts += [_teachers(runs), _commands(runs), _configs(runs), fidelity(catalogue, runs)]
    return "".join(parts)


def _seed(run: Run, score: str, better: str, link) -> dict[str, str]:
    """Return a run's cells by heading, "" for unknown ones. Unfinished runs have no scores."""
    test = run.curves.get(f"test/{score}", {}) if run.status == "finished" else {}
    chosen, best = selected_epoch(run, score, better) if test else None, best_epoch(test, better)
    commits, hours = dict.fromkeys(commits_of(run.facts)), device_hours(run)
    evaluated = [epoch for tag, curve in run.curves.items() if tag.startswith("test/") for epoch in curve]
    planned = run.options.get("OPTIM.MAX_EPOCH")
    return {
        "seed": anchor(link(run.folder), printable(run.seed)),
        "SCORE, last epoch": f"{test[max(test)]:.2f}" if test else "",
        "SCORE, held-out-selected": f"{test[chosen]:.2f} (epoch {chosen})" if chosen else "",
        "SCORE, best on test (optimistic)": f"{test[best]:.2f} (epoch {best})" if best else "",
        "epochs": f"{max(evaluated)} of {planned}" if evaluated and planned else "",
        "files": _files(run, link(run.folder)),
        "status": printable(run.status),
        "commit": Html(", ".join(f"<code>{cell(printable(each))}</code>" for each in commits)),
        "device": "; ".join(of_starts(run.facts, "device")),
        "hours": "" if hours is None else f"{hours:.2f}",
    }


def _files(run: Run, place: str) -> Html:
    """Return links to the existing files of a record. place: URL of its folder."""
    names = ["config.yaml", "run.json", "metrics.jsonl", "analysis.json"]
    paths = {name: path for name in names if (path := run.folder / name).is_file()}
    events = sorted(path for path in run.folder.glob("*tfevents*") if path.is_file())
    paths |= {f"events {number}" if len(events) > 1 else "events": path for number, path in enumerate(events, start=1)}
    return Html(" ".join(anchor(f"{place}/{quote(path.name)}", name) for name, path in paths.items()))


def _teachers(runs: list[Run]) -> str:
    lines = []
    for run in runs:
        scores = run.facts.get("teachers")
        for name, score in scores.items() if isinstance(scores, dict) else ():
            lines.append(f"{name} {score:.2f}" if isinstance(score, float) else f"{name} {score}")
    return f"<p>Teachers on the test split: {cell(', '.join(dict.fromkeys(lines)))}.</p>\n" if lines else ""


def _commands(runs: list[Run]) -> str:
    """Return the commands of all starts of all runs, with full commit hashes."""
    lines = []
    for run in runs:
        commits = ", ".join(of_starts(run.facts, "commit")) or "unknown"
        for command in of_starts(run.facts, "command"):
            code = f"<code>{cell(command)}</code>"
            lines.append(Html(f"{cell(printable(run.seed))}, commit <code>{cell(commits)}</code>: {code}"))
    return folded("Commands", listing(lines)) if lines else ""


def _configs(runs: list[Run]) -> str:
    """Return the config of the first run that has one, and the differences of the others from it."""
    texts = {run.seed: text for run in runs if (text := _text(run.folder / "config.yaml"))}
    if not texts:
        return ""
    options = {run.seed: run.options for run in runs}
    first, *others = texts
    ground, lines = options[first], []
    for seed in others:
        own = options[seed]
        keys = sorted(key for key in own.keys() | ground.keys() if own.get(key) != ground.get(key))
        other = first_of((f"{key} {own.get(key)}" for key in keys), 20) or "the same"
        lines += [f"{seed}: {other if own and ground else 'not known'}"]
    differing = f"<p>The others differ from it in:</p>\n{listing(lines)}" if lines else ""
    return folded(f"Config that ran, of {first}", f"<pre>{cell(texts[first])}</pre>\n{differing}")


def _text(path: Path) -> str:
    try:
        return "\n".join(map(printable, read_bytes(path).decode(errors="replace").splitlines()))
    except OSError:
        return ""
