"""Find given weights: a checkpoint of this runner, a plain file, a URL, published ones, timm's, or the hub's."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import timm
from timm.models import get_arch_name, get_pretrained_cfg, is_model
from torch import Tensor
from yacs.config import CfgNode

from pycls_std.builders import hub
from pycls_std.builders.checkpoints import of_today, options_of, trained_on, training_files
from pycls_std.builders.downloads import download, expected
from pycls_std.builders.plain_weights import of_backbone, plain
from pycls_std.core.network import patience
from pycls_std.core.registry import BACKBONES
from pycls_std.core.structures import Normalization
from pycls_std.core.text import printable
from pycls_std.datasets.normalizations import NORMALIZATIONS
from pycls_std.engine import checkpoint
from pycls_std.engine.checkpoint import TAUGHT
from pycls_std.models.create import RESERVED, refuse_place, refuse_reserved
from pycls_std.models.resnet_cifar import PUBLISHED, PUBLISHED_URL


class WeightsError(ValueError):
    """Given weights of a run cannot be loaded; the text names the option."""


class TrainedStudent(NamedTuple):
    """The whole student in a checkpoint of this runner."""

    cfg: CfgNode  # the options it was trained with
    state: dict[str, Tensor]


class Weights(NamedTuple):
    """Weights of a backbone, and their metadata; None or 0 if their origin does not have it."""

    state: dict[str, Tensor] | None  # None = none are given, and the backbone stays random
    source: str
    num_classes: int | None = None
    normalization: Normalization | None = None
    image_size: int = 0  # pixels
    args: Mapping = MappingProxyType({})  # keyword arguments the backbone was built with
    student: TrainedStudent | None = None  # of which the backbone is a part
    classes: tuple[str, ...] = ()  # their names
    dataset: str = ""  # that the backbone was trained on
    files: str = ""  # digest of those of its training split


class Form(NamedTuple):
    """Weights that are named by `<form>:<what>`; both functions take the model's name and the whole text."""

    find: Callable[[str, str], Weights]
    describe: Callable[[str, str], Weights]  # downloads nothing; raises ValueError for unknown weights


def find_weights(name: str, origin: str) -> Weights:
    """Return weights of the model `name`.

    origin: a path; https://... with #sha256=<hex> or a file name that ends in -<hex>.pt; published:<name>; timm, or
    timm:<name> of another model whose weights this one can adopt; hf-hub:<owner>/<name>, by timm.
    Raises ValueError that names the origin if they cannot be loaded or do not match their hash.
    """
    if form := _form(origin):
        return form.find(name, origin)
    if "://" in origin:
        return Weights(of_backbone(plain(checkpoint.read(download(origin)), origin)), origin)
    state = checkpoint.read(Path(origin))
    if state.keys() >= TAUGHT.keys():
        return _own(state, name, origin)
    return Weights(of_backbone(plain(state, origin)), origin)


def describe_weights(name: str, origin: str) -> Weights:
    """Return what is known of a model's weights without downloads: all of a local file, else metadata alone."""
    if form := _form(origin):
        return form.describe(name, origin)
    if not is_file(origin) or not Path(origin).exists():
        return Weights(None, f"{origin}, not here, so random weights")
    return find_weights(name, origin)


def is_file(origin: str) -> bool:
    """Return whether an origin of weights is a local path, which need not exist."""
    return _form(origin) is None and "://" not in origin


def refuse_unknown_form(name: str, origin: str) -> None:
    """Raise ValueError if weights of the model `name` are neither a file nor of a known form; nothing is read."""
    refuse_place(name)
    if form := _form(origin):
        form.describe(name, origin)
    elif "://" in origin:
        expected(origin)
    elif not Path(origin).exists() and not _may_come(origin):
        bare = re.sub(r"(?i)^(hf[_-]hub|timm|published):", "", origin)
        hub = bare != origin and bare.count("/") == 1
        meant = next((each for each, fits in MEANT.items() if fits(bare)), "hf-hub" if hub else "")
        if meant or re.match(r"[A-Za-z][\w+-]*:", origin) or not Path(origin).suffix:
            hint = f"did you mean {meant}:{bare}?" if meant else f"known: {KNOWN}"
            raise ValueError(f"{origin} is no file and no form of weights; {hint}")


def _may_come(origin: str) -> bool:
    """Return whether a path leads into an existing folder, where the file may still be written."""
    folder, *inside = Path(origin).parts
    return bool(inside) and Path(folder).is_dir()


def _form(origin: str) -> Form | None:
    form, colon, _ = origin.partition(":")
    return FORMS.get(form) if colon or form == "timm" else None


