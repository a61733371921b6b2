"""The newest checkpoints of a run, and which of them to resume from."""

import logging
import re
from collections.abc import Callable
from pathlib import Path

from pycls_std.engine import checkpoint, files

NAME = re.compile(r"last-([1-9]\d*)\.pt")  # of a checkpoint before the newest, by its age
LOG = logging.getLogger("pycls_std")


class Series:
    """The newest checkpoints of a run: last.pt, before it last-1.pt, then last-2.pt and so on.

    keep: their maximum number.
    """

    def __init__(self, folder: Path, *, keep: int):
        self.folder = folder
        self.keep = keep
        self.last = folder / "last.pt"

    def write(self, content: memoryview) -> None:
        """Write a packed state as the newest; delete the oldest. Raises OSError that names the path; others stay."""
        files.write(self.last, content, before_rename=self._shift)

    def newest(
        self, epochs: int = 0, refuse_foreign: Callable[[Path], None] = lambda path: None
    ) -> tuple[dict, Path] | None:
        """Return the newest intact state, and its path; None if the run has none yet.

        epochs: of the run. A state after all of them need not be resumed, so it may be of an older format.
        A damaged file is renamed to *.corrupt, with a warning, and the one before it is read. If none is intact,
        refuse_foreign(path) is called first, and raises ValueError if it may be another program's.
        Raises ValueError if all are damaged, now or at an earlier call, and OSError if one cannot be read, which says
        nothing about its content.
        """
        paths = [self.last, *self._older_ones()]
        if paths[1:] and not self.last.exists():
            LOG.warning("%s is gone", self.last)
        broken: dict[Path, checkpoint.Damaged] = {}
        for path in filter(Path.exists, paths):
            try:
                state = checkpoint.read(path)
            except checkpoint.Damaged as error:
                broken[path] = error
                continue
            current = state.get("format") == checkpoint.FORMAT and "optimizer" in state
            if not current and state.get("epoch") != epochs:
                raise ValueError(
                    f"{path} has no training state of format {checkpoint.FORMAT}, it cannot be continued from"
                )
            _set_aside(broken)
            return state, path
        if damaged := [*broken, *sorted(self.folder.glob("*.corrupt*"))]:
            refuse_foreign(damaged[0])
            _set_aside(broken)
            names = ", ".join(path.name for path in sorted(self.folder.glob("*.corrupt*")))
            raise ValueError(
                f"{self.folder} has no whole checkpoint, only {names}: nothing to continue from; "
                "delete the folder to start anew"
            )
        return None

    def _shift(self) -> None:
        if not self.last.exists():  # it was damaged: the one before it is the only one until there is a new one
            return
        for path in reversed(self._older_ones()):
            if _age(path) + 1 >= self.keep:
                path.unlink()
            else:
                path.replace(self._older(_age(path) + 1))
        if self.keep > 1:
            self.last.replace(self._older(1))

    def _older_ones(self) -> list[Path]:
        """Return those before the newest, by their age; other files, such as last-good.pt, are not this runner's."""
        return sorted((path for path in self.folder.glob("last-*.pt") if NAME.fullmatch(path.name)), key=_age)

    def _older(self, age: int) -> Path:
        return self.folder / f"last-{age}.pt"


def _age(path: Path) -> int:
    named = NAME.fullmatch(path.name)
    assert named, path
    return int(named[1])


def _set_aside(broken: dict[Path, checkpoint.Damaged]) -> None:
    for path, error in broken.items():
        moved = _unused(path.with_name(f"{path.name}.corrupt"))
        path.replace(moved)
        LOG.warning("%s; renamed to %s", error, moved.name)


def _unused(path: Path) -> Path:
    number = 1
    while path.exists():
        path, number = path.with_suffix(f".corrupt{number}"), number + 1
    return path
