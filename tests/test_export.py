"""tools/export.py: files that other programs load say what the student says, for batches of any size."""

import contextlib
import json
import re
from importlib.util import find_spec

import pytest
import torch
from backbones import build
from processes import ROOT, called
from records import logged
from safetensors.torch import load_file

from pycls_std import config, runner
from pycls_std.builders.training import build_described_trainer
from pycls_std.export import onnx_file
from pycls_std.export.deployed import CLOSE, difference, exported, some_images
from pycls_std.export.plain_timm import plain_timm

PLAIN = ("--formats", "pt2,safetensors")
ABSENT = [name for name in onnx_file.PACKAGES if find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(ABSENT), reason=f"pip install {' '.join(ABSENT)}")


@pytest.fixture(scope="module")
def run(teacher, tmp_path_factory):
    """The folder of an STD run of an epoch."""
    folder = tmp_path_factory.mktemp("run")
    words = [f"DISTILLATION.TEACHER_WEIGHTS=[{teacher}]", f"OUT_DIR={folder}", "OPTIM.MAX_EPOCH=1", "DEVICE=cpu"]
    runner.train(config.load("configs/debug/std_debug.yaml", [*words, "OPTIM.WARMUP_EPOCHS=0", "DATA.PER_CLASS=20"]))
    return folder


def written(folder, *words):
    """Call the tool; returns the card."""
    code, output, errors = called("tools/export.py", *words, "--out", folder)
    assert (code, errors) == (0, ""), errors
    names = {path.name for path in folder.iterdir()}
    assert len(output.splitlines()) == len(names) and "README.md" in names
    return (folder / "README.md").read_text()


def of(run):
    return "--cfg", run / "config.yaml", f"TEST.WEIGHTS={run / 'checkpoints' / 'best.pt'}"


def heads_of(run, images):
    """All heads of the student of a run, built and loaded here."""
    cfg = config.load(str(run / "config.yaml"), [])
    student = build_described_trainer(cfg, 10)[0].student
    student.load_state_dict(torch.load(run / "checkpoints" / "best.pt", weights_only=True)["student"])
    with torch.no_grad():
        return student.eval()(images).heads


def plain_file(cfg, path):
    """Write random weights of the student of options to a file."""
    torch.manual_seed(0)
    student = build_described_trainer(cfg, cfg.MODEL.NUM_CLASSES)[0].student
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)  # classifiers of zeros say nothing
    torch.save(student.backbone.state_dict(), path)
    return path


# ---------------------------------------------------------------------------------------------------------------- files
def test_a_branch_that_predicts_is_kept(run, tmp_path):
    card = written(tmp_path / "out", *of(run), *PLAIN)
    program = torch.export.load(tmp_path / "out" / "model.pt2").module()
    for batch in (1, 2, 7):  # one was not tried by the tool
        images = some_images(batch, 8)
        heads = heads_of(run, images)
        dist = torch.stack([value for name, value in heads.items() if name != "cls"]).mean(dim=0)
        torch.testing.assert_close(program(images), (heads["cls"] + dist) / 2, rtol=1e-5, atol=1e-5)
    state = torch.load(run / "checkpoints" / "best.pt", weights_only=True)["student"]
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == state.keys() and all(torch.equal(found[key], state[key]) for key in state)
    line = logged(run)[-1]
    start = json.loads((run / "run.json").read_text())["starts"][0]
    for text in ("`avg`", "digits", "resnet8, ", f"top-1 {line['test/top1']:.2f}", start["commit"], "1 of 1"):
        assert text in card
    assert "timm alone does not" in card and "`branches.`" in card
    backbone = after_the_cards_code(card, tmp_path / "out")["model"]
    torch.testing.assert_close(backbone(images), heads["cls"], rtol=1e-5, atol=1e-5)


