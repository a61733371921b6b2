"""The runs of a table in order of execution: each after its teachers, one seed of every row before the next seed."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pycls_std import config
from pycls_std.config import ConfigError
from pycls_std.config.reading import parse_overrides
from pycls_std.core.text import first_of, printable
from pycls_std.reproduce.entries import written
from pycls_std.reproduce.table_file import Row, Table

RUNS, LOGS = Path("runs"), Path("logs")
EPOCHS = ("DISTILLATION.CTKD_EPOCHS",)  # options in epochs that may exceed the run's epochs


@dataclass(frozen=True)
class Changes:
    """Command-line changes to a table, which are noted wherever it is shown.

    scale: factor of all options in epochs. data: {name of a dataset: folder of images, or dataset, that replaces it}.
    """

    scale: float = 1.0
    data: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.scale != 1 or bool(self.data)

    def suffix(self) -> str:
        """Return the suffix of the table's name, and so of its folder's."""
        scaled = f"_x{self.scale:g}" if self.scale != 1 else ""
        return scaled + "".join(f"_{Path(place).name}" for place in self.data.values())

    def notes(self) -> list[str]:
        """Return the notes on the changes, a sentence each."""
        scaled = f"Every number of epochs is {self.scale:g} times that of the table, in whole epochs (--scale)."
        swapped = [f"{Path(place).name} stands in for {name} (--data)." for name, place in self.data.items()]
        return ([scaled] if self.scale != 1 else []) + swapped


@dataclass(eq=False)
class Job:
    """One run of a table. words: options on the command line. options: {"SECTION.KEY": value}, all of them.

    kept: folder of its record if it was copied to logs/. needs: the runs of its teachers.
    """

    row: Row
    seed: int
    folder: Path
    kept: Path
    config: str
    words: list[str]
    options: dict[str, Any]
    needs: list["Job"]

    def __str__(self) -> str:
        return f"{self.row.name} seed{self.seed}"

    @property
    def weights(self) -> Path:
        """The checkpoint that is tested and used as a teacher: of the best held-out epoch, or of the last epoch."""
        return self.folder / "checkpoints" / ("best.pt" if self.options["DATA.VAL_FRACTION"] else "last.pt")

    @property
    def command(self) -> list[str]:
        """The arguments that train it, after the interpreter and the script."""
        return ["--mode", "train", "--cfg", self.config, *self.words]


def folder_name(table: Table, changes: Changes) -> str:
    """Return the name of the folder of a table's runs, within runs/ and logs/."""
    return table.name + changes.suffix()


def plan(table: Table, changes: Changes, overrides: Sequence[str] = ()) -> list[Job]:
    """Return all runs of a table, each after its teachers, in order of importance.

    overrides: options of every run, `KEY=VALUE`, that do not affect results, such as the location of the data.
    Raises ConfigError that names the row for invalid options and for a row that departs from the protocol, and
    ConfigError for an override that would affect results.
    """
    catalogue = config.Catalogue()
    for key in parse_overrides(overrides):
        option = catalogue.of(key)
        if option and (option.on_resume != "free" or key in ("NAME", "OUT_DIR") or key.startswith("PUBLISHED.")):
            raise ConfigError(f"command line: {key} belongs to the table: write it into {table.path}, or into a copy")
    _refuse_stand_ins(table, changes)
    order = {row.name: row for row in table.rows}
    made: dict[str, list[Job]] = {}

    def of(name: str) -> list[Job]:
        if name not in made:
            row = order[name]
            needs = [of(teacher)[0] for teacher in row.taught_by]
            made[name] = [_job(table, row, seed, needs, changes, overrides) for seed in row.seeds]
        return made[name]

    jobs: dict[Job, None] = {}
    rows = [row for row in table.rows if not row.teaches_only]
    for place in range(max((len(row.seeds) for row in rows), default=0)):
        for row in rows:
            for job in of(row.name)[place : place + 1]:
                _add(job, jobs)
    for row in table.rows:  # unused teachers, and further seeds of teachers
        for job in of(row.name):
            _add(job, jobs)
    return list(jobs)


def _refuse_stand_ins(table: Table, changes: Changes) -> None:
    known = {config.dataset_name(config.flatten(_read(table, row))) for row in table.rows} if changes.data else set()
    for name, place in changes.data.items():
        if name not in known:
            raise ConfigError(f"--data {name}={place}: the rows of {table.path} are of {first_of(sorted(known))}")
        if place not in config.Catalogue().choices("DATA.NAME") and not Path(place).is_dir():
            raise ConfigError(f"--data {name}={place}: {place} is neither a folder nor a dataset")


