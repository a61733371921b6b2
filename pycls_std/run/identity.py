"""The identity of a run: what has to be unchanged for it to be resumed."""

import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pycls_std import config
from pycls_std.config.plain_yaml import load_yaml
from pycls_std.core.option import Option
from pycls_std.core.text import first_of, printable
from pycls_std.engine.checkpoint import RESUMED
from pycls_std.engine.structure import refuse_other_kind

# Entries that are read from a checkpoint of an older format, whose run is finished, with their types.
FINISHED = {"config": str, "processes": int, "epoch": int}

CHANGED_FILES = "names, labels or sizes of those in DATA.ROOT have changed"


class Identity(NamedTuple):
    """What the state of a run depends on, as stored in its checkpoints."""

    config: str  # the options as YAML
    processes: int
    threads: int  # of each process, intra-op
    compiled: str  # off, on, autotune or graphs: what TRAIN.COMPILE is, or what auto chose
    token_mixing: str  # plain or fused: what CUDA.TOKEN_MIXING is, or what auto chose
    teachers: list[str]  # fingerprints of their weights, as loaded
    data: dict  # name, classes and their ids, images of both splits, digests of their files, mean, std, memory

    def refuse_other_data(self, saved: dict, path: Path) -> None:
        """Raise ValueError that names a checkpoint if its run has other images, or teachers with other weights."""
        before, now = saved["data"], self.data
        if before["classes"] != now["classes"]:
            other = f"{first_of(before['classes'])}; the data has {first_of(now['classes'])}"
            raise ValueError(f"{path} is a run on other classes: {other}")
        if before["memory"] != now["memory"]:
            where = {True: "in memory", False: "from workers"}
            raise ValueError(
                f"{path} is a run on images {where[before['memory']]}, now {where[now['memory']]}: DATA.LOADER"
            )
        if before["images"] != now["images"]:
            raise ValueError(f"{path} is a run on {before['images']} images for training and test, now {now['images']}")
        if before.get("contents", now["contents"]) != now["contents"]:  # checkpoints of before December 2026 lack it
            raise ValueError(f"{path} is a run on other files: {CHANGED_FILES}")
        if len(saved["teachers"]) != len(self.teachers):
            raise ValueError(f"{path} is a run of {len(saved['teachers'])} teachers, now {len(self.teachers)}")
        for index, (old, new) in enumerate(zip(saved["teachers"], self.teachers, strict=True)):
            if old != new:
                # Its name is the same as now, for otherwise the options would differ already.
                origin = config.complete(self.config)["DISTILLATION.TEACHER_WEIGHTS"][index]
                changed = f"those of {origin} have changed since (DISTILLATION.TEACHER_WEIGHTS)"
                raise ValueError(f"{path} is a run with other weights of teacher {index}: {changed}")


def refuse_other_origin(saved: dict, path: Path, *, continued: bool) -> None:
    """Raise ValueError that names a checkpoint if it does not describe its run as a run's own checkpoints do.

    continued: whether training is resumed from it; otherwise it may be of an older format.
    """
    try:
        refuse_other_kind(saved, RESUMED if continued else FINISHED, "it")
        config.restored(saved["config"])
        if continued:
            refuse_other_kind(saved["journal"], [{"epoch": int, "time": (int, float), "run/epochs": int}], "it.journal")
        epochs = [line["epoch"] for line in saved["journal"]] if continued else []
        if continued and epochs != list(range(1, saved["epoch"] + 1)):
            raise ValueError(f"it has {saved['epoch']} epochs, and the values of {len(epochs)}")
    except ValueError as error:
        reason = printable(str(error).splitlines()[0])
        raise ValueError(f"{path} is no checkpoint of a run: {reason}") from error


def refuse_other_options(saved: dict, options: str, processes: int, path: Path) -> None:
    """Raise ValueError that names a checkpoint, and every option that has changed although it must not.

    A run may be extended, and its record says so. The number of processes must not change either: each has its own
    batch norm statistics and dropout.
    """
    changed = _changes(saved["config"], options, lambda option: option.on_resume != "free")
    if saved["processes"] != processes:
        changed.append(("the number of processes", saved["processes"], processes))
    if changed:
        raise ValueError(f"{path} is {_run_of_others(options, changed)}")


def refuse_no_dump(text: str, path: Path) -> None:
    """Raise ValueError that names a file of options unless it is one that a run writes, with all options."""
    try:
        known = {"NAME", "TRAINER", "OPTIM", "TRAIN"} <= load_yaml(text, "its options").keys()
        config.restored(text)
    except (ValueError, AttributeError):
        known = False
    if not known:
        raise ValueError(f"{path} is not what a run writes. Choose another OUT_DIR")


def refuse_other_dump(before: str, options: str, path: Path) -> None:
    """Raise ValueError that names a file of options, and each that differs, unless it is of the same run."""
    refuse_no_dump(before, path)
    if not same_run(before, options):
        changed = _changes(before, options, lambda option: option.on_resume != "free")
        raise ValueError(f"{path} is {_run_of_others(options, changed)}")


def _run_of_others(options: str, changed: list[tuple]) -> str:
    return (
        f"a run of other options: {'; '.join(map(_in_words, changed))}. Choose another OUT_DIR, as with "
        f"{_another_folder(options, changed)}"
    )


