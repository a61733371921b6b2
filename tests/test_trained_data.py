"""Given weights of other data than the run's: of other classes, or trained on what the run holds out."""

import logging

import pytest
import torch

from pycls_std.builders.data import build_data
from pycls_std.builders.training import build_all, build_runtime, build_scored_teachers


@pytest.fixture
def said(teacher, tmp_path):
    """Return said(**data): path of the digits teacher's checkpoint, which says this of the data it was trained on."""

    def write(**data):
        state = torch.load(teacher, weights_only=True)
        torch.save(state | {"data": state["data"] | data}, tmp_path / "said.pt")
        return tmp_path / "said.pt"

    return write


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


SWAPPED, MOVED, RENAMED = ["0", "1", "2", "4", "3", *"56789"], [*"012", "one", *"345678"], [*"012", "tres", *"456789"]


@pytest.mark.fault(25)
@pytest.mark.parametrize(
    ("classes", "place", "there", "here"),
    [
        (SWAPPED, 3, "4", "3"),
        (MOVED, 3, "one", "3"),  # a folder was renamed, and sorts elsewhere
    ],
)
def test_a_teacher_whose_classes_have_other_places_is_refused(std, said, classes, place, there, here):
    """It would teach wrong labels: 96 % of right answers became 48."""
    path = said(classes=classes)
    cfg = std(DISTILLATION__TEACHER_WEIGHTS=f"[{path}]")
    told = f"class {place} is {there}, in the data {here}$"
    told = f"^DISTILLATION.TEACHER_WEIGHTS of teacher 0 resnet8: {path} has its classes in another order: {told}"
    with pytest.raises(ValueError, match=told):
        build_all(cfg, build_runtime(cfg))
    with pytest.raises(ValueError, match=told):
        data, runtime = build_data(cfg, train=False), build_runtime(cfg)
        build_scored_teachers(cfg, data=data, runtime=runtime, requests=[], taught_by=None)


@pytest.mark.parametrize(("classes", "told"), [(RENAMED, "tres, in the data 3"), (list("0123456789"), "")])
def test_names_of_a_teachers_classes_that_the_data_has_not_are_told(std, said, caplog, classes, told):
    path = said(classes=classes)
    cfg = std(DISTILLATION__TEACHER_WEIGHTS=f"[{path}]")
    build_all(cfg, build_runtime(cfg))
    label = f"DISTILLATION.TEACHER_WEIGHTS of teacher 0 resnet8: {path}"
    found = [f"{label} has other classes; they are taken to be renamed: {told}"] if told else []
    assert warnings(caplog) == found


@pytest.mark.parametrize(
    ("classes", "told"),
    [
        (SWAPPED, "class 3 4, in the data 3 (2 of 10 differ)"),
        (RENAMED, "class 3 tres, in the data 3 (1 of 10 differ)"),
        (list("0123456789"), ""),
        (["one", "two"], ""),  # the checkpoint's number is another one, which the log says of its classifier
    ],
)
def test_classes_that_the_student_starts_from_and_does_not_have_are_told(load, said, caplog, classes, told):
    path = said(classes=classes)
    cfg = load("debug/teacher_debug", MODEL__WEIGHTS=path)
    build_all(cfg, build_runtime(cfg))
    assert warnings(caplog) == ([f"MODEL.WEIGHTS {path}: trained with {told}"] if told else [])
