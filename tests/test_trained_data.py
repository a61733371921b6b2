"""Given weights of other data than the run's: of other classes, or trained on what the run holds out."""

import logging

import pytest
import torch
from image_folders import write_images

from pycls_std import runner
from pycls_std.builders.data import build_data
from pycls_std.builders.training import build_all, build_runtime, build_scored_teachers
from pycls_std.builders.weights import find_weights


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


@pytest.mark.parametrize(
    ("there", "here", "data", "told"),
    [
        (0, 0.1, {}, True),
        (0.1, 0.3, {}, True),
        (0.3, 0.3, {}, False),
        (0.3, 0.1, {}, False),  # which has held out all of these, and more
        (0, 0, {}, False),
        (0, 0.1, {"name": "others"}, False),
        (0, 0.1, {"contents": {"train": "of other files"}}, False),
    ],
)
def test_weights_that_have_seen_held_out_images_are_told_of(load, std, said, caplog, there, here, data, told):
    """Those of a teacher, and those that the student starts from."""
    path = said(**data)
    state = torch.load(path, weights_only=True)
    changed = state["config"].replace("VAL_FRACTION: 0.0", f"VAL_FRACTION: {float(there)}")
    assert (changed != state["config"]) == bool(there)
    torch.save(state | {"config": changed}, path)
    # it may have been trained on fewer images than this run, or on more: that is no matter
    cfg = std(DISTILLATION__TEACHER_WEIGHTS=f"[{path}]", DATA__VAL_FRACTION=here, DATA__PER_CLASS=40)
    build_all(cfg, build_runtime(cfg))
    why = f"it was trained with DATA.VAL_FRACTION {there:g}, here it is {here:g}; scores on them may be too good"
    label = f"DISTILLATION.TEACHER_WEIGHTS of teacher 0 resnet8: {path}"
    assert warnings(caplog) == [f"{label} may have seen held-out images: {why}"] * told
    caplog.clear()
    own = load("debug/teacher_debug", MODEL__WEIGHTS=path, DATA__VAL_FRACTION=here, DATA__PER_CLASS=40)
    build_all(own, build_runtime(own))
    assert warnings(caplog) == [f"MODEL.WEIGHTS {path} may have seen held-out images: {why}"] * told


def test_of_which_files_a_teachers_images_were(load, tmp_path, caplog):
    own = write_images(tmp_path / "data", classes=("cat", "dog", "fox")) | {"TRAIN__BATCH_SIZE": 2}
    runner.train(load("debug/teacher_debug", **own, OPTIM__MAX_EPOCH=1, OUT_DIR=tmp_path / "teacher"))
    path = tmp_path / "teacher" / "checkpoints" / "best.pt"
    own["DATA__ROOT"] = (tmp_path / "data").rename(tmp_path / "moved")
    cfg = load("debug/kd_debug", **own, DATA__VAL_FRACTION=0.25, DISTILLATION__TEACHER_WEIGHTS=f"[{path}]")
    build_all(cfg, build_runtime(cfg))
    assert len(warnings(caplog)) == 1 and "may have seen held-out images" in warnings(caplog)[0]
    caplog.clear()
    (tmp_path / "moved" / "train" / "cat" / "0.png").rename(tmp_path / "moved" / "train" / "cat" / "9.png")
    build_all(cfg, build_runtime(cfg))
    assert warnings(caplog) == []


def test_what_is_no_digest_of_files_is_refused(said):
    with pytest.raises(ValueError, match="said.pt: data.contents.train is "):
        find_weights("resnet8", str(said(contents={"train": 3})))
