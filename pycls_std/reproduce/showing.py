"""Show a table of what there is of its runs: as text, and as a page."""

from pathlib import Path

import pandas as pd

from pycls_std.reproduce.jobs import Changes, Job
from pycls_std.reproduce.table_file import Table, written
from pycls_std.results.read import Run
from pycls_std.results.report import write_report
from pycls_std.results.table import aggregate

REPORT = "report.html"


def gathered(table: Table, jobs: list[Job], records: list[Run], failed: dict[Job, str]) -> pd.DataFrame:
    """Return the table of its rows. records: of each job, as far as there is one. failed: why a run is not there."""
    expected = {job.row.name: job.options for job in reversed(jobs)}
    told: dict[str, str] = {}
    for job, why in failed.items():
        told[job.row.name] = "; ".join(filter(None, (told.get(job.row.name), f"seed{job.seed} failed: {why}")))
    return aggregate(
        [run for run in records if run.options],
        [expected[row.name] for row in table.rows],
        baseline=table.baseline,
        selection=table.selection,
        failed=told,
        varied=table.varied,
        apart=tuple(row.name for row in table.rows if row.teaches_only),
    )


def heading(table: Table, changes: Changes) -> str:
    """Return what stands above a table: what it is, and in what it is not what its file says."""
    return "\n".join([f"{table.title}.", *_notes(table, changes)]) + "\n\n"


def write_page(folder: Path, table: Table, frame: pd.DataFrame, records: list[Run], changes: Changes) -> Path | None:
    """Write report.html of a table into the folder of its runs, and return its path; None where nothing ran."""
    runs = [run for run in records if run.options]
    if not runs:
        return None
    out, notes = folder / REPORT, _notes(table, changes)
    columns = list(table.columns)
    write_report(out, frame, runs, title=table.title, notes=notes, baseline=table.baseline, columns=columns)
    return out


def _notes(table: Table, changes: Changes) -> list[str]:
    protocol = ", ".join(f"{key} {written(value)}" for key, value in table.protocol.items())
    lines = [*changes.notes(), f"Protocol: {protocol}." if protocol else ""]
    lines += [f"Varied: {', '.join(table.varied)}." if table.varied else ""]
    lines += [f"Published: {table.source}." if table.source else ""]
    return list(filter(None, lines))
