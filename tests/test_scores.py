"""test.json, which --mode test writes on request: the scores that it tells, and what was tested."""

import json
import re

import pytest
import torch
from image_folders import write_images
from PIL import Image
from processes import Running, finish, two_ranks
from records import SMALL, logged

from pycls_std import config, runner
from pycls_std.builders.data import build_data, training_images
from pycls_std.builders.method import build_backbone, build_student, describe_run


@pytest.fixture
def tested(std, caplog):
    """Options of a test of an STD run of an epoch, the folder of its checkpoints, and what the test told."""
    cfg = std(OPTIM__MAX_EPOCH=1, **SMALL)
    runner.run("train", cfg)
    cfg.defrost()
    cfg.TEST.WEIGHTS, cfg.TEST.JSON = f"{cfg.OUT_DIR}/checkpoints/best.pt", True
    caplog.clear()
    runner.run("test", cfg)
    return cfg, caplog.messages


def test_scores_are_those_of_a_plain_forward_pass_and_of_the_messages(tested, tmp_path):
    cfg, messages = tested
    found = json.loads((tmp_path / "run/checkpoints/test.json").read_text())
    scores = found.pop("scores")
    commit = json.loads((tmp_path / "run/run.json").read_text())["starts"][0]["commit"]
    origin = {"name": "std_debug", "seed": 0, "checkpoint": "best.pt", "ema": False, "epoch": 1, "commit": commit}
    assert found == origin | {"dataset": "digits", "split": "test", "images": 360, "prediction": "avg"}
    data = build_data(cfg, train=False)
    student = build_student(cfg, build_backbone(cfg, 10), describe_run(cfg, data.task)).eval()
    student.load_state_dict(torch.load(cfg.TEST.WEIGHTS, weights_only=True)["student"])
    batches = list(data.test)
    labels = torch.cat([loaded.targets for loaded in batches])
    with torch.no_grad():
        expected = data.task.predictions(student(torch.cat([loaded.images for loaded in batches])))
    assert list(scores) == list(expected) == ["avg", "cls", "dist"]
    for name, logits in expected.items():
        assert scores[name]["top1"] == pytest.approx(float((logits.argmax(1) == labels).double().mean() * 100))
        line = next(line for line in messages if re.search(rf" {name} +top-1", line))
        assert f"top-1 {scores[name]['top1']:6.2f}" in line and line.startswith("*") == (name == "avg")


def test_the_images_of_training_and_those_held_out_are_scored_on_request(load, tmp_path):
    """As the run itself split them, each once, as the test transform shows them."""
    own = {"DATA__VAL_FRACTION": 0.25, "OUT_DIR": tmp_path / "run", "OPTIM__MAX_EPOCH": 1, "TEST__JSON": True, **SMALL}
    cfg = load("debug/base_debug", **own)
    runner.run("train", cfg)
    cfg.defrost()
    cfg.TEST.WEIGHTS = f"{cfg.OUT_DIR}/checkpoints/last.pt"
    (last,) = logged(tmp_path / "run")
    data = build_data(cfg)
    student = build_student(cfg, build_backbone(cfg, 10), describe_run(cfg, data.task)).eval()
    student.load_state_dict(torch.load(cfg.TEST.WEIGHTS, weights_only=True)["student"])
    for split, images in (("held-out", 359), ("train", 130)):
        cfg.TEST.SPLIT = split
        runner.run("test", cfg)
        found = json.loads((tmp_path / "run/checkpoints/test.json").read_text())
        assert (found["split"], found["images"]) == (split, images)
        if split == "held-out":
            assert found["scores"]["cls"]["top1"] == pytest.approx(last["val/top1"])
    images = training_images(cfg)
    transform = data.task.pipeline(normalization=data.normalization).test_transform()
    with torch.no_grad():
        logits = data.task.predictions(student(torch.stack([transform(*pair)[0] for pair in images])))["cls"]
    hits = logits.argmax(1) == torch.tensor([label for _, label in images])
    assert found["scores"]["cls"]["top1"] == pytest.approx(float(hits.double().mean() * 100))
    cfg.TEST.PREDICTIONS = str(tmp_path / "predictions.npz")
    with pytest.raises(ValueError, match="TEST.PREDICTIONS are of the test split, TEST.SPLIT is train"):
        runner.run("test", cfg)
    cfg.TEST.PREDICTIONS, cfg.TEST.SPLIT, cfg.DATA.VAL_FRACTION = "", "held-out", 0.0
    with pytest.raises(config.ConfigError, match="TEST.SPLIT is held-out, DATA.VAL_FRACTION is 0"):
        runner.run("test", cfg)
    cfg.DATA.VAL_FRACTION = 0.1
    with pytest.raises(ValueError, match="last.pt was trained on other images: DATA.VAL_FRACTION was 0.25, is 0.1$"):
        runner.run("test", cfg)
    cfg.TEST.SPLIT = "test"
    runner.run("test", cfg)


