"""Predictions of --mode test, from the run to the file and back: each logit is that of a plain forward pass."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from image_folders import write_images
from PIL import Image
from processes import Running, finish, two_ranks
from records import SMALL, logged, words
from test_extending import ROOT, tree  # noqa: F401  (a fixture)

from pycls_std import runner
from pycls_std.builders.data import build_data, build_task
from pycls_std.builders.method import build_backbone, build_student, describe_run
from pycls_std.core import prediction_file
from pycls_std.core.prediction_file import Predictions, packed
from pycls_std.engine import checkpoint
from pycls_std.measure.description import operations
from pycls_std.measure.predictions import predict
from pycls_std.metrics.accuracy import Accuracy
from pycls_std.results import analysis
from pycls_std.run.identity import refuse_other_test_files
from pycls_std.tasks.kept_logits import ordered


@pytest.fixture(scope="module")
def tested(tmp_path_factory, teacher):
    """A recorded STD run of an epoch, whose best checkpoint was tested: its options, its folder, the log."""
    from pycls_std import config

    folder = tmp_path_factory.mktemp("std") / "run"
    own = {"DISTILLATION__TEACHER_WEIGHTS": f"[{teacher}]", "OPTIM__MAX_EPOCH": 1, "OUT_DIR": folder, **SMALL}
    own |= {"TEST__PREDICTION": "cls"}
    runner.run("train", config.load(str(ROOT / "configs" / "debug" / "std_debug.yaml"), words(**own)))
    own = {"TEST__WEIGHTS": folder / "checkpoints" / "best.pt", "TEST__PREDICTIONS": folder / "predictions.npz"}
    cfg = config.load(str(folder / "config.yaml"), words(**own))
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    log = logging.getLogger("pycls_std")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        runner.run("test", cfg)
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    return cfg, folder, "\n".join(lines)


def test_logits_are_those_of_a_plain_forward_pass(tested, teacher):
    """Of the student by its checkpoint, and of the teacher, on the test images in their order."""
    cfg, folder, text = tested
    found = prediction_file.read(folder / "predictions.npz")
    data = build_data(cfg, train=False)
    images = torch.cat([loaded.images for loaded in data.test])
    labels = torch.cat([loaded.targets for loaded in data.test])
    assert found.index.tolist() == list(range(len(images))) == list(range(360))
    assert found.labels.tolist() == labels.tolist() and set(found.paths) == {""}
    student = build_student(cfg, build_backbone(cfg, 10), describe_run(cfg, data.task)).eval()
    state = torch.load(folder / "checkpoints" / "best.pt", weights_only=True)
    student.load_state_dict(state["student"])
    with torch.no_grad():
        output = student(images)
    expected = data.task.predictions(output)
    assert list(found.heads) == list(output.heads) == ["cls", "std0", "std1"]
    assert list(found.predictions) == ["avg", "cls", "dist"]
    for name, logits in (*output.heads.items(),):
        np.testing.assert_allclose(found.heads[name], logits, atol=1e-5)
    for name, logits in expected.items():
        np.testing.assert_allclose(found.predictions[name], logits, atol=1e-5)
    own = build_backbone(_options(teacher), 10).eval()
    weights = torch.load(teacher, weights_only=True)["student"]
    own.load_state_dict({key.removeprefix("backbone."): value for key, value in weights.items()})
    with torch.no_grad():  # folded batch norms, in the file
        np.testing.assert_allclose(found.teachers["0_resnet8"], own(images), atol=1e-3)
    assert f"{folder / 'predictions.npz'}: written, of 360 test images: heads cls, std0, std1; " in text
    hits = float((expected["cls"].argmax(1) == labels).float().mean() * 100)
    assert f"* cls  top-1 {hits:6.2f}" in text


def _options(path):
    from pycls_std.builders.checkpoints import options_of

    return options_of(checkpoint.read(path), str(path))


def test_the_file_says_what_ran(tested):
    cfg, folder, _ = tested
    meta = prediction_file.read(folder / "predictions.npz").meta
    record = json.loads((folder / "run.json").read_text())
    assert meta["name"] == "std_debug" and meta["seed"] == 0 and meta["checkpoint"] == "best.pt"
    assert meta["epoch"] == 1 and meta["trainer"] == "std" and meta["dataset"] == "digits"
    assert meta["classes"] == list("0123456789") and meta["prediction"] == "cls" and meta["image_size"] == 8
    assert meta["parameters"] == record["parameters"] and meta["commit"] == record["starts"][0]["commit"]
    with np.load(folder / "predictions.npz", allow_pickle=False) as file:
        assert {"index", "path", "label", "logits_std1", "pred_dist", "teacher_0_resnet8", "meta"} <= set(file.files)
        assert file["logits_cls"].dtype == np.float32


def test_operations_are_those_of_mode_info(tested, caplog):
    """And of what is deployed, which the class head's prediction needs no tokens for."""
    cfg, folder, _ = tested
    flops = prediction_file.read(folder / "predictions.npz").meta["flops"]
    assert flops == json.loads((folder / "run.json").read_text())["flops"] == operations(build_backbone(cfg, 10), 8)
    runner.run("info", cfg)
    assert f"operations  {flops / 1e9:.3f} GFLOPs for an image forward" in caplog.text
    assert isinstance(flops, int)


