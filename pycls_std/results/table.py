"""Aggregate runs over seeds: one row for each config, as numbers."""

import math
from math import isfinite

import pandas as pd

from pycls_std import config
from pycls_std.config.published import of_the_run
from pycls_std.results.analysis import hits_of
from pycls_std.results.costs import costs, origins
from pycls_std.results.gains import compare
from pycls_std.results.read import Run, document
from pycls_std.results.seeds import best_epoch

WEIGHTS = "DISTILLATION.TEACHER_WEIGHTS"
SELECTIONS = ("last", "held-out")  # of the epoch whose scores rows are compared by


def aggregate(
    runs: list[Run],
    expected: list[dict[str, object]] = (),
    *,
    baseline: str = "",
    selection: str = "last",
    failed: dict[str, str] | None = None,
    varied: tuple[str, ...] = (),
    apart: tuple[str, ...] = (),
) -> pd.DataFrame:
    """Return a row for each config that ran or was expected.

    expected: all options of configs, {"SECTION.KEY": value}; one that did not run, with these options, gets a row that
    says so.
    baseline: name of the row that the others are compared with, seed by seed, by the scores of the selection: `last`,
    or `held-out`. failed: {name of a row: why}. varied: keys of options that have a column whatever they say.
    apart: names of rows that are not compared, such as teachers.
    Columns <score> and <score>_std are mean and sample deviation over the n finished runs, of the last epoch;
    selected_<result> of the epoch that is the best on the held-out images; and best_<result> of the best epoch on the
    test split itself, which flatters. delta_<score> is what is selected minus what is published. Nothing unfinished
    enters them. `columns.headings` has all columns.
    Raises ValueError if a config has two runs of one seed, and if no row is the baseline.
    """
    catalogue = config.Catalogue()
    groups = _groups(catalogue, runs)
    rows = [_row(catalogue, members, selection, varied) for members in groups.values()]
    _tell_apart(rows, [_identity(catalogue, group[0]) for group in groups.values()])
    there = [_recipe(catalogue, run.options) for run in runs]
    missing = [options for options in expected if _recipe(catalogue, options) not in there]
    rows += [_facts(catalogue, options, varied) | {"n": 0, "status": "not yet run"} for options in missing]
    compared = {"selection": selection}
    if baseline:
        compare([row for row in rows if row["run"] not in apart or row["run"] == baseline], baseline, selection)
        compared = {"baseline": baseline, "selection": selection}
    for row in rows:
        why = (failed or {}).get(row["run"])
        row["status"] = "; ".join(filter(None, (row["status"] if row["n"] else "", why))) if why else row["status"]
        row.pop("seeds", None)
        row.pop("hits", None)
    order = {options["NAME"]: position for position, options in enumerate(expected)}
    rows.sort(key=lambda row: (order.get(row["run"], len(order)), row["run"]))
    plain = {key: _text(option.value) for key, option in catalogue.options.items() if option.column}
    same = [key for key, text in plain.items() if all(row.get(key, text) == text for row in rows) and key not in varied]
    table = pd.DataFrame(rows).drop(columns=same, errors="ignore")
    table.attrs = compared
    return table


def rows_of(runs: list[Run]) -> dict[str, list[Run]]:
    """Return the runs of each row of `aggregate`, by its name, in the order in which the rows come in `runs`.

    Raises ValueError if a config has two runs of one seed.
    """
    catalogue = config.Catalogue()
    groups = list(_groups(catalogue, runs).values())
    named = [{"run": group[0].name} for group in groups]
    _tell_apart(named, [_identity(catalogue, group[0]) for group in groups])
    found: dict[str, list[Run]] = {}
    for row, group in zip(named, groups, strict=True):
        found.setdefault(row["run"], []).extend(group)  # of one name are only those whose options are lost
    return found


def _groups(catalogue, runs: list[Run]) -> dict[str, list[Run]]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        group = groups.setdefault(str(_identity(catalogue, run) or run.folder.parent), [])
        for twin in group:
            if twin.seed == run.seed:
                raise ValueError(f"{run.name} {run.seed} is there twice: {twin.folder} and {run.folder}, leave one out")
        group.append(run)
    return groups


def _identity(catalogue, run: Run) -> dict:
    """Return what runs of one row share, {} of a run whose options are lost.

    A teacher is its weights, wherever they lay; a record that does not know them has their paths.
    """
    shared = _recipe(catalogue, run.options)
    if run.teachers and WEIGHTS in shared:
        shared[WEIGHTS] = [digest[:10] for digest in run.teachers]
    return shared


def _recipe(catalogue, options: dict[str, object]) -> dict:
    """Return the options that runs of one row share, and their dataset."""
    if not options:
        return {}
    idle = catalogue.idle(options)
    keys = [key for key in sorted(options) if (option := catalogue.of(key)) is None or option.rows and key not in idle]
    own = {key: options[key] for key in keys if options[key] != {}}  # which is an open section without keys
    own |= {WEIGHTS: of_the_run(own[WEIGHTS])} if WEIGHTS in own else {}
    return own | {"dataset": config.dataset_name(options)}


def differing(options: dict[str, object], run: Run) -> list[str]:
    """Return "KEY is .., not .." of the options in which a run is not of the row, or the seed, that others are of."""
    catalogue = config.Catalogue()
    planned, ran = (_recipe(catalogue, flat) | {"SEED": flat.get("SEED")} for flat in (options, run.options))
    keys = sorted(key for key in planned.keys() | ran.keys() if planned.get(key) != ran.get(key))
    return [f"{key} is {ran.get(key)}, not {planned.get(key)}" for key in keys]


