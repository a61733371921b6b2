"""All options that exist, and which of them a run reads."""

from typing import Any, NamedTuple

from pycls_std.config.declared import REGISTRIES, declared
from pycls_std.config.mistake import ConfigError
from pycls_std.config.page import PAGE
from pycls_std.core.option import Option, neutral

# Options of the page that a term reads unless its `READS` differ: those of teachers, but not those of logit losses.
TEACHERS = ("DISTILLATION.TEACHER", "DISTILLATION.CACHE", "DISTILLATION.OFFLINE")


class Reader(NamedTuple):
    """A term, a trainer or a task, and the options that are read if it is active."""

    name: str
    kind: str
    on: str  # what makes it active, in words
    keys: tuple[str, ...]  # keys, or prefixes of keys


class Catalogue:
    """The options of the page, and the private ones of trainers, terms and tasks.

    Raises ConfigError if a private section has the name of one of the page, or if a term does not declare its switch.
    """

    def __init__(self):
        self.trainers, self.terms, self.tasks = (declared(name) for name in ("TRAINERS", "TERMS", "TASKS"))
        self.options = dict(PAGE)
        sections = {key.partition(".")[0] for key in PAGE}
        for registry, group in (("TRAINERS", self.trainers), ("TERMS", self.terms), ("TASKS", self.tasks)):
            for declaration in group.values():
                if declaration.options and declaration.section in sections:
                    folder, section = REGISTRIES[registry], declaration.section
                    raise ConfigError(
                        f"pycls_std/{folder}: none can be called {declaration.name!r}, {section} is a section"
                    )
                self.options |= declaration.options
        for term in self.terms.values():
            if term.switch not in self.options:
                raise ConfigError(f"pycls_std/terms: {term.name!r} has no option {term.switch} to turn it on: OPTIONS")
        self.metrics = declared("METRICS").values()
        self.scores = {
            score: facts for metric in self.metrics for score, facts in metric.attributes.get("SCORES", {}).items()
        }
        # Published value of a score that a config reproduces or stands in for, in its unit; -1 = none is published.
        self.options |= {f"PUBLISHED.{score.upper()}": neutral(-1.0) for score in self.shown_scores()}

    def shown_scores(self) -> list[str]:
        """Return the names of the scores that tables show."""
        return [score for score, facts in self.scores.items() if facts.get("shown", True)]

    def scores_of(self, task: str) -> dict[str, dict]:
        """Return the scores of a task by name: label, unit, and which of higher and lower is better."""
        own = [metric.attributes for metric in self.metrics if metric.attributes.get("TASK") == task]
        return {score: facts for each in own for score, facts in each.get("SCORES", {}).items()}

    def of(self, key: str) -> Option | None:
        """Return the declaration of a key, that of its section if this takes any keys; None for an unknown key."""
        return self.options.get(key) or next(
            (option for name, option in self.options.items() if option.value == {} and key.startswith(f"{name}.")), None
        )

    def choices(self, key: str) -> tuple:
        """Return the allowed values of an option, () if they are not listed."""
        option = self.options[key]
        return tuple(declared(option.registry)) if option.registry else option.choices

    def optional_sections(self) -> set[str]:
        """Return the sections that not every run reads, and those that take any keys.

        A config may set them to null, to drop what a _BASE_ has set there.
        """
        own = {each.section for group in (self.trainers, self.terms, self.tasks) for each in group.values()}
        own |= {key.partition(".")[0] for reader in self.readers() for key in reader.keys} | {"PUBLISHED"}
        return own | {key for key, option in self.options.items() if option.value == {}}

    def defaults(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the default of every option, as overridden by the chosen trainer and its presets.

        settings: {"SECTION.KEY": value} of what is set.
        """
        flat = {key: option.value for key, option in self.options.items()}
        trainer = self.trainers.get(str(settings.get("TRAINER", flat["TRAINER"])))
        if trainer:
            flat |= trainer.defaults
            for condition, preset in trainer.presets.items():
                key, _, value = condition.partition("=")
                flat |= preset if str(settings.get(key, flat[key])) == value else {}
        return flat

    def idle(self, flat: dict[str, Any]) -> set[str]:
        """Return the options that have no effect given the others, such as the padding if the crop has none."""
        return {key for key, option in self.options.items() if key in flat and not option.has_effect(flat)}

    def active_terms(self, flat: dict[str, Any]) -> list[str]:
        """Return the names of the terms with a weight above 0."""
        return [name for name, term in self.terms.items() if flat[term.switch]]

    def unknown_sections(self, flat: dict[str, Any]) -> list[str]:
        """Return the undeclared sections of a record, as of a term whose file was removed, unless its weight is 0."""
        known = {key.partition(".")[0] for key in self.options}
        sections = dict.fromkeys(key.partition(".")[0] for key in flat if "." in key)
        return [each for each in sections if each not in known and flat.get(f"{each}.WEIGHT") != 0]

    def readers(self) -> list[Reader]:
        """Return the readers of options that are refused in a run in which no reader of theirs is active."""
        readers = []
        for name, term in self.terms.items():
            readers.append(Reader(name, "term", f"{term.switch} above 0", (*term.options, *term.reads(*TEACHERS))))
        for name, trainer in self.trainers.items():
            readers.append(Reader(name, "trainer", f"TRAINER {name}", (*trainer.options, *trainer.reads())))
        for name, task in self.tasks.items():
            readers.append(Reader(name, "task", f"TASK.NAME {name}", (*task.options, *task.reads())))
        return readers

    def unread(self, flat: dict[str, Any]) -> dict[str, str]:
        """Return the options that a run does not read, each with what would activate a reader, in words."""
        active = {("trainer", flat["TRAINER"]), ("task", flat["TASK.NAME"])}
        active |= {("term", name) for name in self.active_terms(flat)}
        readers = self.readers()
        switches = {term.switch for term in self.terms.values()}
        found = {}
        for key in flat.keys() - switches:
            own = [reader for reader in readers if key.startswith(reader.keys)]
            if own and not any((reader.kind, reader.name) in active for reader in own):
                found[key] = ", ".join(dict.fromkeys(reader.on for reader in own))
        return found