def test_a_test_without_the_option_writes_nothing_and_asks_no_teacher(tested, load, tmp_path, caplog, monkeypatch):
    _, folder, text = tested
    monkeypatch.setattr(runner, "keep_predictions", lambda *_, **__: pytest.fail("asked"))
    own = {"DISTILLATION__TEACHER_WEIGHTS": "[gone.pt]", "TEST__PREDICTION": "cls"}
    own |= {"TEST__WEIGHTS": folder / "checkpoints" / "best.pt"}
    runner.run("test", load("debug/std_debug", OUT_DIR=tmp_path, **own))
    scores = [line for line in caplog.messages if "top-1" in line]
    assert scores == [line for line in text.splitlines() if "top-1" in line] and len(scores) == 3
    assert list(tmp_path.iterdir()) == []


def test_what_another_teacher_says_is_not_kept(tested, teacher, load, tmp_path):
    """As of a teacher that was trained anew since, in the same place: its agreement is not that of the run."""
    _, folder, _ = tested
    state = torch.load(teacher, weights_only=True)
    state["student"]["backbone.fc.bias"] += 1
    torch.save(state, tmp_path / "teacher.pt")
    own = {"TEST__WEIGHTS": folder / "checkpoints" / "best.pt", "TEST__PREDICTIONS": tmp_path / "x.npz"}
    cfg = load("debug/std_debug", OUT_DIR=tmp_path, DISTILLATION__TEACHER_WEIGHTS=f"[{tmp_path}/teacher.pt]", **own)
    with pytest.raises(
        ValueError, match="TEACHER_WEIGHTS .*teacher.pt has other weights of teacher 0 resnet8, or another"
    ):
        runner.run("test", cfg)
    args = {"DISTILLATION__TEACHER_WEIGHTS": f"[{teacher}]", "DISTILLATION__TEACHER_ARGS": "[{taps: before_relu}]"}
    with pytest.raises(ValueError, match="resnet8, or another normalisation or other arguments, than taught"):
        runner.run("test", load("debug/std_debug", OUT_DIR=tmp_path, **args, **own))
    assert not (tmp_path / "x.npz").exists()


def test_a_student_that_nobody_taught_agrees_with_no_teacher(teacher, load, tmp_path):
    runner.run("train", load("debug/base_debug", OUT_DIR=tmp_path / "run", OPTIM__MAX_EPOCH=1, **SMALL))
    own = {"TEST__WEIGHTS": tmp_path / "run/checkpoints/best.pt", "TEST__PREDICTIONS": tmp_path / "x.npz"}
    cfg = load("debug/kd_debug", OUT_DIR=tmp_path, DISTILLATION__TEACHER_WEIGHTS=f"[{teacher}]", **own)
    with pytest.raises(ValueError, match="^DISTILLATION.TEACHERS has 1, .*best.pt was taught by 0$"):
        runner.run("test", cfg)
    assert not (tmp_path / "x.npz").exists()


