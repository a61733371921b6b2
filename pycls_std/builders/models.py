"""The models of a run: the weights that its options give, and descriptions of models without their weights."""

import logging
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

import pycls_std.models  # noqa: F401  (registers the models)
from pycls_std.builders.trained_data import in_words, other_classes
from pycls_std.builders.weights import (
    Weights,
    WeightsError,
    describe_weights,
    find_weights,
    is_file,
    refuse_unknown_form,
)
from pycls_std.config import ConfigError
from pycls_std.core.registry import BACKBONES, TASKS
from pycls_std.core.structures import Normalization
from pycls_std.core.text import first_of
from pycls_std.engine import checkpoint
from pycls_std.models.contract import Backbone, adopted, classifier_names, head_names
from pycls_std.models.create import create_backbone, refuse_reserved, refuse_unknown
from pycls_std.models.describe import Description

LOG = logging.getLogger("pycls_std")
ASSUMED = "the normalisation of the dataset ({})"  # and the option that sets another one


class PretrainedWeights(NamedTuple):
    """The given weights of a run, read but not yet loaded into models; a model without a state stays random."""

    student: Weights
    teachers: list[Weights]


# ------------------------------------------------------------------------------------------------------------- weights
def find_pretrained(cfg, *, fetch: bool = True, start: bool = True) -> PretrainedWeights:
    """Return the weights that the student starts from, and those of every teacher.

    fetch: False = download nothing; models whose weights are not available locally stay random. start: False = do not
    look for the student's, for a run that is resumed has its own.
    Raises WeightsError that names the option if some cannot be loaded.
    """
    name, origin = cfg.MODEL.NAME, cfg.MODEL.WEIGHTS if start else ""
    student = _find("MODEL.WEIGHTS", name, origin, fetch) if origin else Weights(None, "random weights")
    if fetch and student.state and not (student.normalization or cfg.DATA.NORMALIZATION):
        _tell_of_assumed("MODEL.WEIGHTS", student, [ASSUMED.format("DATA.NORMALIZATION")])
    return PretrainedWeights(student, find_teacher_weights(cfg, fetch=fetch))


def find_teacher_weights(cfg, *, fetch: bool = True) -> list[Weights]:
    """Return the weights of every teacher; for fetch and errors see `find_pretrained`.

    A warning tells which normalisation and size of a teacher's input are assumed, if neither its weights nor the
    options give them.
    """
    found = [_find(label, name, origin, fetch) for label, name, origin in _of_teachers(cfg)]
    options, unsaid = cfg.DISTILLATION, [""] * len(found)
    resizes = TASKS.get(cfg.TASK.NAME).RESIZES
    norms, sizes = options.TEACHER_NORMS or unsaid, options.TEACHER_SIZES or unsaid
    for (label, *_), weights, norm, size in zip(_of_teachers(cfg), found, norms, sizes, strict=True):
        assumed = [] if weights.normalization or norm else [ASSUMED.format("DISTILLATION.TEACHER_NORMS")]
        if resizes and not (weights.image_size or size):
            assumed.append(f"{cfg.DATA.IMAGE_SIZE} px, the student's size (DISTILLATION.TEACHER_SIZES)")
        if fetch and weights.state and assumed:
            _tell_of_assumed(label, weights, assumed)
    return found


def _tell_of_assumed(label: str, weights: Weights, assumed: list[str]) -> None:
    told = f"{weights.source} does not say what input it was trained on"
    LOG.warning("%s: %s; assumed: %s", label, told, ", ".join(assumed))


def refuse_unknown_models(cfg, *, teach: bool) -> None:
    """Raise ConfigError that names the option for an unknown model, or a teacher of another task.

    Also for weights that are neither a file nor of a known form. Nothing is read or downloaded. teach: whether teachers
    are built.
    """
    asked = [("MODEL.NAME", partial(refuse_unknown, cfg.MODEL.NAME))]
    for name in cfg.DISTILLATION.TEACHERS if teach else ():
        asked += [("DISTILLATION.TEACHERS", partial(refuse_unknown, name))]
        asked += [("DISTILLATION.TEACHERS", partial(_refuse_teacher_of_other_task, name, cfg.TASK.NAME))]
    student = [("MODEL.WEIGHTS", cfg.MODEL.NAME, cfg.MODEL.WEIGHTS)] if cfg.MODEL.WEIGHTS else []
    asked += [(label, partial(refuse_unknown_form, *which)) for label, *which in [*student, *_of_teachers(cfg)]]
    for label, refuse in asked:
        try:
            refuse()
        except ValueError as error:
            raise ConfigError(f"{label}: {error}") from error


def refuse_other_task(which: str, heads: tuple[str, ...], task: str) -> None:
    """Raise ValueError for a model without any of a task's heads; it names the model, and the tasks of its heads."""
    needed = TASKS.get(task).HEADS
    if set(heads).isdisjoint(needed):
        others = [name for name, each in TASKS.entries.items() if not set(heads).isdisjoint(each.HEADS)]
        of = f" of TASK.NAME {' or '.join(others)}" if others else ""
        raise ValueError(f"{which} has the heads {', '.join(heads)}{of}, TASK.NAME {task} needs {', '.join(needed)}")


