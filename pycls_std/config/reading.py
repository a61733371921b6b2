"""Read the settings of a YAML file or of the command line, and where each was made, without validating them."""

import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from pycls_std.config.mistake import ConfigError
from pycls_std.config.plain_yaml import KEY, MOST_BYTES, Text, key_of, parse, short, value_of
from pycls_std.config.shipped import config_beside
from pycls_std.core.regular import read_bytes
from pycls_std.core.text import printable, shortened


def read_yaml(path: Path, chain: tuple[Path, ...] = ()) -> list[dict[str, tuple[Any, str]]]:
    """Return {"SECTION.KEY": (value, "file:line")} for each file in a YAML file's chain of `_BASE_`, itself last."""
    label, real = printable(shortened(str(path))), Path(os.path.realpath(path))
    if real in chain:
        raise ConfigError("_BASE_ goes round in a circle: " + printable(" -> ".join(map(str, [*chain, real]))))
    if path.suffix not in (".yaml", ".yml"):
        there = path.with_name(f"{path.name}.yaml")
        meant = f", did you mean {printable(shortened(str(there)))}?" if os.path.isfile(there) else ""
        raise ConfigError(f"{label}: a config is a .yaml file{meant}")
    settings = dict(_settings(text_of(path, label, kind="config"), label))
    if "_BASE_" not in settings:
        return [settings]
    base, where = settings.pop("_BASE_")
    found = config_beside(path.parent, base) if isinstance(base, str) else None
    if not found:
        raise ConfigError(f"{where}: _BASE_ is {short(base)}, there is no such file beside {label}")
    return [*read_yaml(found, (*chain, real)), settings]


@lru_cache(256)  # a table has many rows and few files, and parsing one takes milliseconds
def _settings(text: str, label: str) -> dict[str, tuple[object, str]]:
    root = parse(text, label)
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{label}:1: expected options, KEY: VALUE, and found {'none' if root else 'nothing'}")
    return _walk(root, label)


def text_of(path: Path, label: str, *, kind: str) -> str:
    """Return the text of a file. Raises ConfigError that names it, as label, if it cannot be read; kind: of file."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ConfigError(f"{label}: has {path.stat().st_size} bytes, a {kind} has at most {MOST_BYTES}")
        return read_bytes(path).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{label}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def merge(first: dict, second: dict) -> dict:
    """Return the settings of both; the second's override the first's, and come last; a null drops a section."""
    dropped = tuple(f"{key}." for key, (value, _) in second.items() if value in (None, "null"))
    kept = {key: pair for key, pair in first.items() if key not in second and not key.startswith(dropped or " ")}
    return kept | second


def parse_overrides(words: Iterable[str]) -> dict[str, tuple[Any, str]]:
    """Return {"SECTION.KEY": (value, "command line")} of `KEY VALUE` pairs and `KEY=VALUE` words."""
    settings: dict[str, tuple[Any, str]] = {}
    words = list(words)
    while words:
        key, equals, text = words.pop(0).partition("=")
        if not KEY.fullmatch(key):
            raise ConfigError(f"command line: expected KEY VALUE or KEY=VALUE, got {short(key + equals + text)}")
        if not equals:
            if not words:
                raise ConfigError(f"command line: {shortened(key)} has no value")
            text = words.pop(0)
        settings[key] = (Text(text), "command line")
    return settings


def _walk(mapping, label, prefix="") -> dict[str, tuple[Any, str]]:
    settings: dict[str, tuple[Any, str]] = {}
    for key_node, value_node in mapping.value:
        key = f"{prefix}{key_of(key_node, label)}"
        where = f"{label}:{key_node.start_mark.line + 1}"
        if isinstance(value_node, yaml.MappingNode) and value_node.value:
            inner = _walk(value_node, label, key + ".")
        else:
            inner = {key: (value_of(value_node, label), where)}
        for twice in settings.keys() & inner.keys():
            raise ConfigError(f"{inner[twice][1]}: {shortened(twice)} is set twice, first at {settings[twice][1]}")
        settings |= inner
    return settings