@pytest.mark.parametrize("name, refused", [("data", True), ("other", False)])
def test_predictions_are_of_the_test_images_of_the_run(tmp_path, load, name, refused):
    """Of files that have changed since, in a folder of its name, they would say nothing of the run."""
    own = write_images(tmp_path / name) | {"MODEL__NUM_CLASSES": 0, "TRAIN__BATCH_SIZE": 4}
    own |= {"OUT_DIR": tmp_path / "run", "OPTIM__MAX_EPOCH": 1}
    runner.run("train", load("debug/base_debug", **own))
    (tmp_path / name).rename(tmp_path / "data") if name != "data" else None
    Image.new("RGB", (64, 64)).save(tmp_path / "data" / "val" / "cat" / "0.png")
    own |= {"DATA__ROOT": tmp_path / "data", "TEST__WEIGHTS": tmp_path / "run/checkpoints/last.pt"}
    runner.run("test", load("debug/base_debug", **own))  # its scores are told, and kept nowhere
    cfg = load("debug/base_debug", TEST__PREDICTIONS=tmp_path / "x.npz", **own)
    if refused:
        with pytest.raises(
            ValueError, match="^TEST.PREDICTIONS: .*last.pt was tested on other files: names, labels or"
        ):
            runner.run("test", cfg)
    else:
        runner.run("test", cfg)
    assert (tmp_path / "x.npz").exists() != refused


def test_digests_that_are_none_are_no_absent_ones():
    saved = {"data": {"name": "digits", "contents": {"test": 7}}}
    with pytest.raises(ValueError, match="^last.pt: data.contents.test is "):
        refuse_other_test_files(saved, "digits", {}, "last.pt")


def test_a_student_of_one_head_without_teachers(load, tmp_path):
    """Its only prediction is stored once, by the name of its head; a plain forward pass of the moving average."""
    own = {"OUT_DIR": tmp_path / "run", "OPTIM__MAX_EPOCH": 1, **SMALL}
    runner.run("train", load("debug/base_debug", **own))
    own = {"TEST__WEIGHTS": tmp_path / "run/checkpoints/last.pt", "TEST__EMA": "true"}
    cfg = load("debug/base_debug", TEST__PREDICTIONS=tmp_path / "x.npz", **own)
    runner.run("test", cfg)
    found = prediction_file.read(tmp_path / "x.npz")
    assert found.meta["prediction"] == "cls" and found.meta["ema"] is True and found.teachers == {}
    assert list(found.heads) == list(found.predictions) == ["cls"]
    assert found.predictions["cls"] is found.heads["cls"]
    data = build_data(cfg, train=False)
    student = build_student(cfg, build_backbone(cfg, 10), describe_run(cfg, data.task)).eval()
    state = torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)
    student.load_state_dict(state["ema"])
    with torch.no_grad():
        expected = student(torch.cat([loaded.images for loaded in data.test])).heads["cls"]
    np.testing.assert_allclose(found.heads["cls"], expected, atol=1e-5)
    with np.load(tmp_path / "x.npz") as file:
        assert set(file.files) == {"index", "path", "label", "logits_cls", "meta"}


def test_several_processes_write_what_one_writes(tmp_path):
    """Of five images in files, in batches of two, by one process and by two; paths are relative to DATA.ROOT."""
    for split, count in (("train", 8), ("val", 5)):
        for index in range(count):
            path = tmp_path / "data" / split / ("cat", "dog")[index % 2] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (index * 20, 255 - index * 20, 7)).save(path)
    own = {"DATA__NAME": "image_folder", "DATA__ROOT": tmp_path / "data", "MODEL__NUM_CLASSES": 2}
    own |= {"TRAIN__BATCH_SIZE": 4, "OPTIM__MAX_EPOCH": 1, "TEST__BATCH_SIZE": 2, "OUT_DIR": tmp_path / "run"}
    own |= {"TEST__WEIGHTS": tmp_path / "run/checkpoints/last.pt"}
    base = ["--cfg", "configs/debug/base_debug.yaml", *words(**own)]
    finish(Running(tmp_path, ["--mode", "train", *base]))
    one = Running(tmp_path, ["--mode", "test", *base, f"TEST.PREDICTIONS={tmp_path}/one.npz"])
    two = two_ranks(tmp_path, ["--mode", "test", *base, f"TEST.PREDICTIONS={tmp_path}/two.npz"])
    finish(one, *two)
    first, second = (prediction_file.read(tmp_path / f"{name}.npz") for name in ("one", "two"))
    assert first.paths.tolist() == [f"val/cat/{i}.png" for i in (0, 2, 4)] + [f"val/dog/{i}.png" for i in (1, 3)]
    assert first.labels.tolist() == [0, 0, 0, 1, 1] and first.index.tolist() == [0, 1, 2, 3, 4]
    assert all(np.array_equal(a, b) for a, b in zip(first[:3], second[:3], strict=True))
    np.testing.assert_allclose(first.heads["cls"], second.heads["cls"], atol=1e-6)
    assert np.unique(first.heads["cls"], axis=0).shape == (5, 2)


