"""Aggregate runs over seeds: one row for each config, as numbers."""

import math
from pathlib import Path

import pandas as pd

from pycls_std.results.read import RESULT, Run, flatten

# Options that differ between the seeds of one config, and sections that have no part in its result. Of DATA.ROOT only
# the place differs: the dataset it holds counts (see `_dataset`).
PER_RUN = (
    *("SEED", "OUT_DIR", "DEVICE", "LOG_PERIOD", "DATA.ROOT", "DATA.NUM_WORKERS", "DISTILLATION.TEACHER_MIN_ACC"),
    *("TRAIN.KEEP", "TEST.BATCH_SIZE", "TEST.EMA", "TEST.WEIGHTS", "TIME.", "PUBLISHED."),
)
COLUMNS = {
    "top1": RESULT,
    "top5": "test/top5",
    "ema_top1": "ema/top1",
}


def aggregate(runs: list[Run], expected: list[dict] = ()) -> pd.DataFrame:
    """Return a row for each config that ran or was expected.

    expected: options of configs; one that did not run gets a row that says so.
    Columns <score> and <score>_std are mean and sample deviation over the n finished runs, of the last epoch, and
    best_top1 of the best epoch, which is chosen on the test split. Nothing unfinished enters them.
    Raises ValueError if a config has two runs of one seed.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        group = groups.setdefault(str(_identity(run)), [])
        for twin in group:
            if twin.seed == run.seed:
                raise ValueError(f"{run.name} {run.seed} is there twice: {twin.folder} and {run.folder}, leave one out")
        group.append(run)
    rows = [_row(members) for members in groups.values()]
    _tell_apart(rows, list(groups.values()))
    ran = {run.name for run in runs}
    rows += [_facts(config) | {"n": 0, "status": "not yet run"} for config in expected if config["NAME"] not in ran]
    order = {config["NAME"]: position for position, config in enumerate(expected)}
    rows.sort(key=lambda row: (order.get(row["run"], len(order)), row["run"]))
    return pd.DataFrame(rows)


def _identity(run: Run) -> dict:
    if not run.config:
        return {"folder": str(run.folder.parent)}
    flat = {key: value for key, value in flatten(run.config).items() if not key.startswith(PER_RUN)}
    data = run.config["DATA"]
    return flat | ({"DATA.ROOT": _dataset(data)} if data["NAME"] == "image_folder" else {})


def _dataset(data: dict) -> str:
    """Return the name of a dataset; that of image folders is the folder's own, wherever it lies."""
    return Path(data["ROOT"]).name if data["NAME"] == "image_folder" else data["NAME"]


def _row(runs: list[Run]) -> dict:
    finished = [run for run in runs if run.status == "finished"]
    row = _facts(runs[0].config) if runs[0].config else {"run": runs[0].name}
    row["n"] = len(finished)
    for column, tag in COLUMNS.items():
        row |= _mean(column, [_last(run.curves[tag]) for run in finished if tag in run.curves])
    row |= _mean("best_top1", [max(run.curves[RESULT].values()) for run in finished])
    trouble = [f"{run.seed}: {run.status}" for run in runs if run.status != "finished"]
    row["status"] = "; ".join(trouble) or "finished"
    return row


def _facts(config: dict) -> dict:
    """Return the columns that the config alone decides."""
    distillation = config["DISTILLATION"]
    std = config["STD"] if config["TRAINER"] == "std" else {}
    published = config["PUBLISHED"]
    return {
        "run": config["NAME"],
        "model": config["MODEL"]["NAME"],
        "intermediate": "yes" if std and set(std["TAPS"]) - {"last", "-1"} else "no",
        "propagate": "yes" if std and std["PROPAGATE"] else "no",
        "distillation": _method(config),
        "teachers": " + ".join(distillation["TEACHERS"]) or "-",
        "data": _dataset(config["DATA"]),
        "epochs": config["OPTIM"]["MAX_EPOCH"],
        "published_top1": _known(published["TOP1"]),
        "published_top5": _known(published["TOP5"]),
    }


def _method(config: dict) -> str:
    """Return the method in words: its name, DeiT's mode, the form of the distillation if it is not STD's hard one."""
    distillation = config["DISTILLATION"]
    if config["TRAINER"] == "baseline":
        return "-"
    words = [config["TRAINER"]]
    words += [config["DEIT"]["MODE"]] if words == ["deit"] else []
    if distillation["TEACHERS"]:
        silent = words == ["std"] and distillation["TYPE"] == "hard" or words[-1] in ("soft", "hard")
        words += [] if silent else [distillation["TYPE"]]
        words += ["standardized"] if distillation.get("LOGIT_STANDARD") else []
    return " ".join(words)


def _mean(column: str, values: list[float]) -> dict:
    series = pd.Series(values, dtype=float)
    return {column: series.mean(), f"{column}_std": series.std()}  # NaN with no value, and with one


def _last(curve: dict[int, float]) -> float:
    return curve[max(curve)]


def _known(value: float) -> float:
    return value if value >= 0 else math.nan


def _tell_apart(rows: list[dict], groups: list[list[Run]]) -> None:
    """Add to the names of runs that share one the options in which they differ."""
    names = [row["run"] for row in rows]
    flats = [_identity(group[0]) for group in groups]
    for row, flat, name in zip(rows, flats, list(names), strict=True):
        rivals = [other for other, other_name in zip(flats, names, strict=True) if other_name == name]
        differing = sorted(key for key in flat if any(other.get(key) != flat[key] for other in rivals))
        if differing:
            row["run"] += " (" + ", ".join(f"{key} {flat[key]}" for key in differing) + ")"
