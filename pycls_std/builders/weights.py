"""Find given weights: a checkpoint of this runner, a plain file, a URL, the published CIFAR weights, or timm's."""

import hashlib
import re
import urllib.error
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import timm
import torch
import yaml
from timm.models import get_pretrained_cfg, is_model
from torch import Tensor
from torch.hub import download_url_to_file, get_dir

from pycls_std.core.structures import Normalization
from pycls_std.datasets.normalizations import NORMALIZATIONS
from pycls_std.engine import checkpoint
from pycls_std.models.resnet_cifar import PUBLISHED, PUBLISHED_URL

OWN = {"student", "ema", "config", "data"}  # what tells a checkpoint of this runner


class WeightsError(ValueError):
    """Weights that a run is given cannot be had; the text names the option."""


class Weights(NamedTuple):
    """Weights of a backbone, and what their origin says of them; None or 0 where it says nothing."""

    state: dict[str, Tensor]
    source: str
    num_classes: int | None = None
    normalization: Normalization | None = None
    image_size: int = 0  # pixels
    args: Mapping = MappingProxyType({})  # keyword arguments the backbone was built with


def find_weights(name: str, origin: str) -> Weights:
    """Return weights of the model `name`.

    origin: a path; https://... with #sha256=<hex> or a file name that ends -<hex>.pt; published:<name>; timm.
    Raises ValueError that names the origin if they cannot be had or do not match their hash.
    """
    if origin == "timm":
        return _from_timm(name)
    if origin.startswith("published:"):
        return _published(origin)
    if "://" in origin:
        return Weights(_plain(checkpoint.read(download(origin)), origin), origin)
    state = checkpoint.read(Path(origin))
    return _own(state, name, origin) if state.keys() >= OWN else Weights(_plain(state, origin), origin)


def describe_weights(name: str, origin: str) -> Weights:
    """Return what can be said of a model's weights without fetching any: those of a file that is there, or none."""
    if origin == "timm":
        return _described_by_timm(name)
    if origin.startswith("published:"):
        return _described_as_published(origin)
    if "://" in origin or not Path(origin).exists():
        return Weights({}, f"{origin}, not here, so random weights")
    return find_weights(name, origin)


def student_weights(path: Path, *, ema: bool) -> tuple[dict[str, Tensor], dict]:
    """Return the weights of a student, and the checkpoint they stand in, which says how they were trained.

    ema: the moving average in a checkpoint. A plain file's weights are the backbone's; nothing, {}, is said of them.
    Raises ValueError if there is no such file, or no average in it.
    """
    state = checkpoint.read(path)
    if state.keys() >= OWN and state["format"] < 4:
        state |= {part: _renamed(state[part]) for part in ("student", "ema")}
    if ema and not state.get("ema"):
        raise ValueError(f"TEST.EMA is True, {path} holds no moving average")
    if not state.keys() >= OWN:
        return {f"backbone.{key}": value for key, value in _plain(state, str(path)).items()}, {}
    return state["ema" if ema else "student"], state


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a student of format 3 by today's names: those of STD's tokens were another three."""
    parts = {"tokens.": "tokens.", "branches.": "updates.", "heads.": "classifiers."}
    renamed = {}
    for key, value in state.items():
        old = next((old for old in parts if key.startswith(old)), "")
        renamed[f"branches.std.{parts[old]}{key.removeprefix(old)}" if old else key] = value
    return renamed


def download(url: str) -> Path:
    """Return the local copy of a file, fetched into torch.hub's folder once and checked by its SHA-256.

    The hash is the URL's fragment #sha256=<hex>, or the hex digits before the ending of the file's name.
    Raises ValueError if there is no hash, if the URL is not https, and if the file cannot be had whole.
    """
    address, _, fragment = url.partition("#")
    file_name = address.rsplit("/", 1)[-1]
    in_name = re.search(r"-([0-9a-f]{8,64})\.\w+$", file_name)
    if fragment:
        digest = fragment.removeprefix("sha256=").lower()
        file_name = f"{digest[:8]}-{file_name}"  # other files may have this name too
    else:
        digest = in_name[1] if in_name else ""
    if not re.fullmatch(r"[0-9a-f]{8,64}", digest):
        raise ValueError(f"{url}: needs 8 to 64 digits of its SHA-256, as #sha256=<hex> or in the file's name")
    if not address.startswith("https://"):
        raise ValueError(f"{url}: only https:// is downloaded from")
    target = Path(get_dir()) / "checkpoints" / file_name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            download_url_to_file(address, str(target), hash_prefix=digest, progress=False)
        except (urllib.error.URLError, OSError, RuntimeError) as error:
            raise ValueError(f"{address} could not be downloaded ({error}); put it at {target} by hand") from error
    with target.open("rb") as file:  # a file put there by hand is checked too
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(digest):
        raise ValueError(f"{target} has the SHA-256 {found}, {url} expects {digest}; delete it")
    return target


def _own(state: dict, name: str, origin: str) -> Weights:
    try:
        config, data = yaml.safe_load(state["config"]), state["data"]
        model = config["MODEL"]
    except (yaml.YAMLError, AttributeError, TypeError, KeyError) as error:
        raise ValueError(f"{origin} is no checkpoint of this runner: its config cannot be read") from error
    if model["NAME"] != name:
        raise ValueError(f"{origin} holds a {model['NAME']} and no {name}")
    prefix = "backbone."
    return Weights(
        state={key.removeprefix(prefix): value for key, value in state["student"].items() if key.startswith(prefix)},
        source=origin,
        num_classes=len(data["classes"]),
        normalization=Normalization(tuple(data["mean"]), tuple(data["std"])),
        image_size=config["DATA"]["IMAGE_SIZE"],
        args={"norm_eps": model["NORM_EPS"], **model["ARGS"]},
    )


def _published(origin: str) -> Weights:
    described = _described_as_published(origin)
    state = checkpoint.read(download(PUBLISHED_URL + PUBLISHED[origin.removeprefix("published:")][0]))
    return described._replace(state=_plain(state, origin))


def _described_as_published(origin: str) -> Weights:
    key = origin.removeprefix("published:")
    if key not in PUBLISHED:
        raise ValueError(f"{origin}: no published weights of that name; known: {', '.join(PUBLISHED)}")
    dataset = key.split("_")[0]
    return Weights({}, origin, int(dataset.removeprefix("cifar")), NORMALIZATIONS[dataset], image_size=32)


def _from_timm(name: str) -> Weights:
    described = _described_by_timm(name)
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # a hub raises what it likes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"timm's weights of {name} could not be loaded: {reason}") from error
    return described._replace(state=model.state_dict())


def _described_by_timm(name: str) -> Weights:
    if not is_model(name):
        raise ValueError(f"timm has no model {name}")
    given = get_pretrained_cfg(name, allow_unregistered=True)
    normalization = Normalization(tuple(given.mean), tuple(given.std))
    return Weights({}, f"timm {name}", given.num_classes, normalization, given.input_size[-1])


def _plain(state: dict, origin: str) -> dict[str, Tensor]:
    for wrapper in ("state_dict", "model"):
        if isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{origin} is neither a checkpoint of this runner nor a plain dictionary of weights")
    return state
