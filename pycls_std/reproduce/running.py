"""Execute the runs of a table, several in parallel: finished runs are skipped, interrupted ones resumed."""

import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pycls_std.core.prediction_file import PREDICTIONS
from pycls_std.core.text import first_of, printable, shortened
from pycls_std.process import signals
from pycls_std.reproduce.jobs import Job
from pycls_std.reproduce.state import counts_as_kept, restore, state_of

LOG = logging.getLogger("pycls_std")
SCRIPT = Path(__file__).resolve().parents[2] / "run_net.py"
POLL = 0.5  # seconds between checks of the runs
RETRY = 30.0  # seconds until a run that another process executes is checked again
MARGIN = 40.0  # seconds before a deadline for runs to finish their batch, and to write table and page
GRACE = 20.0  # seconds of MARGIN after which runs that have not ended are killed; the same command resumes them


@dataclass
class Slot:
    """A slot for one run at a time. environment: variables added for its processes."""

    environment: dict[str, str] = field(default_factory=dict)
    job: Job | None = None
    step: str = ""  # train, or predict
    read: int = 0  # bytes of its log that earlier starts wrote
    process: subprocess.Popen | None = None


class Runner:
    """Executes runs until all are done, or it is stopped.

    jobs: in order of importance. deadline: in time.monotonic(); MARGIN before it the runs are stopped, and killed if
    they do not end; None = none. kept: whether records in logs/ count as done. analyze(folder) turns a run's
    predictions into the analysis that tables read.
    """

    def __init__(
        self,
        jobs: list[Job],
        slots: list[Slot],
        *,
        deadline: float | None = None,
        kept: bool = False,
        analyze: Callable[[Path], object],
    ):
        self.jobs = jobs
        self.slots = slots
        self.deadline = deadline
        self.kept = kept
        self.analyze = analyze
        self.done: set[Job] = set()
        self.failed: dict[Job, str] = {}  # the reason, in a line
        self.unpredicted: dict[Job, str] = {}  # finished runs without predictions, and the reason
        self.later: dict[Job, float] = {}  # executed by another process; when to check again
        self.stopping = False
        self.told: set[Job] = set()

    def run(self) -> None:
        """Execute the runs. On a signal, each run ends after its batch, and then this returns."""
        try:
            with signals.deferred():
                while not self.stopping or any(slot.process for slot in self.slots):
                    if (signals.pending() or self._late()) and not self.stopping:
                        self._stop("stopped" if signals.pending() else "the time is up")
                    if self._late(GRACE):
                        self._kill()
                    for slot in self.slots:
                        self._look_at(slot)
                    if not self.stopping and not self._start() and not any(slot.process for slot in self.slots):
                        if not self.later:
                            break
                        time.sleep(POLL)
                    time.sleep(POLL)
        finally:
            self._kill()

    def _late(self, more: float = 0.0) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline - MARGIN + more

    def _kill(self) -> None:
        for slot in self.slots:
            if slot.process:
                slot.process.kill()

    def _stop(self, why: str) -> None:
        self.stopping = True
        LOG.info("%s: the runs end after their batch, the same command goes on with them", why)
        for slot in self.slots:
            if slot.process:
                with suppress(ProcessLookupError):
                    slot.process.terminate()

    def _start(self) -> bool:
        """Start runs in free slots; return whether any was started."""
        started = False
        for slot in self.slots:
            while slot.process is None and (job := self._next()):
                started |= self._begin(slot, job)
        return started

    def _next(self) -> Job | None:
        """Return the next run to execute; mark those whose teachers failed as failed."""
        busy = {slot.job for slot in self.slots if slot.process}
        for job in self.jobs:
            if job in busy or job in self.done or job in self.failed or self.later.get(job, 0) > time.monotonic():
                continue
            lost = [teacher for teacher in job.needs if teacher in self.failed]
            if lost:
                self._fail(job, f"needs {lost[0]}, which failed")
            elif all(teacher in self.done or teacher not in self.jobs for teacher in job.needs):
                return job
        return None

    def _begin(self, slot: Slot, job: Job) -> bool:
        """Start the next step of a run in a slot; return whether there was one."""
        self.later.pop(job, None)
        if self.kept:
            try:
                restore(job)
            except OSError as error:
                self._fail(job, f"its record in {job.kept} cannot be brought back: {error}")
                return False
        kept = self.kept and counts_as_kept(job, self.jobs)
        if kept and (job.kept / "checkpoints" / job.weights.name).exists() and not job.weights.exists():
            kept = False  # another process is using their folder
        state = state_of(job, kept=kept)
        if state.wrong:
            self._fail(job, state.wrong)
        elif not state.finished:
            taught = [str(each) for each in self.jobs if job in each.needs and self._is_begun(each)]
            if taught and not state.begun:
                LOG.warning("%s is made anew, and others were taught by an earlier one: %s", job, first_of(taught))
            self._spawn(slot, job, "train", job.command, f"{job}: {'goes on' if state.begun else 'starts'}")
        elif not state.predicted:
            words = ["--mode", "test", "--cfg", str(job.folder / "config.yaml"), f"TEST.WEIGHTS={job.weights}"]
            words += [f"TEST.PREDICTIONS={job.folder / PREDICTIONS}", "OUT_DIR="]
            self._spawn(slot, job, "predict", words, "")
        else:
            self._finish(job, "done")
        return slot.process is not None

    def _is_begun(self, job: Job) -> bool:
        places = (job.folder, job.kept) if self.kept else (job.folder,)
        return any((place / "config.yaml").exists() for place in places)

    def _spawn(self, slot: Slot, job: Job, step: str, words: list[str], message: str) -> None:
        log = job.folder.with_name(f"{job.folder.name}.{step}.log")
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as output:  # not in the run's folder, which belongs to the run
                slot.read = output.tell()
                slot.process = subprocess.Popen(
                    [sys.executable, str(SCRIPT), *words],
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    env=os.environ | slot.environment,
                    start_new_session=True,  # Ctrl-C only reaches this process, which forwards it once
                )
        except OSError as error:
            self._fail(job, f"cannot be started: {error}")
            return
        slot.job, slot.step = job, step
        if message:
            LOG.info("%s", message)

    def _look_at(self, slot: Slot) -> None:
        """Handle a process that has ended."""
        if slot.process is None or slot.process.poll() is None:
            return
        job, step, code, slot.process = slot.job, slot.step, slot.process.returncode, None
        assert job is not None  # since it had a process
        if self.stopping and code:
            return
        if code:
            why = last_line(job.folder.with_name(f"{job.folder.name}.{step}.log"), code, slot.read)
            if "is in use by" in why:
                self.later[job] = time.monotonic() + RETRY
                if job not in self.told:
                    LOG.info("%s: %s, it is waited for", job, why)
                self.told.add(job)
            elif step == "predict":
                self._lacks_predictions(job, why)
            else:
                self._fail(job, why)
            return
        if step == "train" and not (state := state_of(job, kept=self.kept)).finished:  # a restart might loop forever
            self._fail(job, f"it ended without an error, but its record is not that of a finished run: {state.status}")
            return
        if step == "predict":
            try:
                self.analyze(job.folder)
            except (ValueError, OSError) as error:
                self._lacks_predictions(job, str(error))
            else:
                self._finish(job, "done")
        elif not self.stopping:
            self._begin(slot, job)

    def _finish(self, job: Job, how: str) -> None:
        self.done.add(job)
        LOG.info("%s: %s (%d of %d)", job, how, len(self.done), len(self.jobs))

    def _lacks_predictions(self, job: Job, why: str) -> None:
        self.unpredicted[job] = printable(shortened(why, 300))
        self._finish(job, f"done, without predictions: {self.unpredicted[job]}")

    def _fail(self, job: Job, why: str) -> None:
        self.failed[job] = printable(shortened(why, 300))
        LOG.info("%s: failed: %s", job, self.failed[job])


def last_line(log: Path, code: int, start: int = 0) -> str:
    """Return the line with the reason why a run ended, without the program's name. start: byte of its output."""
    try:
        text = log.read_bytes()[start:][-4000:].decode(errors="replace")
    except OSError:
        text = ""
    return last_line_of(text, code)


def last_line_of(text: str, code: int) -> str:
    """Return that line of a run's output."""
    lines = text.strip().splitlines()
    said = [line for line in lines if line.startswith("run_net.py")]
    line = (said or lines or [""])[-1]
    if not line or code < 0:
        return f"it was killed (exit code {code})"
    return re.sub(r"^run_net\.py( \[process \d+\])?: ", "", line)
