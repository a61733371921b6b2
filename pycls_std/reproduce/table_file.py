"""Read the file of a table: its runs, their teachers, and the settings that all rows share."""

import re
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

from pycls_std import config
from pycls_std.config import ConfigError
from pycls_std.config.checks import NAME
from pycls_std.config.plain_yaml import Text, short
from pycls_std.config.shipped import config_beside
from pycls_std.core.text import first_of, printable, shortened
from pycls_std.reproduce.entries import as_list, as_mapping, as_options, as_seeds, content_of, written
from pycls_std.results.columns import chosen
from pycls_std.results.table import SELECTIONS

TABLE_KEYS = ("title", "source", "seeds", "baseline", "selection", "columns", "protocol", "options", "teachers", "runs")
# Options that a row's entries name, seeds and teachers set instead.
OWN = {"NAME": "name", "OUT_DIR": "name", "SEED": "seeds"}
TAUGHT = {"DISTILLATION.TEACHERS": "teachers", "DISTILLATION.TEACHER_WEIGHTS": "teachers"}
ROW_KEYS = ("name", "config", "options", "seeds", "teachers", "baseline", "published", "source", "sweep", "list")


@dataclass(frozen=True)
class Row:
    """A row of a table: a config, its changed options, and its seeds.

    options: {"SECTION.KEY": value as written}. taught_by: names of its teachers' rows. published: {"TOP1": value as
    written}, with its SOURCE, if the config does not state it. varied: keys that a sweep varies. baseline: name of the
    row that it is compared with, "" = none.
    """

    name: str
    config: Path
    options: dict[str, Any]
    seeds: tuple[int, ...]
    taught_by: tuple[str, ...] = ()
    published: dict[str, Any] = field(default_factory=dict)
    varied: tuple[str, ...] = ()
    baseline: str = ""
    teaches_only: bool = False  # it only provides weights, and need not follow the protocol


@dataclass(frozen=True)
class Table:
    """The content of a table's file. selection: of the epoch to compare by, the last or the best on held-out images.

    columns: names of columns and of groups of columns to show; none = the default ones.
    protocol: {"SECTION.KEY": value as written} that every row must have, except teachers.
    """

    name: str
    path: Path
    title: str
    source: str
    selection: str
    columns: tuple[str, ...]
    protocol: dict[str, Any]
    rows: tuple[Row, ...]

    @property
    def varied(self) -> tuple[str, ...]:
        """The option keys that its sweeps vary."""
        return tuple(dict.fromkeys(key for row in self.rows for key in row.varied))

    @property
    def baselines(self) -> dict[str, str]:
        """The name of each row's baseline, for the rows that have one."""
        return {row.name: row.baseline for row in self.rows if row.baseline}

    @property
    def baseline(self) -> str:
        """The name of the common baseline; "" if there is none, or more than one."""
        names = set(self.baselines.values())
        return names.pop() if len(names) == 1 else ""


def read_table(path: Path) -> Table:
    """Return the table in a file.

    Paths of configs are relative to it; a configs/... that does not exist there is the package's own. Raises
    ConfigError that names the file and the invalid entry.
    """
    label = printable(shortened(str(path)))
    content = as_mapping(content_of(path, label), label, TABLE_KEYS)
    for key in ("title", "source", "baseline", "selection"):
        if isinstance(content.get(key), (list, dict)):
            raise ConfigError(f"{label}: {key} is {short(content[key])}, expected text")
    missing = [key for key in ("title", "runs") if not content.get(key)]
    if missing:
        raise ConfigError(f"{label}: {missing[0]} is missing")
    seeds = as_seeds(content.get("seeds", [Text("0")]), f"{label}: seeds")
    common = as_options(content.get("options", {}), f"{label}: options")
    rows, find = [], cache(partial(config_beside, path.parent))  # logs a config's location only once
    for group, teaches_only in (("teachers", True), ("runs", False)):
        default = seeds[:1] if teaches_only else seeds
        for number, entry in enumerate(as_list(content.get(group, []), f"{label}: {group}"), start=1):
            own = as_mapping(entry, f"{label}: entry {number} of {group}", ROW_KEYS)
            name = str(own.get("name", ""))
            where = f"{label}: {group}, {name or f'entry {number}'}"
            if teaches_only and "baseline" in own:
                raise ConfigError(f"{where}: a teacher is not compared, it has no baseline")
            own = {"baseline": "" if teaches_only else content.get("baseline", "")} | own
            rows += _rows(name, own, where, find, common, default, teaches_only=teaches_only)
    table = Table(
        name=path.stem,
        path=path,
        title=str(content["title"]),
        source=str(content.get("source") or ""),
        selection=str(content.get("selection", "last")),
        columns=tuple(map(str, as_list(content.get("columns", []), f"{label}: columns"))),
        protocol=as_options(content.get("protocol", {}), f"{label}: protocol"),
        rows=tuple(rows),
    )
    _check(table, label)
    return table