def _another_folder(options: str, changed: list[tuple]) -> str:
    """Return an option for the command line that gives a run its own folder, named after the changed options.

    options: its own, as YAML. changed: key, value before, value now.
    """
    flat = config.complete(options)
    said = "_".join(f"{re.split('[. ]', key)[-1].lower()}-{now}" for key, _, now in changed[:2])
    suffix = re.sub(r"[^\w.+]+", "-", said)[:60].strip("-")  # the characters that NAME may have
    where = "OUT_DIR" if flat["OUT_DIR"] else "NAME"
    return shlex.quote(f"{where}={flat[where].rstrip('/')}_{suffix}")


def refuse_squashed(saved: dict, path: Path, widths_heights: Iterable[tuple[int, int]]) -> None:
    """Raise ValueError that names a checkpoint if its run is older than DATA.FIT, and its images are not square.

    widths_heights: of some of its images. Such a run resized both sides, as `squash` does; the default is `crop`.
    """
    known = config.flatten(load_yaml(saved["config"], "its options"))
    if "DATA.FIT" not in known and any(width != height for width, height in widths_heights):
        reason = "is a run that distorted its images to squares, now they are cropped"
        raise ValueError(f"{path} {reason}. Choose another OUT_DIR")


def same_run(first: str, second: str) -> bool:
    """Return whether two dumps of options are of the same run, which may have been extended between them."""
    counts = lambda option: option.on_resume != "free"  # noqa: E731
    pairs = ((first, second), (second, first))
    try:
        return bool(first) and any(not changed_options(*pair, counts) for pair in pairs)
    except ValueError:
        return False


PARTS = ("DATA.NAME", "DATA.ROOT", "DATA.VAL_FRACTION", "DATA.PER_CLASS", "DATA.IMAGES")  # decide what is trained on


def refuse_other_parts(before: str, now: str, source: str) -> None:
    """Raise ValueError that names a checkpoint and the options, if its run divided the images differently."""
    changes = _changes(before, now, lambda option: option.on_resume != "free")
    changed = [change for change in changes if change[0] in PARTS]
    if changed:
        raise ValueError(f"{source} was trained on other images: {'; '.join(map(_in_words, changed))}")


def refuse_other_training_files(saved: dict, split: str, contents: dict[str, str], images: int, source: str) -> None:
    """Raise ValueError that names a checkpoint if its run divided other files into what it trained on and held out.

    Of other files, images that it trained on would be scored as held out. split: TEST.SPLIT, "train" or "held-out".
    contents: see `Data`. images: of that split, which are compared where no digest is known, as of CIFAR and before
    December 2026.
    """
    before, counts = saved["data"].get("contents", {}), saved["data"].get("images", [])
    refuse_other_kind(before, {...: str}, f"{source}: data.contents")
    refuse_other_kind(counts, [int], f"{source}: data.images")
    known = counts[{"train": 0, "held-out": 2}[split] :][:1]
    if "train" in before and before["train"] != contents.get("train"):
        raise ValueError(f"TEST.SPLIT {split}: {source} was trained on other files: {CHANGED_FILES}")
    if "train" not in before and known not in ([], [images]):
        raise ValueError(f"TEST.SPLIT {split}: {source} is of a run with {known[0]} such images, now {images}")


def refuse_other_model(before: str, now: str, source: str) -> None:
    """Raise ValueError that names a checkpoint if it is of another model than MODEL.NAME."""
    old, new = (config.complete(options)["MODEL.NAME"] for options in (before, now))
    if old != new:
        raise ValueError(f"{source} holds a {old}, MODEL.NAME is {new}: the options are those of another run")


def refuse_other_test_files(saved: dict, name: str, contents: dict[str, str], source: str) -> None:
    """Raise ValueError that names a checkpoint if its run was tested on other files of a dataset of this name.

    Datasets of another name are not compared, nor checkpoints from before December 2026. contents: see `Data`.
    """
    before, now = saved["data"].get("contents", contents), contents
    refuse_other_kind(before, {...: str}, f"{source}: data.contents")
    if saved["data"].get("name") == name and before.get("test") != now.get("test"):
        raise ValueError(f"TEST.PREDICTIONS: {source} was tested on other files: {CHANGED_FILES}")


def changed_shape(before: str, now: str) -> list[str]:
    """Return "KEY was .., is .." for changed options that determine the student, or its input."""
    return changed_options(before, now, lambda option: option.student)


def changed_options(before: str, now: str, counts) -> list[str]:
    """Return "KEY was .., is .." for the options that differ between two dumps.

    counts(option): whether to compare one. Options that a dump lacks have their defaults; those that no longer exist
    are compared as an `Option` without properties.
    """
    return [_in_words(change) for change in _changes(before, now, counts)]


def _in_words(change: tuple) -> str:
    key, before, now = change
    return f"{key} was {before!r}, is {now!r}"


def _changes(before: str, now: str, counts) -> list[tuple]:
    """Return key, value before and value now for what `changed_options` returns in words."""
    if before == now:  # as in most resumes; reading both takes some 50 ms
        return []
    catalogue = config.Catalogue()
    old, new = config.complete(before), config.complete(now)
    changed, idle = [], catalogue.idle(old) & catalogue.idle(new)
    for key in sorted((old.keys() | new.keys()) - idle):
        option = catalogue.of(key) or Option(None)
        grows = option.on_resume == "longer" and old.get(key) is not None and old[key] <= new.get(key, old[key])
        if counts(option) and old.get(key) != new.get(key) and not grows:
            changed.append((key, old.get(key), new.get(key)))
    names = [config.dataset_name(flat) for flat in (old, new)]
    if names[0] != names[1] and old["DATA.NAME"] == new["DATA.NAME"]:
        changed.append(("DATA.ROOT", names[0], names[1]))
    return changed
