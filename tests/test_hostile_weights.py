"""Files of weights that hold nothing, numbers that are none, or what no run has saved: refused in one line."""

import copy
import os
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import ROOT, Running
from records import SMALL, load_state, words

from pycls_std import config, runner
from pycls_std.builders.data import build_data
from pycls_std.builders.models import PretrainedWeights, find_teacher_weights
from pycls_std.builders.teachers import build_teachers
from pycls_std.builders.training import assemble, build_runtime
from pycls_std.builders.weights import Weights, WeightsError
from pycls_std.datasets.normalizations import NORMALIZATIONS
from pycls_std.engine import checkpoint
from pycls_std.engine.structure import differences
from pycls_std.run.folder import RunFolder


@pytest.fixture(scope="module")
def saved(teacher, tmp_path_factory):
    """Path of the last checkpoint of an STD run of two epochs with everything that has a state, and its options."""
    folder = tmp_path_factory.mktemp("saved")
    cfg = std_run(teacher, folder)
    runner.train(cfg)
    return folder / "checkpoints" / "last.pt", cfg


def std_run(teacher, folder, epochs=1):
    own = {"DISTILLATION__TEACHER_WEIGHTS": f"[{teacher}]", "OUT_DIR": folder, "OPTIM__MAX_EPOCH": epochs}
    own |= {"MODEL__ARGS__num_blocks": 2, "STD__TAPS": "[0, last]"}
    path = ROOT / "configs/debug/std_debug.yaml"
    return config.load(str(path), words(**SMALL, **own, MINE__MOMENTUM=0.5, PRECISION="fp16"))


def renamed(state, prefix):
    return {f"{prefix}{key}": value for key, value in state.items()}


# ------------------------------------------------------------------------------------------------------------- nothing
@pytest.mark.parametrize("place", ["MODEL.WEIGHTS", "teacher"])
@pytest.mark.parametrize("content", ["{}", "state_dict {}", "student {}", "another prefix", "encoder."])
def test_a_file_that_was_named_and_gives_nothing_is_an_error(load, method, teacher, tmp_path, place, content):
    """Such a file trained from random weights, with exit code 0 and no word of it."""
    own = torch.load(teacher, weights_only=True)
    plain = {key.removeprefix("backbone."): value for key, value in own["student"].items()}
    states = {
        "{}": {},
        "state_dict {}": {"state_dict": {}, "epoch": 3},
        "student {}": own | {"student": {}},
        "another prefix": own | {"student": renamed(plain, "model.")},
        "encoder.": renamed(plain, "encoder."),
    }
    torch.save(states[content], tmp_path / "given.pt")
    if place == "teacher":
        cfg = method("kd", DISTILLATION__TEACHER_WEIGHTS=f"[{tmp_path}/given.pt]")
    else:
        cfg = load("debug/teacher_debug", OUT_DIR=tmp_path / "run", MODEL__WEIGHTS=tmp_path / "given.pt")
    with pytest.raises(ValueError, match="given.pt.* (holds no weights|does not fit the model: )") as error:
        runner.train(cfg)
    assert ("TEACHER_WEIGHTS of teacher 0" if place == "teacher" else "MODEL.WEIGHTS") in str(error.value) or (
        "teacher 0 resnet8" in str(error.value)
    )
    assert not (tmp_path / "run" / "checkpoints").exists()