@pytest.mark.parametrize(
    "name, text",
    [
        ("gone/x.npz", "TEST.PREDICTIONS is gone/x.npz, there is no folder gone"),
        ("best.pt", "TEST.PREDICTIONS is best.pt, expected a name that ends in .npz"),
    ],
)
def test_places_that_cannot_be_written(tmp_path, name, text):
    own = ["--mode", "test", "--cfg", "configs/debug/base_debug.yaml", "TEST.WEIGHTS=none.pt"]
    code, output, errors = Running(tmp_path, [*own, f"TEST.PREDICTIONS={name}"]).end()
    assert (code, output, errors) == (2, "", f"run_net.py: {text}\n")


def test_a_full_disk_leaves_nothing(tested, tmp_path):
    _, folder, _ = tested
    own = ["--mode", "test", "--cfg", str(folder / "config.yaml"), f"TEST.WEIGHTS={folder}/checkpoints/best.pt"]
    limit = {"hook": "processes:limit_file_size", "arguments": (20_000,)}
    code, _, errors = Running(tmp_path / "log", [*own, f"TEST.PREDICTIONS={tmp_path}/x.npz"], **limit).end()
    assert code == 1 and errors.startswith(f"run_net.py: {tmp_path}/x.npz could not be written: ")
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_a_task_that_keeps_none_is_refused(tree, tmp_path):  # noqa: F811
    run = tree()
    for name, folder in {
        "rectangles": "datasets",
        "tiny_detector": "models",
        "boxes": "tasks",
        "recall": "metrics",
    }.items():
        shutil.copy(ROOT / "tests" / "second_task" / f"{name}.py", tmp_path / "pycls_std" / folder)
    shutil.copy(ROOT / "tests" / "second_task" / "detector.yaml", tmp_path)
    own = ["--mode", "test", "--cfg", "detector.yaml", "TEST.WEIGHTS=gone.pt", "TEST.PREDICTIONS=x.npz"]
    _, errors = run((own, 2))
    assert "TEST.PREDICTIONS is x.npz, TASK.NAME boxes keeps no predictions" in errors


# ---------------------------------------------------------------------------------------------------------------- file
META = {"name": "x", "seed": 0, "classes": ["a", "b", "c"], "prediction": "cls"}


def file(**changes):
    """Content of a file of four images."""
    logits = np.arange(12, dtype=np.float32).reshape(4, 3)
    whole = Predictions(np.arange(4), np.array(["é.png"] * 4), np.array([0, 1, 2, 0]), {"cls": logits}, {}, {}, META)
    return packed(whole._replace(**changes))


def test_a_file_is_read_as_it_was_written(tmp_path):
    (tmp_path / "x.npz").write_bytes(file())
    found = prediction_file.read(tmp_path / "x.npz")
    assert found.meta == META | {"format": 1} and found.paths.tolist() == ["é.png"] * 4
    assert found.labels.tolist() == [0, 1, 2, 0] and found.heads["cls"][1].tolist() == [3, 4, 5]


def flipped(content):
    """A file with a bit of its logits flipped."""
    place = content.index(np.arange(12, dtype=np.float32).tobytes())
    return content[: place + 9] + bytes([content[place + 9] ^ 1]) + content[place + 10 :]


def saved(**arrays):
    """Content of any .npz file."""
    import io

    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


BROKEN = np.full((4, 3), np.nan, dtype=np.float32)


