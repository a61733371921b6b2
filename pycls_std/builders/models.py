"""Build the models of a run from the options."""

import logging
from typing import NamedTuple

from torch import nn

import pycls_std.trainers  # noqa: F401  (registers the methods)
from pycls_std.builders.data import named_normalization
from pycls_std.builders.weights import Weights, describe_weights, find_weights
from pycls_std.core.registry import TRAINERS
from pycls_std.core.structures import Normalization, Trainer
from pycls_std.engine import checkpoint
from pycls_std.models.contract import TapShape, classifier_names, tap_shapes
from pycls_std.models.create import create_backbone, wake_zero_heads
from pycls_std.models.teacher import Teacher

LOG = logging.getLogger("pycls_std")


class Given(NamedTuple):
    """The weights that a run is given, read but not yet in a model; without a state a model is random."""

    student: Weights
    teachers: list[Weights]


def build_backbone(cfg, num_classes: int) -> nn.Module:
    """Return the student's backbone with random weights. Raises ValueError for MODEL.ARGS that other options set."""
    model = cfg.MODEL
    taken = {"name", "num_classes", "image_size", "img_size", "drop_path", "drop_path_rate", "norm_eps"}
    taken = (taken | {"pretrained", "checkpoint_path"}) & set(model.ARGS)
    if taken:
        raise ValueError(f"MODEL.ARGS has {', '.join(sorted(taken))}, which is not for it to set")
    backbone = create_backbone(
        model.NAME,
        num_classes=num_classes,
        image_size=cfg.DATA.IMAGE_SIZE,
        drop_path=model.DROP_PATH,
        norm_eps=model.NORM_EPS,
        **model.ARGS,
    )
    if cfg.DISTILLATION.LOGIT_STANDARD:
        wake_zero_heads(backbone)
    return backbone


def taps(cfg, backbone: nn.Module) -> list[TapShape]:
    """Return the size of every tap of the student's backbone."""
    return tap_shapes(backbone, cfg.DATA.IMAGE_SIZE)


def find_given(cfg, *, fetch: bool = True, start: bool = True) -> Given:
    """Return the weights that the student starts from, and those of every teacher.

    fetch: without, nothing is downloaded, and what is not at hand is left to chance. start: without, the student's are
    not looked for, for a run that continues has its own.
    Raises ValueError that names the option if some cannot be had.
    """
    name, origin = cfg.MODEL.NAME, cfg.MODEL.WEIGHTS if start else ""
    student = _find("MODEL.WEIGHTS", name, origin, fetch) if origin else Weights({}, "random weights")
    return Given(student, find_teacher_weights(cfg, fetch=fetch))


def find_teacher_weights(cfg, *, fetch: bool = True) -> list[Weights]:
    """Return the weights of every teacher; for fetch and errors see `find_given`."""
    options = cfg.DISTILLATION
    pairs = enumerate(zip(options.TEACHERS, options.TEACHER_WEIGHTS, strict=True))
    label = "DISTILLATION.TEACHER_WEIGHTS of teacher"
    return [_find(f"{label} {index} {name}", name, origin, fetch) for index, (name, origin) in pairs]


def _find(label, name, origin, fetch) -> Weights:
    try:
        return (find_weights if fetch else describe_weights)(name, origin)
    except ValueError as error:
        raise ValueError(f"{label}: {error}") from error


def start_from(backbone: nn.Module, weights: Weights) -> None:
    """Load the weights that a student's backbone starts from; without a state it stays as it is.

    A classifier of another number of classes is left out, both heads where there are two, which the log says: the
    backbone keeps its own. All else must fit.
    Raises ValueError that names MODEL.WEIGHTS and the keys if it does not.
    """
    if not weights.state:
        return
    label = f"MODEL.WEIGHTS {weights.source}"
    names = classifier_names(backbone)
    within = tuple(f"{name}." for name in names)
    head = {key: value for key, value in backbone.state_dict().items() if key.startswith(within)}
    pairs = [(weights.state[key].shape, value.shape) for key, value in head.items() if key in weights.state]
    classes = [(old[0], new[0]) for old, new in pairs if len(old) == len(new) > 0 and old[0] != new[0]]
    if not classes:
        checkpoint.load_weights(backbone, weights.state, label)
        LOG.info("%s: all of the student starts from it", label)
        return
    rest = {key: value for key, value in weights.state.items() if not key.startswith(within)}
    checkpoint.load_weights(backbone, rest | head, label)
    LOG.info("%s: the classifier %s is new, %d -> %d classes", label, " and ".join(names), *classes[-1])


def build_teachers(cfg, num_classes: int, normalization: Normalization, weights: list[Weights]) -> list[Teacher]:
    """Return the teachers, frozen.

    normalization: of the student's input. weights: of each teacher; one without a state stays random, to be counted
    and timed.
    Raises ValueError that names the teacher if its weights do not fit or know another number of classes.
    """
    options = cfg.DISTILLATION
    count = len(options.TEACHERS)
    norms, sizes = options.TEACHER_NORMS or [""] * count, options.TEACHER_SIZES or [0] * count
    teachers = []
    for index, (name, found) in enumerate(zip(options.TEACHERS, weights, strict=True)):
        label = f"teacher {index} {name} ({found.source})"
        if found.num_classes not in (None, num_classes):
            raise ValueError(f"{label} has {found.num_classes} classes, the data has {num_classes}")
        size = sizes[index] or found.image_size or cfg.DATA.IMAGE_SIZE
        backbone = create_backbone(name, num_classes=num_classes, image_size=size, **found.args)
        if found.state:
            checkpoint.load_weights(backbone, found.state, label)
        own = named_normalization("DISTILLATION.TEACHER_NORMS", norms[index]) or found.normalization or normalization
        sees = f", mean {own.mean}, deviation {own.std}" if found.state else ""
        teachers.append(
            Teacher(
                backbone,
                name=name,
                normalization=own,
                student=normalization,
                image_size=size,
                description=f"{label}, {size} px{sees}",
            )
        )
    return teachers


def teacher_floor(cfg, num_classes: int) -> float:
    """Return the least top-1 accuracy of a teacher, percent."""
    floor, chance = cfg.DISTILLATION.TEACHER_MIN_ACC, 100 / num_classes
    return chance + (100 - chance) / 4 if floor < 0 else floor


def build_trainer(cfg, *, backbone: nn.Module, teachers: list[Teacher]) -> Trainer:
    """Return the method. Raises ValueError if TEST.PREDICTION is none of its predictions."""
    trainer = TRAINERS.get(cfg.TRAINER).from_cfg(cfg, backbone=backbone, teachers=teachers)
    wanted = cfg.TEST.PREDICTION
    if wanted and wanted not in trainer.PREDICTIONS:
        known = ", ".join(trainer.PREDICTIONS)
        raise ValueError(f"TEST.PREDICTION is {wanted!r}, TRAINER {cfg.TRAINER} offers {known}")
    trainer.prediction = wanted or trainer.PREDICTIONS[0]
    return trainer


def build_untaught_trainer(cfg, num_classes: int) -> Trainer:
    """Return the method with stand-ins for its teachers, for a student that is counted or tested and not taught."""
    absent = [nn.Identity() for _ in cfg.DISTILLATION.TEACHERS]
    return build_trainer(cfg, backbone=build_backbone(cfg, num_classes), teachers=absent)
