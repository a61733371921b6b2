"""Which files are the project's: what is said of those is not asked of a user's own file beside them."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REGISTERED = re.compile(r'^@\w+\.register\("(\w+)"\)', re.MULTILINE)


def under_control(root: Path, paths: list[Path]) -> list[Path]:
    """Return those of the files in a checkout that are under version control; all of them where git does not know."""
    if not (root / ".git").exists():  # a release, perhaps within another repository
        return paths
    command = ["git", "-C", str(root), "ls-files", "-z"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return paths
    ours = {root / name for name in listed.split("\0")}
    return [path for path in paths if path in ours]


def shipped_configs(root: Path = ROOT, pattern: str = "*.yaml") -> list[Path]:
    """Return the configs under version control, tables left out; all that are there where git does not know.

    pattern: of their names.
    """
    found = sorted(path for path in (root / "configs").rglob(pattern) if path.parent.name != "tables")
    return under_control(root, found)


def foreign_sections(root: Path = ROOT) -> set[str]:
    """Return the sections of private options of a user's own files: what those outside version control register."""
    files = list((root / "pycls_std").rglob("*.py"))
    foreign = set(files) - set(under_control(root, files))
    return {name.upper() for path in foreign for name in REGISTERED.findall(path.read_text())}
