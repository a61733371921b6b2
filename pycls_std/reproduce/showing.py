"""Show a table of what there is of its runs."""

from pycls_std.reproduce.jobs import Changes, Job
from pycls_std.reproduce.state import record_of
from pycls_std.reproduce.table_file import Table
from pycls_std.results.render import FORMATS
from pycls_std.results.table import aggregate


def show(table: Table, jobs: list[Job], changes: Changes, *, kept: bool, failed: dict[Job, str], form: str) -> str:
    """Return the table of the records that there are of its runs."""
    records = [record_of(job, kept=kept) for job in jobs]
    expected = {job.row.name: job.options for job in reversed(jobs)}
    order = [expected[row.name] for row in table.rows]
    return FORMATS[form](aggregate([run for run in records if run.options], order))
