"""Weights as other programs leave them: safetensors, wrappers, prefixes, the Hugging Face hub; forms that are none."""

import argparse
import json

import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub.errors import EntryNotFoundError
from processes import ROOT, called
from records import Malice
from timm.models import save_for_hf

from pycls_std import config, runner
from pycls_std.builders import weights
from pycls_std.core.structures import Normalization
from pycls_std.engine import checkpoint
from pycls_std.models.create import create_backbone


@pytest.fixture(scope="module")
def state():
    """Weights of a ResNet-8 with 10 classes."""
    return create_backbone("resnet8", num_classes=10, image_size=8).state_dict()


def assert_found(path, state):
    """Fail unless a file gives just these weights to a student or teacher, and to a test."""
    found = weights.find_weights("resnet8", str(path)).state
    assert found.keys() == state.keys() and all(torch.equal(found[key], state[key]) for key in state)
    tested, said = weights.student_weights(path, ema=False)
    assert (tested.keys(), said) == ({f"backbone.{key}" for key in state}, {})


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "backbone.", "model.", "module.backbone.", "model._orig_mod.", "_orig_mod.", "_orig_mod.module."],
)
def test_names_of_wrapped_modules(state, tmp_path, prefix):
    torch.save({f"{prefix}{key}": value for key, value in state.items()}, tmp_path / "a.pt")
    assert_found(tmp_path / "a.pt", state)
    safetensors.torch.save_file({f"{prefix}{key}": value for key, value in state.items()}, tmp_path / "a.safetensors")
    assert_found(tmp_path / "a.safetensors", state)


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state", "net", "state_dict_ema", "model_ema"])
def test_wrappers(state, tmp_path, wrapper, caplog):
    content = {"epoch": 3, "arch": "resnet8", wrapper: {f"module.{key}": value for key, value in state.items()}}
    torch.save(content, tmp_path / "a.pth")
    assert_found(tmp_path / "a.pth", state)
    assert f"a.pth: its weights are those under {wrapper}" in caplog.text


def test_of_two_the_moving_average_as_timm_takes_it(state, tmp_path):
    zeros = {key: torch.zeros_like(value) for key, value in state.items()}
    torch.save({"state_dict": zeros, "state_dict_ema": state}, tmp_path / "a.pth.tar")
    assert_found(tmp_path / "a.pth.tar", state)
    theirs = timm.models.load_state_dict(str(tmp_path / "a.pth.tar"))
    assert all(torch.equal(theirs[key], state[key]) for key in state)


def test_of_a_student_with_branches_the_backbone_alone(state, tmp_path):
    whole = {f"backbone.{key}": value for key, value in state.items()} | {"branches.std.x": torch.zeros(1)}
    torch.save(whole, tmp_path / "a.pt")
    assert weights.find_weights("resnet8", str(tmp_path / "a.pt")).state.keys() == state.keys()
    assert weights.student_weights(tmp_path / "a.pt", ema=False)[0].keys() == whole.keys()


def test_a_model_whose_own_names_begin_so_keeps_them(state, tmp_path):
    names = {"backbone.a": torch.zeros(1), "transformer.b": torch.zeros(1)}
    torch.save(names, tmp_path / "a.pt")
    assert weights.find_weights("resnet8", str(tmp_path / "a.pt")).state.keys() == names.keys()


def test_safetensors_that_are_none(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"\x00" * 64)
    with pytest.raises(checkpoint.Damaged, match="a.safetensors is corrupt or no checkpoint"):
        weights.find_weights("resnet8", str(tmp_path / "a.safetensors"))
    with pytest.raises(ValueError, match="there is no checkpoint .*b.safetensors"):
        weights.find_weights("resnet8", str(tmp_path / "b.safetensors"))


@pytest.mark.parametrize("content", [b"hello\n", b"epoch 1\n", b"", b"\x80\x02"])
def test_a_file_that_is_no_weights_is_told_in_words(tmp_path, content):
    """Of text, torch told the code of a letter."""
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(checkpoint.Damaged, match="a.pt is corrupt or no checkpoint: it is no file of weights$"):
        checkpoint.read(tmp_path / "a.pt")


