"""Compare the data that given weights were trained on, as far as their origin tells, with that of the run."""

import logging

from pycls_std.builders.data import Data
from pycls_std.builders.weights import Weights
from pycls_std.core.text import first_of

LOG = logging.getLogger("pycls_std")


def other_classes(weights: Weights, classes: tuple[str, ...]) -> list[tuple[int, str, str]]:
    """Return place, name in the weights and name in the data of each class of another name; [] where there are no two.

    That is of another number of classes, and of weights whose origin names none.
    """
    if len(weights.classes) != len(classes):
        return []
    pairs = enumerate(zip(weights.classes, classes, strict=True))
    return [(place, there, here) for place, (there, here) in pairs if there != here]


def in_words(there: str, here: str) -> str:
    """Return a name of the weights and that of the data in its place."""
    return f"{first_of([there])}, in the data {first_of([here])}"


def check_teachers_data(cfg, weights: list[Weights], data: Data) -> None:
    """Raise ValueError that names a teacher if a class of the data is at another position in its output.

    It would teach wrong labels. A class may have been renamed: names that only one of them has give a warning. So does
    a teacher that may have been trained on images that are held out here.
    """
    for index, (name, found) in enumerate(zip(cfg.DISTILLATION.TEACHERS, weights, strict=True)):
        label = f"DISTILLATION.TEACHER_WEIGHTS of teacher {index} {name}: {found.source}"
        odd = other_classes(found, data.info.classes)
        moved = [each for each in odd if each[1] in data.info.classes or each[2] in found.classes]
        if moved:
            place, there, here = moved[0]
            raise ValueError(f"{label} has its classes in another order: class {place} is {in_words(there, here)}")
        if odd:
            told = first_of(in_words(there, here) for _, there, here in odd)
            LOG.warning("%s has other classes; they are taken to be renamed: %s", label, told)
        warn_of_held_out(cfg, label, found, data)


def warn_of_held_out(cfg, label: str, weights: Weights, data: Data) -> None:
    """Warn if weights were trained on this training split with fewer images held out than here.

    Held-out images are the same in all runs: those of a smaller fraction are part of those of a larger one.
    """
    if not (data.val and weights.student and _same_images(weights, data)):
        return
    own, here = weights.student.cfg.DATA.VAL_FRACTION, cfg.DATA.VAL_FRACTION
    if own < here:
        told = f"it was trained with DATA.VAL_FRACTION {own:g}, here it is {here:g}"
        LOG.warning("%s may have seen held-out images: %s; scores on them may be too good", label, told)


def _same_images(weights: Weights, data: Data) -> bool:
    """Return whether weights are of a run on this training split: by its files, or by names where none are known."""
    if weights.files:
        return weights.files == data.contents.get("train")
    return (weights.dataset, weights.classes) == (data.info.name, data.info.classes)
