"""Entries of a table's file: their types, and how values are written on a command line."""

import re
from pathlib import Path
from typing import Any

from pycls_std.config import ConfigError
from pycls_std.config.plain_yaml import Text, parse, short, value_of
from pycls_std.config.reading import text_of


def written(value) -> str:
    """Return a value as it is written on a command line."""
    if isinstance(value, list):
        return "[" + ",".join(map(_entry, value)) + "]"
    return "null" if value is None else str(value)


def _entry(value) -> str:
    quoted = isinstance(value, str) and not isinstance(value, Text)
    return "'" + value.replace("'", "''") + "'" if quoted else written(value)


def content_of(path: Path, label: str):
    """Return the content of a YAML file. Raises ConfigError that names it, as label, if it cannot be read."""
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{label}: a table is a .yaml file")
    return value_of(parse(text_of(path, label, kind="table"), label), label)


def as_mapping(value, where: str, allowed: tuple[str, ...] = ()) -> dict:
    """Return a value that must be a mapping, {} for an empty one.

    where: its location, for the error message. allowed: its keys, () = any. Raises ConfigError for another type or key.
    """
    if value in (None, ""):
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{where} is {short(value)}, expected entries KEY: VALUE")
    unknown = [key for key in value if allowed and key not in allowed]
    if unknown:
        raise ConfigError(f"{where} has the unknown entry {unknown[0]}, expected {', '.join(allowed)}")
    return value


def as_list(value, where: str) -> list:
    """Return a value that must be a list. Raises ConfigError that names its location otherwise."""
    if not isinstance(value, list):
        raise ConfigError(f"{where} is {short(value)}, expected a list")
    return value


def as_options(value, where: str, prefix: str = "") -> dict[str, Any]:
    """Return {"SECTION.KEY": value} of options that are written nested, with dots, or both.

    Raises ConfigError if it is not a mapping, and for an option that is set twice.
    """
    flat: dict[str, Any] = {}
    for key, each in as_mapping(value, where).items():
        inner = as_options(each, where, f"{prefix}{key}.") if isinstance(each, dict) and each else {prefix + key: each}
        twice = flat.keys() & inner.keys()
        if twice:
            raise ConfigError(f"{where}: {sorted(twice)[0]} is set twice")
        flat |= inner
    return flat


def as_seeds(value, where: str) -> tuple[int, ...]:
    """Return seeds. Raises ConfigError unless the value is a list of different whole numbers."""
    texts = as_list(value, where)
    if not texts or not all(isinstance(text, Text) and re.fullmatch(r"\d{1,10}", text) for text in texts):
        raise ConfigError(f"{where} is {short(value)}, expected whole numbers from 0")
    seeds = tuple(map(int, texts))
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"{where} is {short(list(map(str, texts)))}, a seed is there twice")
    return seeds