def test_of_a_truncated_file_the_first_sentence_alone_is_told(tmp_path):
    torch.save({"a": torch.zeros(1000)}, tmp_path / "a.pt")
    (tmp_path / "a.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:2000])
    with pytest.raises(checkpoint.Damaged, match="a.pt is corrupt or no checkpoint: .*central directory$"):
        checkpoint.read(tmp_path / "a.pt")


def test_a_file_within_itself(tmp_path):
    content = {"epoch": 1}
    content["model"] = content
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="a.pt is neither a checkpoint"):
        weights.find_weights("resnet8", str(tmp_path / "a.pt"))


@pytest.mark.parametrize("kind", ["objects", "another entry"])
def test_what_is_not_read_names_the_command_that_makes_it_readable(state, tmp_path, monkeypatch, kind):
    """The command is run as it is told, and what it writes is read."""
    monkeypatch.chdir(tmp_path)
    beside = {"options": Malice(tmp_path / "ran"), "state_dict": state}
    torch.save(beside if kind == "objects" else {"epoch": 1, "ema weights": state}, tmp_path / "a b.pt")
    path = tmp_path / "a b.pt"
    with pytest.raises(ValueError) as error:
        weights.find_weights("resnet8", str(path))
    key = "" if kind == "objects" else " --key 'ema weights'"
    assert f"python {ROOT}/tools/import_weights.py '{path}' NEW.pt{key} makes" in str(error.value)
    options = ["--key", "ema weights"] if key else []
    assert called("tools/import_weights.py", path, tmp_path / "NEW.pt", *options)[0] == 0
    assert_found(tmp_path / "NEW.pt", state)
    assert not (tmp_path / "ran").exists()


def test_the_command_names_the_tool_from_wherever_it_is_told(tmp_path, monkeypatch):
    assert " tools/import_weights.py " in checkpoint.importing("a.pt")
    monkeypatch.chdir(tmp_path)
    assert f" {ROOT / 'tools' / 'import_weights.py'} " in checkpoint.importing("a.pt")


