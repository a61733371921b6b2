"""Set options from settings: find the key, and make the value the type that the option has."""

import difflib
from pathlib import Path

import yaml
from yacs.config import CfgNode

from pycls_std.config.reading import ConfigError, Text
from pycls_std.core.option import Option


def flatten(node: dict, prefix: str = "") -> dict[str, object]:
    """Return {"SECTION.KEY": value} of all options."""
    flat = {}
    for key, value in node.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def dataset_name(flat: dict[str, object]) -> str:
    """Return the name of the dataset of a run; that of a folder of images is the folder's own, wherever it lies."""
    folder = flat["DATA.NAME"] == "image_folder"
    return Path(str(flat["DATA.ROOT"])).name if folder else str(flat["DATA.NAME"])


def tree(flat: dict[str, object]) -> CfgNode:
    """Return the options of {"SECTION.KEY": value} as a tree; an empty dictionary is a section that takes any keys."""
    root = CfgNode()
    for key, value in flat.items():
        *sections, leaf = key.split(".")
        node = root
        for section in sections:
            node = node.setdefault(section, CfgNode())
        node[leaf] = CfgNode(value, new_allowed=True) if isinstance(value, dict) else value
    return root


def locate(options: CfgNode, key: str) -> tuple[CfgNode | None, str]:
    """Return the node that holds a key, and the key's last word; None if there is no such option."""
    *sections, leaf = key.split(".")
    node = options
    for section in sections:
        node = node.get(section) if isinstance(node, CfgNode) else None
    known = isinstance(node, CfgNode) and (leaf in node or node.is_new_allowed())
    return (node if known else None), leaf


def set_option(options: CfgNode, key: str, value, where: str, declaration: Option | None) -> None:
    """Set an option to a value of its type; a leading ~ of a path becomes the home folder.

    where: the place the value comes from, for the error. declaration: None for a key of a section that takes any.
    Raises ConfigError for an unknown key, a section, and a value of another type.
    """
    node, leaf = locate(options, key)
    if node is None:
        near = difflib.get_close_matches(key, flatten(options), n=1, cutoff=0.6)
        raise ConfigError(f"{where}: no option {key}" + (f", did you mean {near[0]}?" if near else ""))
    if isinstance(node.get(leaf), CfgNode):
        raise ConfigError(f"{where}: {key} is a section, it takes keys and not {value!r}")
    value = coerce(value, node.get(leaf), declaration and declaration.of, f"{where}: {key}")
    if declaration and declaration.path:
        value = [_at_home(path) for path in value] if isinstance(value, list) else _at_home(value)
    node[leaf] = value


def _at_home(path: str) -> str:
    return str(Path(path).expanduser()) if path.startswith("~") else path


def coerce(value, default, entry, where: str):
    """Return value as the type of default.

    An integer becomes a float where a float is due, and so does 1e-3, which YAML reads as text. entry: type of a list's
    entries where the default list is empty. default None: anything goes (MODEL.ARGS).
    Raises ConfigError that names where, what was expected and what was given.
    """
    text = value if isinstance(value, Text) else None
    if text is not None and not isinstance(default, str):
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = str(text)
    if isinstance(default, list):
        if not isinstance(value, list):
            raise ConfigError(f"{where} expects a list such as [a, b], got {value!r}")
        example = entry() if entry else default[0] if default else None
        return [coerce(item, example, None, f"{where}[{index}]") for index, item in enumerate(value)]
    number = _number(value)
    if default is None:
        return value if number is None or isinstance(value, bool) else number
    if isinstance(default, str) and isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return str(value)
    if isinstance(default, bool) and isinstance(value, bool):
        return value
    if isinstance(default, float) and number is not None and abs(number) <= GREATEST:
        return float(number)
    if type(default) is int and isinstance(number, int):
        return number
    raise ConfigError(f"{where} expects {_NAMES[type(default)]}, got {str(text) if text is not None else value!r}")


GREATEST = 3.4e38  # that a tensor of 32 bits can hold; no NaN is below it
_NAMES = {str: "text", bool: "true or false", float: "a number", int: "a whole number"}


def _number(value) -> int | float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return value
    try:
        return float(value) if isinstance(value, str) else None
    except ValueError:
        return None
