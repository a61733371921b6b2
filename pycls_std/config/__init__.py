"""The options of a run: the page of defaults, changed by a YAML file and by the command line, checked and frozen.

This package imports no torch, so that a mistake in a configuration is told within half a second.
"""

import ast
import math
import re
from pathlib import Path

from yacs.config import CfgNode

from pycls_std.config.page import RANGES, cfg
from pycls_std.config.reading import ConfigError, merge, parse_overrides, read_yaml
from pycls_std.config.setting import flatten, locate, set_option

PACKAGE = Path(__file__).parent.parent
RAND_AUGMENT = re.compile(r"(rand(-(m|n|inc|mmax)\d+|-(mstd|p)\d+(\.\d+)?)*)?")  # timm's notation


def load(path: str, overrides: list[str] = ()) -> CfgNode:
    """Return the frozen options of a run: the page, changed by a YAML file, then by the command line.

    path: YAML file; its `_BASE_` names another file, relative to it, that is merged first.
    overrides: `KEY VALUE` pairs and `KEY=VALUE` entries, mixed as they come.
    Raises ConfigError for an unknown key, a value of the wrong type or range, and a file that is not as it should be.
    """
    settings = merge(read_yaml(Path(path)), parse_overrides(overrides))
    options, choices = defaults()
    for key, (value, where) in settings.items():
        set_option(options, key, value, where)
    options.NAME = options.NAME or Path(path).stem
    check(options, choices, {"NAME": path} | {key: where for key, (_, where) in settings.items()})
    options.freeze()
    return options


def dump(options: CfgNode) -> str:
    """Return the options as YAML, without the sections of methods other than the one that runs.

    So a record stays a config when methods come and go.
    """
    others = {name.upper() for name in declared("trainers")} - {options.TRAINER.upper()}
    return CfgNode({key: value for key, value in options.items() if key not in others}).dump()


def out_dir(options: CfgNode) -> Path:
    """Folder of the run record."""
    return Path(options.OUT_DIR or f"runs/{options.NAME}/seed{options.SEED}")


def defaults() -> tuple[CfgNode, dict[str, tuple]]:
    """Return a copy of the page, methods' own sections included, and the allowed values of the keys that list them.

    Raises ConfigError if a method's section has the name of one of the page.
    """
    options = cfg.clone()
    for name, private in declared("trainers").items():
        if name.upper() in cfg:
            raise ConfigError(f"pycls_std/trainers: no method can be called {name!r}, {name.upper()} is a section")
        if private:
            options[name.upper()] = CfgNode(private)
    choices = {key: value for key, value in flatten(options).items() if isinstance(value, tuple)}
    for key, allowed in choices.items():
        node, leaf = locate(options, key)
        node[leaf] = allowed[0]
    return options, choices


def declared(folder: str) -> dict[str, dict]:
    """Return what the files of pycls_std/<folder> register: name -> OPTIONS.

    The files are read as text, since to import them takes seconds. A class or function counts if it is decorated
    `@REGISTRY.register("name")`; OPTIONS must be a literal dictionary.
    Raises ConfigError that names the file of a slip in it.
    """
    found = {}
    for path in sorted((PACKAGE / folder).glob("*.py")):
        try:
            for node in ast.parse(path.read_text()).body:
                for decorator in getattr(node, "decorator_list", ()):
                    if isinstance(decorator, ast.Call) and getattr(decorator.func, "attr", "") == "register":
                        found[ast.literal_eval(decorator.args[0])] = _private_options(node)
        except SyntaxError as error:
            raise ConfigError(f"{path}:{error.lineno}: {error.msg}") from None
        except ValueError:
            raise ConfigError(f"{path}: a registered name and OPTIONS must be literals") from None
    return found


def _private_options(node: ast.AST) -> dict:
    for statement in getattr(node, "body", ()):
        target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
        if getattr(target, "id", "") == "OPTIONS":
            return ast.literal_eval(statement.value)
    return {}


