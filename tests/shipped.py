"""Which configs are the project's: what is said of those is not asked of a user's own file beside them."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def shipped_configs(root: Path = ROOT, pattern: str = "*.yaml") -> list[Path]:
    """Return the configs under version control, tables left out; all that are there where git does not know.

    pattern: of their names.
    """
    found = sorted(path for path in (root / "configs").rglob(pattern) if path.parent.name != "tables")
    if not (root / ".git").exists():  # a release, perhaps within another repository
        return found
    command = ["git", "-C", str(root), "ls-files", "-z", "configs"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return found
    ours = {root / name for name in listed.split("\0")}
    return [path for path in found if path in ours]
