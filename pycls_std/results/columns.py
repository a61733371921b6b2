"""The columns that a table may have: their headings, their order, and the groups by which they are selected."""

import difflib
from collections.abc import Sequence

from pycls_std import config
from pycls_std.core.text import first_of

# Columns that are shown by default even if they are empty.
ALWAYS = ("run", "model", "method", "teachers", "data", "epochs", "n", "status")
# Columns that are shown with any selection: a row's name, its number of runs, and its status.
KEPT = ("run", "n", "status")
GROUPS = {
    "options": ("options",),
    "recipe": ("model", "method", "options", "teachers", "data", "epochs"),
    "scores": ("scores", "selected", "best", "ema"),
    "gain": ("baseline", "gain"),
    "published": ("published", "published_source", "delta", "changed"),
    "cost": ("deployed", "train_only", "flops", "hours", "speed", "memory"),
    "teaching": ("teacher_score", "teacher_val", "agreement"),
    "calibration": ("student_nll", "student_ece"),
    "origin": ("commit", "records"),
}
DEFAULT = ("recipe", "scores", "gain", "published")
# Headings of columns that are neither options nor scores, with their decimal places.
FIXED = {
    "deployed": ("deployed parameters (M)", 2),
    "train_only": ("train-only parameters (M)", 2),
    "flops": ("GFLOPs (2 a multiply-add)", 3),
    "hours": ("hours a run", 2),
    "speed": ("images/s", 0),
    "memory": ("peak memory (GiB)", 2),
    "teacher_score": ("teachers on test", 2),
    "teacher_val": ("teachers on held-out images", 2),
    "agreement": ("agreement with teachers (%, tested weights)", 2),
    "student_nll": ("NLL (nats, tested weights)", 3),
    "student_ece": ("ECE (%, tested weights)", 2),
}
WHOLE = ("epochs", "n")


def headings(catalogue: config.Catalogue, varied: Sequence[str] = ()) -> dict[str, str]:
    """Return the heading of every column that a table may have, in their order.

    varied: further options to have a column, such as those of a sweep. Every score has its columns; one that is not
    `shown` only those of the last epoch's value and of the EMA's, which are in no group.
    """
    scores = {score: catalogue.scores[score]["label"] for score in catalogue.shown_scores()}
    every = {score: facts["label"] for score, facts in catalogue.scores.items()}
    found = {"run": "run", "model": "model", "method": "method"}
    found |= {key: option.column for key, option in catalogue.options.items() if option.column}
    found |= {key: key for key in varied if key not in found}
    found |= {"teachers": "teachers", "data": "data", "epochs": "epochs", "n": "n"} | every
    found |= {f"selected_{score}": f"held-out-selected {label}" for score, label in scores.items()}
    found |= {f"best_{score}": f"best on test {label} (optimistic)" for score, label in scores.items()}
    found |= {"baseline": "baseline", "gain": "gain over the baseline (95 % interval)"}
    found |= {f"ema_{score}": f"EMA {label}" for score, label in every.items()}
    found |= {f"published_{score}": f"published {label}" for score, label in scores.items()}
    found |= {"published_source": "source"}
    found |= {f"delta_{score}": f"{label} minus published" for score, label in scores.items()}
    found |= {"changed": "not the published recipe"} | {key: heading for key, (heading, _) in FIXED.items()}
    return found | {"commit": "commit", "records": "records", "changes": "changes", "status": "status"}


def digits(key: str) -> int:
    """Return the number of decimal places of a column."""
    return 0 if key in WHOLE else FIXED.get(key, ("", 2))[1]


def chosen(catalogue: config.Catalogue, names: Sequence[str], varied: Sequence[str] = ()) -> list[str]:
    """Return the keys of the selected columns, in their order.

    names: groups of GROUPS, `all`, or keys of `headings`; none = DEFAULT.
    Raises ValueError for an unknown name.
    """
    known = headings(catalogue, varied)
    wanted = set(KEPT)
    for name in names or DEFAULT:
        plain = name.removeprefix("optimistic_")  # as it is called in CSV
        own = known if name == "all" else [key for key in known if plain in (key, *_groups_of(catalogue, key, varied))]
        if not own:
            every, near = ["all", *GROUPS, *known], _near(plain, known)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {first_of(every, most=40)}"
            raise ValueError(f"no column or group of columns is called {name!r}, {hint}")
        wanted |= set(own)
    return [key for key in known if key in wanted]


def _near(name: str, known: dict[str, str]) -> list[str]:
    """Return the columns with this heading, or up to three names that are similar to an unknown one."""
    called = {key.lower(): key for key in (*GROUPS, *known)}
    headed = [key for key, heading in known.items() if heading.lower() == name.lower()]
    return headed or [called[each] for each in difflib.get_close_matches(name.lower(), called, n=3)]


def _groups_of(catalogue, key: str, varied) -> list[str]:
    """Return the groups that a column is in."""
    kinds, scores = {key}, catalogue.shown_scores()
    option = catalogue.options.get(key)
    if key in varied or option and option.column:
        kinds.add("options")
    if key in scores:
        kinds.add("scores")
    kind, _, score = key.partition("_")
    if score in scores:
        kinds.add(kind)
    return [group for group, members in GROUPS.items() if kinds & set(members)]
