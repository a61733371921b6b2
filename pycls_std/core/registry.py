"""Registries: what a configuration can name, and the code behind each name."""

import difflib
import pkgutil
from collections.abc import Iterable
from importlib import import_module
from typing import Any


class Registry:
    """Names of one kind of thing, each with the class or function that makes it.

    Example: `@TRAINERS.register("std")` above a class, `TRAINERS.get("std")` to get it back.
    """

    def __init__(self, kind: str):
        self.kind = kind
        self.entries: dict[str, Any] = {}

    def register(self, name: str, **attributes):
        """Return a decorator that registers what it decorates. Raises ValueError if the name is taken.

        attributes: literals to set on it, with names in capitals, which `config/declared.py` reads.
        """

        def add(entry):
            if name in self.entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self.entries[name] = entry
            for attribute, value in attributes.items():
                setattr(entry, attribute, value)
            return entry

        return add

    def get(self, name: str):
        """Return what is registered under a name. Raises ValueError that lists the known names."""
        if name not in self.entries:
            near = difflib.get_close_matches(name, self.entries, n=1)
            hint = f", did you mean {near[0]}?" if near else ";"
            raise ValueError(f"no {self.kind} {name!r}{hint} known: {', '.join(sorted(self.entries))}")
        return self.entries[name]

    def __contains__(self, name: str) -> bool:
        return name in self.entries


def import_files(package: str, folders: Iterable[str]) -> None:
    """Import every file of a package, so that what it registers is known. folders: the package's `__path__`."""
    for file in pkgutil.iter_modules(folders):
        import_module(f"{package}.{file.name}")


BACKBONES = Registry("model")
DATASETS = Registry("dataset")
TASKS = Registry("task")
METRICS = Registry("metric")
TERMS = Registry("term")
TRAINERS = Registry("trainer")
LOGIT_LOSSES = Registry("form of logit distillation")
WEIGHTINGS = Registry("weighting of teachers")
FEATURE_TRANSFORMS = Registry("transform of features")
FEATURE_NORMS = Registry("normalisation of features")
FEATURE_LOSSES = Registry("form of feature distillation")
