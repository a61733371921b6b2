"""Refuse options that no run can use: invalid values, options that are not read, contradictory options."""

import os
import re
from pathlib import Path
from typing import Any, NoReturn

from pycls_std.config.catalogue import Catalogue
from pycls_std.config.declared import declared
from pycls_std.config.mistake import ConfigError
from pycls_std.config.plain_yaml import short
from pycls_std.config.setting import BY_FOLDER
from pycls_std.core.option import Option
from pycls_std.core.text import counted

NAME = re.compile(r"[\w.+-]*\w[\w.+-]*")  # of a run, or of a row of a table: it names a folder
RAND_AUGMENT = re.compile(r"(rand(-(m|n|inc|mmax)\d+|-(mstd|p)\d+(\.\d+)?)*)?")  # timm's notation


def check(catalogue: Catalogue, flat: dict[str, Any], start: dict[str, Any], sources: dict[str, str]) -> None:
    """Raise ConfigError for a value that no run can use.

    flat: all options. start: their defaults. sources: where each changed key was set.
    """

    def fail(key: str, expected: str) -> NoReturn:
        of_page = key in catalogue.options and start[key] == catalogue.options[key].value
        default = "default" if of_page else f"default of TRAINER {flat['TRAINER']}, as it is not set"
        raise ConfigError(f"{sources.get(key, default)}: {key} is {short(flat[key])}, expected {expected}")

    _check_values(catalogue, flat, fail)
    _check_read(catalogue, flat, start, sources)
    _check_data(catalogue, flat, fail)
    _check_teachers(flat, fail, sources)
    _check_optimizer(flat, fail)
    _check_parts(flat, fail)


def without_effect(catalogue: Catalogue, flat: dict[str, Any], start: dict[str, Any], sources) -> list[str]:
    """Return a line for each changed option that has no effect given the others; arguments as for `check`."""
    return [
        f"{sources[key]}: {key} is {short(flat[key])}, which has no effect here; it has one where "
        f"{catalogue.options[key].when}"
        for key in sorted(catalogue.idle(flat) & sources.keys())
        if flat[key] != start[key]
    ]


def _check_values(catalogue, flat, fail) -> None:
    for key, option in catalogue.options.items():
        if key not in flat:
            continue  # an open section
        allowed = catalogue.choices(key)
        if allowed and flat[key] not in allowed:
            fail(key, "one of " + ", ".join(name or '""' for name in allowed))
        _check_range(key, option, flat, fail)
        if option.path:
            _check_path(key, flat, fail)
    if not NAME.fullmatch(flat["NAME"]):
        fail("NAME", "letters, digits and . + - _ only")
    if len(flat["NAME"].encode()) > 200:
        fail("NAME", "at most 200 bytes, for it names a folder")
    if not catalogue.active_terms(flat):
        fail("TASK.WEIGHT", "a weight above 0, for no term has one, and there is nothing to learn from")


def _check_range(key: str, option: Option, flat, fail) -> None:
    values = flat[key] if isinstance(flat[key], list) else [flat[key]]
    for value in values:
        if not isinstance(value, (int, float)):
            return
        if expected := option.refusal(value):
            fail(key, expected if flat[key] is value else f"entries of {expected}")
        if option.within and value > flat[option.within]:
            fail(key, f"at most {flat[option.within]}, for the run has no more epochs ({option.within})")


def _check_path(key: str, flat, fail) -> None:
    """Refuse a path that no file system accepts, before it is looked up."""
    for path in flat[key] if isinstance(flat[key], list) else [flat[key]]:
        try:
            longest = 0 if "://" in path else max(len(os.fsencode(name)) for name in path.split("/"))
        except UnicodeEncodeError:
            fail(key, "a path, whose characters a file system can hold")
        if "\0" in path or len(os.fsencode(path)) > 4000 or longest > 255:
            fail(key, "a path of at most 4000 bytes, of at most 255 between two /, without NUL")


def _check_read(catalogue, flat, start, sources) -> None:
    """Refuse options that the run does not read, as they would have no effect, unless they are at their defaults."""
    for key, on in sorted(catalogue.unread(flat).items()):
        if key in sources and flat[key] != start.get(key):
            kind = "TASK.NAME" if on.startswith("TASK.NAME") else "TRAINER"  # if a task comes first, no others do
            raise ConfigError(
                f"{sources[key]}: {key} is {short(flat[key])}, which {kind} {flat[kind]} does not read; it is read "
                f"with {on}"
            )


def _check_data(catalogue, flat, fail) -> None:
    name = flat["DATA.NAME"]
    targets = declared("DATASETS")[name].targets
    if catalogue.tasks[flat["TASK.NAME"]].targets != targets:
        fit = [task for task, each in catalogue.tasks.items() if each.targets == targets]
        fail("TASK.NAME", f"{' or '.join(fit) or 'another'}, for DATA.NAME {name} has {targets}")
    if name in BY_FOLDER and Path(flat["DATA.ROOT"]).name in ("", ".."):
        fail("DATA.ROOT", "a path that ends with the folder's name, which is the dataset's in records and tables")
    if not RAND_AUGMENT.fullmatch(flat["AUG.RAND_AUGMENT"]):
        fail("AUG.RAND_AUGMENT", "timm's notation, such as rand-m9-mstd0.5-inc1")
    if flat["AUG.MIXUP"] + flat["AUG.CUTMIX"] > 0 and flat["TRAIN.BATCH_SIZE"] % 2:
        fail("TRAIN.BATCH_SIZE", "an even number with AUG.MIXUP or AUG.CUTMIX, which mix images in pairs")


