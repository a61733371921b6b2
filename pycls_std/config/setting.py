"""Set options from settings: find the key, and convert the value to the option's type."""

import difflib
import re
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from pycls_std.config.mistake import ConfigError
from pycls_std.config.plain_yaml import TRUTH, NotYaml, Text, decided, number_of, parse, reading, short, value_of
from pycls_std.core.option import MOST, Option
from pycls_std.core.text import shortened

BY_FOLDER = ("image_folder", "coco", "coco_ids")  # values of DATA.NAME for any data in a layout


def flatten(node: dict, prefix: str = "") -> dict[str, Any]:
    """Return {"SECTION.KEY": value} of all options."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def dataset_name(flat: dict[str, Any]) -> str:
    """Return the name of a run's dataset; for one of BY_FOLDER, the name of its folder, without the path."""
    folder = flat["DATA.NAME"] in BY_FOLDER
    return Path(str(flat["DATA.ROOT"])).name if folder else str(flat["DATA.NAME"])


def same_when_extended(flat: dict[str, Any], epochs: int) -> bool:
    """Return whether a run extended from so many epochs equals, up to rounding, one begun with its final length.

    It does not if its learning rates depend on its length, or if it was evaluated at an epoch where the longer is not.
    """
    return flat["OPTIM.SCHEDULE"] in ("step", "constant") and epochs % flat["TEST.PERIOD"] == 0


def tree(flat: dict[str, Any]) -> CfgNode:
    """Return the options of {"SECTION.KEY": value} as a tree; an empty dictionary is a section that takes any keys."""
    root = CfgNode()
    for key, value in flat.items():
        *sections, leaf = key.split(".")
        node = root
        for section in sections:
            if section not in node:
                node[section] = CfgNode()
            node = node[section]
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
        near = _meant(key, list(flatten(options)))
        raise ConfigError(f"{where}: no option {shortened(key)}" + (f", did you mean {near}?" if near else ""))
    if isinstance(node.get(leaf), CfgNode):
        if value == {}:
            return
        drop = f"; {key}=null drops what the file has there" if declaration and declaration.value == {} else ""
        raise ConfigError(f"{where}: {key} is a section, it takes keys and not {short(value)}{drop}")
    value = coerce(value, node.get(leaf), declaration and declaration.of, f"{where}: {key}")
    if declaration and declaration.path:
        value = [_at_home(path) for path in value] if isinstance(value, list) else _at_home(value)
    node[leaf] = value


# Options by their names in other programs, which are looked up by the last word of an unknown key.
ELSEWHERE = {
    **dict.fromkeys(("max_epochs", "num_epochs", "epochs"), "OPTIM.MAX_EPOCH"),
    **dict.fromkeys(("lr", "learning_rate"), "OPTIM.BASE_LR"),
    **dict.fromkeys(("optimizer", "opt"), "OPTIM.NAME"),
    **dict.fromkeys(("batch_size", "batch"), "TRAIN.BATCH_SIZE"),
    **dict.fromkeys(("pretrained", "checkpoint", "ckpt"), "MODEL.WEIGHTS"),
    **dict.fromkeys(("arch", "model_name"), "MODEL.NAME"),
    **dict.fromkeys(("path", "folder", "dir", "data_dir", "data_path"), "DATA.ROOT"),
    **dict.fromkeys(("img_size", "input_size", "resolution"), "DATA.IMAGE_SIZE"),
    **dict.fromkeys(("workers", "num_workers"), "DATA.NUM_WORKERS"),
    **dict.fromkeys(("output", "output_dir", "out", "resume"), "OUT_DIR"),
    **dict.fromkeys(("teacher", "teacher_model"), "DISTILLATION.TEACHERS"),
    **dict.fromkeys(("temperature", "temp"), "DISTILLATION.TEMPERATURE"),
}


def _meant(key: str, known: list[str]) -> str:
    """Return the option that an unknown key may be meant for, "" for none.

    First come options of its section that it abbreviates, in the order of the page: OPTIM.LR is meant for BASE_LR, not
    for MIN_LR, whose spelling is closer. Then ELSEWHERE, then the closest spelling.
    """
    if key.upper() in known:
        return key.upper()
    section, dot, leaf = key.rpartition(".")
    own = [other for other in known if other.startswith(section + dot)] if section and leaf else []
    longer = [other for other in own if other.endswith(f"_{leaf}")]
    longer += [other for other in own if other.startswith(f"{key}_")]
    longer += [ELSEWHERE[leaf.lower()]] if leaf.lower() in ELSEWHERE else []
    return next(iter(longer + difflib.get_close_matches(key, known, n=1, cutoff=0.6)), "")


def _at_home(path: str) -> str:
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError as error:
        raise ConfigError(f"{path}: there is no home folder of that user") from error


def coerce(value, default, entry, where: str):
    """Return value converted to the type of default.

    An integer becomes a float where one is expected, and so does 1e-3, which YAML reads as text. entry: type of a
    list's entries if the default list is empty. default: None accepts anything but a mapping (entries of MODEL.ARGS); a
    dictionary, a mapping to such values.
    Raises ConfigError that names where, what was expected and what was given.
    """
    given = value
    if isinstance(value, Text) and not isinstance(default, str):
        value = _words(value, where)
    if isinstance(default, list):
        if not isinstance(value, list):
            quote = ", quote what begins with *" if isinstance(given, str) and re.search(r"[\[,]\s*\*", given) else ""
            raise ConfigError(f"{where} expects a list such as [a, b], got {short(given)}{quote}")
        example = entry() if entry else default[0] if default else None
        return [coerce(item, example, None, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(default, dict):
        if not isinstance(value, dict):
            raise ConfigError(f"{where} expects a mapping such as {{key: value}}, got {short(given)}")
        return {key: coerce(item, None, None, f"{where}.{key}") for key, item in value.items()}
    if default is None:
        if isinstance(value, dict):
            raise ConfigError(f"{where} expects a value, got the mapping {short(value)}")
        return _finite(decided(value, where), where)
    if isinstance(default, str) and isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return str(value)
    if isinstance(default, bool):
        value = TRUTH.get(value.lower(), value) if isinstance(value, Text) else value
        if isinstance(value, bool):
            return value
    number = number_of(value) if isinstance(value, str) else value
    if isinstance(number, (int, float)) and not isinstance(number, bool):
        if isinstance(default, float) and abs(number) <= GREATEST:
            return float(number)
        if type(default) is int and isinstance(number, int):
            return number
    more = "" if isinstance(default, (str, bool)) else reading(str(given))
    raise ConfigError(f"{where} expects {_NAMES[type(default)]}, got {short(given)}{more}")


GREATEST = 3.4e38  # about the largest fp32 number; a NaN is not below it, either
_NAMES = {str: "text", bool: "true or false", float: "a number", int: "a whole number"}


def _words(text: Text, where: str):
    if number_of(text) is not None or text in TRUTH:
        return text  # much faster than by YAML
    try:
        return value_of(parse(text, where), where)
    except NotYaml:
        return text


def _finite(value, where: str):
    """Return the value. Raises ConfigError that shows a number that is too large to be given to a model."""
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _finite(each, where)
    if isinstance(value, int) and abs(value) > MOST or isinstance(value, float) and not abs(value) <= GREATEST:
        raise ConfigError(f"{where} is {short(value)}, expected at most {MOST if isinstance(value, int) else GREATEST}")
    return value
