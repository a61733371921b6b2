"""Weights of timm models on the Hugging Face hub, hf-hub:<owner>/<name>, downloaded by timm."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import timm
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.utils.logging import set_verbosity_error
from timm.models import load_model_config_from_hf
from torch import Tensor

from pycls_std.core.network import patience
from pycls_std.core.structures import Normalization

PREFIX = "hf-hub:"
# Entries of a repository's config.json that timm gets. Others could make it load other files, from other places.
KEPT = ("num_classes", "input_size", "fixed_input_size", "mean", "std", "first_conv", "classifier", "pool_size")
# Model arguments that could do the same.
ELSEWHERE = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}

set_verbosity_error()  # it warns of each of ten tries to reach the hub, and the error says it


class Found(NamedTuple):
    """Weights of a repository, and their metadata."""

    state: dict[str, Tensor]
    num_classes: int
    normalization: Normalization
    image_size: int  # pixels
    args: dict  # keyword arguments the model was built with


def repository(origin: str) -> str:
    """Return the repository that an origin names: <owner>/<name>, with @<revision> if given.

    Raises ValueError if it names none.
    """
    found = origin.removeprefix(PREFIX)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", found):
        raise ValueError(f"{origin}: expected hf-hub:<owner>/<name>, or hf-hub:<owner>/<name>@<revision>")
    return found


def load(architecture: str, name: str) -> Found:
    """Return the weights of a repository, from timm's cache if they are there.

    Raises ValueError that names it if they cannot be loaded, or are of another architecture.
    """
    try:
        with patience():
            given, found, args = load_model_config_from_hf(name)
            told = sorted((args or {}).keys() & ELSEWHERE)
            if told:
                raise ValueError(f"its model_args name {', '.join(told)}, by which timm would load something else")
            if found == architecture:
                kept = {key: given[key] for key in KEPT if given.get(key) is not None}
                kept |= {"hf_hub_id": name, "source": "hf-hub"}
                model: Any = timm.create_model(architecture, pretrained=True, pretrained_cfg=kept, **(args or {}))
    except Exception as error:  # the hub's client may raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{PREFIX}{name} could not be loaded: {reason}") from error
    if found != architecture:
        raise ValueError(f"{PREFIX}{name} holds a {found} and no {architecture}")
    used = model.pretrained_cfg
    normalization = Normalization(tuple(used["mean"]), tuple(used["std"]))
    return Found(model.state_dict(), model.num_classes, normalization, used["input_size"][-1], dict(args or {}))


def cached(name: str) -> tuple[dict, dict] | None:
    """Return a repository's config of its weights and the model's arguments; None if it is not in the hub's cache.

    Nothing is downloaded. Raises ValueError that names the repository if the config cannot be read.
    """
    where, _, revision = name.partition("@")
    path = try_to_load_from_cache(where, "config.json", revision=revision or None)
    if not isinstance(path, str):
        return None
    try:
        given, _, args = load_model_config_from_hf(f"{where}@{Path(path).parent.name}")  # a commit needs no request
    except Exception as error:  # the file is not one of timm's
        raise ValueError(f"{PREFIX}{name}: {path} cannot be read: {type(error).__name__}") from error
    return given, dict(args or {})