# --------------------------------------------------------------------------------------------- numbers that are no such
@pytest.mark.parametrize("kind", ["nan", "inf", "int", "bool", "complex", "sparse", "expanded", "meta", "double"])
@pytest.mark.parametrize("place", ["test", "test of the average", "student", "teacher"])
def test_weights_that_are_no_finite_numbers(load, method, teacher, tmp_path, place, kind):
    state = torch.load(teacher, weights_only=True)
    state["ema"] = dict(state["student"])
    key = "backbone.layer1.0.conv1.weight"
    value = state["student"][key].contiguous()
    state["student"][key] = state["ema"][key] = {
        "nan": value.index_fill(0, torch.tensor([1]), float("nan")),
        "inf": value.index_fill(0, torch.tensor([1]), float("inf")),
        "int": value.mul(100).to(torch.int8),
        "bool": value > 0,
        "complex": value.to(torch.complex64),
        "sparse": value.to_sparse(),
        "expanded": value[:1, :1, :1, :1].expand(value.shape),
        "meta": value.to("meta"),
        "double": value.double() + 1e300,  # which is infinite in fp32
    }[kind]
    torch.save(state, tmp_path / "given.pt")
    given = tmp_path / "given.pt"
    if place.startswith("test"):
        mode, cfg = runner.test, load("debug/teacher_debug", TEST__WEIGHTS=given, TEST__EMA="average" in place)
    elif place == "student":
        mode, cfg = runner.train, load("debug/teacher_debug", OUT_DIR=tmp_path / "run", MODEL__WEIGHTS=given)
    else:
        mode, cfg = runner.train, method("kd", DISTILLATION__TEACHER_WEIGHTS=f"[{given}]")
    texts = dict.fromkeys(("nan", "inf", "double"), "not finite") | {"meta": "has no numbers in the file"}
    texts["expanded"] = "fewer numbers in the file than its shape"
    with pytest.raises(ValueError, match=f"given.pt.*{texts.get(kind, 'in the file, float32 in the model')}") as error:
        mode(cfg)
    assert "layer1.0.conv1.weight" in str(error.value)


def test_weights_of_half_precision_are_taken(load, teacher, tmp_path, caplog):
    """A file of fp16 or bf16 weights is common; whole numbers, such as a counter's, stay what they are."""
    state = torch.load(teacher, weights_only=True)
    half = {key: v.bfloat16() if v.is_floating_point() else v for key, v in state["student"].items()}
    torch.save(state | {"student": half}, tmp_path / "half.pt")
    runner.test(load("debug/teacher_debug", TEST__WEIGHTS=tmp_path / "half.pt"))
    assert "top-1" in caplog.messages[-1]


@pytest.mark.parametrize("place", ["MODEL.WEIGHTS", "teacher", "TEST.WEIGHTS"])
@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_weights_that_are_no_file(load, tmp_path, place, kind):
    """At a pipe that nobody writes to the run waited for ever."""
    given = tmp_path / "given.pt"
    os.mkfifo(given) if kind == "pipe" else given.mkdir()
    own = ["--mode", "train", "--cfg", "configs/debug/teacher_debug.yaml", f"MODEL.WEIGHTS={given}"]
    if place == "teacher":
        own = ["--mode", "train", "--cfg", "configs/debug/kd_debug.yaml", f"DISTILLATION.TEACHER_WEIGHTS=[{given}]"]
    elif place == "TEST.WEIGHTS":
        own = ["--mode", "test", "--cfg", "configs/debug/teacher_debug.yaml", f"TEST.WEIGHTS={given}"]
    code, output, errors = Running(tmp_path, [*own, f"OUT_DIR={tmp_path}/run"]).end(patience=40)
    assert (code, output, len(errors.splitlines())) == (1, "", 1)
    what = "it is no regular file" if kind == "pipe" else "Is a directory"
    assert f"{given} could not be read: {what}" in errors
    assert place in errors.replace("TEACHER_WEIGHTS of teacher", "teacher") or place == "TEST.WEIGHTS"


