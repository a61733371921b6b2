"""Build the method of a run from the options: the student and the terms that train it."""

from collections.abc import Mapping
from typing import Any

from torch import nn

import pycls_std.terms
import pycls_std.trainers  # noqa: F401  (registers terms and methods)
from pycls_std.builders.models import describe_student, describe_teachers, refuse_other_task, student_arguments
from pycls_std.builders.weights import Weights
from pycls_std.core.registry import TERMS, TRAINERS
from pycls_std.models.contract import Backbone, head_names
from pycls_std.models.create import create_backbone, freeze, reset_layers
from pycls_std.models.student import Student, has_distillation_head
from pycls_std.teachers.teacher import Request, Teacher
from pycls_std.terms.base import AuxiliaryTerm, RunDescription, Term
from pycls_std.trainers.base import Trainer


def active_terms(cfg) -> dict[str, type[Term] | type[AuxiliaryTerm]]:
    """Return the terms with a weight above 0, the task's own first."""
    kinds = {name: kind for name, kind in TERMS.entries.items() if cfg[name.upper()][kind.SWITCH]}
    return dict(sorted(kinds.items(), key=lambda item: (item[0] != "task", item[0])))


def build_backbone(cfg, num_classes: int) -> Backbone:
    """Return the student's backbone with random weights, frozen where MODEL.FREEZE says so.

    Raises ValueError for MODEL.ARGS that other options set, and for names in MODEL.FREEZE that it does not have.
    """
    backbone = create_backbone(cfg.MODEL.NAME, num_classes=num_classes, **student_arguments(cfg))
    if cfg.MODEL.INIT == "torch":
        reset_layers(backbone)
    for kind in active_terms(cfg).values():
        kind.prepare(cfg, backbone)
    freeze(backbone, cfg.MODEL.FREEZE)
    return backbone


def build_student(cfg, backbone: Backbone, run: RunDescription) -> Student:
    """Return the student: the backbone with the branches that the terms add to it.

    Raises ValueError for a backbone of another task, and for one that the method cannot use.
    """
    refuse_other_task(f"MODEL.NAME {cfg.MODEL.NAME}", head_names(backbone), cfg.TASK.NAME)
    TRAINERS.get(cfg.TRAINER).check(cfg, backbone)
    kinds = active_terms(cfg)
    both = "task" in kinds and any(kind.SPLITS_HEADS for kind in kinds.values())  # each head has a loss of its own
    split = both and has_distillation_head(backbone)
    branches = {name: kind.branch(cfg, run) for name, kind in kinds.items()}
    return Student(backbone, {name: each for name, each in branches.items() if each is not None}, split_heads=split)


def build_trainer(cfg, student: Student, run: RunDescription, teachers: list[Teacher]) -> Trainer:
    """Return the method.

    Raises ValueError if TEST.PREDICTION is none of the student's, and if no term uses a head or a teacher.
    """
    built = {name: kind.from_cfg(cfg, run, student) for name, kind in active_terms(cfg).items()}
    auxiliary = {name: term for name, term in built.items() if isinstance(term, AuxiliaryTerm)}
    terms = {name: term for name, term in built.items() if name not in auxiliary}
    for name in student.heads:
        if not any(name in term.heads for term in terms.values()):
            fit = {"task"} if name in run.task.HEADS else {t for t, kind in TERMS.entries.items() if kind.SPLITS_HEADS}
            known = ", ".join(f"{term.upper()}.{TERMS.get(term).SWITCH}" for term in sorted(fit))
            raise ValueError(
                f"head {name} of the student would not learn, which takes {known} above 0, or a term that names it as "
                "one of its heads"
            )
    for index, request in enumerate(teacher_requests(terms, len(run.teachers))):
        if not request.head and not request.taps:
            raise ValueError(f"teacher {index} {run.teachers[index].name} is read by no term (DISTILLATION.TEACHERS)")
    for term in terms.values():
        if teachers:  # a run that is only described has none
            term.attach(teachers)
    return Trainer(
        student,
        terms,
        auxiliary,
        nn.ModuleList(teachers),
        prediction=choose_prediction(cfg, run.task, student),
        prediction_heads=run.task.prediction_heads(student.heads),
    )


def choose_prediction(cfg, task, student: Student) -> str:
    """Return the name of the prediction that counts. Raises ValueError if TEST.PREDICTION is none of the student's."""
    known, wanted = task.prediction_heads(student.heads), cfg.TEST.PREDICTION
    if wanted and wanted not in known:
        raise ValueError(f"TEST.PREDICTION is {wanted!r}, TRAINER {cfg.TRAINER} offers {', '.join(known)}")
    return wanted or next(iter(known))


def teacher_requests(terms: Mapping[str, Any], count: int) -> list[Request]:
    """Return what the terms together ask of each of `count` teachers.

    terms: `Term`s by name; typed Any, as those in a ModuleDict are typed as mere modules.
    """
    requests = []
    for index in range(count):
        head = any(index in term.teacher_heads for term in terms.values())
        taps = [tap for term in terms.values() for tap in term.teacher_taps.get(index, ())]
        requests.append(Request(head, tuple(dict.fromkeys(taps))))
    return requests


def describe_run(
    cfg, task, *, images: int | None = None, iterations: int | None = None, weights: list[Weights] | None = None
) -> RunDescription:
    """Return what terms can be built from: sizes of student and teachers, found without their weights.

    task: for the number of classes of the data. images: number of training images, iterations: of an epoch; None if the
    data is not read. weights: what is known of each teacher's weights; by default, what is known without downloads.
    """
    return RunDescription(
        task=task,
        student=describe_student(cfg, task.classes),
        teachers=describe_teachers(cfg, task.classes, weights),
        images=images,
        epoch_images=None if iterations is None else iterations * cfg.TRAIN.BATCH_SIZE // cfg.AUG.REPEATS,
        batch_images=cfg.TRAIN.BATCH_SIZE // cfg.AUG.REPEATS,
    )