def test_the_record_of_a_run_is_found_by_what_a_run_is(run, tmp_path, monkeypatch):
    """It may have been continued with another option of those that are free; of another seed it is another run."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import export

    text = (run / "config.yaml").read_text()
    saved = {"config": text}
    for name in ("metrics.jsonl", "run.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    for old, new, known in (("LOG_PERIOD: 0", "LOG_PERIOD: 7", 1), ("SEED: 0", "SEED: 5", 0)):
        assert f"\n{old}\n" in f"\n{text}"
        (tmp_path / "config.yaml").write_text(text.replace(old, new))
        record, lines = export.record_of(tmp_path, saved)
        assert (len(lines), bool(record.get("starts"))) == (known, bool(known))


def test_a_branch_that_does_not_predict_is_dropped(run, tmp_path):
    card = written(tmp_path / "out", *of(run), *PLAIN, "TEST.PREDICTION=cls")
    program = torch.export.load(tmp_path / "out" / "model.pt2")
    assert not any("branches" in key for key in program.state_dict)
    images = some_images(3, 8)
    torch.testing.assert_close(program.module()(images), heads_of(run, images)["cls"], rtol=1e-5, atol=1e-5)
    names = load_file(tmp_path / "out" / "model.safetensors").keys()
    assert not any(name.startswith(("branches", "backbone")) for name in names)
    line = logged(run)[-1]
    assert f"top-1 {line['test/cls_top1']:.2f}" in card and "branches" not in card
    names = after_the_cards_code(card, tmp_path / "out")
    torch.testing.assert_close(names["model"](images), heads_of(run, images)["cls"], rtol=1e-5, atol=1e-5)
    assert names["logits"].shape == (2, 10)  # of the program


def after_the_cards_code(card, folder):
    """The names that there are once all code of a card ran in its folder."""
    names = {}
    with contextlib.chdir(folder):
        for code in re.findall(r"```python\n(.*?)```", card, re.S):
            exec(code, names)
    return names


def two_heads(tmp_path, prediction, *more):
    """Options of a DeiT with two heads, and its weights; it is timm's unless told otherwise."""
    words = [*more, "MODEL.ARGS.depth=1", "MODEL.ARGS.embed_dim=24", "NAME=deit-tried", f"TEST.PREDICTION={prediction}"]
    words += ["DISTILLATION.TEACHER_WEIGHTS=[published:cifar100_resnet56]"]
    path = "configs/digits/deit-nano_digits_both.yaml"
    weights = plain_file(config.load(path, words), tmp_path / "plain.pt")
    return "--cfg", path, *words, f"TEST.WEIGHTS={weights}"


@pytest.mark.parametrize("prediction", ["avg", "cls"])
@pytest.mark.parametrize("model", ["", "deit_ti_conv"])
def test_a_student_is_made_by_the_code_of_its_card_or_the_card_says_that_it_is_not(tmp_path, model, prediction):
    words = two_heads(tmp_path, prediction, *[f"MODEL.NAME={model}"] * bool(model))
    card = written(tmp_path / "out", *words, *PLAIN)
    code = re.findall(r"```python\n(.*?)```", card, re.S)[-1]
    assert ("pycls_std" in code, "import timm" in code) == ((True, False) if model else (False, True))
    names = {}
    with contextlib.chdir(tmp_path / "out"):
        exec(code, names)
    program = torch.export.load(tmp_path / "out" / "model.pt2").module()
    apart = difference(program, names["model"], 16)
    assert (apart <= CLOSE) == (prediction == "avg")  # what both backbones predict by themselves
    assert ("it says what the student says" in card) == (prediction == "avg")
    assert ("it averages both heads" in card) == (prediction == "cls")


@pytest.mark.parametrize(("ratio", "fit"), [(0.9, "crop"), (0.9, "squash"), (1.0, "crop"), (1.0, "squash")])
def test_the_card_says_what_the_test_transform_does(load, ratio, fit):
    from torchvision.transforms import CenterCrop, Resize

    from pycls_std.datasets.transforms import test_pixels
    from tools.export import resized

    cfg = load("debug/base_debug", DATA__CROP_RATIO=ratio, DATA__FIT=fit, DATA__IMAGE_SIZE=224)
    steps = test_pixels(224, ratio, cfg.DATA.INTERPOLATION, fit).transforms
    (size,) = (step.size for step in steps if isinstance(step, Resize))
    both = isinstance(size, (tuple, list)) and len(size) == 2
    said = resized(cfg.DATA)
    assert said.startswith("both sides are" if both else "the shorter side is")
    assert f" resized to {size[0] if both else size} (" in said
    assert said.endswith("the centre cut out") == any(isinstance(step, CenterCrop) for step in steps)


