"""The floors: who may import whom, kept by reading the source."""

import ast
import re

import pytest
from floors import FILES, FLOORS, PACKAGE, ROOT, TOP, imported_names, imported_parts, part

# Parts that import nothing of torch, so that a mistake in the options and a table take no seconds.
LIGHT = [*(PACKAGE / folder for folder in ("config", "results", "reproduce", "process"))]
LIGHT += [PACKAGE / "core" / f"{name}.py" for name in ("option", "prediction_file", "regular", "text")]
LIGHT += [PACKAGE / "run" / "lock.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_stay_on_lower_floors(path):
    name = part(path)
    if name == "__init__":
        return
    allowed = TOP.get(name, FLOORS.get(name))
    assert allowed is not None, f"{name} has no floor: add it to FLOORS"
    assert set(imported_parts(ast.parse(path.read_text()))) <= allowed | {name}


# What builds a method or a task from options.
HOOKS = ("from_cfg", "branch", "prepare", "check")


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
            allowed = HOOKS if part(path) in ("terms", "trainers", "tasks") else ()
            assert "cfg" not in arguments or node.name in allowed, f"{node.name} takes cfg"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_device_is_the_runtimes_business(path):
    source = path.read_text()
    homes = dict.fromkeys((".cuda(", "torch.compile"), ("engine/runtime.py",))
    homes |= dict.fromkeys(("torch.autocast", "amp.autocast"), ("engine/runtime.py", "core/precision.py"))
    homes |= {"torch.distributed": ("engine/distributed.py",)}
    for word, places in homes.items():
        assert word not in source or path in [PACKAGE / place for place in places], word
    if path != PACKAGE / "core" / "meters.py":
        assert ".item()" not in source
    if PACKAGE in path.parents:
        calls = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
        assert not any(isinstance(call, ast.Name) and call.id == "print" for call in calls)


@pytest.mark.parametrize("place", LIGHT, ids=lambda path: path.name)
def test_light_parts_import_no_torch(place):
    for path in [place] if place.is_file() else place.rglob("*.py"):
        modules = {module.split(".")[0] for module, _ in imported_names(ast.parse(path.read_text()))}
        assert not modules & {"torch", "torchvision", "timm"}, path


# What belongs to one method, task or dataset, and the only places that may name it.
OWN_WORDS = {
    r"cfg\.MINE|[\"']MINE[.\"']": ("terms/mine.py", "config/older.py"),
    r"cfg\.STD|[\"']STD[.\"']": ("terms/std.py", "terms/mine.py", "trainers/std.py", "config/older.py"),
    r"cfg\.KD\b|[\"']KD[.\"']": (
        "terms/kd.py",
        "trainers/kd.py",
        "trainers/deit.py",
        "trainers/vkd.py",
        "config/older.py",
    ),
    r"cfg\.VKD|[\"']VKD[.\"']": ("terms/vkd.py", "trainers/vkd.py"),
    r"cfg\.LOCALITY|[\"']LOCALITY[.\"']": ("terms/locality.py", "trainers/locality.py"),
    r"cfg\.DEIT|[\"']DEIT[.\"']": ("trainers/deit.py", "config/older.py"),
    r"top1|top5|top-1|cross_entropy": (
        "metrics/",
        "losses/",
        "tasks/",
        "models/resnet_cifar.py",
        "trainers/",
        "results/analysis.py",
        "results/comparison.py",
    ),
}


@pytest.mark.parametrize("words", OWN_WORDS)
def test_nothing_of_a_method_or_a_task_stands_outside_its_file(words):
    for path in PACKAGE.rglob("*.py"):
        place, source = str(path.relative_to(PACKAGE)), path.read_text()
        if re.search(words, source) and not place.startswith(OWN_WORDS[words]):
            code = [node for node in ast.walk(ast.parse(source)) if not isinstance(node, ast.Expr)]
            lines = {node.lineno: ast.unparse(node) for node in code if isinstance(node, (ast.Constant, ast.Attribute))}
            found = {line: text for line, text in lines.items() if re.search(words, text)}
            documented = docstring_lines(path)
            assert not {line: text for line, text in found.items() if line not in documented}, place


def docstring_lines(path):
    """Lines on which docstrings begin."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)]
    return {node.body[0].lineno for node in nodes if ast.get_docstring(node)}
