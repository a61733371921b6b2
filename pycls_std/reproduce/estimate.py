"""Estimate the time that a table takes, by a short timing of each row."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator

from pycls_std.process import streams
from pycls_std.reproduce.jobs import Job
from pycls_std.reproduce.running import SCRIPT, last_line_of
from pycls_std.reproduce.state import counts_as_kept, state_of

HOURS = re.compile(r"about (\S+) hours of training steps")
QUICK = ["TIME.STEPS=2", "TIME.WARMUP=1"]


def plan_lines(jobs: list[Job], environment: dict[str, str], *, kept: bool, side_by_side: int) -> Iterator[str]:
    """Yield a line for each run, in order, with its state, estimated hours and command; then a line with the total.

    environment: added to that of a run. A row that cannot be timed has the reason. Standard error says which row is
    being timed.
    """
    hours: dict[str, str | float] = {}
    left, unknown = 0.0, 0
    for job in jobs:
        state = state_of(job, kept=kept and counts_as_kept(job, jobs))
        if state.wrong or state.finished:
            yield f"{job}: {state.wrong or 'done'}"
            continue
        if job.row.name not in hours:
            streams.complain(f"timing {job.row.name}")
            hours[job.row.name] = _hours(job, environment)
        estimate = hours[job.row.name]
        if isinstance(estimate, float):
            left, told = left + estimate, f"{estimate:.2f} hours"
        else:
            unknown, told = unknown + 1, f"no estimate, {estimate}"
        begun = "; begun" if state.begun else ""
        needs = f"; after {', '.join(map(str, job.needs))}" if job.needs else ""
        yield f"{job}: {told}{begun}{needs}: python run_net.py {shlex.join(job.command)}"
    more = f", and {unknown} runs without an estimate" if unknown else ""
    yield f"{len(jobs)} runs, about {left / side_by_side:.2f} hours with {side_by_side} side by side{more}"


def _hours(job: Job, environment: dict[str, str]) -> float | str:
    """Return the hours of a whole run, or why they are not known."""
    command = [sys.executable, str(SCRIPT), "--mode", "time", *job.command[2:], *QUICK]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, errors="replace")
    found = HOURS.search(done.stdout)
    return float(found[1]) if found else last_line_of(done.stderr, done.returncode)
