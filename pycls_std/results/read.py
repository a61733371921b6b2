"""Read run records: options, status and curves."""

import json
import math
import os
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pycls_std import config
from pycls_std.config.plain_yaml import load_yaml
from pycls_std.core.event_options import options_in
from pycls_std.core.regular import read_bytes
from pycls_std.core.text import first_of, printable, shortened
from pycls_std.results.analysis import of_folder
from pycls_std.results.events import read_events

# Options that every record must have; those of teachers are not in the record of a run without any.
REQUIRED = {"NAME", "SEED", "TRAINER", "MODEL.NAME", "DATA.NAME", "DATA.ROOT", "OPTIM.MAX_EPOCH", "TEST.PERIOD"}


@dataclass
class Run:
    """One run record. options: {"SECTION.KEY": value}, all of them. curves: tag -> {epochs done: value}.

    facts: content of run.json, {} if it is missing or damaged. status: `finished`, or what is wrong in a few words.
    teachers: digests of its teachers' weights, () if they are not known, as in records from before November 2026.
    files: digests of its dataset's files, "" if there are none or they are not known, as in records from before
    December 2026. processes: number that shared its batches, 0 if run.json is missing.
    """

    folder: Path
    options: dict = field(default_factory=dict)
    curves: dict[str, dict[int, float]] = field(default_factory=dict)
    facts: dict = field(default_factory=dict)
    teachers: tuple[str, ...] = ()
    files: str = ""
    processes: int = 0
    status: str = "finished"

    @property
    def name(self) -> str:
        """Name of the run's config; of its folder, if the config is missing."""
        return self.options.get("NAME") or self.folder.parent.name

    @property
    def seed(self) -> str:
        """Seed of the run, as a label such as seed0."""
        return f"seed{self.options['SEED']}" if "SEED" in self.options else self.folder.name

    @cached_property
    def analysis(self) -> dict:
        """Content of analysis.json, {} if it is missing, damaged or another run's."""
        return of_folder(self.folder, self.name, self.options.get("SEED"))


def find_runs(folders: list[str]) -> list[Run]:
    """Return all runs below the folders: every folder with a config.yaml, and every seed<k> folder that lacks one.

    Raises ValueError for a folder that does not exist or has no run.
    """
    found: dict[Path, Path] = {}
    for top in map(Path, folders):
        here = [f for f in _folders(top) if (f / "config.yaml").is_file() or re.fullmatch(r"seed\d+", f.name)]
        if not here:
            is_file = "it is a file, and no folder" if top.is_file() else "there is no such folder"
            raise ValueError(f"{top}: {'no run record in it' if top.is_dir() else is_file}")
        found |= {folder.resolve(): folder for folder in here if folder.resolve() not in found}
    return [read_run(folder) for folder in found.values()]


def _folders(top: Path) -> list[Path]:
    """Return a folder and all below it, following links, each once; hidden ones are skipped as still being written."""
    found: dict[Path, Path] = {}
    starts = [top]
    for start in starts:  # grows by links
        for name, below, _ in os.walk(start):
            place, real = Path(name), Path(name).resolve()
            below[:] = sorted(name for name in below if real not in found and not name.startswith("."))
            found.setdefault(real, place)
            starts += [link for name in below if (link := place / name).is_symlink()]
    return sorted(found.values())


def read_run(folder: Path) -> Run:
    """Return the run recorded in a folder; a missing or damaged part is reported in its status, never as a result.

    The options and the number of epochs are those recorded in the event file; config.yaml, which could be edited, must
    agree. Records from before November 2026 have them only in config.yaml and run.json.
    """
    run = Run(folder, facts=document(folder, "run.json"))
    run.curves, recorded = read_events(folder)
    text = _text(folder)
    shown, why = _options_or_reason(text)
    run.options = shown if recorded in ("", text) else _options_of(recorded)
    if not shown or not run.options:
        run.status = "events damaged" if shown else f"no readable config.yaml{why}"
        if not text and (folder / ".lock").exists():  # that of run/lock.py, which a killed run leaves behind
            run.status = "starting, or killed before its first epoch"
        return run
    epochs, period = run.options["OPTIM.MAX_EPOCH"], run.options["TEST.PERIOD"]
    expected = {*range(period, epochs + 1, period), epochs}
    done = _whole([set(curve) for tag, curve in run.curves.items() if tag.startswith(("test/", "ema/", "val/"))])
    facts = run.facts
    digests = facts.get("teacher_fingerprints")
    if isinstance(digests, list) and len(digests) == len(run.options.get("DISTILLATION.TEACHERS", [])):
        run.teachers = tuple(map(str, digests))
    digests = facts.get("files")
    run.files = " ".join(str(digests[split])[:10] for split in sorted(digests)) if isinstance(digests, dict) else ""
    run.processes = facts["processes"] if isinstance(facts.get("processes"), int) else int(bool(facts))
    other, foreign = _edited(run.options, shown), _foreign(folder, run.options)
    if foreign:
        run.status = f"event files that are not this run's: {first_of(foreign)}"
    elif not done:
        run.status = "no results"
    elif other:
        run.status = f"config.yaml is not what ran: {', '.join(other[:3])}"
    elif expected - done:
        claimed = facts.get("status") == "finished" or epochs in done
        run.status = "events damaged" if claimed else f"unfinished, epoch {max(done)} of {epochs}"
    else:
        run.status = _extended(run.curves, facts, run.options) or run.status
    return run


