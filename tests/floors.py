"""The floors of the house: its parts, lowest first, what each may import, and what a file does import."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pycls_std"
GROUND = {"core", "process"}
# part of the package -> parts it may import, besides itself
FLOORS = {
    "core": set(),
    "process": {"core"},
    "losses": {"core"},
    "layers": {"core"},
    "config": {"core"},
    "results": {"config", "core"},
    "reproduce": {"results", "config", *GROUND},
    "metrics": {"core"},
    "models": {"layers", "core"},
    "datasets": GROUND,
    "engine": GROUND,
    "tasks": {"datasets", "metrics", "losses", "core"},
    "teachers": {"models", "engine", *GROUND},
    "terms": {"models", "losses", "layers", "core"},
    "trainers": {"terms", "models", "core"},
    "run": {"engine", "config", *GROUND},
    "builders": {"models", "datasets", "engine", "tasks", "teachers", "terms", "trainers", "config", *GROUND},
    "export": {"models", "core"},
    "measure": {"builders", "models", "engine", *GROUND},
    "check": {"builders", "datasets", "engine", *GROUND},
    "runner": {"measure", "check", "builders", "run", "engine", "config", *GROUND},
    "notebook": {"runner", "run", "config", *GROUND},
}
TOP = {
    "run_net.py": {"config", "core", "process", "run", "runner"},
    "tools": {
        "measure",
        "export",
        "builders",
        "datasets",
        "models",
        "layers",
        "tasks",
        "teachers",
        "engine",
        "run",
        "results",
        "reproduce",
    }
    | {"config", "core", "process"},
}
FILES = sorted([*PACKAGE.rglob("*.py"), ROOT / "run_net.py", *(ROOT / "tools").rglob("*.py")])


def part(path):
    """Part of the project a file belongs to."""
    inside = path.relative_to(PACKAGE if PACKAGE in path.parents else ROOT)
    return inside.parts[0].removesuffix(".py") if PACKAGE in path.parents else inside.parts[0]


def imported_names(tree):
    """(module, name) of every import; name None for `import module`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module, alias.name) for alias in node.names)


def imported_parts(tree):
    """Parts of this package that a file imports."""
    for module, name in imported_names(tree):
        words = module.split(".")
        if words[0] == "pycls_std" and name != "__version__":
            yield words[1] if len(words) > 1 else name or "__init__"