def _row(catalogue, runs: list[Run], selection: str, varied) -> dict:
    finished = [run for run in runs if run.status == "finished"]
    options = runs[0].options
    row = _facts(catalogue, options, varied) if options else {"run": runs[0].name}
    changed = [own["changed"] for run in runs if run.options and "changed" in (own := _facts(catalogue, run.options))]
    if changed:  # by the data of one seed, such as the number of its classes
        row |= {key: math.nan for key in row if key.startswith("published_")}
        row["changed"] = "; ".join(dict.fromkeys(changed))
    row["n"] = len(finished)
    trouble = [f"{run.seed}: {run.status}" for run in runs if run.status != "finished"]
    lost = [run.seed for run in finished if not document(run.folder, "run.json")]
    trouble += [f"{seed}: run.json is gone or not whole" for seed in lost]
    task = catalogue.tasks.get(options["TASK.NAME"]) if options else None
    for score in catalogue.scores_of(task.name) if task else ():
        for column, tag in ((score, f"test/{score}"), (f"ema_{score}", f"ema/{score}")):
            having = [run for run in finished if tag in run.curves]
            if having and len(having) < len(finished):  # as of a metric that came between two seeds
                trouble.append(f"{tag} in {len(having)} of {len(finished)} runs")
                having = []
            values = {run.seed: _last(run.curves[tag]) for run in having}
            trouble += [f"{seed}: {tag} is {value}" for seed, value in values.items() if not isfinite(value)]
            row |= _mean(column, list(values.values()))
    if task:
        result = task.attributes["RESULT"]
        better = catalogue.scores[result]["better"]
        curves = {run.seed: run.curves[f"test/{result}"] for run in finished if f"test/{result}" in run.curves}
        row |= _mean(f"best_{result}", [curve.get(best_epoch(curve, better), math.nan) for curve in curves.values()])
        chosen = {run.seed: score for run in finished if (score := _selected(run, result, better)) is not None}
        row |= _mean(f"selected_{result}", list(chosen.values()) if len(chosen) == len(finished) else [])
        row["seeds"] = {"last": {seed: _last(curve) for seed, curve in curves.items()}, "held-out": chosen}
        row["hits"] = {}
        for run in finished:
            try:
                row["hits"][run.seed] = hits_of(run.folder, run.name, run.options["SEED"])
            except (ValueError, OSError) as error:
                trouble.append(f"{run.seed}: {error}")
        row |= _deltas(catalogue, row, result, selection)
    for column, values in costs(finished).items():
        row |= _mean(column, values)
    row |= origins(runs) | {"folders": {run.seed: run.folder for run in runs}}
    row["status"] = "; ".join(trouble) or "finished"
    return row


def _deltas(catalogue, row: dict, result: str, selection: str) -> dict[str, float]:
    """Return how far what is selected is from what is published, for each score."""
    shown = {score: row.get(score, math.nan) for score in catalogue.scores}
    shown = {result: row[f"selected_{result}"]} if selection == "held-out" else shown
    return {f"delta_{score}": value - row.get(f"published_{score}", math.nan) for score, value in shown.items()}


def _selected(run: Run, result: str, better: str) -> float | None:
    """Return the result on the test split at the first epoch that is the best on the held-out images."""
    held_out, test = (run.curves.get(f"{split}/{result}", {}) for split in ("val", "test"))
    chosen = best_epoch({epoch: value for epoch, value in held_out.items() if epoch in test}, better)
    return test.get(chosen)


def _facts(catalogue, options: dict[str, object], varied=()) -> dict:
    """Return the columns that the options alone decide."""
    unread = catalogue.unread(options)
    shown = {
        key: _text(options[key]) for key, option in catalogue.options.items() if option.column and key not in unread
    } | {key: _text(options[key]) for key in varied if key in options and key not in unread}
    claimed = {
        f"published_{score}": _known(options[key])
        for score in catalogue.scores
        if (key := f"PUBLISHED.{score.upper()}") in options
    }
    # A published number belongs to the recipe of the file that states it; what is beside another one says so instead.
    changed = options.get("PUBLISHED.CHANGED", []) if not all(map(math.isnan, claimed.values())) else []
    published = dict.fromkeys(claimed, math.nan) | {"changed": ", ".join(changed)} if changed else claimed
    return {
        "run": options["NAME"],
        "model": options["MODEL.NAME"],
        "method": _method(catalogue, options),
        "teachers": " + ".join(options["DISTILLATION.TEACHERS"]) or "-",
        "data": config.dataset_name(options),
        "epochs": options["OPTIM.MAX_EPOCH"],
        **shown,
        **published,
    }


def _method(catalogue, options) -> str:
    """Return the trainer's name, and the terms that a config adds to its own."""
    own = {key for key, value in catalogue.defaults({"TRAINER": options["TRAINER"]}).items() if value}
    sections = {options["TRAINER"], *(term for term, each in catalogue.terms.items() if each.switch in own)}
    added = [term for term in catalogue.active_terms(options) if term not in sections]
    return " + ".join([options["TRAINER"], *added])


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


def _tell_apart(rows: list[dict], identities: list[dict]) -> None:
    """Add to the names of runs that share one the options in which they differ."""
    names = [row["run"] for row in rows]
    for row, flat, name in zip(rows, identities, list(names), strict=True):
        rivals = [other for other, other_name in zip(identities, names, strict=True) if other_name == name]
        keys = sorted(key for key in flat if any(other.get(key) != flat[key] for other in rivals))
        if keys:
            row["run"] += " (" + ", ".join(f"{key} {flat[key]}" for key in keys) + ")"