def is_number(value) -> bool:
    """Return whether a value of a document is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def document(folder: Path, name: str) -> dict:
    """Return the content of a record's JSON file, such as run.json; {} if it is missing, damaged or not an object."""
    try:
        content = json.loads(read_bytes(folder / name))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _edited(recorded: dict, shown: dict) -> list[str]:
    """Return the options in which config.yaml differs from those recorded, except those that do not affect results."""
    catalogue = config.Catalogue()
    keys = sorted(key for key in recorded.keys() | shown.keys() if recorded.get(key) != shown.get(key))
    return [key for key in keys if (option := catalogue.of(key)) is None or option.rows or option.on_resume != "free"]


def _foreign(folder: Path, options: dict) -> list[str]:
    """Return the names of event files of another run, or of an unknown one, if there are several files."""
    files = sorted(path for path in folder.glob("*tfevents*") if path.is_file())
    texts = {path.name: options_in(path) for path in files} if len(files) > 1 else {}
    if not any(texts.values()):  # as in records from before November 2026
        return []
    grown = {"OPTIM.MAX_EPOCH"}
    return [name for name, text in texts.items() if not text or set(_edited(options, _options_of(text))) - grown]


def _extended(curves: dict, facts: dict, options: dict) -> str:
    """Return as text that a run was extended beyond its planned epochs, so that it differs from one of that length.

    "" if it was not.
    """

    def other(plan: float) -> bool:
        return plan != epochs and not config.same_when_extended(options, int(plan))

    epochs, planned = options["OPTIM.MAX_EPOCH"], curves.get("run/epochs")
    if planned:
        earlier = [epoch for epoch, plan in planned.items() if other(plan)]
        return f"extended to {epochs} epochs after epoch {max(earlier)}" if earlier else ""
    try:  # as in records from before November 2026
        lengths = {start["epochs"]: start["epochs_done"] for start in facts["starts"]}
    except (KeyError, TypeError):
        lengths = {}
    if not lengths:
        return "run.json is gone or not whole, so it is not known whether it was extended"
    return f"extended to {epochs} epochs after epoch {lengths.get(epochs)}" if any(map(other, lengths)) else ""


def _whole(curves: list[set[int]]) -> set[int]:
    """Return the epochs that every curve has, from its first one on: a metric may have been added on a resume."""
    return {
        epoch for curve in curves for epoch in curve if all(epoch in other or epoch < min(other) for other in curves)
    }


def _text(folder: Path) -> str:
    try:
        return read_bytes(folder / "config.yaml").decode()
    except (OSError, UnicodeDecodeError):
        return ""


def _options_of(text: str) -> dict[str, Any]:
    """Return the options of a record, {} if they are incomplete."""
    return _options_or_reason(text)[0]


def _options_or_reason(text: str) -> tuple[dict[str, Any], str]:
    """Return the options of a record and ""; or {} and the reason if they are incomplete, "" if there is no text."""
    try:
        return _whole_options(text), ""
    except ValueError as error:
        return {}, f": {shortened(printable(str(error)))}" if text else ""


def _whole_options(text: str) -> dict[str, Any]:
    """Return the options of a record. Raises ValueError that says why they are incomplete."""
    record = load_yaml(text, "config.yaml")
    flat = config.flatten(record) if isinstance(record, dict) else {}
    if absent := sorted(REQUIRED - flat.keys()):
        raise ValueError(f"it lacks {first_of(absent)}")
    options = config.typed(config.complete(record))
    for key in ("OPTIM.MAX_EPOCH", "TEST.PERIOD"):
        if not options[key] > 0:
            raise ValueError(f"its options: {key} is {options[key]}, expected at least 1")
    if "PUBLISHED.CHANGED" not in flat:  # its options were not compared with the published recipe
        options = {key: value for key, value in options.items() if not key.startswith("PUBLISHED.")}
    return options
