"""Columns of a row other than scores: costs, comparison with teachers, and provenance."""

from typing import Any

from pycls_std.core.text import printable
from pycls_std.results.read import Run, is_number

MEGA, GIGA = 1e6, 1e9
SPLITS = ("teachers", "held_out_teachers")  # keys of run.json: teachers' scores on test and held-out images


def costs(runs: list[Run]) -> dict[str, list[float]]:
    """Return the values of a row's finished runs, by column, for the columns that all of them have."""
    found = [_numbers(run) for run in runs]
    shared = [key for key in found[0] if all(key in each for each in found)] if found else []
    return {key: [each[key] for each in found] for key in shared}


def origins(runs: list[Run]) -> dict[str, str]:
    """Return the text columns: the teachers' scores on both splits, the commits, the folders of the records."""
    facts = [run.facts for run in runs]
    test, held_out = (dict.fromkeys(_teachers(each.get(key)) for each in facts) for key in SPLITS)
    commits = dict.fromkeys(commit for each in facts for commit in commits_of(each))
    return {
        "teacher_score": " or ".join(filter(None, test)),
        "teacher_val": " or ".join(filter(None, held_out)),
        "commit": ", ".join(commits),
        "records": " ".join(run.folder.as_posix() for run in runs),
    }


def commits_of(facts: dict) -> list[str]:
    """Return the abbreviated commit of each start of a run, with its mark of uncommitted changes, if any."""
    return [_short(str(start["commit"])) for start in starts_of(facts) if start.get("commit")]


def starts_of(facts: dict) -> list[dict]:
    """Return the entries of run.json on the starts of a run, [] if there are none."""
    starts = facts.get("starts")
    return [start for start in starts if isinstance(start, dict)] if isinstance(starts, list) else []


def of_starts(facts: dict, key: str) -> list[str]:
    """Return the values of a key over the starts of a run, without duplicates.

    Records from before December 2026 have most keys of the last start only, at the top level.
    """
    said = [printable(str(each[key])) for each in [*starts_of(facts), facts] if each.get(key)]
    return list(dict.fromkeys(said))


def _short(commit: str) -> str:
    digits, dash, changed = commit.partition("-")
    return digits[:10] + dash + changed


def _teachers(scores) -> str:
    known = [score for score in scores.values() if is_number(score)] if isinstance(scores, dict) else []
    return " + ".join(f"{score:.2f}" for score in known)


def device_hours(run: Run) -> float | None:
    """Return a run's hours, including evaluations, times its processes; None if unknown."""
    hours: Any = run.facts.get("hours")
    return hours * (run.processes or 1) if is_number(hours) else None


def _numbers(run: Run) -> dict[str, float]:
    """Return the known numbers of a run, by column."""
    facts, analysis = run.facts, run.analysis
    parameters = facts.get("parameters")
    parameters = parameters if isinstance(parameters, dict) else {}
    found: dict[str, tuple[Any, float]] = {
        "deployed": (parameters.get("deployed"), MEGA),
        "train_only": (parameters.get("train_only"), MEGA),
        "flops": (facts.get("flops") or analysis.get("flops"), GIGA),
        "hours": (device_hours(run), 1),
        "speed": (facts.get("images_per_second"), 1),
        "memory": (facts.get("peak_memory_gib"), 1),
    }
    said = analysis.get("predictions", {}).get(analysis.get("prediction"), {})
    found |= {"student_nll": (said.get("loss"), 1), "student_ece": (said.get("ece"), 1)}
    beside = [teacher.get("agreement", {}) for teacher in analysis.get("teachers", {}).values()]
    agreements = [agreement.get(analysis["prediction"]) for agreement in beside]
    if agreements and all(map(is_number, agreements)):
        found["agreement"] = (sum(agreements) / len(agreements), 1)
    return {key: value / unit for key, (value, unit) in found.items() if is_number(value)}
