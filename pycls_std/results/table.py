"""Aggregate runs over seeds into a table of numbers, one row per config."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from pycls_std import config
from pycls_std.results.analysis import hits_of
from pycls_std.results.costs import costs, origins
from pycls_std.results.gains import compare, names_of
from pycls_std.results.read import Run
from pycls_std.results.rows import grouped, known_files, recipe, tell_apart
from pycls_std.results.seeds import best_epoch, selected_epoch

SELECTIONS = ("last", "held-out")  # how the epoch is selected whose scores are compared
MISSING = "not yet run"
# Conditions that are noted with a gain if they differ between the two rows: description, and the text for 0.
CONDITIONS = {
    "OPTIM.MAX_EPOCH": ("epochs", ""),
    "DATA.PER_CLASS": ("images a class", "all"),
    "DATA.IMAGES": ("images", "all"),
    "DATA.VAL_FRACTION": ("held out", "none"),
    "DATA.IMAGE_SIZE": ("px", ""),
}


def aggregate(
    runs: list[Run],
    expected: Sequence[dict[str, Any]] = (),
    *,
    baseline: str | Mapping[str, str] = "",
    selection: str = "last",
    failed: dict[str, str] | None = None,
    varied: tuple[str, ...] = (),
    apart: tuple[str, ...] = (),
) -> pd.DataFrame:
    """Return a row for each config that ran or was expected.

    expected: all options of configs, {"SECTION.KEY": value}; one that did not run with these options gets a row that
    says so.
    baseline: name of the row that the others are compared with, or {name of a row: name of its baseline}; paired by
    seed, by the scores of the selection: `last`, or `held-out`. failed: {name of a row: reason}. varied: keys of
    options that always have a column.
    apart: names of rows that are not compared, such as teachers; either the config's name, for all rows of that name,
    or the row's name in the table.
    Columns <score> and <score>_std are mean and sample standard deviation over the n finished runs, at the last epoch;
    selected_<result> at the epoch that is best on the held-out images; and best_<result> at the best epoch on the test
    split itself, which is optimistic. delta_<score> is the selected score minus the published one. Unfinished runs are
    not included. `columns.headings` has all columns.
    Raises ValueError if a baseline, or a name in `apart`, is not a row.
    """
    catalogue = config.Catalogue()
    groups = grouped(catalogue, runs)
    rows = [_row(catalogue, members, selection, varied) for _, members in groups]
    for row in rows:
        row["planned"] = row["run"]  # its name elsewhere, before equal names are disambiguated
    tell_apart(rows, [shared for shared, _ in groups])
    there = [recipe(catalogue, run.options) for run in runs]
    missing = [options for options in expected if recipe(catalogue, options) not in there]
    rows += [
        _facts(catalogue, options, varied) | {"planned": options["NAME"], "n": 0, "status": MISSING}
        for options in missing
    ]
    known = dict.fromkeys(name for row in rows for name in names_of(row))
    for name in apart:
        if name not in known:
            raise ValueError(f"{name}, to be apart, is no row, there are {', '.join(known)}")
    planned = dict.fromkeys(known, baseline) if isinstance(baseline, str) else baseline
    compared = [row for row in rows if planned.get(row["planned"]) and not set(apart) & set(names_of(row))]
    baselines = {row["run"]: planned[row["planned"]] for row in compared}
    compare(rows, baselines, selection)
    several = len(set(baselines.values())) > 1
    for row in rows:
        why = (failed or {}).get(row["planned"])
        said = "" if row["status"] == MISSING else row["status"]  # missing seeds are reported one by one
        row["status"] = "; ".join(filter(None, (said, why))) if why else row["status"]
        own = baselines.get(row["run"], "")
        row |= {"baseline": own if own != row["planned"] else ""} if several else {}
    order = {options["NAME"]: position for position, options in enumerate(expected)}
    rows.sort(key=lambda row: (order.get(row["planned"], len(order)), row["run"]))
    for row in rows:
        for key in ("seeds", "chosen", "hits", "conditions", "files", "planned"):
            row.pop(key, None)
    plain = {key: _text(option.value) for key, option in catalogue.options.items() if option.column}
    same = [key for key, text in plain.items() if all(row.get(key, text) == text for row in rows) and key not in varied]
    table = pd.DataFrame(rows).drop(columns=same, errors="ignore")
    table.attrs = {"selection": selection}
    if baselines and not several:
        table.attrs["baseline"] = next(iter(baselines.values()))
    return table


def _row(catalogue, runs: list[Run], selection: str, varied) -> dict:
    finished = [run for run in runs if run.status == "finished"]
    options = runs[0].options
    row = _facts(catalogue, options, varied) if options else {"run": runs[0].name}
    changed = [own["changed"] for run in runs if run.options and "changed" in (own := _facts(catalogue, run.options))]
    if changed:  # by the data of a seed, such as its number of classes
        row |= {key: math.nan for key in row if key.startswith("published_")}
        row["changed"] = "; ".join(dict.fromkeys(changed))
    row["n"] = len(finished)
    trouble = [f"{run.seed}: {run.status}" for run in runs if run.status != "finished"]
    lost = [run.seed for run in finished if not run.facts]
    trouble += [f"{seed}: run.json is gone or not whole" for seed in lost]
    task = catalogue.tasks.get(options["TASK.NAME"]) if options else None
    if task:
        result = task.attributes["RESULT"]
        row |= _last_scores(catalogue.scores_of(task.name), finished, trouble)
        row |= _results(result, catalogue.scores[result]["better"], finished)
        row["hits"] = _hits(finished, trouble)
        row |= _deltas(catalogue, row, result, selection)
    elif options:
        trouble.append(f"TASK.NAME {options['TASK.NAME']} is unknown here, and so are its scores")
    for column, values in costs(finished).items():
        row |= _mean(column, values)
    row |= {"files": known_files(finished)} | origins(finished) | {"folders": {run.seed: run.folder for run in runs}}
    row["status"] = "; ".join(dict.fromkeys(trouble)) or "finished"
    return row


def _last_scores(scores, finished: list[Run], trouble: list[str]) -> dict:
    """Return mean and standard deviation of each score after the last epoch; problems are appended to trouble."""
    row: dict[str, float] = {}
    for score in scores:
        for column, tag in ((score, f"test/{score}"), (f"ema_{score}", f"ema/{score}")):
            having = [run for run in finished if tag in run.curves]
            if having and len(having) < len(finished):  # such as a metric that was added between two runs
                trouble.append(f"{tag} in {len(having)} of {len(finished)} runs")
                having = []
            values = {run.seed: _last(run.curves[tag]) for run in having}
            trouble += [f"{seed}: {tag} is {value}" for seed, value in values.items() if not math.isfinite(value)]
            row |= _mean(column, list(values.values()))
    return row


def _results(result: str, better: str, finished: list[Run]) -> dict:
    """Return the result at the best epoch on the test split and on the held-out images, and that of each seed."""
    curves = {run.seed: run.curves[f"test/{result}"] for run in finished if f"test/{result}" in run.curves}
    selected = {run.seed: selected_epoch(run, result, better) for run in finished}
    chosen = {seed: curves[seed][epoch] for seed, epoch in selected.items() if epoch is not None}
    row = _mean(f"best_{result}", [curve.get(best_epoch(curve, better), math.nan) for curve in curves.values()])
    row |= _mean(f"selected_{result}", list(chosen.values()) if len(chosen) == len(finished) else [])
    row["seeds"] = {"last": {seed: _last(curve) for seed, curve in curves.items()}, "held-out": chosen}
    return row | {"chosen": {"last": {seed: max(curve) for seed, curve in curves.items()}, "held-out": selected}}


def _hits(finished: list[Run], trouble: list[str]) -> dict:
    """Return `hits_of` for each seed; unusable analyses are appended to trouble."""
    found = {}
    for run in finished:
        try:
            found[run.seed] = hits_of(run.folder, run.name, run.options["SEED"])
        except (ValueError, OSError) as error:
            trouble.append(f"{run.seed}: {error}")
    return found


def _deltas(catalogue, row: dict, result: str, selection: str) -> dict[str, float]:
    """Return the selected minus the published value, for each score."""
    shown = {score: row.get(score, math.nan) for score in catalogue.scores}
    shown = {result: row[f"selected_{result}"]} if selection == "held-out" else shown
    return {f"delta_{score}": value - row.get(f"published_{score}", math.nan) for score, value in shown.items()}


def _facts(catalogue, options: dict[str, Any], varied=()) -> dict:
    """Return the columns that depend on the options only."""
    unread = catalogue.unread(options)
    shown = {
        key: _text(options[key]) for key, option in catalogue.options.items() if option.column and key not in unread
    } | {key: _text(options[key]) for key in varied if key in options and key not in unread}
    claimed = {
        f"published_{score}": _known(options[key])
        for score in catalogue.scores
        if (key := f"PUBLISHED.{score.upper()}") in options
    }
    # Published numbers belong to the recipe of the config that states them; with another recipe, `changed` is shown.
    stated = not all(map(math.isnan, claimed.values()))
    changed = options.get("PUBLISHED.CHANGED", []) if stated else []
    claimed |= {"published_source": options["PUBLISHED.SOURCE"]} if stated else {}
    published = dict.fromkeys(claimed, math.nan) | {"changed": ", ".join(changed)} if changed else claimed
    return {
        "run": options["NAME"],
        "model": options["MODEL.NAME"],
        "method": _method(catalogue, options),
        "teachers": " + ".join(options["DISTILLATION.TEACHERS"]) or "-",
        "data": config.dataset_name(options),
        "epochs": options["OPTIM.MAX_EPOCH"],
        "conditions": {what: options[key] or none for key, (what, none) in CONDITIONS.items()},
        **shown,
        **published,
    }


def _method(catalogue, options) -> str:
    """Return the trainer's name, and the terms that a config adds to it; names that no longer exist are marked."""
    trainer, task = options["TRAINER"], options["TASK.NAME"]
    own = {key for key, value in catalogue.defaults(options).items() if value}
    sections = {trainer, *(term for term, each in catalogue.terms.items() if each.switch in own)}
    added = [term for term in catalogue.active_terms(options) if term not in sections]
    gone = [name for each in catalogue.unknown_sections(options) if (name := each.lower()) not in (trainer, task)]
    named = trainer if trainer in catalogue.trainers else f"{trainer} (unknown here)"
    return " + ".join([named, *added, *(f"{name} (unknown here)" for name in gone)])


def _text(value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _mean(column: str, values: list[float]) -> dict:
    series = pd.Series(values, dtype=float)
    return {column: series.mean(skipna=False), f"{column}_std": series.std(skipna=False)}  # NaN: no value, or only one


def _last(curve: dict[int, float]) -> float:
    return curve[max(curve)]


def _known(value: float) -> float:
    return value if value >= 0 else math.nan
