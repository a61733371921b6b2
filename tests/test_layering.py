"""The floors: who may import whom, kept by reading the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pycls_std"
GROUND = {"core", "process"}
# part of the package -> parts it may import, besides itself
FLOORS = {
    "core": set(),
    "process": set(),
    "run": set(),
    "losses": set(),
    "layers": set(),
    "config": set(),
    "results": set(),
    "models": {"layers", "core"},
    "datasets": GROUND,
    "engine": GROUND,
    "trainers": {"models", "losses", "layers", "core"},
    "builders": {"models", "datasets", "engine", "trainers", "losses", "layers", *GROUND},
    "measure": {"builders", "engine", *GROUND},
    "check": {"builders", "datasets", "engine", *GROUND},
    "runner": {"measure", "check", "builders", "engine", "results", "config", *GROUND},
}
TOP = {
    "run_net.py": {"config", "process", "run", "runner"},
    "tools": {"measure", "builders", "datasets", "models", "engine", "results", "config", "core"},
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
        if words[0] == "pycls_std":
            yield words[1] if len(words) > 1 else name or "__init__"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_stay_on_lower_floors(path):
    name = part(path)
    if name == "__init__":
        return
    allowed = TOP.get(name, FLOORS.get(name))
    assert allowed is not None, f"{name} has no floor: add it to FLOORS"
    assert set(imported_parts(ast.parse(path.read_text()))) <= allowed | {name}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_options_are_read_at_the_edge(path):
    tree = ast.parse(path.read_text())
    if part(path) not in ("config", "run_net.py", "tools"):
        assert ("pycls_std.config", "cfg") not in set(imported_names(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and part(path) not in (
            "config",
            "builders",
            "measure",
            "check",
            "runner",
            "run_net.py",
        ):
            arguments = {a.arg for a in [*node.args.args, *node.args.kwonlyargs]}
            assert "cfg" not in arguments or node.name == "from_cfg", f"{node.name} takes cfg"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_device_is_the_runtimes_business(path):
    source = path.read_text()
    homes = {
        "runtime.py": (".cuda(", "torch.autocast", "amp.autocast", "torch.compile"),
        "distributed.py": ("torch.distributed",),
    }
    for home, words in homes.items():
        for word in words:
            assert word not in source or path == PACKAGE / "engine" / home
    if path != PACKAGE / "core" / "meters.py":
        assert ".item()" not in source
    if PACKAGE in path.parents:
        calls = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
        assert not any(isinstance(call, ast.Name) and call.id == "print" for call in calls)


def test_config_and_results_import_no_torch():
    for folder in ("config", "results"):
        for path in (PACKAGE / folder).rglob("*.py"):
            modules = {module.split(".")[0] for module, _ in imported_names(ast.parse(path.read_text()))}
            assert not modules & {"torch", "torchvision", "timm"}, path
