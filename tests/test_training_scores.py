"""Accuracy on the training views, logged where labels are unmixed: that of a plain count, at no wait for the device."""

import pytest
import torch
from records import SMALL, logged
from waits import NoReads

from pycls_std import runner
from pycls_std.builders.training import build_all, build_runtime
from pycls_std.core.meters import Meters
from pycls_std.core.structures import Progress
from pycls_std.engine import loop
from pycls_std.engine.runtime import Runtime

UNMIXED = {"AUG__MIXUP": 0, "AUG__CUTMIX": 0, **SMALL}


@pytest.mark.parametrize("name", ["avg", "cls", "dist"])
@pytest.mark.parametrize("parts", [1, 2])
def test_it_is_the_share_of_the_views_that_the_prediction_names_rightly(std, monkeypatch, name, parts):
    """In parts of a batch, too; labels are smoothed, and count as they are."""
    own = {"TEST__PREDICTION": name, "TRAIN__ACCUMULATE": parts, "AUG__LABEL_SMOOTHING": 0.1, "MINE__SAMPLES": 0}
    cfg = std(**UNMIXED, **own)
    session, *_ = build_all(cfg, build_runtime(cfg))
    hits, labels, step = [], [], loop.train_step

    def noted(session, batch, progress):
        labels.append(batch.loaded.targets)
        return step(session, batch, progress)

    def count(student, _, output):
        if student.training:
            logits = {"cls": output.heads["cls"], "dist": (output.heads["std0"] + output.heads["std1"]) / 2}
            logits["avg"] = logits["cls"] / 2 + logits["dist"] / 2
            hits.append(logits[name].argmax(dim=1))

    monkeypatch.setattr(loop, "train_step", noted)
    session.trainer.student.register_forward_hook(count)
    values = loop.train_epoch(session, 0)
    assert len(hits) == parts * len(labels) == parts * 8
    expected = 100 * float((torch.cat(hits) == torch.cat(labels)).double().mean())
    assert values["train/top1"] == pytest.approx(expected) and 0 < expected < 100


def test_it_is_recorded_and_told_beside_that_of_the_test(load, tmp_path, caplog):
    runner.run("train", load("debug/base_debug", OUT_DIR=tmp_path / "run", OPTIM__MAX_EPOCH=2, **UNMIXED))
    lines = logged(tmp_path / "run")
    assert [set(line) >= {"train/top1", "test/top1", "train/ce"} for line in lines] == [True, True]
    told = [message for message in caplog.messages if message.startswith("epoch 2/2  loss ")]
    train, test = (f"{lines[1][f'{split}/top1']:.2f}" for split in ("train", "test"))
    assert len(told) == 1 and f"  train top-1 {train}  top-1 {test}  " in told[0]
    assert lines[1]["train/loss"] == lines[1]["train/ce"]  # it is no part of the sum


@pytest.mark.parametrize("mixing", ["MIXUP", "CUTMIX"])
def test_nothing_is_recorded_where_labels_are_mixed(load, tmp_path, caplog, mixing):
    own = UNMIXED | {f"AUG__{mixing}": 0.5, "AUG__MIX_PROB": 0.5, "OPTIM__MAX_EPOCH": 1}
    runner.run("train", load("debug/base_debug", OUT_DIR=tmp_path / "run", **own))
    assert not [key for line in logged(tmp_path / "run") for key in line if key == "train/top1"]
    assert "train top-1" not in caplog.text


def test_a_step_waits_for_nothing(std):
    cfg = std(MINE__SAMPLES=0, **UNMIXED)
    session, *_ = build_all(cfg, Runtime(device="cpu", lag=100))
    session.trainer.student.train()
    loaded, meters = next(iter(session.train_loader)), Meters()
    with NoReads():
        batch = session.task.batch(session.runtime.to_device(loaded), Progress(0, 0, 8, 3))
        losses, _ = loop.train_step(session, batch, Progress(0, 0, 8, 3))
        meters.add(losses | session.trainer.monitors, len(loaded.index))
    assert "top1" in meters.sums