def student_weights(path: Path, *, ema: bool) -> tuple[dict[str, Tensor], dict]:
    """Return the weights of a student, and the checkpoint that they are from, which says how they were trained.

    ema: take the moving average in the checkpoint. A plain file has the weights of the backbone, or, if some are of
    branches, of the whole student; in place of its checkpoint, {} is returned.
    Raises ValueError if the file does not exist, does not have the structure of a checkpoint, or has no average.
    """
    state = checkpoint.read(path)
    if not state.keys() >= TAUGHT.keys():
        if ema:
            raise ValueError(f"TEST.EMA is True, {path} holds no moving average")
        weights = plain(state, str(path))
        whole = any(key.startswith("branches.") for key in weights)
        return weights if whole else {f"backbone.{key}": each for key, each in of_backbone(weights).items()}, {}
    options_of(state, str(path))
    if ema and not state["ema"]:
        raise ValueError(f"TEST.EMA is True, {path} holds no moving average")
    return of_today(state)["ema" if ema else "student"], state


def _own(state: dict, name: str, origin: str) -> Weights:
    cfg = options_of(state, origin)
    if name != cfg.MODEL.NAME:
        raise ValueError(f"{origin} holds a {printable(cfg.MODEL.NAME)} and no {name}")
    refuse_reserved(cfg.MODEL.ARGS, f"{origin}: MODEL.ARGS")
    student, prefix = of_today(state)["student"], "backbone."
    backbone = {key.removeprefix(prefix): value for key, value in student.items() if key.startswith(prefix)}
    if not backbone:
        raise ValueError(f"{origin} holds no weights of a backbone: {', '.join(list(student)[:3])}")
    info = trained_on(state, origin)
    return Weights(
        state=backbone,
        source=origin,
        num_classes=len(info.classes),
        normalization=info.normalization,
        image_size=cfg.DATA.IMAGE_SIZE,
        args={"norm_eps": cfg.MODEL.NORM_EPS, **cfg.MODEL.ARGS},
        student=TrainedStudent(cfg, student),
        classes=info.classes,
        dataset=info.name,
        files=training_files(state, origin),
    )


def _published(name: str, origin: str) -> Weights:
    described = _described_as_published(name, origin)
    state = checkpoint.read(download(PUBLISHED_URL + PUBLISHED[origin.removeprefix("published:")][0]))
    return described._replace(state=plain(state, origin))


def _described_as_published(name: str, origin: str) -> Weights:
    key = origin.removeprefix("published:")
    if key not in PUBLISHED:
        raise ValueError(f"{origin}: no published weights of that name; known: {', '.join(PUBLISHED)}")
    dataset = key.split("_")[0]
    return Weights(None, origin, int(dataset.removeprefix("cifar")), NORMALIZATIONS[dataset], image_size=32)


def _from_timm(name: str, origin: str) -> Weights:
    described = _described_by_timm(name, origin)
    name = origin.partition(":")[2] or name
    try:
        with patience():
            model = timm.create_model(name, pretrained=True)
    except Exception as error:  # the hub's client may raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"timm's weights of {name} could not be loaded: {reason}") from error
    return described._replace(state=model.state_dict())


def _is_timms(name: str) -> bool:
    """Return whether a model is timm's own: its registry has ours, too."""
    return is_model(name) and get_arch_name(name) not in BACKBONES


def _described_by_timm(name: str, origin: str) -> Weights:
    name = origin.partition(":")[2] or name
    try:
        given = get_pretrained_cfg(name, allow_unregistered=True) if _is_timms(name) else None
    except RuntimeError as error:  # the model is known, its tag after the dot is not
        raise ValueError(f"timm has no weights {name}: {error}") from error
    if given is None:
        raise ValueError(f"timm has no model {name}")
    mean, std = ((each[0], each[1], each[2]) for each in (given.mean, given.std))
    return Weights(None, f"timm {name}", given.num_classes, Normalization(mean, std), given.input_size[-1])


def _from_hub(name: str, origin: str) -> Weights:
    found = hub.load(get_arch_name(name), hub.repository(origin))
    args = {key: value for key, value in found.args.items() if key not in RESERVED}
    return Weights(found.state, origin, found.num_classes, found.normalization, found.image_size, args)


def _described_by_hub(name: str, origin: str) -> Weights:
    repository = hub.repository(origin)
    if not _is_timms(name):
        raise ValueError(f"{origin} is loaded by timm, which has no model {name}")
    given, args = hub.cached(repository) or ({}, {})
    args = {key: value for key, value in args.items() if key not in RESERVED}
    source = f"{origin}, {'not read' if given else 'not yet fetched'}, so random weights"
    usual = get_pretrained_cfg(get_arch_name(name))  # of timm's own weights, for their image size
    size = given.get("input_size") or (usual.input_size if usual else (0,))
    return Weights(None, source, given.get("num_classes"), image_size=size[-1], args=args)


FORMS = {
    "timm": Form(_from_timm, _described_by_timm),
    "published": Form(_published, _described_as_published),
    "hf-hub": Form(_from_hub, _described_by_hub),
}
KNOWN = "a path, https://...#sha256=<hex>, timm, timm:<name>, hf-hub:<owner>/<name>, published:<name>"
# The form that is missing in an origin that is not a file, by what it would name.
MEANT = {
    "published": PUBLISHED.__contains__,
    "timm": _is_timms,
    "hf-hub": lambda origin: origin.count("/") == 1 and _is_timms(origin.partition("/")[2]),
}