def _check_teachers(flat, fail, sources) -> None:
    teachers = flat["DISTILLATION.TEACHERS"]
    for key in ("TEACHER_WEIGHTS", "TEACHER_NORMS", "TEACHER_SIZES", "TEACHER_ARGS", "TEACHER_PREDICTIONS"):
        entries = flat[f"DISTILLATION.{key}"]
        if len(entries) != len(teachers) and (entries or key == "TEACHER_WEIGHTS"):
            where = sources.get(f"DISTILLATION.{key}") or sources.get("DISTILLATION.TEACHERS")
            if not entries:
                wanted = (
                    "a checkpoint or file of weights for each of DISTILLATION.TEACHERS, or timm, hf-hub:<owner>/<name>"
                )
                raise ConfigError(f"{where}: DISTILLATION.{key} is empty, expected {wanted}")
            has = f"has {counted(len(teachers), 'entry', 'entries')}, {key} has {len(entries)}"
            raise ConfigError(f"{where}: DISTILLATION.TEACHERS {has}")
    _check_kept(flat, fail)
    if flat["DISTILLATION.CACHE_TOP"] and flat["DISTILLATION.LOGIT_STANDARD"]:
        fail("DISTILLATION.CACHE_TOP", "0 with LOGIT_STANDARD, which needs the standard deviation of all logits")
    if flat["TRAIN.COMPILE"] == "graphs" and flat["DEVICE"] == "cpu":
        fail("TRAIN.COMPILE", "auto, off or on, for graphs need DEVICE cuda")
    if flat["CUDA.TOKEN_MIXING"] == "fused" and flat["DEVICE"] == "cpu":
        fail("CUDA.TOKEN_MIXING", "plain or auto, for fused needs DEVICE cuda")


def _check_kept(flat, fail) -> None:
    cache, offline = flat["DISTILLATION.CACHE"], flat["DISTILLATION.OFFLINE"]
    if offline and not cache:
        fail("DISTILLATION.OFFLINE", "False without DISTILLATION.CACHE, the folder for what is computed")
    if offline and flat["AUG.MIXUP"] + flat["AUG.CUTMIX"] > 0:
        fail("DISTILLATION.OFFLINE", "False with AUG.MIXUP and AUG.CUTMIX, for it is computed of single images")
    if cache and not flat["DISTILLATION.TEACHERS"]:
        fail("DISTILLATION.CACHE", '"", for there are no DISTILLATION.TEACHERS')
    if cache and not offline and flat["DATA.LOADER"] == "workers":
        fail("DISTILLATION.CACHE", '"", for DATA.LOADER is workers, and it needs images in memory')
    if cache and not offline and flat["DISTILLATION.TEACHER_BN"] == "batch":
        fail("DISTILLATION.CACHE", '"" with TEACHER_BN batch, for what is said of an image depends on its batch')
    for key, plain in (("CACHE_PRECISION", "fp32"), ("CACHE_TOP", 0)):
        if not cache and flat[f"DISTILLATION.{key}"] != plain:
            fail(f"DISTILLATION.{key}", f"{plain}, for nothing is kept (DISTILLATION.CACHE)")


def _check_parts(flat, fail) -> None:
    if flat["TRAIN.BATCH_SIZE"] % flat["TRAIN.ACCUMULATE"]:
        fail("TRAIN.ACCUMULATE", f"a divisor of TRAIN.BATCH_SIZE {flat['TRAIN.BATCH_SIZE']}")
    if flat["TRAIN.ACCUMULATE"] > 1 and flat["TRAIN.COMPILE"] == "graphs":
        fail("TRAIN.ACCUMULATE", "1 with TRAIN.COMPILE graphs, whose replays keep one gradient alone")


def _check_optimizer(flat, fail) -> None:
    steps = flat["OPTIM.STEPS"]
    if steps != sorted(steps) or any(epoch <= 0 for epoch in steps):
        fail("OPTIM.STEPS", "ascending epochs above 0")
    if steps and flat["OPTIM.SCHEDULE"] != "step":
        fail("OPTIM.STEPS", f"[], for OPTIM.SCHEDULE is {flat['OPTIM.SCHEDULE']} and not step")
    if not steps and flat["OPTIM.SCHEDULE"] == "step":
        fail("OPTIM.SCHEDULE", "epochs in OPTIM.STEPS, which is []")
    if steps and steps[-1] >= flat["OPTIM.MAX_EPOCH"]:
        fail("OPTIM.STEPS", f"epochs before the run ends, at OPTIM.MAX_EPOCH {flat['OPTIM.MAX_EPOCH']}")
