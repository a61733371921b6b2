"""Declarations in the package's files, parsed as text: importing them takes seconds, since they need torch."""

import ast
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pycls_std.config.mistake import ConfigError
from pycls_std.core import option
from pycls_std.core.option import Option

PACKAGE = Path(__file__).parent.parent
# Registry -> folder whose files register in it.
REGISTRIES = {
    "TRAINERS": "trainers",
    "TERMS": "terms",
    "TASKS": "tasks",
    "METRICS": "metrics",
    "DATASETS": "datasets",
    "LOGIT_LOSSES": "losses",
    "WEIGHTINGS": "losses",
    "FEATURE_TRANSFORMS": "losses",
    "FEATURE_NORMS": "losses",
    "FEATURE_LOSSES": "terms",
}
# Names that a declaration may use besides literals.
CALLS: dict[str, Callable[..., Option]] = {"Option": Option, "neutral": option.neutral}
TYPES = {"str": str, "int": int, "float": float}


class Declaration(NamedTuple):
    """A class or function decorated `@REGISTRY.register("name")`, with the literal attributes of a class."""

    name: str
    attributes: dict[str, Any]  # those in capitals, and those it is registered with

    @property
    def section(self) -> str:
        """Name of the section of its private options."""
        return self.name.upper()

    @property
    def options(self) -> dict[str, Option]:
        """Its private options, by their key."""
        own = self.attributes.get("OPTIONS", {})
        return {
            f"{self.section}.{key}": value if isinstance(value, Option) else Option(value) for key, value in own.items()
        }

    @property
    def defaults(self) -> dict[str, Any]:
        """The defaults of other options that it changes."""
        return self.attributes.get("DEFAULTS", {})

    @property
    def presets(self) -> dict[str, dict[str, Any]]:
        """Of a trainer: by "KEY=value", the defaults of other options that this value of an option changes."""
        return self.attributes.get("PRESETS", {})

    @property
    def switch(self) -> str:
        """Of a term: the option that turns it on."""
        return f"{self.section}.{self.attributes.get('SWITCH', 'WEIGHT')}"

    @property
    def targets(self) -> str:
        """Of a task: the kind of targets that it learns; of a dataset: the kind that it has."""
        return self.attributes.get("TARGETS", "classes")

    def reads(self, *default: str) -> tuple[str, ...]:
        """The options of the page that it reads, and that are refused in runs without a reader: keys, or prefixes."""
        return self.attributes.get("READS", default)


def declared(registry: str) -> dict[str, Declaration]:
    """Return the declarations in a registry, by name. Raises ConfigError that names a file with a mistake in one."""
    return _declared(PACKAGE / REGISTRIES[registry], registry)


@cache
def _declared(folder: Path, registry: str) -> dict[str, Declaration]:
    found = {}
    for path in sorted(folder.glob("*.py")):
        try:
            text = path.read_text()
            if f"{registry}.register" not in text:  # to parse all takes a quarter of a second
                continue
            for node in ast.parse(text).body:
                for decorator in getattr(node, "decorator_list", ()):
                    call = decorator.func if isinstance(decorator, ast.Call) else None
                    if not isinstance(call, ast.Attribute) or call.attr != "register":
                        continue
                    if getattr(call.value, "id", "") == registry:
                        name = ast.literal_eval(decorator.args[0])
                        given = {str(word.arg): ast.literal_eval(word.value) for word in decorator.keywords}
                        found[name] = Declaration(name, _attributes(node) | given)
        except SyntaxError as error:
            raise ConfigError(f"{path}:{error.lineno}: {error.msg}") from None
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"{path}: a registered name and its attributes in capitals must be literals: {error}"
            ) from None
    return found


def _attributes(node: ast.AST) -> dict[str, Any]:
    found = {}
    for statement in getattr(node, "body", ()):
        target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
        name = getattr(target, "id", "")
        if name.isupper():
            found[name] = _evaluate(statement.value)
    return found


def _evaluate(node: ast.expr | None):
    """Return the value of a literal that may contain the names of CALLS and TYPES."""
    if node is None:  # an annotation without a value, or ** in a dictionary
        raise ValueError("a value is missing")
    if isinstance(node, ast.Dict):
        return {_evaluate(key): _evaluate(value) for key, value in zip(node.keys, node.values, strict=True)}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS:
        arguments = [_evaluate(argument) for argument in node.args]
        return CALLS[node.func.id](*arguments, **{word.arg or "**": _evaluate(word.value) for word in node.keywords})
    if isinstance(node, ast.Name) and node.id in TYPES:
        return TYPES[node.id]
    return ast.literal_eval(node)
