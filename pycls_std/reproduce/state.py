"""The state of a run of a table: not started, started, finished, or another run in its folder."""

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

# Files that a start leaves if it completed no epoch.
LEFT = ("config.yaml", "metrics.jsonl", "console.log", "checkpoints", ".lock")


class State(NamedTuple):
    """The state of a run. wrong: why it cannot be executed, in a line; "" if it can. status: see `Run`."""

    begun: bool = False
    finished: bool = False
    predicted: bool = False
    wrong: str = ""
    status: str = ""


def state_of(job: Job, *, kept: bool) -> State:
    """Return the state of a run. kept: whether a record in logs/ counts as done."""
    if kept and not is_begun(job.folder) and _is_kept(job):
        return State(begun=True, finished=True, predicted=True)
    run = read_run(job.folder)
    if not run.options or not is_begun(job.folder):
        return State(status=run.status)
    other = differing(job.options, run)
    if other:
        return State(wrong=f"{job.folder} is a run of other options: {', '.join(other[:3])}")
    predicted = bool(run.analysis) or not job.weights.exists() or not is_classified(job)
    finished = run.status == "finished" and is_whole(run)  # its last checkpoint may be needed as a teacher
    return State(begun=True, finished=finished, predicted=predicted, status=run.status)


def is_begun(folder: Path) -> bool:
    """Return whether a run recorded an epoch; a start that completed none leaves options, which a new one replaces."""
    return (folder / "run.json").exists() or any((folder / "checkpoints").glob("*.pt*"))


def restore(job: Job) -> None:
    """Copy a record in logs/ that has its weights back to the run's folder, so that it can be used as a teacher.

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
            with suppress(OSError):  # another process is using it
                copy.rename(job.folder)  # atomic
        finally:
            shutil.rmtree(copy, ignore_errors=True)


def _clear(folder: Path) -> None:
    """Remove the folder of a start without results, unless a process holds its lock or there are other files."""
    with suppress(OSError):  # such as a missing folder
        if any(path.name not in LEFT and "tfevents" not in path.name for path in folder.iterdir()):
            return
        with (folder / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)


def counts_as_kept(job: Job, jobs: list[Job]) -> bool:
    """Return whether a record in logs/ suffices: without weights, all runs that it teaches must be finished."""
    if any((folder / "checkpoints" / job.weights.name).exists() for folder in (job.folder, job.kept)):
        return True
    taught = [each for each in jobs if job in each.needs]
    return all(state_of(each, kept=counts_as_kept(each, jobs)).finished for each in taught)


def _is_kept(job: Job) -> bool:
    record = read_run(job.kept)
    return record.status == "finished" and is_whole(record) and not differing(job.options, record)


def is_whole(run: Run) -> bool:
    """Return whether run.json says finished: the last values are written before the last checkpoint."""
    return run.facts.get("status") == "finished"


def record_of(job: Job, *, kept: bool, made: bool = True) -> Run:
    """Return the record of a run: that in its folder, or, if there is none or not `made`, that in logs/ if `kept`."""
    own = read_run(job.folder) if made else None
    if own and (is_begun(job.folder) or not kept or not job.kept.exists()):
        return own
    return read_run(job.kept)


def is_classified(job: Job) -> bool:
    """Return whether the run's predictions can be analyzed, being class logits."""
    return job.options["TASK.NAME"] == config.Catalogue().options["TASK.NAME"].value
