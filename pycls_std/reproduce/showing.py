"""Show a table of what there is of its runs."""

from collections.abc import Callable
from pathlib import Path

from pycls_std.reproduce.jobs import Changes, Job
from pycls_std.reproduce.table_file import Table, written
from pycls_std.results.read import Run
from pycls_std.results.render import FORMATS
from pycls_std.results.table import aggregate


def show(
    table: Table,
    jobs: list[Job],
    records: list[Run],
    changes: Changes,
    *,
    failed: dict[Job, str],
    form: str,
    columns: list[str] = (),
    link: Callable[[Path], str] | None = None,
) -> str:
    """Return the table of the records that there are of its runs.

    records: of each job, as far as there is one. failed: why a run is not there. form: of render.FORMATS. columns: in
    place of those that the table names. link: see `render.cells`.
    """
    expected = {job.row.name: job.options for job in reversed(jobs)}
    order = [expected[row.name] for row in table.rows]
    told: dict[str, str] = {}
    for job, why in failed.items():
        told[job.row.name] = "; ".join(filter(None, (told.get(job.row.name), f"seed{job.seed} failed: {why}")))
    runs = [run for run in records if run.options]
    frame = aggregate(
        runs,
        order,
        baseline=table.baseline,
        selection=table.selection,
        failed=told,
        varied=table.varied,
        apart=tuple(row.name for row in table.rows if row.teaches_only),
    )
    text = FORMATS[form](frame, list(columns or table.columns), link)
    return heading(table, changes) + text if form == "md" else text


def heading(table: Table, changes: Changes) -> str:
    """Return what stands above a table: what it is, and in what it is not what its file says."""
    protocol = ", ".join(f"{key} {written(value)}" for key, value in table.protocol.items())
    lines = [table.title, *changes.notes(), f"Protocol: {protocol}." if protocol else ""]
    lines += [f"Varied: {', '.join(table.varied)}." if table.varied else ""]
    lines += [f"Published: {table.source}." if table.source else ""]
    return "\n".join(filter(None, lines)) + "\n\n"