def check(options: CfgNode, choices: dict[str, tuple], sources: dict[str, str]) -> None:
    """Raise ConfigError for a value that no run can use; sources: where each changed key was set."""
    flat = flatten(options)
    names = {"TRAINER": tuple(declared("trainers")), "DATA.NAME": tuple(declared("datasets"))}

    def fail(key, expected):
        raise ConfigError(f"{sources.get(key, 'default')}: {key} is {flat[key]!r}, expected {expected}")

    for key, allowed in {**choices, **names}.items():
        if flat[key] not in allowed:
            fail(key, "one of " + ", ".join(allowed))
    for key, (least, greatest) in RANGES.items():
        if not least <= flat[key] <= greatest:
            fail(key, f"at least {least}" if greatest == math.inf else f"{least} to {greatest}")
    if not re.fullmatch(r"[\w.+-]*\w[\w.+-]*", options.NAME):
        fail("NAME", "letters, digits and . + - _ only")
    if options.DATA.NAME == "image_folder" and Path(options.DATA.ROOT).name in ("", ".."):
        fail("DATA.ROOT", "a path that ends with the folder's name, which is the dataset's in records and tables")
    if not RAND_AUGMENT.fullmatch(options.AUG.RAND_AUGMENT):
        fail("AUG.RAND_AUGMENT", "timm's notation, such as rand-m9-mstd0.5-inc1")
    if options.DISTILLATION.CACHE and not options.DISTILLATION.TEACHERS:
        fail("DISTILLATION.CACHE", '"", for there are no DISTILLATION.TEACHERS')
    if options.DISTILLATION.CACHE and options.DATA.LOADER == "workers":
        fail("DISTILLATION.CACHE", '"", for DATA.LOADER is workers, and it needs images in memory')
    if options.DISTILLATION.CACHE and options.DISTILLATION.TEACHER_BN == "batch":
        fail("DISTILLATION.CACHE", '"" with TEACHER_BN batch, for what is said of an image depends on its batch')
    if options.DISTILLATION.CACHE_TOP and options.DISTILLATION.LOGIT_STANDARD:
        fail("DISTILLATION.CACHE_TOP", "0 with LOGIT_STANDARD, which needs the deviation of all logits")
    if options.TRAIN.COMPILE == "graphs" and options.DEVICE == "cpu":
        fail("TRAIN.COMPILE", "auto, off or on, for graphs need DEVICE cuda")
    if options.MINE.SAMPLES == 1:
        fail("MINE.SAMPLES", "0 (off) or at least 2: a sample is paired with another one")
    if options.MINE.PERIOD == "step" and options.MINE.SAMPLES * options.AUG.REPEATS > options.TRAIN.BATCH_SIZE:
        fail("MINE.SAMPLES", f"at most the images of a batch, {options.TRAIN.BATCH_SIZE // options.AUG.REPEATS}")
    if options.AUG.MIXUP + options.AUG.CUTMIX > 0 and options.TRAIN.BATCH_SIZE % 2:
        fail("TRAIN.BATCH_SIZE", "an even number with AUG.MIXUP or AUG.CUTMIX, which mix images in pairs")
    steps = options.OPTIM.STEPS
    if steps != sorted(steps) or any(epoch <= 0 for epoch in steps):
        fail("OPTIM.STEPS", "ascending epochs above 0")
    if steps and options.OPTIM.SCHEDULE != "step":
        fail("OPTIM.STEPS", f"[], for OPTIM.SCHEDULE is {options.OPTIM.SCHEDULE} and not step")
    if not steps and options.OPTIM.SCHEDULE == "step":
        fail("OPTIM.SCHEDULE", "epochs in OPTIM.STEPS, which is []")
    if any(size < 0 for size in options.DISTILLATION.TEACHER_SIZES):
        fail("DISTILLATION.TEACHER_SIZES", "pixels, or 0")
    teachers = options.DISTILLATION.TEACHERS
    for key in ("TEACHER_WEIGHTS", "TEACHER_NORMS", "TEACHER_SIZES"):
        entries = options.DISTILLATION[key]
        if len(entries) != len(teachers) and (entries or key == "TEACHER_WEIGHTS"):
            where = sources.get(f"DISTILLATION.{key}") or sources.get("DISTILLATION.TEACHERS")
            raise ConfigError(f"{where}: DISTILLATION.TEACHERS has {len(teachers)} entries, {key} has {len(entries)}")
