"""What a checkpoint of this runner says: by which options it was trained, on what images, and today's names of it."""

import math

from torch import Tensor
from yacs.config import CfgNode

from pycls_std import config
from pycls_std.core.structures import DatasetInfo, Normalization
from pycls_std.core.text import printable
from pycls_std.engine.checkpoint import TAUGHT
from pycls_std.engine.structure import refuse_other_kind


def trained_on(state: dict, origin: str) -> DatasetInfo:
    """Return what a checkpoint of this runner says of the images that it was trained on; ids are () in an older one.

    Raises ValueError that names its origin for what no dataset has.
    """
    data = {"ids": []} | state["data"]
    mean, std, classes, ids = (data[key] for key in ("mean", "std", "classes", "ids"))
    if [len(mean), len(std)] != [3, 3] or not all(map(math.isfinite, [*mean, *std])) or min(std) <= 0:
        raise ValueError(f"{origin} has the mean {mean} and the standard deviation {std}, expected 3 channels' each")
    try:
        refuse_other_kind(ids, [int], "ids")
    except ValueError as error:
        raise ValueError(f"{origin} is no checkpoint of this runner: its {error}") from error
    if ids and len(ids) != len(classes):
        raise ValueError(f"{origin} has {len(classes)} classes, and ids of {len(ids)}")
    normalization = Normalization(tuple(mean), tuple(std))
    return DatasetInfo(str(data.get("name", "")), tuple(classes), normalization, ids=tuple(ids))


def training_files(state: dict, origin: str) -> str:
    """Return the digest of the files that a checkpoint's training split was made of, "" of no files and an older one.

    Raises ValueError that names its origin for what is no digest.
    """
    files = state["data"].get("contents", {})
    refuse_other_kind(files, {...: str}, f"{origin}: data.contents")
    return files.get("train", "")


def options_of(state: dict, origin: str) -> CfgNode:
    """Return the options by which a checkpoint of this runner was trained.

    Raises ValueError that names its origin if it is not built as a checkpoint is.
    """
    try:
        refuse_other_kind(state, TAUGHT, "it")
        options = config.restored(state["config"])
    except ValueError as error:
        reason = printable(str(error).splitlines()[0])
        raise ValueError(f"{origin} is no checkpoint of this runner: {reason}") from error
    if not state["student"]:
        raise ValueError(f"{origin} holds no weights: its student is empty")
    return options


def of_today(state: dict) -> dict:
    """Return a checkpoint with the names that the parts of a student have today."""
    old = state.get("format") == 3
    return state | {part: _renamed(state[part]) for part in ("student", "ema")} if old else state


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a student of format 3 by today's names: those of STD's tokens were another three."""
    parts = {"tokens.": "tokens.", "branches.": "updates.", "heads.": "classifiers."}
    renamed = {}
    for key, value in state.items():
        old = next((old for old in parts if key.startswith(old)), "")
        renamed[f"branches.std.{parts[old]}{key.removeprefix(old)}" if old else key] = value
    return renamed