def _refuse_teacher_of_other_task(name: str, task: str) -> None:
    heads: tuple[str, ...] = ("cls",)
    if name in BACKBONES:  # all others are timm's classifiers
        try:
            with torch.device("meta"):  # where nothing is allocated
                heads = head_names(create_backbone(name, num_classes=2, image_size=224))
        except ValueError:  # it needs arguments or another size, which only its weights tell
            return
    refuse_other_task(name, heads, task)


def _of_teachers(cfg) -> list[tuple[str, str, str]]:
    """Return a label with the option, the model's name and the origin of the weights of every teacher."""
    options = cfg.DISTILLATION
    pairs = enumerate(zip(options.TEACHERS, options.TEACHER_WEIGHTS, strict=True))
    label = "DISTILLATION.TEACHER_WEIGHTS of teacher"
    return [(f"{label} {index} {name}", name, origin) for index, (name, origin) in pairs]


def absent_files(cfg) -> str:
    """Return a message on which files of teachers' weights are missing, "" if none is.

    A file has the arguments of its teacher; without it, the model's defaults are assumed.
    """
    absent = [each for each in cfg.DISTILLATION.TEACHER_WEIGHTS if is_file(each) and not Path(each).exists()]
    return f"DISTILLATION.TEACHER_WEIGHTS: there is no file {first_of(absent)}" if absent else ""


def _find(label, name, origin, fetch) -> Weights:
    if fetch and not is_file(origin):
        LOG.info("%s: %s, downloaded unless cached", label, origin)
    try:
        return (find_weights if fetch else describe_weights)(name, origin)
    except (ValueError, OSError) as error:
        failed = not is_file(origin) and error.__cause__ is not None  # by the connection
        hint = ". The path of a file of weights can be given instead" if failed else ""
        raise WeightsError(f"{label}: {str(error).rstrip('.') if hint else error}{hint}") from error


def start_from(backbone: Backbone, weights: Weights) -> None:
    """Load the initial weights of a student's backbone; without a state it stays as it is.

    A classifier for another number of classes, both heads if there are two, is not loaded, which is logged: the
    backbone keeps its own. A backbone may adopt another model's weights, see `models/contract.py`; the log lists unused
    tensors, new ones, and the options with which it would compute the same as that model. All else must fit.
    Raises ValueError that names MODEL.WEIGHTS and the keys if it does not.
    """
    state = weights.state
    if state is None:
        return
    label = f"MODEL.WEIGHTS {weights.source}"
    if found := adopted(backbone, state):
        LOG.info("%s: it is another model's; %d tensors unused: %s", label, len(found.unused), first_of(found.unused))
        state = found.state
        if found.new:
            LOG.info("%s: %d tensors are new: %s", label, len(found.new), first_of(found.new))
        if found.args:
            LOG.info("%s: the other model computes as this one with MODEL.ARGS %s", label, dict(found.args))
    names = classifier_names(backbone)
    within = tuple(f"{name}." for name in names)
    head = {key: value for key, value in backbone.state_dict().items() if key.startswith(within)}
    pairs = [(state[key].shape, value.shape) for key, value in head.items() if key in state]
    classes = [(old[0], new[0]) for old, new in pairs if len(old) == len(new) > 0 and old[0] != new[0]]
    if not classes:
        checkpoint.load_weights(backbone, state, label)
        if not (found and found.new):
            LOG.info("%s: all of the student's backbone starts from it", label)
        return
    rest = {key: value for key, value in state.items() if not key.startswith(within)}
    checkpoint.load_weights(backbone, rest | head, label)
    LOG.info("%s: the classifier %s is new, %d -> %d classes", label, " and ".join(names), *classes[0])


def tell_of_other_use(cfg, weights: Weights, normalization: Normalization, classes: tuple[str, ...]) -> None:
    """Warn if the student's initial weights were trained with another normalisation, model arguments or classes.

    normalization: of the student's input. classes: names of the data's; of another number, see `start_from`.
    """
    own, known = {"norm_eps": cfg.MODEL.NORM_EPS, **cfg.MODEL.ARGS}, weights.args
    keys = own.keys() | known.keys() if weights.student else known.keys()  # other origins may not list all of them
    odd = [(key, known.get(key, "-"), own.get(key, "-")) for key in sorted(keys) if known.get(key) != own.get(key)]
    options = {"norm_eps": "MODEL.NORM_EPS"}
    told = [f"{options.get(key, f'MODEL.ARGS.{key}')} {there}, here {here}" for key, there, here in odd]
    if weights.normalization not in (None, normalization):
        there, here = (f"mean {each.mean}, deviation {each.std}" for each in (weights.normalization, normalization))
        told.append(f"{there}, here {here} (DATA.NORMALIZATION)")
    if odd_classes := other_classes(weights, classes):
        place, there, here = odd_classes[0]
        told.append(f"class {place} {in_words(there, here)} ({len(odd_classes)} of {len(classes)} differ)")
    if weights.state is not None and told:
        LOG.warning("MODEL.WEIGHTS %s: trained with %s", weights.source, "; ".join(told))


