"""Show a table of the runs that exist so far: as text, and as a page."""

from pathlib import Path

import pandas as pd

from pycls_std.reproduce.entries import written
from pycls_std.reproduce.jobs import Changes, Job
from pycls_std.reproduce.state import is_begun
from pycls_std.reproduce.table_file import Table
from pycls_std.results.read import Run
from pycls_std.results.render import FORMATS
from pycls_std.results.report import write_report
from pycls_std.results.rows import differing
from pycls_std.results.table import aggregate

REPORT = "report.html"


def gathered(
    table: Table, jobs: list[Job], records: list[Run], failed: dict[Job, str], unpredicted: dict[Job, str]
) -> pd.DataFrame:
    """Return the aggregated table.

    records: of each job, possibly empty. failed: why a run failed. unpredicted: why its predictions are missing.
    """
    expected = {job.row.name: job.options for job in reversed(jobs)}
    said = {job: f"seed{job.seed} failed: {why}" for job, why in failed.items()}
    said |= {job: f"seed{job.seed} without predictions: {why}" for job, why in unpredicted.items()}
    runs: dict[Job, Run] = {}
    for job, run in zip(jobs, records, strict=True):
        other = differing(job.options, run) if run.options else []
        if other and not run.curves and not is_begun(run.folder):
            continue  # it recorded no epoch, and starting this row replaces it
        if other:
            said.setdefault(job, f"seed{job.seed}: {run.folder} is a run of other options: {', '.join(other[:3])}")
        elif run.options:
            runs[job] = run
        elif (run.folder / "metrics.jsonl").exists():
            said.setdefault(job, f"seed{job.seed}: {run.status}")
    begun, told = {job.row.name for job in (*runs, *said)}, {}
    for row in table.rows:
        own = [job for job in jobs if job.row.name == row.name and row.name in begun]
        whys = [said[job] for job in own if job in said]
        missing = [f"seed{job.seed}" for job in own if job not in runs and job not in said]
        told[row.name] = "; ".join([*whys, *([f"{', '.join(missing)} not yet run"] if missing else [])])
    return aggregate(
        list(runs.values()),
        [expected[row.name] for row in table.rows],
        baseline=table.baselines,
        selection=table.selection,
        failed=told,
        varied=table.varied,
        apart=tuple(row.name for row in table.rows if row.teaches_only),
    )


def heading(table: Table, changes: Changes) -> str:
    """Return the heading of a table: its title, and notes, such as changes to its file."""
    return "\n".join([f"{table.title}.", *_notes(table, changes)]) + "\n\n"


def write_page(
    folder: Path, table: Table, frame: pd.DataFrame, records: list[Run], changes: Changes, columns: list[str]
) -> Path | None:
    """Write report.html of a table into the folder of its runs, and return its path; None if no run is shown."""
    shown = {folder for folders in frame.get("folders", ()) if isinstance(folders, dict) for folder in folders.values()}
    runs = [run for run in records if run.folder in shown]
    if not runs:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    out, notes = folder / REPORT, _notes(table, changes)
    write_report(
        out, _below_notes(table, frame), runs, title=table.title, notes=notes, baseline=table.baseline, columns=columns
    )
    return out


def rendered(table: Table, frame: pd.DataFrame, changes: Changes, form: str, columns: list[str], link=None) -> str:
    """Return a table as text, with notes on its changes. form: of render.FORMATS. columns, link: see `render.cells`."""
    notes = " ".join(changes.notes())
    if form == "csv" and notes:
        frame = frame.assign(changes=notes)
    elif form == "md":
        frame = _below_notes(table, frame)
    frame.attrs["notes"] = notes
    text = FORMATS[form](frame, [*columns, "changes"] if columns and notes and form == "csv" else columns, link)
    return heading(table, changes) + text if form == "md" else text


def _below_notes(table: Table, frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table without the column of sources if there is only one, which the notes above it name."""
    alike = table.source and "published_source" in frame and frame["published_source"].nunique() < 2
    return frame.drop(columns="published_source") if alike else frame


def _notes(table: Table, changes: Changes) -> list[str]:
    protocol = ", ".join(f"{key} {written(value)}" for key, value in table.protocol.items())
    lines = [*changes.notes(), f"Protocol: {protocol}." if protocol else ""]
    if table.baselines:
        by = "held-out images choose the epoch" if table.selection == "held-out" else "the last epoch counts"
        lines.append(f"Gains are over {table.baseline or 'the row under *baseline*'}; {by}.")
    lines += [f"Varied: {', '.join(table.varied)}." if table.varied else ""]
    lines += [f"Published: {table.source}." if table.source else ""]
    return list(filter(None, lines))
