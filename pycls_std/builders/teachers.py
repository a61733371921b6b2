"""Build and optimize the teachers, and set their batch norm mode, as the options say."""

from collections.abc import Iterable
from typing import NamedTuple, cast

import torch

from pycls_std.builders.data import build_task, named_normalization
from pycls_std.builders.method import build_backbone, build_student, describe_run
from pycls_std.builders.models import DescribedTeacher, describe_teachers
from pycls_std.builders.weights import Weights
from pycls_std.core.registry import TASKS
from pycls_std.core.structures import Loaded, Loader, Normalization
from pycls_std.engine import checkpoint
from pycls_std.engine.loop import Session
from pycls_std.engine.runtime import Runtime
from pycls_std.models.contract import Backbone
from pycls_std.models.create import create_backbone
from pycls_std.tasks.contract import Task
from pycls_std.teachers.outputs import LiveTeachers
from pycls_std.teachers.predicting import PredictingStudent
from pycls_std.teachers.teacher import Teacher
from pycls_std.teachers.variants import optimize


def build_teachers(cfg, num_classes: int, normalization: Normalization, weights: list[Weights]) -> list[Teacher]:
    """Return the teachers, frozen.

    normalization: of the student's input. weights: of each teacher; one without a state stays random, to count its
    parameters and time it.
    Raises ValueError that names the teacher if its weights do not fit, are for another number of classes, or lack the
    prediction of DISTILLATION.TEACHER_PREDICTIONS.
    """
    options = cfg.DISTILLATION
    norms, predictions = (each or [""] * len(weights) for each in (options.TEACHER_NORMS, options.TEACHER_PREDICTIONS))
    teachers = []
    described = describe_teachers(cfg, num_classes, weights)
    for index, (each, found, norm, wanted) in enumerate(zip(described, weights, norms, predictions, strict=True)):
        label = f"teacher {index} {each.name} ({found.source})"
        if found.num_classes not in (None, num_classes):
            raise ValueError(f"{label} has {found.num_classes} classes, the data has {num_classes}")
        try:
            backbone, prediction = _build(each, found, wanted, label)
        except ValueError as error:
            side = _fitting_size(each) if TASKS.get(cfg.TASK.NAME).RESIZES else 0
            if not side:
                raise
            there = f"its weights are of {side} px, here it sees {each.image_size}"
            raise ValueError(f"{error}; {there}: DISTILLATION.TEACHER_SIZES[{index}] {side}") from error
        own = named_normalization("DISTILLATION.TEACHER_NORMS", norm) or found.normalization or normalization
        sees = f", mean {own.mean}, deviation {own.std}" if found.state else ""
        by = f", by its prediction {prediction}" if prediction else ""
        built = f", built with {each.given}" if each.given else ""
        teachers.append(
            Teacher(
                backbone,
                name=each.name,
                normalization=own,
                student=normalization,
                image_size=each.image_size,
                args=each.given,
                description=f"{label}, {each.image_size} px{sees}{by}{built}",
            )
        )
    return teachers


def _fitting_size(teacher: DescribedTeacher) -> int:
    """Return the input side, pixels, at which a teacher's tensors have the shapes of its weights.

    0 if none is found, or if the shapes do not determine it: a Swin has the same ones at any larger size.
    Shapes depend on the side by the grid of patches: a dimension is a side of the grid, or the number of patches, plus
    up to two tokens.
    """

    def shapes(side: int) -> dict[str, torch.Size]:
        classes = teacher.num_classes
        try:
            with torch.device("meta"):  # where nothing is allocated
                built = create_backbone(teacher.name, num_classes=classes, image_size=side, **teacher.args)
        except ValueError:  # the model does not accept this size
            return {}
        return {key: value.shape for key, value in built.state_dict().items()}

    found = {key: value.shape for key, value in (teacher.weights.state or {}).items()}
    sides = set()
    for key, own in shapes(teacher.image_size).items():
        for there, here in zip(found.get(key, own), own, strict=False):
            ratios = [there / here] + [((there - t) / (here - t)) ** 0.5 for t in range(3) if min(there, here) > t]
            sides |= {round(teacher.image_size * ratio) for ratio in ratios if there != here}
    side = next((side for side in sorted(sides) if shapes(side) == found), 0)
    return side if side and shapes(2 * side) != found else 0


def _build(described: DescribedTeacher, found: Weights, wanted: str, label: str) -> tuple[Backbone, str]:
    """Return a teacher's model, and the prediction that it provides, "" if it has only one.

    A teacher that is a student of this runner with several predictions is built with all its heads, and provides the
    one that counted in its own run. wanted: another one of its predictions.
    """
    student = None
    known: tuple[str, ...] = ("cls",)
    if found.student:
        own = found.student.cfg.clone()
        own.defrost()
        own.DATA.IMAGE_SIZE = described.image_size
        own.MODEL.NORM_EPS = described.args["norm_eps"]
        own.MODEL.ARGS.update({name: each for name, each in described.given.items() if name != "norm_eps"})
        task = build_task(own, described.num_classes)
        student = build_student(own, build_backbone(own, described.num_classes), describe_run(own, task))
        known = tuple(task.prediction_heads(student.heads))
    counted = found.student.cfg.TEST.PREDICTION if found.student else ""
    prediction = wanted or counted or known[0]
    if prediction not in known:
        key = "DISTILLATION.TEACHER_PREDICTIONS" if wanted else "TEST.PREDICTION of its checkpoint"
        raise ValueError(f"{label}: {key} is {prediction!r}, it offers {', '.join(known)}")
    if len(known) > 1:
        assert student is not None and found.student is not None, "of a backbone alone one prediction is known"
        checkpoint.load_weights(student, found.student.state, label)
        predicting = PredictingStudent(student, task.predictions, prediction)
        return cast(Backbone, predicting), prediction  # it stands in for one
    backbone = student.backbone if student else described.build()
    if found.state is not None:
        checkpoint.load_weights(backbone, found.state, label)
    return backbone, ""


class Lesson(NamedTuple):
    """The parts of a session that optimizing teachers needs; used instead of one if there is no student."""

    teacher_outputs: LiveTeachers
    task: Task
    test_loader: Loader
    runtime: Runtime


def optimize_teachers(
    cfg, session: Session | Lesson, *, loader: Iterable[Loaded] | None = None, fall_back: bool = True
) -> list[str]:
    """Fold and convert the teachers of a session; return a line on each. See `variants.optimize`.

    fall_back: False = a teacher whose outputs change too much is only reported; for random weights, whose logits are
    close to each other. A precision that DISTILLATION.TEACHER_PRECISION names is kept in any case.
    """
    options = cfg.DISTILLATION
    named = options.TEACHER_PRECISION != "auto"
    return optimize(
        session,
        image_size=cfg.DATA.IMAGE_SIZE,
        precision=options.TEACHER_PRECISION if named else cfg.PRECISION,
        fold=options.TEACHER_FOLD and options.TEACHER_BN == "eval",
        fixed=named or not fall_back,
        loader=loader,
    )


def set_batch_norm_mode(cfg, teachers: list[Teacher]) -> None:
    """Switch teachers, which are scored with running statistics, to those of each batch if TEACHER_BN is `batch`."""
    if cfg.DISTILLATION.TEACHER_BN == "batch":
        for teacher in teachers:
            teacher.use_batch_statistics()
