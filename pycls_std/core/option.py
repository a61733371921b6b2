"""The declaration of an option, on the page or in the file of a method or a task."""

from dataclasses import dataclass
from typing import Any

MOST = 2**31 - 1  # default maximum of a whole number: that of C's 32-bit integers


@dataclass(frozen=True)
class Option:
    """One option of a run. The comment above its declaration says what it means, its unit, and what turns it off.

    default: its value if nothing sets it; a tuple lists the allowed values, the default first. An empty dictionary is a
        section that takes any keys.
    least, greatest: the allowed range, both included; of each entry if it is a list. Every number has one; a whole
        number without a declared greatest is at most MOST.
    within: for a number of epochs, the option with the run's epochs, which it may not exceed.
    of: type of the entries of a list that is empty by default.
    registry: name of the registry (`core/registry.py`) whose names are the allowed values.
    path: it holds a path, or several; a leading ~ is the home folder.
    student: it determines the student or its input; testing with another value than in training gives a warning.
    on_resume: `same`, a run is resumed with the same value alone; `free`, another one does not change its results;
        `longer`, it may grow.
    rows: runs that differ in it are different rows of a table, not seeds of one row.
    when: the condition on other options under which it has an effect: `KEY` (not 0, empty or false), `KEY=value` or
        `KEY!=value`, with several values separated by commas; combined by ` and ` and ` or `; "" = always.
    recipe: it is part of the recipe of a published score, and not only of how that is computed.
    mode: the only --mode that reads it; "" = there are several.
    column: heading of its column in tables with a run that has another value than the default; "" = not shown.
    """

    default: Any
    least: float | None = None
    greatest: float | None = None
    within: str = ""
    of: type | None = None
    registry: str = ""
    path: bool = False
    student: bool = False
    on_resume: str = "same"
    rows: bool = True
    when: str = ""
    recipe: bool = True
    mode: str = ""
    column: str = ""

    @property
    def choices(self) -> tuple:
        """The allowed values, where they are listed."""
        return self.default if isinstance(self.default, tuple) else ()

    @property
    def value(self):
        """The default."""
        return self.default[0] if isinstance(self.default, tuple) else self.default

    def has_effect(self, flat: dict[str, Any]) -> bool:
        """Return whether it has an effect given these options, {"SECTION.KEY": value}."""
        return not self.when or any(
            all(_holds(word, flat) for word in way.split(" and ")) for way in self.when.split(" or ")
        )

    def refusal(self, value) -> str:
        """Return the range that is expected in place of a number outside of it, "" for one within."""
        if self.least is not None and value < self.least:
            return f"at least {self.least}" if self.greatest is None else f"{self.least} to {self.greatest}"
        if self.greatest is not None and value > self.greatest:
            return f"at most {self.greatest}" if self.least is None else f"{self.least} to {self.greatest}"
        return f"at most {MOST}" if isinstance(value, int) and self.greatest is None and value > MOST else ""


def _holds(word: str, flat: dict[str, Any]) -> bool:
    key, sign, value = word.partition("!=" if "!=" in word else "=")
    return (str(flat[key]) in value.split(",")) is (sign == "=") if sign else bool(flat[key])


def neutral(default, **facts) -> Option:
    """Return an option that does not change results: it may differ on resume, and between the seeds of a row."""
    return Option(default, on_resume="free", rows=False, **facts)
