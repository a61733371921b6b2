"""Read from a checkpoint of this runner its options, the data it was trained on, and its weights by current names."""

import math

from torch import Tensor
from yacs.config import CfgNode

from pycls_std import config
from pycls_std.core.structures import DatasetInfo, Normalization
from pycls_std.core.text import printable
from pycls_std.engine.checkpoint import TAUGHT
from pycls_std.engine.structure import refuse_other_kind


def trained_on(state: dict, origin: str) -> DatasetInfo:
    """Return the dataset info in a checkpoint of this runner; ids are () in older ones.

    Raises ValueError that names the origin for values that no dataset can have.
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
    """Return the options that a checkpoint of this runner was trained with.

    Raises ValueError that names the origin if it does not have the structure of a checkpoint, or no weights.
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
    """Return a checkpoint with the current names of a student's weights."""
    old = state.get("format") == 3
    return state | {part: _renamed(state[part]) for part in ("student", "ema")} if old else state


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a student of format 3 by their current names: STD's parts had three other prefixes."""
    parts = {"tokens.": "tokens.", "branches.": "updates.", "heads.": "classifiers."}
    renamed = {}
    for key, value in state.items():
        old = next((old for old in parts if key.startswith(old)), "")
        renamed[f"branches.std.{parts[old]}{key.removeprefix(old)}" if old else key] = value
    return renamed
