"""YAML without its surprises: no code, no exploding aliases, no guessed types.

YAML 1.1 reads 010 as 8, 1:30 as 90, 2024-01-01 as a date, `off` as false, and 1e-3 as text. So an unquoted scalar stays
a `Text` until its option decides the type; where there is no option, `decided` refuses ambiguous ones.
"""

import math
import re

import yaml

from pycls_std.config.mistake import ConfigError
from pycls_std.core.text import printable, shortened

MOST_BYTES = 1_000_000  # the largest of configs/ has 3,000
MOST_VALUES = 10_000  # all options with their keys are 250
_TAG = "tag:yaml.org,2002:"
_TAGS = {_TAG + name for name in ("str", "int", "float", "bool", "null", "seq", "map")}
KEY = re.compile(r"[A-Za-z_][\w.]*")
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,39})")
_NUMBER = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE])|[1-9][0-9]*)([eE][-+]?[0-9]+)?")
# Scalars that some version of YAML reads as a number or a truth value, but that are neither decimal nor true or false.
_GUESSED = re.compile(
    r"yes|no|on|off|\.nan|[-+]?(\.inf|0[box][0-9a-f_]+|[0-9][0-9_]*(:[0-9]+)*(\.[0-9_]*(e[-+]?[0-9]+)?)?)", re.I
)
TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class Text(str):
    """A word of the command line, or an unquoted one of a file, whose type the option decides."""


class NotYaml(ConfigError):
    """A text that is not valid YAML."""


class Loader(yaml.SafeLoader):
    """Composes nodes without constructing objects; refuses tags other than those of plain data, and too many values."""

    def __init__(self, text: str, label: str):
        super().__init__(text)
        self.label = label
        self.values = 0

    def compose_node(self, parent, index):
        """Return the next node. A scalar tagged as text counts as quoted, one with another tag as unquoted."""
        event = self.peek_event()
        tag = getattr(event, "tag", None)
        where = f"{self.label}:{event.start_mark.line + 1}"
        if tag and tag != "!" and tag not in _TAGS:
            shown = printable(shortened(tag.replace(_TAG, "!!")))
            raise ConfigError(f"{where}: the tag {shown} is refused, options are text, numbers, lists, mappings")
        self.values += 1
        if self.values > MOST_VALUES:
            raise ConfigError(f"{self.label}: has more than {MOST_VALUES} values")
        node = super().compose_node(parent, index)
        if isinstance(event, yaml.ScalarEvent) and tag in _TAGS:
            if tag not in (_TAG + "str", self.resolve(yaml.ScalarNode, node.value, (True, False))):
                raise ConfigError(f"{where}: {short(node.value)} is no {tag.removeprefix(_TAG)}")
            node.style = "'" if tag == _TAG + "str" else None
        return node


def load_yaml(text: str, label: str):
    """Return what a YAML text holds: dictionaries, lists, text, numbers, true and false, None.

    label: the text's name in errors. Raises ConfigError, of one line, for anything else.
    """
    return decided(value_of(parse(text, label), label), label)


def parse(text: str, label: str) -> yaml.Node | None:
    """Return the node of a YAML text; None for an empty one.

    Raises NotYaml for invalid YAML, and ConfigError for a text that is too large, or has a tag that no option needs.
    """
    if len(text) > MOST_BYTES:
        raise ConfigError(f"{label}: has more than {MOST_BYTES} bytes")
    try:
        node = Loader(text, label).get_single_node()
        if node and _size(node, {}, label) > MOST_VALUES:
            raise ConfigError(f"{label}: has more than {MOST_VALUES} values, with what its aliases stand for")
    except yaml.YAMLError as error:
        raise NotYaml(_message(label, error)) from None
    except RecursionError:
        raise ConfigError(f"{label}: is nested too deeply") from None
    return node


