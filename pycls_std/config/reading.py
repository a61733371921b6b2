"""Read the settings of a YAML file or of the command line, and where each was made, without judging them."""

import re
from pathlib import Path

import yaml


class ConfigError(ValueError):
    """A mistake in a config file or on the command line; its text is one line that names key, place and values."""


def read_yaml(path: Path, chain: tuple[Path, ...] = ()) -> list[dict[str, tuple[object, str]]]:
    """Return {"SECTION.KEY": (value, "file:line")} of the files that a YAML file is based on, and of itself, last."""
    if path.resolve() in chain:
        raise ConfigError("_BASE_ goes round in a circle: " + " -> ".join(map(str, [*chain, path.resolve()])))
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{path}: a config is a .yaml file")
    try:
        loader = yaml.SafeLoader(path.read_text())
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"{path}:1: expected options, KEY: VALUE, and found {'none' if root else 'nothing'}")
        settings = _walk(loader, root, path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(_yaml_message(path, error)) from None
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply, or holds itself by an alias") from None
    base, where = settings.pop("_BASE_", ("", ""))
    if not base:
        return [settings]
    if not isinstance(base, str) or not (path.parent / base).is_file():
        raise ConfigError(f"{where}: _BASE_ is {base!r}, there is no such file beside {path}")
    return [*read_yaml(path.parent / base, (*chain, path.resolve())), settings]


def merge(first: dict, second: dict) -> dict:
    """Return the settings of both, the second's where both have one, and last; one set to null drops the first's."""
    dropped = tuple(f"{key}." for key, (value, _) in second.items() if value in (None, "null"))
    kept = {key: pair for key, pair in first.items() if key not in second and not key.startswith(dropped or " ")}
    return kept | second


def parse_overrides(words: list[str]) -> dict[str, tuple[object, str]]:
    """Return {"SECTION.KEY": (value, "command line")} of `KEY VALUE` pairs and `KEY=VALUE` words."""
    settings, words = {}, list(words)
    while words:
        key, equals, text = words.pop(0).partition("=")
        if not re.fullmatch(r"[A-Za-z_][\w.]*", key):
            raise ConfigError(f"command line: expected KEY VALUE or KEY=VALUE, got {key + equals + text!r}")
        if not equals:
            if not words:
                raise ConfigError(f"command line: {key} has no value")
            text = words.pop(0)
        settings[key] = (Text(text), "command line")
    return settings


class Text(str):
    """A word of the command line, whose type the option decides."""


def _walk(loader, mapping, path, prefix="") -> dict[str, tuple[object, str]]:
    settings = {}
    for key_node, value_node in mapping.value:
        key = f"{prefix}{loader.construct_object(key_node)}"
        where = f"{path}:{key_node.start_mark.line + 1}"
        if isinstance(value_node, yaml.MappingNode):
            inner = _walk(loader, value_node, path, key + ".")
        else:
            inner = {key: (loader.construct_object(value_node, deep=True), where)}
        for twice in settings.keys() & inner.keys():
            raise ConfigError(f"{inner[twice][1]}: {twice} is set twice, first at {settings[twice][1]}")
        settings |= inner
    return settings


def _yaml_message(path, error) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"{path}:{mark.line + 1 if mark else 1}: {getattr(error, 'problem', None) or error}".replace("\n", " ")