def test_of_several_entries_the_command_takes_the_one_that_a_run_would(state, tmp_path):
    average = {key: value + 1 for key, value in state.items()}
    torch.save({"model": state, "model_ema": average, "options": argparse.Namespace(lr=1)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a.pt holds more than weights \(argparse.Namespace\); python tools/import_w"):
        weights.find_weights("resnet8", str(tmp_path / "a.pt"))
    code, output, errors = called("tools/import_weights.py", tmp_path / "a.pt", tmp_path / "NEW.pt")
    assert (code, errors) == (0, "") and "the weights are those under model_ema, it has some under " in output
    assert_found(tmp_path / "NEW.pt", average)


def test_a_file_that_may_yet_come_needs_no_ending(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    weights.refuse_unknown_form("resnet8", "runs/teacher/weights")
    weights.refuse_unknown_form("resnet18", "runs/resnet18")
    with pytest.raises(ValueError, match="no file and no form of weights"):
        weights.refuse_unknown_form("resnet8", "gone/weights")


def test_names_that_do_not_fit_are_shown_beside_those_that_are_missing(state, tmp_path, load):
    torch.save({f"encoder.{key}": value for key, value in state.items()}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="; missing .*; unexpected encoder.* and [0-9]+ more"):
        runner.run("train", load("debug/teacher_debug", MODEL__WEIGHTS=tmp_path / "a.pt", OUT_DIR=tmp_path / "run"))


def test_info_says_what_a_student_starts_from(state, tmp_path, load, caplog):
    torch.save(state, tmp_path / "a.pt")
    torch.save({"options": argparse.Namespace(lr=1)}, tmp_path / "b.pt")
    given = ["", f"{tmp_path}/a.pt", "c.pt", "hf-hub:timm/resnet18.a1_in1k"]
    for origin, said in zip(
        given, ["random weights", given[1], "c.pt, not here", f"{given[3]}, not yet fetched"], strict=True
    ):
        caplog.clear()
        name = "resnet18" if origin.startswith("hf-hub") else "resnet8"
        runner.run("info", load("debug/teacher_debug", MODEL__NAME=name, MODEL__WEIGHTS=origin))
        assert f"starts from {said}" in caplog.messages
    teachers = {"TEACHERS": "[resnet18]", "TEACHER_WEIGHTS": f"[{given[3]}]"}
    runner.run("info", load("debug/kd_debug", **{f"DISTILLATION__{key}": value for key, value in teachers.items()}))
    assert f"            teacher 0 resnet18 ({given[3]}, not yet fetched), 224 px" in caplog.messages
    caplog.clear()
    with pytest.raises(ValueError, match="MODEL.WEIGHTS: checkpoint .*b.pt holds more than weights"):
        runner.run("info", load("debug/teacher_debug", MODEL__WEIGHTS=tmp_path / "b.pt"))
    assert not caplog.messages


def test_a_text_is_not_sent_to_a_tool_that_cannot_read_it(tmp_path):
    (tmp_path / "a.pt").write_text("hello")
    with pytest.raises(ValueError) as error:
        weights.find_weights("resnet8", str(tmp_path / "a.pt"))
    assert "import_weights" not in str(error.value)


@pytest.mark.parametrize("safe", [True, False])
def test_a_model_of_the_hub(tmp_path, monkeypatch, safe):
    """As timm pushes one, to a hub that is a folder here; its config.json would lead timm to another place."""
    model = timm.create_model("resnet10t", num_classes=7)
    model.pretrained_cfg.update(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), input_size=(3, 64, 64))
    save_for_hf(model, tmp_path, model_config={"num_classes": 7}, safe_serialization=safe)
    said = json.loads((tmp_path / "config.json").read_text())
    said["pretrained_cfg"] |= {"file": "elsewhere.pt", "custom_load": True, "hf_hub_filename": "elsewhere.bin"}
    (tmp_path / "config.json").write_text(json.dumps(said))

    def fetch(repo_id, filename, **options):
        assert (repo_id, options.get("revision")) == ("someone/model.x", None)
        if not (tmp_path / filename).exists():
            raise EntryNotFoundError(filename)
        return str(tmp_path / filename)

    monkeypatch.setattr("timm.models._hub.hf_hub_download", fetch)
    found = weights.find_weights("resnet10t", "hf-hub:someone/model.x")
    assert (found.num_classes, found.image_size, found.source) == (7, 64, "hf-hub:someone/model.x")
    assert found.normalization == Normalization((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    own = model.state_dict()
    assert found.state.keys() == own.keys() and all(torch.equal(found.state[key], own[key]) for key in own)
    with pytest.raises(ValueError, match="hf-hub:someone/model.x holds a resnet10t and no resnet18"):
        weights.find_weights("resnet18.a1_in1k", "hf-hub:someone/model.x")
    said["model_args"] = {"pretrained_cfg_overlay": {"file": "elsewhere.pt", "source": ""}}
    (tmp_path / "config.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match="its model_args name pretrained_cfg_overlay, by which timm would load"):
        weights.find_weights("resnet10t", "hf-hub:someone/model.x")


def test_a_hub_that_is_not_there(monkeypatch):
    def refuse(*args, **options):
        raise OSError("no network\nand more lines")

    monkeypatch.setattr("timm.models._hub.hf_hub_download", refuse)
    with pytest.raises(ValueError, match="^hf-hub:someone/model could not be loaded: no network$"):
        weights.find_weights("resnet18", "hf-hub:someone/model")
    said = weights.describe_weights("resnet18", "hf-hub:someone/model")
    assert said.source == "hf-hub:someone/model, not yet fetched, so random weights"
    assert (said.image_size, said.num_classes, dict(said.args)) == (224, None, {})  # as timm's own


def test_a_model_of_the_hub_is_described_by_what_is_in_its_cache(tmp_path, monkeypatch):
    """Nothing is asked of the hub; at the student's size, a teacher was counted, timed and refused by it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the hub was asked"))
    place, commit = tmp_path / "models--someone--model", "0123456789" * 4
    for part in (place / "refs", place / "snapshots" / commit):
        part.mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    said = {"architecture": "resnet10t", "num_classes": 7, "pretrained_cfg": {"input_size": [3, 64, 64]}}
    path = place / "snapshots" / commit / "config.json"
    path.write_text(json.dumps(said | {"model_args": {"drop_rate": 0.5, "num_classes": 7}}))
    found = weights.describe_weights("resnet10t", "hf-hub:someone/model")
    assert (found.image_size, found.num_classes, found.args) == (64, 7, {"drop_rate": 0.5})
    assert found.source == "hf-hub:someone/model, not read, so random weights"
    path.write_text("{}")
    with pytest.raises(ValueError, match=f"hf-hub:someone/model: {path} cannot be read: KeyError"):
        weights.describe_weights("resnet10t", "hf-hub:someone/model")


FORMS = {
    "ftp://host/a.pt": "only https:// is downloaded from",
    "s3://bucket/a.pt": "only https:// is downloaded from",
    "imagenet": "imagenet is no file and no form of weights; known: a path, https",
    "microsoft/resnet-18": "no form of weights; known: a path, https",
    "hf_hub:timm/resnet18.a1_in1k": "did you mean hf-hub:timm/resnet18.a1_in1k?",
    "hf_hub:resnet18x": "no form of weights; known: a path, https",
    "TIMM:resnet18": "did you mean timm:resnet18?",
    "HF-HUB:someone/model": "did you mean hf-hub:someone/model?",
    f"http://host/a.pt#sha256={'0' * 64}": "only https:// is downloaded from",
    "https://host/a.pt": "needs its SHA-256",
    "https://host/a.pt#sha256=12": "expected #sha256=<64 hexadecimal digits>, got #sha256=12",
    "torchvision:resnet18": "torchvision:resnet18 is no file and no form of weights; known: a path, https",
    "local-dir:/models/a": "no form of weights; known: a path",
    "hf-hub:resnet18": "hf-hub:resnet18: expected hf-hub:<owner>/<name>",
    "hf-hub:": "hf-hub:: expected hf-hub:<owner>/<name>",
    "published:cifar10_resnet18": "no published weights of that name",
    "timm:resnet18x": "timm has no model resnet18x",
    "timm:resnet18.nonsense": "timm has no weights resnet18.nonsense: Invalid pretrained tag",
    "resnet18.a1_in1k": "no form of weights; did you mean timm:resnet18.a1_in1k?",
    "timm/resnet18.a1_in1k": "did you mean hf-hub:timm/resnet18.a1_in1k?",
    "cifar10_resnet20": "did you mean published:cifar10_resnet20?",
}


@pytest.mark.parametrize("origin", FORMS)
@pytest.mark.parametrize("mode", ["info", "train"])
def test_unknown_forms_are_refused_before_anything_else(load, origin, mode, monkeypatch):
    monkeypatch.setattr(runner, "MODES", {})  # nothing is begun
    monkeypatch.setattr(runner, "build_optimizer", None)
    start = load("debug/teacher_debug", MODEL__NAME="resnet18", MODEL__WEIGHTS=origin)
    kd = load("debug/kd_debug", DISTILLATION__TEACHERS="[resnet18]", DISTILLATION__TEACHER_WEIGHTS=f"['{origin}']")
    for cfg, label in ((start, "MODEL.WEIGHTS: "), (kd, "DISTILLATION.TEACHER_WEIGHTS of teacher 0 resnet18: ")):
        with pytest.raises(config.ConfigError) as error:
            runner.run(mode, cfg)
        assert str(error.value).startswith(label) and FORMS[origin] in str(error.value)


def test_a_model_is_not_named_by_a_place(load):
    for words in (
        {"MODEL__NAME": "hf-hub:timm/resnet18.a1_in1k"},
        {"MODEL__NAME": "hf-hub:timm/resnet18.a1_in1k", "MODEL__WEIGHTS": "timm"},
    ):
        with pytest.raises(config.ConfigError, match="the name is that of the architecture, such as resnet18; hf-hub:"):
            runner.run("info", load("debug/teacher_debug", **words))


def test_a_file_whose_name_has_a_colon_is_a_file(state, tmp_path, monkeypatch, load):
    monkeypatch.chdir(tmp_path)
    torch.save(state, tmp_path / "a:b")
    weights.refuse_unknown_form("resnet8", "a:b")
    assert_found(tmp_path / "a:b", state)