def test_a_checkpoint_that_could_not_be_read_again_is_not_written(tmp_path):
    """Such as a number of numpy's, of a metric that forgets float(): a resume called both checkpoints corrupt."""
    for value in (np.float64(1), {1: Path("x")}, [torch.zeros(1), {"a": {2, 3}}], torch.float32):
        with pytest.raises(ValueError, match="best.* a checkpoint holds tensors, numbers and text"):
            checkpoint.save({"best": value}, tmp_path / "x.pt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("data", [{"std": [1.0, 0.0, 1.0]}, {"mean": [0.0, float("nan"), 0.0]}, {"std": [1.0]}])
def test_a_teacher_of_no_normalization(load, teacher, tmp_path, data):
    state = torch.load(teacher, weights_only=True)
    torch.save(state | {"data": state["data"] | data}, tmp_path / "x.pt")
    cfg = load("debug/kd_debug", DISTILLATION__TEACHER_WEIGHTS=f"[{tmp_path}/x.pt]", OUT_DIR=tmp_path / "run")
    with pytest.raises(
        ValueError, match="x.pt has the mean .* and the standard deviation .* expected 3 channels' each"
    ):
        runner.train(cfg)


def test_a_teacher_whose_run_counted_a_prediction_that_it_does_not_offer(load, teacher, tmp_path):
    state = torch.load(teacher, weights_only=True)
    checkpoint.save(state | {"config": state["config"].replace("PREDICTION: ''", "PREDICTION: foo")}, tmp_path / "x.pt")
    cfg = load("debug/kd_debug", DISTILLATION__TEACHER_WEIGHTS=f"[{tmp_path}/x.pt]", OUT_DIR=tmp_path / "run")
    with pytest.raises(ValueError, match="x.pt.: TEST.PREDICTION of its checkpoint is 'foo', it offers cls"):
        runner.train(cfg)


# ------------------------------------------------------------------------------------------------- crafted checkpoints
def crafted(state, path=(), depth=4):
    """Yield (place, a copy of a nest of which one entry is gone, or is something else)."""
    if depth == 0 or not isinstance(state, (dict, list)):
        return
    keys = list(state) if isinstance(state, dict) else range(len(state))
    for key in list(keys)[:2] + list(keys)[-2:] if path and len(keys) > 8 else keys:
        place = (*path, key)
        for name, value in (("gone", None), ("None", None), ("text", "x"), ("list", [1]), ("tensor", torch.ones(2))):
            other = copy.copy(state)
            if name == "gone":
                del other[key]
            else:
                other[key] = value
            yield (*place, name), other
        for inner, changed in crafted(state[key], place, depth - 1):
            other = copy.copy(state)
            other[key] = changed
            yield inner, other


def test_no_crafted_checkpoint_is_continued_from_but_in_one_line(saved, teacher, tmp_path):
    """Of more than 500 states of which one entry is gone or another one: a ValueError, or nothing wrong."""
    path, cfg = saved
    state = load_state(path.parents[1])
    data, runtime = build_data(cfg), build_runtime(cfg)
    weights = PretrainedWeights(Weights(None, "none"), [Weights(None, "none")])
    session = assemble(cfg, data=data, runtime=runtime, weights=weights)
    options = config.dump(cfg)
    folder = RunFolder(tmp_path)
    folder.series.newest = lambda *_: (changed, path)
    folder._own_events = lambda options, name: []
    refused = tried = 0
    expected = session.state_dict()
    for place, changed in crafted(state):
        tried += 1
        try:
            if place[0] == "format":  # which is looked at first of all, see test_damage.py
                continue
            found, _ = folder.continued(options, 1, 2)
            session.load_state_dict(found, "last.pt")
        except ValueError as error:
            refused += 1
            assert len(str(error).splitlines()) == 1, place
            assert "last.pt" in str(error), place
        else:
            assert not differences({"s": changed["student"]}, {"s": expected["student"]}), place
    assert tried > 500 and refused > 0.8 * tried


@pytest.mark.parametrize("shape", [(), (1,), (3, 3), (10, 10, 10)])
def test_an_optimizer_state_of_another_shape_is_refused(load, tmp_path, shape):
    """The fused kernels of SGD trust it, and end the process by a segmentation fault."""
    own = {"OPTIM__NAME": "sgd", "OUT_DIR": tmp_path / "run", "OPTIM__WARMUP_EPOCHS": 0, **SMALL}
    runner.train(load("debug/base_debug", OPTIM__MAX_EPOCH=1, **own))
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    state = load_state(tmp_path / "run")
    key = next(k for k, v in state["optimizer"]["state"].items() if v["momentum_buffer"].ndim == 2)
    state["optimizer"]["state"][key]["momentum_buffer"] = torch.zeros(shape)
    checkpoint.save(state, last)
    line = ["--mode", "train", "--cfg", "configs/debug/base_debug.yaml", *words(OPTIM__MAX_EPOCH=2, **own)]
    code, _, errors = Running(tmp_path, line).end()
    assert (code, len(errors.splitlines())) == (1, 1)
    assert f"{last} does not fit the run: optimizer.state.{key}.momentum_buffer is {shape} in the file" in errors


def test_a_checkpoint_that_teaches_may_not_let_timm_load_a_file(load, tmp_path):
    """An argument of timm's constructors is the path of a file, which torch would read with all its code."""
    own = load("debug/base_debug", OUT_DIR=tmp_path / "run", OPTIM__MAX_EPOCH=1, **SMALL)
    runner.train(own)
    state = load_state(tmp_path / "run")
    for name in ("checkpoint_path", "pretrained", "pretrained_cfg", "cache_dir", "num_classes", "image_size"):
        options = state["config"].replace("MODEL:\n", "MODEL:\n", 1)
        before, after = options.split("  ARGS:", 1)
        options = f"{before}  ARGS:\n    {name}: x.pt{after}" if after.startswith("\n") else options
        assert name in options
        checkpoint.save(state | {"config": options}, tmp_path / "given.pt")
        cfg = load(
            "debug/kd_debug",
            DISTILLATION__TEACHERS="[mixer_nano4]",
            DISTILLATION__TEACHER_WEIGHTS=f"[{tmp_path}/given.pt]",
            OUT_DIR=tmp_path / "other",
        )
        with pytest.raises(WeightsError, match=f"given.pt: MODEL.ARGS has {name}, which is not for it to set"):
            runner.train(cfg)


def test_no_crafted_checkpoint_is_tested_or_teaches_but_in_one_line(load, method, teacher, tmp_path):
    state = torch.load(teacher, weights_only=True)
    given = tmp_path / "given.pt"
    tests, teaches = (
        load("debug/teacher_debug", TEST__WEIGHTS=given),
        method("kd", DISTILLATION__TEACHER_WEIGHTS=f"[{given}]"),
    )
    tried = 0
    for place, changed in crafted(state, depth=2):
        if place[0] == "student" and len(place) > 2 and place[1] != "backbone.conv1.weight":
            continue
        tried += 1
        torch.save(changed, given)
        for use in (
            lambda: runner.test(tests),
            lambda: build_teachers(teaches, 10, NORMALIZATIONS["half"], find_teacher_weights(teaches)),
        ):
            try:
                use()
            except ValueError as error:
                assert "given.pt" in str(error), place
                assert len(str(error).splitlines()) == 1, place
    assert tried > 60


# ------------------------------------------------------------------------------------------------- what is not damaged
def little_memory(path, room):
    """Hook: let the process have only so many bytes more, and look for the newest checkpoint in a folder."""
    from pycls_std.run.series import Series

    checkpoint.read(path.parent / "small.pt")  # so that all code is loaded
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + room
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        Series(path.parent, keep=2).newest()
    except OSError as error:
        print(error, flush=True)
    os._exit(0)


@pytest.mark.fault(5)
@pytest.mark.parametrize("room", [30, 90, 150])
def test_a_checkpoint_that_there_is_no_memory_for_is_not_called_damaged(tmp_path, room):
    """Of 64 MiB: as bytes, as a tensor; the allocator of torch raises a RuntimeError."""
    path = tmp_path / "last.pt"
    checkpoint.save({"optimizer": {}, "epoch": 1, "weights": torch.zeros(2**24)}, path)
    checkpoint.save({"weights": torch.zeros(2)}, tmp_path / "small.pt")
    code, output, errors = Running(
        tmp_path, [], hook="test_hostile_weights:little_memory", arguments=(path, room << 20)
    ).end()
    assert code == 0, errors
    assert path.exists() and not list(tmp_path.glob("*.corrupt*"))
    if room < 150:
        assert output.startswith(f"{path} could not be read: ") and len(output.splitlines()) == 1