# ------------------------------------------------------------------------------------------------------------- student
def student_arguments(cfg) -> dict:
    """Return the arguments of the student's constructor. Raises ValueError for MODEL.ARGS that other options set."""
    model = cfg.MODEL
    refuse_reserved(model.ARGS, "MODEL.ARGS")
    sizes = {"image_size": cfg.DATA.IMAGE_SIZE, "drop_path": model.DROP_PATH, "norm_eps": model.NORM_EPS}
    return sizes | dict(model.ARGS)


def describe_student(cfg, num_classes: int) -> Description:
    """Return the description of the student's backbone."""
    return Description(cfg.MODEL.NAME, num_classes=num_classes, **student_arguments(cfg))


# ------------------------------------------------------------------------------------------------------------ teachers
class DescribedTeacher(Description):
    """The description of a teacher; what is known of its weights is looked up on first use.

    find: looks it up. size: side of its input, pixels; 0 = that of its weights, or else `student`, the student's.
    given: keyword arguments of its constructor, which override those of its weights. source: the option with `given`.
    """

    def __init__(
        self,
        name: str,
        *,
        num_classes: int,
        size: int,
        student: int,
        given: dict,
        source: str,
        find: Callable[[], Weights],
    ):
        self.name = name
        self.num_classes = num_classes
        self.given = given
        self.source = source
        self._side = size, student
        self._find = find

    @cached_property
    def weights(self) -> Weights:
        """What is known of the weights. Raises WeightsError if they cannot be read."""
        return self._find()

    @cached_property
    def image_size(self) -> int:
        """Side of its input, pixels."""
        size, student = self._side
        return size or self.weights.image_size or student

    @cached_property
    def args(self) -> dict:
        """Keyword arguments of its constructor."""
        return {**self.weights.args, **self.given}


def describe_teachers(cfg, num_classes: int, weights: list[Weights] | None = None) -> list[DescribedTeacher]:
    """Return the descriptions of the teachers.

    weights: what is known of each; by default what is known without downloads, looked up on first use. Raises
    ConfigError for sizes if the task does not resize, and ValueError for TEACHER_ARGS that other options set.
    """
    options, student = cfg.DISTILLATION, cfg.DATA.IMAGE_SIZE
    sizes = options.TEACHER_SIZES or [0] * len(options.TEACHERS)
    args = options.TEACHER_ARGS or [{}] * len(options.TEACHERS)
    if not TASKS.get(cfg.TASK.NAME).RESIZES:
        if any(sizes):
            told = f"TASK.NAME {cfg.TASK.NAME} shows teachers the student's images as they are"
            raise ConfigError(f"DISTILLATION.TEACHER_SIZES is {list(sizes)}, expected []: {told}")
        sizes = [student] * len(sizes)
    described = []
    for index, (name, size, given) in enumerate(zip(options.TEACHERS, sizes, args, strict=True)):
        source = f"DISTILLATION.TEACHER_ARGS[{index}]"
        refuse_reserved(given.keys() - {"norm_eps"}, source)  # for a student this is an option
        find = partial(_known_weights, cfg, index) if weights is None else partial(weights.__getitem__, index)
        source = source if given else f"DISTILLATION.TEACHERS[{index}] with"
        own = {"num_classes": num_classes, "size": size, "student": student, "given": given, "source": source}
        described.append(DescribedTeacher(name, find=find, **own))
    return described


def refuse_other_arguments(cfg, num_classes: int) -> None:
    """Raise ValueError that names DISTILLATION.TEACHER_ARGS for arguments that a teacher's constructor cannot take."""
    for teacher in describe_teachers(cfg, num_classes):
        if teacher.given:
            with torch.device("meta"):  # where nothing is allocated
                backbone = teacher.build()
            if "norm_eps" in teacher.given:
                _refuse_epsilon(teacher.given["norm_eps"], backbone, f"{teacher.source} of {teacher.name}")


def _refuse_epsilon(epsilon, backbone: Backbone, source: str) -> None:
    if type(epsilon) not in (int, float) or not 0 <= epsilon <= 1:
        raise ValueError(f"{source} has norm_eps {epsilon!r}, expected a number from 0 to 1")
    if not any(isinstance(module, nn.LayerNorm) for module in backbone.modules()):
        raise ValueError(f"{source} has norm_eps {epsilon}, the model has no LayerNorm")


def _known_weights(cfg, index: int) -> Weights:
    return _find(*_of_teachers(cfg)[index], fetch=False)