def _read(table: Table, row: Row):
    words = [f"{key}={written(value)}" for key, value in row.options.items() if key.startswith("DATA.")]
    try:
        return config.load(_relative(row.config), words)
    except ConfigError as error:
        raise ConfigError(f"{printable(str(table.path))}: {row.name}: {error}") from None


def _add(job: Job, jobs: dict[Job, None]) -> None:
    for teacher in job.needs:
        _add(teacher, jobs)
    jobs.setdefault(job)


def _job(table: Table, row: Row, seed: int, needs: list[Job], changes: Changes, overrides) -> Job:
    name = folder_name(table, changes)
    place = Path(row.name) / f"seed{seed}"
    config_path = _relative(row.config)
    options = row.options | ({} if changes else {f"PUBLISHED.{key}": value for key, value in row.published.items()})
    words = [f"{key}={written(value)}" for key, value in options.items()]
    if needs:
        words.append(f"DISTILLATION.TEACHERS=[{','.join(job.options['MODEL.NAME'] for job in needs)}]")
        words.append(f"DISTILLATION.TEACHER_WEIGHTS={written([str(job.weights) for job in needs])}")
    words += [*overrides, f"NAME={row.name}", f"SEED={seed}", f"OUT_DIR={RUNS / name / place}"]
    try:
        options = config.flatten(config.load(config_path, words))
        _refuse_other_protocol(table, row, config_path, words, options)
        if table.selection == "held-out" and not options["DATA.VAL_FRACTION"]:
            raise ConfigError("the table's selection is held-out, DATA.VAL_FRACTION is 0")
        if changed := _changed(options, changes):
            words += changed
            options = config.flatten(config.load(config_path, words))
    except ConfigError as error:
        raise ConfigError(f"{printable(str(table.path))}: {row.name}: {error}") from None
    return Job(row, seed, RUNS / name / place, LOGS / name / place, config_path, words, options, needs)


def _refuse_other_protocol(table, row, config_path, words, options) -> None:
    wanted = {key: written(value) for key, value in table.protocol.items() if key not in row.varied}
    if row.teaches_only or not wanted:
        return
    common = config.flatten(config.load(config_path, [*words, *(f"{key}={text}" for key, text in wanted.items())]))
    for key in wanted:
        if key == "DATA.ROOT" and config.dataset_name(options) == config.dataset_name(common):
            continue  # the same folder elsewhere
        if options.get(key) != common[key]:
            raise ConfigError(f"{key} is {options.get(key)}, the table's protocol is {common[key]}")


def _changed(options: dict[str, Any], changes: Changes) -> list[str]:
    """Return the options that apply the changes to a run: scaled epochs, and replaced data."""
    words = []
    if changes.scale != 1:
        catalogue = config.Catalogue()
        idle = catalogue.idle(options) | catalogue.unread(options).keys()
        epochs = max(1, round(options["OPTIM.MAX_EPOCH"] * changes.scale))
        share = epochs / options["OPTIM.MAX_EPOCH"]
        words.append(f"OPTIM.MAX_EPOCH={epochs}")
        for key, value in options.items():
            option = catalogue.of(key)
            if option and value and (option.within == "OPTIM.MAX_EPOCH" or key in EPOCHS and key not in idle):
                least = 1 if key in EPOCHS else 0
                scaled = round(value * share, 6) if isinstance(value, float) else max(least, round(value * share))
                words.append(f"{key}={scaled}")
        if options["OPTIM.STEPS"]:
            words.append(f"OPTIM.STEPS=[{','.join(f'{step * share:.6g}' for step in options['OPTIM.STEPS'])}]")
        words.append(f"TEST.PERIOD={max(1, round(options['TEST.PERIOD'] * share))}")
    place = changes.data.get(config.dataset_name(options))
    if place:
        named, form = place in config.Catalogue().choices("DATA.NAME"), options["DATA.NAME"]
        form = form if form in config.BY_FOLDER else "image_folder"
        words += [f"DATA.NAME={place}"] if named else [f"DATA.NAME={form}", f"DATA.ROOT={place}"]
        words.append("MODEL.NUM_CLASSES=0")
    return words


def _relative(path: Path) -> str:
    """Return a path for a command: relative to the current folder if it is below that, otherwise absolute."""
    relative = os.path.relpath(path)
    return os.path.abspath(path) if relative.startswith("..") else relative