def _check(table: Table, label: str) -> None:
    names = [row.name for row in table.rows]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigError(f"{label}: the row {twice[0]} is there twice")
    for compared, name in table.baselines.items():
        if name not in names:
            raise ConfigError(f"{label}: {compared}: baseline is {short(name)}, the rows are {first_of(names)}")
    if table.selection not in SELECTIONS:
        raise ConfigError(f"{label}: selection is {short(table.selection)}, expected {' or '.join(SELECTIONS)}")
    try:
        chosen(config.Catalogue(), table.columns, table.varied)
    except ValueError as error:
        raise ConfigError(f"{label}: columns: {error}") from None
    known = {row.name: row for row in table.rows}
    for row in table.rows:
        for teacher in row.taught_by:
            if teacher not in known:
                raise ConfigError(f"{label}: {row.name} is taught by {short(teacher)}, which is no row of this table")
        _refuse_circle(row, known, label)


def _refuse_circle(row: Row, known: dict[str, Row], label: str) -> None:
    above = set(row.taught_by)
    seen: set[str] = set()
    while above - seen:
        seen |= above
        above = {teacher for name in above for teacher in known[name].taught_by if teacher in known}
        if row.name in above | seen:
            raise ConfigError(f"{label}: {row.name} teaches itself, by way of its teachers")


def _rows(name, own, where, find, common, seeds, *, teaches_only) -> list[Row]:
    """Return the row of an entry, or one for each point of its sweep."""
    if not NAME.fullmatch(name):
        raise ConfigError(f"{where}: name is {short(name)}, expected letters, digits and . + - _ only")
    if isinstance(own["baseline"], (list, dict)):
        raise ConfigError(f"{where}: baseline is {short(own['baseline'])}, expected the name of a row")
    if not own.get("config"):
        raise ConfigError(f"{where}: config is missing")
    place = find(str(own["config"]))
    if not place:
        raise ConfigError(f"{where}: config is {short(own['config'])}, there is no such file beside the table")
    published = as_mapping(own.get("published", {}), f"{where}: published")
    if own.get("source"):
        published = published | {"SOURCE": own["source"]}
    rows, points = [], _points(own, where)
    if published and any(points):
        raise ConfigError(f"{where} has published numbers and several points, expected a row of its own for them")
    keys = {key for point in points for key in point}
    alike = {key for key in keys if [_leaf(other) for other in keys].count(_leaf(key)) > 1}
    for point in points:
        options = common | as_options(own.get("options", {}), f"{where}: options") | point
        for key, entry in (OWN | (TAUGHT if own.get("teachers") else {})).items():
            if key in options:
                raise ConfigError(f"{where}: {key} is an option, expected the row's entry {entry}")
        rows.append(
            Row(
                name=name + "".join(f"_{key if key in alike else _leaf(key)}-{_plain(v)}" for key, v in point.items()),
                config=place,
                options=options,
                seeds=as_seeds(own["seeds"], f"{where}: seeds") if "seeds" in own else seeds,
                taught_by=tuple(map(str, as_list(own.get("teachers", []), f"{where}: teachers"))),
                published=published if len(point) == 0 else {},
                varied=tuple(point),
                baseline=str(own["baseline"] or ""),  # null = none, even if the table has one
                teaches_only=teaches_only,
            )
        )
    return rows


def _points(own, where) -> list[dict[str, Any]]:
    """Return the options of each point of a sweep: the product of its axes, or its list; one {} without a sweep."""
    if "sweep" in own and "list" in own:
        raise ConfigError(f"{where} has a sweep and a list, expected one of them")
    if "list" in own:
        points = [as_options(each, f"{where}: list") for each in as_list(own["list"], f"{where}: list")]
        if not points:
            raise ConfigError(f"{where}: list is empty")
        return points
    axes = {
        key: as_list(values, f"{where}: sweep {key}")
        for key, values in as_options(own.get("sweep", {}), f"{where}: sweep").items()
    }
    empty = [key for key, values in axes.items() if not values]
    if empty:
        raise ConfigError(f"{where}: sweep {empty[0]} is empty")
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def _leaf(key: str) -> str:
    return key.rpartition(".")[2]


def _plain(value) -> str:
    text = re.sub(r"[^\w.+-]+", "-", written(value)).strip("-")
    return "-" + text if re.match(r"-[\d.]", written(value)) else text  # a number keeps its sign
