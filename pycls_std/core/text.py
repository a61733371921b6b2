"""Make text from files fit to be shown."""

from collections.abc import Iterable


def printable(text: str) -> str:
    """Return a text with all non-printable characters, such as terminal control characters, escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def counted(number: int, one: str, several: str) -> str:
    """Return a number with its noun, in the singular or the plural."""
    return f"{number} {one if number == 1 else several}"


def shortened(text: str, most: int = 200) -> str:
    """Return a text of at most so many characters, the middle left out of a longer one."""
    half = (most - 5) // 2
    return text if len(text) <= most else f"{text[:half]} ... {text[-half:]}"


def first_of(names: Iterable[str], most: int = 5) -> str:
    """Return the first of some names, and how many more there are."""
    shown = [shortened(printable(name), 60) for name in names]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")
