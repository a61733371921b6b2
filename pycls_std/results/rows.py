"""Group runs into the rows of a table: runs of one row differ only in their seed."""

from typing import Any

from pycls_std import config
from pycls_std.config.published import of_the_run
from pycls_std.results.read import Run

WEIGHTS = "DISTILLATION.TEACHER_WEIGHTS"
BY_RECORD = ("teachers", "processes")  # attributes, other than options, that separate runs of one recipe


def rows_of(runs: list[Run]) -> dict[str, list[Run]]:
    """Return the runs of each row of `aggregate`, by name, in order of first appearance in `runs`."""
    groups = grouped(config.Catalogue(), runs)
    named = [{"run": group[0].name} for _, group in groups]
    tell_apart(named, [shared for shared, _ in groups])
    found: dict[str, list[Run]] = {}
    for row, (_, group) in zip(named, groups, strict=True):
        found.setdefault(row["run"], []).extend(group)  # only rows with missing options share a name
    return found


def grouped(catalogue, runs: list[Run]) -> list[tuple[dict, list[Run]]]:
    """Return for each row what its runs share, {} if their options are missing, and the runs.

    Two finished runs of one seed are not results, since it is not known which one is meant; their status says so.
    """
    recipes = [recipe(catalogue, run.options) for run in runs]
    of_recipe: dict[str, list[Run]] = {}
    for own, run in zip(recipes, runs, strict=True):
        of_recipe.setdefault(str(own), []).append(run)
    alike: dict[str, tuple[dict, list[Run]]] = {}
    for own, run in zip(recipes, runs, strict=True):
        shared = identity(own, run, of_recipe[str(own)])
        alike.setdefault(str(shared or run.folder.parent), (shared, []))[1].append(run)
    groups = [part for shared, group in alike.values() for part in _by_files(shared, group)]
    for _, group in groups:
        finished = [run for run in group if run.status == "finished"]
        for run in finished:
            twins = [str(other.folder) for other in finished if other.seed == run.seed]
            run.status = f"there twice, {' and '.join(twins)}: leave one out" if len(twins) > 1 else run.status
    return groups


def _by_files(shared: dict, group: list[Run]) -> list[tuple[dict, list[Run]]]:
    """Split runs of one recipe by their dataset's files, if these are known to differ."""
    found = dict.fromkeys(run.files for run in group)
    if len(found.keys() - {""}) < 2:
        return [(shared, group)]
    parts = {files: [run for run in group if run.files == files] for files in found}
    return [(shared | {"files": files or "unknown"}, part) for files, part in parts.items()]


def known_files(runs: list[Run]) -> frozenset[str]:
    """Return the known digests of the dataset files of runs."""
    return frozenset(run.files for run in runs if run.files)


def other_files(own: frozenset[str], theirs: frozenset[str]) -> bool:
    """Return whether two rows are known to have different files of a dataset, so that they are not comparable."""
    return bool(own and theirs) and own != theirs


def identity(shared: dict, run: Run, alike: list[Run]) -> dict:
    """Return what runs of one row share, {} if a run's options are missing.

    shared: its recipe. alike: all runs of this recipe. Teachers are identified by their weights' digests, not paths;
    the number of processes matters for batch norms and dropout. A record lacks both before its first epoch is saved: it
    then takes those of the other runs of its recipe, if they agree, otherwise the paths of the weights. A finished run
    that lacks them is an older record, whose values may have been different.
    """
    others = [] if run.status == "finished" else alike
    teachers, processes = (_told(getattr(run, what), (getattr(each, what) for each in others)) for what in BY_RECORD)
    digests = {WEIGHTS: [digest[:10] for digest in teachers]} if teachers and WEIGHTS in shared else {}
    return shared | digests | ({"processes": processes} if shared and processes > 1 else {})


def _told(own, others):
    """Return a record's own value, or the one that all others with a value share; a falsy value means unknown."""
    said = {other for other in others if other}
    return said.pop() if not own and len(said) == 1 else own


def recipe(catalogue, options: dict[str, Any]) -> dict:
    """Return the options that runs of one row share, and their dataset."""
    if not options:
        return {}
    idle = catalogue.idle(options)  # such keys may differ, and what makes them idle may not be part of the recipe
    keys = [key for key in sorted(options) if (option := catalogue.of(key)) is None or option.rows]
    own = {key: catalogue.of(key).value if key in idle else options[key] for key in keys}
    own = {key: value for key, value in own.items() if value != {}}  # an open section without keys
    own |= {WEIGHTS: of_the_run(own[WEIGHTS])} if WEIGHTS in own else {}
    return own | {"dataset": config.dataset_name(options)}


def differing(options: dict[str, Any], run: Run) -> list[str]:
    """Return "KEY is .., not .." for each option in which a run differs from its planned row or seed."""
    catalogue = config.Catalogue()
    planned, ran = (recipe(catalogue, flat) | {"SEED": flat.get("SEED")} for flat in (options, run.options))
    keys = sorted(key for key in planned.keys() | ran.keys() if planned.get(key) != ran.get(key))
    return [f"{key} is {ran.get(key)}, not {planned.get(key)}" for key in keys]


def tell_apart(rows: list[dict], identities: list[dict]) -> None:
    """Make row names unique: append to equal names the options in which the rows differ."""
    names = [row["run"] for row in rows]
    for row, flat, name in zip(rows, identities, list(names), strict=True):
        rivals = [other for other, other_name in zip(identities, names, strict=True) if other_name == name]
        keys = sorted(key for key in flat if any(other.get(key) != flat[key] for other in rivals))
        if keys:
            row["run"] += " (" + ", ".join(f"{key} {flat[key] if flat[key] != '' else 'none'}" for key in keys) + ")"