def test_what_only_this_project_makes():
    sizes = {"num_classes": 10, "image_size": 32, "drop_path": 0.1}
    assert plain_timm("mixer_s4", **sizes) is None
    assert plain_timm("vit_tiny_patch16_224", norm_eps=1e-5, **sizes) is None
    assert plain_timm("deit_tiny_distilled_patch16_224", image_token=True, **sizes) is None
    own = {"model_name": "vit_tiny_patch16_224", "num_classes": 10, "img_size": 32, "patch_size": 4}
    assert plain_timm("vit_tiny_patch16_224", patch_size=4, **sizes) == own
    assert plain_timm("vit_tiny_patch16_224", norm_eps=1e-6, patch_size=4, **sizes) == own  # which is its own
    for norm_eps in (0.0, 1e-5):  # of what it has not
        plain = {"model_name": "resnet18", "num_classes": 10}
        assert plain_timm("resnet18", norm_eps=norm_eps, **sizes) == plain


SMALL = {
    "deit_ti_conv": {"depth": 1},
    "t2t_vit_7": {"depth": 1},
    "pvt_tiny": {"depths": [1, 1, 1, 1]},
    "cvt_13": {"depths": [1, 1, 1]},
}


@pytest.mark.parametrize("name", SMALL)
def test_class_tokens_are_for_any_batch(name):
    backbone = build(name, **SMALL[name]).eval()
    assert difference(backbone, exported(backbone, 32).module(), 32) <= CLOSE


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["std", "deit"])
def test_onnxruntime_says_what_the_student_says(run, tmp_path, kind):
    import onnxruntime

    words, size = (of(run), 8) if kind == "std" else (two_heads(tmp_path, "avg"), 16)
    card = written(tmp_path / "out", *words, "--formats", "pt2,onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"])
    program = torch.export.load(tmp_path / "out" / "model.pt2").module()
    for batch in (1, 3, 8):
        images = some_images(batch, size)
        found = session.run(["logits"], {"images": images.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(found), program(images), rtol=1e-4, atol=1e-4)
    assert "onnxruntime.InferenceSession('model.onnx'" in card and "safetensors" not in card


# ------------------------------------------------------------------------------------------------------------- mistakes
def test_without_the_extra_one_line_says_what_is_absent(run, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None if name == "onnxruntime" else True)
    code, output, errors = called("tools/export.py", *of(run), "--out", tmp_path / "out")
    assert (code, output, errors.count("\n")) == (1, "", 1)
    assert "ONNX needs onnxruntime, not installed here: pip install onnxruntime; --formats" in errors
    assert not (tmp_path / "out").exists()


def test_mistakes_are_one_line(run, tmp_path):
    def refused(*words, code):
        found, output, errors = called("tools/export.py", *words, "--out", tmp_path / "out")
        assert (found, output) == (code, "")
        return errors.splitlines()[-1]

    assert "TEST.WEIGHTS is empty" in refused("--cfg", run / "config.yaml", code=2)
    assert "--formats has tflite" in refused(*of(run), "--formats", "tflite", code=2)
    assert "STD.TOKENS" in refused(*of(run), *PLAIN, "STD.TOKENS=spatial", "MINE.SAMPLES=0", code=1)
    words = ("--cfg", "configs/debug/detection_debug.yaml", f"TEST.WEIGHTS={run / 'checkpoints' / 'best.pt'}")
    assert "export.py writes classifiers" in refused(*words, *PLAIN, code=2)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.pt2").write_text("mine")
    assert "model.pt2 is there already" in refused(*of(run), *PLAIN, code=1)
    assert (tmp_path / "out" / "model.pt2").read_text() == "mine"