def test_the_images_of_training_are_not_scored_where_their_files_have_changed(load, tmp_path):
    """Of other files others would be held out, and images that were trained on scored as held out."""
    own = write_images(tmp_path / "data") | {"DATA__VAL_FRACTION": 0.25, "TRAIN__BATCH_SIZE": 2, "OPTIM__MAX_EPOCH": 1}
    cfg = load("debug/base_debug", **own, OUT_DIR=tmp_path / "run")
    runner.train(cfg)
    cfg.defrost()
    path = cfg.TEST.WEIGHTS = f"{cfg.OUT_DIR}/checkpoints/best.pt"
    state = torch.load(path, weights_only=True)
    older = state | {"data": {key: value for key, value in state["data"].items() if key != "contents"}}
    for cfg.TEST.SPLIT, saved in (("held-out", state), ("train", older)):
        torch.save(saved, path)
        runner.test(cfg)
    for number in range(4, 8):
        Image.new("RGB", (8, 8), (9, 9, number)).save(tmp_path / "data" / "train" / "cat" / f"{number}.png")
    for split, saved, told in (
        ("held-out", state, "was trained on other files: names, labels or sizes of those in DATA.ROOT have changed"),
        ("train", state, "was trained on other files"),
        ("held-out", older, "is of a run with 2 such images, now 3"),
        ("train", older, "is of a run with 6 such images, now 9"),
    ):
        torch.save(saved, path)
        cfg.TEST.SPLIT = split
        with pytest.raises(ValueError, match=f"^TEST.SPLIT {split}: {path} {told}"):
            runner.test(cfg)
    cfg.TEST.SPLIT = "test"  # whose files are as they were
    runner.test(cfg)


def test_a_later_test_replaces_it_and_one_without_the_option_does_not(tested, tmp_path):
    """Of the moving average, by the checkpoint to continue from."""
    cfg, _ = tested
    path = tmp_path / "run/checkpoints/test.json"
    before = path.read_bytes()
    cfg.TEST.WEIGHTS, cfg.TEST.EMA, cfg.TEST.JSON = f"{cfg.OUT_DIR}/checkpoints/last.pt", True, False
    runner.run("test", cfg)
    assert path.read_bytes() == before
    cfg.TEST.JSON = True
    runner.run("test", cfg)
    found = json.loads(path.read_text())
    assert (found["checkpoint"], found["ema"], found["epoch"]) == ("last.pt", True, 1)
    assert {entry.name for entry in path.parent.iterdir()} == {"best.pt", "last.pt", "test.json"}
    runner.run("train", cfg)  # finished, and its folder is still taken for its own


def test_several_processes_write_one_file(tested, tmp_path):
    cfg, _ = tested
    path = tmp_path / "run/checkpoints/test.json"
    alone = json.loads(path.read_text())
    path.unlink()
    own = ["--mode", "test", "--cfg", f"{cfg.OUT_DIR}/config.yaml", f"TEST.WEIGHTS={cfg.TEST.WEIGHTS}"]
    finish(*two_ranks(tmp_path / "log", [*own, "TEST.JSON=true"]))
    found = json.loads(path.read_text())
    for name, scores in found.pop("scores").items():
        assert scores == pytest.approx(alone["scores"][name], abs=1e-4)
    assert found.items() <= alone.items()


def test_weights_that_do_not_say_where_they_come_from(load, tmp_path):
    cfg = load("debug/base_debug", TEST__WEIGHTS=tmp_path / "plain.pt", TEST__JSON="true")
    torch.save(build_backbone(cfg, 10).state_dict(), tmp_path / "plain.pt")
    runner.run("test", cfg)
    found = json.loads((tmp_path / "test.json").read_text())
    assert found["epoch"] is None and list(found["scores"]) == ["cls"]


def test_a_file_of_somebody_else_is_not_replaced(tested, tmp_path):
    cfg, _ = tested
    path = tmp_path / "run/checkpoints/test.json"
    for content in ("[1, 2]", '{"images": []}', "?"):
        path.write_text(content)
        with pytest.raises(ValueError, match="TEST.JSON would replace .*test.json, which no test wrote: move it away"):
            runner.run("test", cfg)
        assert path.read_text() == content


def test_predictions_do_not_replace_it(tmp_path):
    """COCO's results end in .json, too."""
    own = ["--mode", "test", "--cfg", "configs/vidt/swin-nano_coco_base.yaml", f"TEST.WEIGHTS={tmp_path}/x.pt"]
    own += [f"TEST.PREDICTIONS={tmp_path}/test.json", "TEST.JSON=true"]
    code, _, errors = Running(tmp_path / "log", own).end()
    text = f"run_net.py: TEST.PREDICTIONS is {tmp_path}/test.json, the file of TEST.JSON: choose another name\n"
    assert (code, errors) == (2, text)


def test_a_full_disk_leaves_nothing(tested, tmp_path):
    cfg, _ = tested
    path = tmp_path / "run/checkpoints/test.json"
    path.unlink()
    own = ["--mode", "test", "--cfg", f"{cfg.OUT_DIR}/config.yaml", f"TEST.WEIGHTS={cfg.TEST.WEIGHTS}"]
    limit = {"hook": "processes:limit_file_size", "arguments": (400,)}  # what it says in its log ends there, too
    process = Running(tmp_path / "log", [*own, "TEST.JSON=true"], **limit)
    code, _, errors = process.end()
    assert (code, errors.split(": ")[1]) == (1, f"{path} could not be written")
    assert {entry.name for entry in path.parent.iterdir()} == {"best.pt", "last.pt"}
