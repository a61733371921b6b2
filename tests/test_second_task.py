"""A task with padded images of several sizes, targets that are dictionaries, and a metric over all images at once.

Its four files (tests/second_task) are written into a copy of the tree, and nothing there is edited: engine, runner,
record, resume, processes, check, info, time and tables work for it as they are.
"""

import shutil

import pytest
import torch
from PIL import Image
from records import logged
from test_extending import ROOT, metrics, tree  # noqa: F401  (a fixture)

from pycls_std.core.structures import Padded, mapped, take

FILES = {"rectangles": "datasets", "tiny_detector": "models", "boxes": "tasks", "recall": "metrics"}
CONFIG = ["--cfg", "detector.yaml"]
TRAIN = ["--mode", "train", *CONFIG]
LAST = "TEST.WEIGHTS=teacher/checkpoints/last.pt"


@pytest.fixture
def run(tree, tmp_path):  # noqa: F811
    """Return run(*commands) in a copy of the tree that has the second task."""
    run = tree()
    for name, folder in FILES.items():
        shutil.copy(ROOT / "tests" / "second_task" / f"{name}.py", tmp_path / "pycls_std" / folder)
    shutil.copy(ROOT / "tests" / "second_task" / "detector.yaml", tmp_path)
    return run


@pytest.mark.slow
def test_every_mode_works_for_it(run, tmp_path):
    """A teacher; a student that learns from its features, checked, timed, in bf16, interrupted; test, and the table.

    What it does not read, and terms that need another task, are refused.
    """
    guided = [*CONFIG, "TRAINER=locality", "MODEL.ARGS.width=8", "DISTILLATION.TEACHERS=[tiny_detector]"]
    guided += ["DISTILLATION.TEACHER_WEIGHTS=[teacher/checkpoints/best.pt]", "OPTIM.MAX_EPOCH=2"]
    guided += ["LOCALITY.STUDENT_TAPS=[first, second]", "LOCALITY.TEACHER_TAPS=[first, second]"]
    Image.new("RGB", (40, 32), "red").save(tmp_path / "image.png")
    logits = ["TRAINER=kd", "DISTILLATION.TEACHERS=[tiny_detector]", "DISTILLATION.TEACHER_WEIGHTS=[none.pt]"]
    featured = [*CONFIG, "TRAINER=feature", "MODEL.ARGS.width=8", *guided[4:6], "OPTIM.MAX_EPOCH=1"]
    text, errors = run(
        [*TRAIN, "OUT_DIR=teacher", "TRAIN.EMA_DECAY=0.9", "MODEL.ARGS.width=16"],
        ["--mode", "info", *guided],
        ["--mode", "check", *guided],
        ["--mode", "time", *guided, "TIME.STEPS=1", "TIME.WARMUP=0"],
        ["--mode", "train", *guided, "OUT_DIR=whole"],
        ["--mode", "train", *guided, "OUT_DIR=cut", "OPTIM.SCHEDULE=constant", "OPTIM.MAX_EPOCH=1"],
        ["--mode", "train", *guided, "OUT_DIR=cut", "OPTIM.SCHEDULE=constant"],
        ["--mode", "train", *guided, "OUT_DIR=uncut", "OPTIM.SCHEDULE=constant"],
        ["--mode", "train", *guided, "OUT_DIR=bf16", "PRECISION=bf16"],
        ["--mode", "train", *featured, "FEATURE.LOSS=at", "OUT_DIR=attention"],
        ["predict.py", "--cfg", "teacher/config.yaml", LAST, "image.png", "--threshold=0"],
        ["--mode", "test", *CONFIG, LAST, "TEST.EMA=true"],
        ["make_table.py", "teacher", "whole"],
        ([*TRAIN, "AUG.MIXUP=0.8"], 2),
        ([*TRAIN, "DATA.PER_CLASS=5"], 2),
        ([*TRAIN, *logits], 2),
        (["--mode", "train", *featured, "FEATURE.LOSS=crd"], 2),
        (["--mode", "train", *featured, "FEATURE.LOSS=at", "DISTILLATION.TEACHER_SIZES=[64]", "OUT_DIR=sizes"], 2),
    )
    assert text.count("ok    ") == 8 and "two agree after 3 steps" in text
    assert "ok    terms       class, l1, locality" in text
    assert "teacher 0 tiny_detector: recall" in text
    lines = logged(tmp_path / "teacher")
    assert lines[-1]["test/recall"] > lines[0]["test/recall"] and lines[-1]["train/l1"] < lines[0]["train/l1"]
    assert {"ema/recall", "test/median_miss"} <= lines[-1].keys()
    assert f"* boxes recall {lines[-1]['ema/recall']:6.2f}  median miss" in text.splitlines()[-5]
    assert "predictions/predictions.json: written" in text
    heading = text.splitlines()[-4]
    timeless = [
        {key: value for key, value in metrics(tmp_path, name).items() if "time" not in key and "second" not in key}
        for name in ("cut", "uncut")
    ]
    assert timeless[0] == timeless[1]
    assert metrics(tmp_path, "attention")["train/feature"] > 0
    assert "| recall | median miss | best on test recall (optimistic) |" in heading and "top-1" not in heading
    for line, text in zip(
        errors.splitlines(),
        (
            "AUG.MIXUP is 0.8, which TASK.NAME boxes does not read; it is read with TASK.NAME classification",
            "DATA.PER_CLASS is 5, which TASK.NAME boxes does not read",
            "KD.WEIGHT needs class logits, the task has the heads classes, boxes (TASK.NAME)",
            "FEATURE.LOSS crd needs one class an image, which TASK.NAME has not",
            "DISTILLATION.TEACHER_SIZES is [64], expected []: TASK.NAME boxes shows teachers the student's images",
        ),
        strict=True,
    ):
        assert text in line


def test_parts_of_nests():
    """Tensors, lists and dictionaries, and tuples with names, which keep their kind."""
    pixels, mask = torch.arange(12.0).view(3, 4), torch.ones(3, 4)
    nest = (Padded(pixels, mask), [{"a": 0}, {"a": 1}, {"a": 2}], None, {"scores": torch.arange(3)})
    images, targets, nothing, named = take(nest, [2, 0])
    assert isinstance(images, Padded) and torch.equal(images.pixels, pixels[[2, 0]])
    assert targets == [{"a": 2}, {"a": 0}] and nothing is None and named["scores"].tolist() == [2, 0]
    doubled = mapped(nest, lambda tensor: 2 * tensor)
    assert torch.equal(doubled[0].mask, 2 * mask) and doubled[1] == nest[1]
    assert doubled[3]["scores"].tolist() == [0, 2, 4]
