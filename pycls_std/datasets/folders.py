"""List files of folders in a fixed order, refuse links between classes, and report files that are not read.

Hidden entries are skipped. Plain files are only listed, not accessed; links are resolved.
"""

import os
from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

from pycls_std.core.text import counted, printable, shortened

MOST = 5  # number of extensions named in a message


class File(NamedTuple):
    """A file below a folder. ending: its extension with the dot, in lower case; "" if it has none."""

    path: str
    ending: str
    is_link: bool


def entries(folder: str) -> list[os.DirEntry]:
    """Return the visible entries of a folder, by name. Raises OSError that names a folder that cannot be read."""
    with os.scandir(folder) as found:
        return sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)


def files_below(folder: str) -> list[File]:
    """Return the files below a folder, in the order of torchvision's ImageFolder.

    Raises ValueError for a link to a folder, which could add images from elsewhere, or loop.
    """
    found, waiting = [], [folder]
    while waiting:
        place, files = waiting.pop(), []
        for entry in entries(place):
            if not entry.is_dir():
                files.append(File(entry.path, ending(entry.name), entry.is_symlink()))
            elif entry.is_symlink():
                raise ValueError(f"{_leads(entry.path)}, a folder, which is not followed within a class")
            else:
                waiting.append(entry.path)
        found.append((place, files))
    return [file for _, files in sorted(found) for file in files]


def ending(name: str) -> str:
    """Return a file's extension with the dot, in lower case."""
    return os.path.splitext(name)[1].lower()


def refuse_shared(folders: dict[str, str], links: Iterable[tuple[str, str]], others: Iterable[str] = ()) -> None:
    """Raise ValueError if, by links, images of one class are in another.

    folders: of each class. links: pairs of a linked image and its class. others: class folders of other splits, named
    by their last part; a split may link to images of the same class there.
    """
    places: dict[str, str] = {}  # resolved folder -> its class
    for name, folder in folders.items():
        other = places.setdefault(os.path.realpath(folder), name)
        if other != name:
            raise ValueError(f"{printable(folders[other])} and {printable(folder)} are one folder, by a link")
    for folder in others:
        name, place = os.path.basename(folder), os.path.realpath(folder)
        if places.get(place, name) != name:
            raise ValueError(f"{printable(folders[places[place]])} and {printable(folder)} are one folder, by a link")

    @cache
    def owner(place):
        above = os.path.dirname(place)
        return places.get(place) or (owner(above) if above != place else None)

    for place, name in places.items():
        if other := owner(os.path.dirname(place)):
            raise ValueError(f"{printable(folders[name])} lies within {printable(folders[other])}, by a link")
    places |= {os.path.realpath(folder): os.path.basename(folder) for folder in others}
    owner.cache_clear()
    for path, name in links:
        if owner(os.path.dirname(os.path.realpath(path))) not in (None, name):
            raise ValueError(f"{_leads(path)}, an image of another class")


def refuse_dangling(entry: os.DirEntry) -> None:
    """Raise ValueError if an entry is a broken link."""
    if entry.is_symlink() and not os.path.exists(entry.path):
        raise ValueError(f"{_leads(entry.path)}, which is not there")


def _leads(link: str) -> str:
    return f"the link {printable(link)} leads to {printable(os.path.realpath(link))}"


def unread(count: Counter) -> str:
    """Return a text on how many files of each extension are not read, the most frequent first; "" for none."""
    rows = [f"{shortened(printable(name), 60) or 'none'} {number}" for name, number in count.most_common(MOST)]
    rows += [f"others {count.total() - sum(n for _, n in count.most_common(MOST))}"] if len(count) > MOST else []
    files = counted(count.total(), "file that is not read, by its", "files that are not read, by their")
    return f"{files} ending: {', '.join(rows)}" if rows else ""
