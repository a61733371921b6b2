"""Tables of a row's analyses, for a report: scores and calibration, and the student compared with its teachers."""

import math
from statistics import mean, stdev

from pycls_std.results.page import grid
from pycls_std.results.read import Run
from pycls_std.results.seeds import finished, heading

# Scores of an analysis that are not metrics of a run.
NAMES = {"loss": "NLL (nats)", "ece": "ECE (%)"}
Found = dict[tuple[str, ...], dict[str, list[float]]]  # values of the runs by line and column


def fidelity(catalogue, runs: list[Run]) -> str:
    """Return two HTML tables, mean and sample standard deviation over the analysed runs; "" if there are none."""
    analyses = [run.analysis for run in finished(runs) if run.analysis]
    scores: Found = {}
    shares: Found = {}
    for analysis in analyses:
        for name, facts in analysis.get("predictions", {}).items():
            _keep(scores, (f"student: {name}",), facts)
        for teacher, facts in analysis.get("teachers", {}).items():
            _keep(scores, (f"teacher: {teacher}",), facts)
            for share, values in facts.items():
                for head, value in values.items() if isinstance(values, dict) else ():
                    _keep(shares, (teacher, head), {share: value})
    if not scores:
        return ""
    said = f", {len(analyses)} of {len(runs)} runs analysed"
    origins = sorted({f"{found.get('checkpoint')}, epoch {found.get('epoch')}" for found in analyses})
    said += f" ({'; '.join(origins)})"
    names = {key: NAMES.get(key) or heading(catalogue, key) for line in scores.values() for key in line}
    parts = [_table(f"Scores and calibration on the test split{said}", ["prediction"], names, scores)]
    names = {key: f"{key.replace('_', ' ')} (%)" for line in shares.values() for key in line}
    if shares:
        parts += [_table(f"Student beside teacher{said}", ["teacher", "prediction"], names, shares)]
    return "".join(parts)


def _keep(found: Found, line: tuple[str, ...], facts: dict) -> None:
    for key, value in facts.items():
        if isinstance(value, (int, float)) and math.isfinite(value):
            found.setdefault(line, {}).setdefault(key, []).append(value)


def _table(caption: str, first: list[str], names: dict[str, str], found: Found) -> str:
    rows = [[*line, *(_spread(values.get(key, [])) for key in names)] for line, values in found.items()]
    return grid(caption, [*first, *names.values()], rows)


def _spread(values: list[float]) -> str:
    deviation = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean(values):.2f}{deviation}" if values else "-"