@pytest.mark.parametrize(
    "content, text",
    [
        (lambda: b"", "it is damaged, or no file of predictions"),
        (lambda: b"garbage", "it is damaged, or no file of predictions"),
        (lambda: file()[:-100], "it is damaged, or no file of predictions"),
        (lambda: flipped(file()), "it is damaged, or no file of predictions"),
        (lambda: saved(x=np.array([{}], dtype=object)), "it is damaged, or no file of predictions"),
        (lambda: saved(x=np.zeros(3)), "it has no index, path, label, meta"),
        (lambda: file(meta={**META, "format": 2}), "its format is 2, this program reads 1"),
        (lambda: file(meta={"name": "x"}), "meta does not say seed, classes, prediction"),
        (lambda: file(meta=META | {"prediction": "avg"}), "it has no prediction avg, which counts"),
        (lambda: file(labels=np.arange(5)), "index, path and label are not one of each image"),
        (lambda: file(labels=np.arange(4)), "its labels are 0 to 3, of 3 classes"),
        (lambda: file(heads={"cls": np.zeros((4, 2), np.float32)}), "expected logits (4, 3)"),
        (lambda: file(heads={"cls": BROKEN}), "logits_cls has values that are not finite"),
    ],
)
def test_files_that_are_none(tmp_path, content, text):
    path = tmp_path / "x.npz"
    path.write_bytes(content())
    with pytest.raises(ValueError) as caught:
        prediction_file.read(path)
    assert str(caught.value).startswith(f"{path}: ") and text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_array_file_is_no_file_of_predictions(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(ValueError, match="x.npy: it is damaged, or no file of predictions .it is one array"):
        prediction_file.read(tmp_path / "x.npy")


def test_a_signal_ends_it(tested, monkeypatch):
    from pycls_std.builders.training import build_runtime
    from pycls_std.process import signals

    cfg, _, _ = tested
    data = build_data(cfg, train=False)
    student = build_student(cfg, build_backbone(cfg, 10), describe_run(cfg, build_task(cfg, 10)))
    monkeypatch.setattr(signals, "pending", lambda: 15)
    with pytest.raises(signals.Stopped):
        predict(student, [], data.task.keeper(data.info), data.test, build_runtime(cfg))


def test_equal_logits_are_kept_in_the_order_that_metrics_see():
    """As bf16 leaves them: each file's scores are the metrics' to the image, and logits move by 5 units at most."""
    draws = torch.Generator().manual_seed(0)
    logits = (torch.randn(2000, 10, generator=draws) * 2).round() / 2
    labels = torch.randint(0, 10, (2000,), generator=draws)
    expected = Accuracy().each(logits, labels)
    found = ordered(logits)
    assert (logits.argmax(1) != found.argmax(1)).any() or (found != logits).any()
    ranked = found.numpy()
    assert [len(set(row[row.argsort()[-6:]])) for row in ranked] == [6] * 2000
    scores = analysis.scores(ranked, labels.numpy())
    assert scores["top1"] == pytest.approx(float(expected["top1"].mean()), abs=1e-4)
    assert scores["top5"] == pytest.approx(float(expected["top5"].mean()), abs=1e-4)
    torch.testing.assert_close(found, logits, rtol=1e-6, atol=1e-40)
    untied = torch.randn(50, 3, generator=draws)
    assert torch.equal(ordered(untied), untied)
    assert ordered(torch.zeros(1, 2)).unique().numel() == 2


def test_scores_of_a_file_are_those_of_the_run_in_bf16(load, tmp_path, caplog):
    own = {"OUT_DIR": tmp_path / "run", "OPTIM__MAX_EPOCH": 1, "PRECISION": "bf16"}
    runner.run("train", load("debug/base_debug", **own))
    (recorded,) = logged(tmp_path / "run")
    own |= {"TEST__WEIGHTS": tmp_path / "run/checkpoints/last.pt", "TEST__PREDICTIONS": tmp_path / "x.npz"}
    runner.run("test", load("debug/base_debug", **own))
    scores = analysis.analyze(prediction_file.read(tmp_path / "x.npz"))["predictions"]["cls"]
    assert scores["top1"] == pytest.approx(recorded["test/top1"], abs=1e-4)
    assert scores["top5"] == pytest.approx(recorded["test/top5"], abs=1e-4)
    assert scores["loss"] == pytest.approx(recorded["test/loss"], abs=1e-5)
