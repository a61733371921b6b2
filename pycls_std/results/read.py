"""Read run records: what ran, how far it came, and its curves."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from pycls_std import config
from pycls_std.results.events import read_events

# Options without which a record cannot be read or shown; those of teachers are not in that of a run without any.
REQUIRED = {"NAME", "SEED", "TRAINER", "MODEL.NAME", "DATA.NAME", "DATA.ROOT", "OPTIM.MAX_EPOCH", "TEST.PERIOD"}


@dataclass
class Run:
    """One run record. options: {"SECTION.KEY": value}, all of them. curves: tag -> {epochs done: value}.

    status: `finished`, or what is wrong in a few words.
    """

    folder: Path
    options: dict = field(default_factory=dict)
    curves: dict[str, dict[int, float]] = field(default_factory=dict)
    status: str = "finished"

    @property
    def name(self) -> str:
        """Name of the config that ran; of the folder, if the config is lost."""
        return self.options.get("NAME") or self.folder.parent.name

    @property
    def seed(self) -> str:
        """Seed, as the label of the run within its config."""
        return f"seed{self.options['SEED']}" if "SEED" in self.options else self.folder.name


def find_runs(folders: list[str]) -> list[Run]:
    """Return all runs below the folders: every folder with a config.yaml, and every seed<k> folder that lacks one.

    Raises ValueError for a folder that is not there or has no run.
    """
    found = {}
    for top in map(Path, folders):
        candidates = sorted({top, *(path for path in top.rglob("*") if path.is_dir())})
        here = [f for f in candidates if (f / "config.yaml").is_file() or re.fullmatch(r"seed\d+", f.name)]
        if not here:
            raise ValueError(f"{top}: {'no run record in it' if top.is_dir() else 'there is no such folder'}")
        found |= {folder.resolve(): folder for folder in here if folder.resolve() not in found}
    return [read_run(folder) for folder in found.values()]


def read_run(folder: Path) -> Run:
    """Return the run recorded in a folder; a lost or broken part shows in its status and never as a result."""
    run = Run(folder)
    try:
        run.options = read_options(folder)
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        run.status = "no readable config.yaml"
        return run
    epochs, period = run.options["OPTIM.MAX_EPOCH"], run.options["TEST.PERIOD"]
    run.curves = read_events(folder)
    expected = {*range(period, epochs + 1, period), epochs}
    done = _whole([set(curve) for tag, curve in run.curves.items() if tag.startswith(("test/", "ema/"))])
    if not done:
        run.status = "no results"
    facts = _facts(folder)
    lengths = {start["epochs"]: start["epochs_done"] for start in facts.get("starts", ())}
    if done and expected - done:
        claimed = facts.get("status") == "finished" or epochs in done
        run.status = "events damaged" if claimed else f"unfinished, epoch {max(done)} of {epochs}"
    elif len(lengths) > 1:  # its learning rate is that of no run of this length
        run.status = f"extended to {epochs} epochs after epoch {lengths[epochs]}"
    return run


def _whole(curves: list[set[int]]) -> set[int]:
    """Return the epochs that every curve has, from its first one on: a metric may have come while the run went on."""
    return {
        epoch for curve in curves for epoch in curve if all(epoch in other or epoch < min(other) for other in curves)
    }


def read_options(folder: Path) -> dict[str, object]:
    """Return the options of a run record. Raises ValueError if they are not whole."""
    # Not by libyaml's loader: eight times as fast, but what is nested too deeply ends the process.
    record = yaml.safe_load((folder / "config.yaml").read_text())
    if not isinstance(record, dict) or not config.flatten(record).keys() >= REQUIRED:
        raise ValueError(f"{folder}: config.yaml is not whole")
    options = config.complete(record)
    epochs, period = options["OPTIM.MAX_EPOCH"], options["TEST.PERIOD"]
    if not all(isinstance(number, int) and number > 0 for number in (epochs, period)):
        raise ValueError(f"{folder}: config.yaml has OPTIM.MAX_EPOCH {epochs}, TEST.PERIOD {period}")
    return options


def _facts(folder: Path) -> dict:
    try:
        return json.loads((folder / "run.json").read_text())
    except (OSError, ValueError):
        return {}