def _size(node: yaml.Node, known: dict[yaml.Node, int], label: str) -> int:
    """Return the number of values with all aliases expanded; each node is visited once."""
    if node not in known:
        known[node] = 0  # in progress
        children = [] if isinstance(node, yaml.ScalarNode) else node.value
        if isinstance(node, yaml.MappingNode):
            children = [each for pair in children for each in pair]
        known[node] = 1 + sum([_size(each, known, label) for each in children])
    if not known[node]:
        raise ConfigError(f"{label}: holds itself by an alias")
    return known[node]


def key_of(node: yaml.Node, label: str) -> str:
    """Return the key in a node. Raises ConfigError if it is not a word."""
    where = f"{label}:{node.start_mark.line + 1}"
    if not isinstance(node, yaml.ScalarNode):
        raise ConfigError(f"{where}: a key is a word, and no {node.id}")
    if not KEY.fullmatch(node.value):
        more = ", _BASE_ names a file to start from" if node.value == "<<" else ""
        raise ConfigError(f"{where}: a key is a word, and not {short(node.value)}{more}")
    return node.value


def value_of(node: yaml.Node | None, label: str):
    """Return the value of a node: None, str where it is quoted, `Text` where it is not, lists, dictionaries.

    Raises ConfigError for a key that is not a word or is set twice.
    """
    if isinstance(node, yaml.SequenceNode):
        return [value_of(each, label) for each in node.value]
    if isinstance(node, yaml.MappingNode):
        found = {}
        for key_node, each in node.value:
            key = key_of(key_node, label)
            if key in found:
                raise ConfigError(f"{label}:{key_node.start_mark.line + 1}: {key} is set twice")
            found[key] = value_of(each, label)
        return found
    if node is None or node.tag == _TAG + "null":
        return None
    return node.value if node.style else Text(node.value)


def decided(value, where: str):
    """Return a value with every `Text` converted to the type that it looks like, where no option decides it.

    Raises ConfigError for an ambiguous word: 010, 0x1F, 1:30, no, .inf.
    """
    if isinstance(value, list):
        return [decided(each, where) for each in value]
    if isinstance(value, dict):
        return {key: decided(each, where) for key, each in value.items()}
    if not isinstance(value, Text):
        return value
    if value in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return TRUTH[value.lower()]
    number = number_of(value)
    if number is not None and math.isfinite(number):
        return number
    if number is not None or _GUESSED.fullmatch(value):
        raise ConfigError(f"{where}: {short(value)} is no decimal number{reading(value)}: quote it if it is text")
    return str(value)


def number_of(text: str) -> int | float | None:
    """Return the number in a decimal text, infinity if it is too large for a float; None for other text."""
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _NUMBER.fullmatch(text) else None


def reading(text: str) -> str:
    """Return ", YAML 1.1 reads .." for a word that YAML 1.1 reads as something else than it looks like, else ""."""
    if len(text) > 40 or not _GUESSED.fullmatch(text) or number_of(text) is not None:
        return ""
    read = yaml.safe_load(text)
    return "" if isinstance(read, str) else f", YAML 1.1 reads {str(read).lower()}"


def short(value) -> str:
    """Return a value as it is shown in errors."""
    return shortened(repr(str(value) if isinstance(value, Text) else value), 100)


def _message(label, error) -> str:
    mark = getattr(error, "problem_mark", None)
    parts = [getattr(error, "context", None), getattr(error, "problem", None) or str(error)]
    text = ", ".join(part for part in parts if part)
    return f"{label}:{mark.line + 1 if mark else 1}: {printable(shortened(' '.join(text.split())))}"


class _Dumper(yaml.SafeDumper):
    """Quotes text that would be read as a number, or in several ways."""


def _text(dumper, text: str):
    unclear = number_of(text) is not None or _GUESSED.fullmatch(text)
    return dumper.represent_scalar(_TAG + "str", text, style="'" if unclear else None)


_Dumper.add_representer(str, _text)


def dump_yaml(value) -> str:
    """Return dictionaries, lists, text and numbers as a YAML text that `load_yaml` reads back unchanged."""
    return yaml.dump(value, Dumper=_Dumper)
