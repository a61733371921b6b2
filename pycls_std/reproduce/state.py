"""How far a run of a table is: nothing, begun, finished, or something else in its place."""

import fcntl
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from pycls_std import config
from pycls_std.reproduce.jobs import Job
from pycls_std.results.read import Run, read_run
from pycls_std.results.rows import differing

# What a start leaves that came to no epoch.
LEFT = ("config.yaml", "metrics.jsonl", "console.log", "checkpoints", ".lock")


class State(NamedTuple):
    """What there is of a run. wrong: why it cannot be made, in a line; "" if it can. status: see `Run`."""

    begun: bool = False
    finished: bool = False
    predicted: bool = False
    wrong: str = ""
    status: str = ""


def state_of(job: Job, *, kept: bool) -> State:
    """Return how far a run is. kept: whether a record in logs/ counts as done."""
    if kept and not is_begun(job.folder) and _is_kept(job):
        return State(begun=True, finished=True, predicted=True)
    run = read_run(job.folder)
    if not run.options or not is_begun(job.folder):
        return State(status=run.status)
    other = differing(job.options, run)
    if other:
        return State(wrong=f"{job.folder} is a run of other options: {', '.join(other[:3])}")
    predicted = bool(run.analysis) or not job.weights.exists() or not is_classified(job)
    finished = run.status == "finished" and is_whole(run)  # others are taught by the last checkpoint
    return State(begun=True, finished=finished, predicted=predicted, status=run.status)


def is_begun(folder: Path) -> bool:
    """Return whether a run recorded anything; a start that came to no epoch leaves options, which a run replaces."""
    return (folder / "run.json").exists() or any((folder / "checkpoints").glob("*.pt*"))


def restore(job: Job) -> None:
    """Bring a record that was kept in logs/ with its weights back to where it was made, for others to be taught by.

    Raises OSError if it cannot be copied, as on a full disk.
    """
    weights = job.kept / "checkpoints" / job.weights.name
    if not is_begun(job.folder) and weights.exists() and _is_kept(job):
        job.folder.parent.mkdir(parents=True, exist_ok=True)
        copy = Path(tempfile.mkdtemp(prefix=".restored-", dir=job.folder.parent))
        try:
            shutil.copytree(job.kept, copy, dirs_exist_ok=True)
            copy.chmod(0o755)
            _clear(job.folder)
            with suppress(OSError):  # another is at work there
                copy.rename(job.folder)  # whole, or not at all
        finally:
            shutil.rmtree(copy, ignore_errors=True)


def _clear(folder: Path) -> None:
    """Remove what a start left that recorded nothing, unless a process holds its lock or there is something else."""
    with suppress(OSError):  # such as that there is no folder
        if any(path.name not in LEFT and "tfevents" not in path.name for path in folder.iterdir()):
            return
        with (folder / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)


def counts_as_kept(job: Job, jobs: list[Job]) -> bool:
    """Return whether a record in logs/ is enough of a run: others of `jobs` may be still to make that it teaches."""
    if any((folder / "checkpoints" / job.weights.name).exists() for folder in (job.folder, job.kept)):
        return True
    taught = [each for each in jobs if job in each.needs]
    return all(state_of(each, kept=counts_as_kept(each, jobs)).finished for each in taught)


def _is_kept(job: Job) -> bool:
    record = read_run(job.kept)
    return record.status == "finished" and is_whole(record) and not differing(job.options, record)


def is_whole(run: Run) -> bool:
    """Return whether a run is finished and not its values alone, which are written before the last checkpoint."""
    return run.facts.get("status") == "finished"


def record_of(job: Job, *, kept: bool, made: bool = True) -> Run:
    """Return the record of a run: where it was made, if that counts; if not or there is none, where it was kept."""
    own = read_run(job.folder) if made else None
    if own and (is_begun(job.folder) or not kept or not job.kept.exists()):
        return own
    return read_run(job.kept)


def is_classified(job: Job) -> bool:
    """Return whether predictions of the run can be analyzed: logits of classes."""
    return job.options["TASK.NAME"] == config.Catalogue().options["TASK.NAME"].value
