"""Read run records: what ran, how far it came, and its curves."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from pycls_std.results.events import read_events

RESULT = "test/top1"
# Options without which a record cannot be read or shown.
REQUIRED = {
    *("NAME", "SEED", "TRAINER", "MODEL.NAME", "DATA.NAME", "DATA.ROOT", "OPTIM.MAX_EPOCH", "TEST.PERIOD"),
    *("DISTILLATION.TEACHERS", "DISTILLATION.TYPE", "PUBLISHED.TOP1", "PUBLISHED.TOP5"),
}


@dataclass
class Run:
    """One run record. curves: tag -> {epochs done: value}. status: `finished`, or what is wrong in a few words."""

    folder: Path
    config: dict = field(default_factory=dict)
    curves: dict[str, dict[int, float]] = field(default_factory=dict)
    status: str = "finished"

    @property
    def name(self) -> str:
        """Name of the config that ran; of the folder, if the config is lost."""
        return self.config.get("NAME") or self.folder.parent.name

    @property
    def seed(self) -> str:
        """Seed, as the label of the run within its config."""
        return f"seed{self.config['SEED']}" if "SEED" in self.config else self.folder.name


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
        run.config = read_config(folder)
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        run.status = "no readable config.yaml"
        return run
    epochs, period = run.config["OPTIM"]["MAX_EPOCH"], run.config["TEST"]["PERIOD"]
    run.curves = read_events(folder)
    expected = {*range(period, epochs + 1, period), epochs}
    results = [run.curves.get(tag, {}) for tag in {RESULT, *run.curves} if tag.startswith(("test/", "ema/"))]
    done = set.intersection(*map(set, results))
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


def read_config(folder: Path) -> dict:
    """Return the options of a run record. Raises ValueError if they are not whole."""
    # Not by libyaml's loader: eight times as fast, but what is nested too deeply ends the process.
    config = yaml.safe_load((folder / "config.yaml").read_text())
    if not isinstance(config, dict) or not flatten(config).keys() >= REQUIRED:
        raise ValueError(f"{folder}: config.yaml is not whole")
    epochs, period = config["OPTIM"]["MAX_EPOCH"], config["TEST"]["PERIOD"]
    if not all(isinstance(number, int) and number > 0 for number in (epochs, period)):
        raise ValueError(f"{folder}: config.yaml has OPTIM.MAX_EPOCH {epochs}, TEST.PERIOD {period}")
    return config


def flatten(options: dict, prefix: str = "") -> dict:
    """Return {"SECTION.KEY": value}."""
    flat = {}
    for key, value in options.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _facts(folder: Path) -> dict:
    try:
        return json.loads((folder / "run.json").read_text())
    except (OSError, ValueError):
        return {}
