"""The fused token mixing MLP: the numbers of the plain one, where it applies, what is chosen, and what records say."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from interpreted import CASES, PRECISIONS, ROOT, given, mixer, plain, results
from records import SMALL as SHORT
from records import load_state
from timm.layers import Mlp
from torch.utils.flop_counter import FlopCounterMode

from pycls_std import config, runner
from pycls_std.builders import token_mixing
from pycls_std.builders.training import build_all, build_described_trainer, build_runtime
from pycls_std.check import trial
from pycls_std.config import ConfigError
from pycls_std.models.create import create_backbone
from pycls_std.models.token_mixing import fuse, mixer_blocks, obstacle
from pycls_std.run.identity import refuse_other_options

layers = pytest.importorskip("pycls_std.layers.token_mixing")
FAILURE = token_mixing._failure
DROPOUT = "which has no dropout, that of the student's token mixing MLPs is 0.1"


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    """What the kernels compute by Triton's interpreter."""
    path = tmp_path_factory.mktemp("interpreted") / "found.pt"
    words = [sys.executable, "tests/interpreted.py", str(path)]
    env = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return torch.load(path)


def errors(found, exact):
    """The largest error of each tensor, over the largest number in it."""
    pairs = zip(found, exact, strict=True)
    return [float((one.double() - two.double()).abs().max() / two.double().abs().max()) for one, two in pairs]


def assert_as_exact(found, inputs, precision):
    """Fail unless results are the plain form's in fp64, as near as the plain form in this precision is."""
    exact = results(plain, [value.double() for value in inputs])
    assert [(one.shape, one.dtype) for one in found] == [(two.shape, inputs[0].dtype) for two in exact]
    limit = {"fp32": 1e-6, "bf16": 2**-7}[precision]  # a product of bf16 rounds its factors and its sum, 2^-9 each
    assert max(errors(found, exact)) < limit


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda case: "-".join(map(str, CASES[case])))
def test_the_kernels_compute_the_plain_form_and_its_gradients(interpreted, case, precision):
    assert_as_exact(interpreted["cases"][precision][case], given(CASES[case], precision), precision)


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("case", "precision"),
    [((512, 64, 512, 256), "bf16"), ((64, 65, 768, 384), "bf16"), (CASES[1], "bf16"), (CASES[1], "fp32")],
)
def test_the_kernels_on_cuda(case, precision):
    """At full sizes, too, and the same bits each time; few forms, for each is compiled."""
    inputs = given(case, precision, "cuda")
    found, again = (results(layers.token_mixing, inputs) for _ in range(2))
    assert_as_exact(found, inputs, precision)
    assert all(map(torch.equal, found, again))


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-5), ("bf16", 2**-5)])
def test_a_mixer_computes_as_before(interpreted, precision, limit):
    """Logits and the gradients of all parameters, through two blocks; in bf16 under autocast, rounded at each layer."""
    assert max(errors(interpreted["mixer"][precision], mixer(precision, fused=False))) < limit


def test_a_compiled_mixer_is_one_graph_with_one_operation_for_each_block(interpreted):
    assert interpreted["operations"] == 2
    for one, two in zip(interpreted["compiled"], interpreted["mixer"]["bf16"], strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("tokens", "parts"), [(5, (16, 0)), (16, (16, 0)), (17, (16, 16)), (64, (64, 0)), (65, (64, 16)), (66, (64, 16))]
)
def test_a_token_more_is_a_small_part_more(tokens, parts):
    sizes = layers.tile(tokens, torch.bfloat16)
    assert (sizes["MAIN"], sizes["REST"]) == parts


def test_more_tokens_fit_in_two_powers_of_two():
    for tokens in range(1, 257):
        sizes = layers.tile(tokens, torch.bfloat16)
        assert tokens <= sizes["MAIN"] + sizes["REST"] <= max(16, 2 * tokens, tokens + 15)


def test_fp32_is_rounded_to_tf32_where_that_is_allowed():
    torch.backends.cuda.matmul.allow_tf32 = False
    assert layers.tile(64, torch.float32)["PRECISION"] == "ieee"
    torch.backends.cuda.matmul.allow_tf32 = True
    assert layers.tile(64, torch.float32)["PRECISION"] == "tf32"


# ------------------------------------------------------------------------------------------------------------- students
def small_mixer(**args):
    return create_backbone("mixer_nano4", num_classes=7, image_size=16, **{"num_blocks": 2, "embed_dim": 24} | args)


def test_parameters_and_names_stay():
    model = small_mixer()
    own = dict(model.named_parameters())
    plain_state = model.state_dict()
    fuse(model)
    assert [type(block.mlp_tokens).__name__ for block in mixer_blocks(model)] == ["TokenMixing"] * 2
    assert list(model.state_dict()) == list(plain_state)
    assert [(name, id(p)) for name, p in model.named_parameters()] == [(name, id(p)) for name, p in own.items()]
    assert list(copy.deepcopy(model).state_dict()) == list(plain_state)  # as the average's


def test_operations_are_counted_as_before():
    counts = []
    for function in (plain, layers.token_mixing):
        with FlopCounterMode(display=False) as counter:
            function(*(value.to("meta") for value in given((2, 65, 70, 33), "fp32")[:5]))
        counts.append(counter.get_total_flops())
    assert counts == [2 * 2 * 2 * 65 * 70 * 33] * 2


@pytest.mark.parametrize(
    ("name", "args", "found"),
    [
        ("mixer_nano4", {}, ""),
        ("mixer_nano4", {"drop_path": 0.1}, ""),
        ("mixer_nano4", {"proj_drop_rate": 0.1}, DROPOUT),
        ("mixer_nano4", {"image_size": 68}, "which takes at most 256 tokens, the student has 289"),
        ("mixer_nano4", {"act_layer": torch.nn.ReLU}, "which needs a student with token mixing MLPs"),
        ("gmixer_12", {"patch_size": 4, "num_blocks": 1}, "which needs a student with token mixing MLPs"),
        ("resmlp_s12", {"patch_size": 4, "num_blocks": 1}, "which needs a student with token mixing MLPs"),
        ("resnet8", {}, "which needs a student with token mixing MLPs"),
    ],
)
def test_which_students_it_computes(name, args, found):
    model = create_backbone(name, num_classes=7, **{"image_size": 16} | args)
    assert obstacle(model).startswith(found) and bool(obstacle(model)) is bool(found)


def test_a_student_that_it_does_not_compute_is_refused_before_the_run(load):
    cfg = load("debug/teacher_debug", CUDA__TOKEN_MIXING="fused")
    with pytest.raises(ValueError, match="^CUDA.TOKEN_MIXING is fused, which needs a student with token mixing MLPs: "):
        build_described_trainer(cfg, 10)
    build_described_trainer(load("debug/teacher_debug", CUDA__TOKEN_MIXING="auto"), 10)


# --------------------------------------------------------------------------------------------------------------- choice
@pytest.fixture
def chosen(load, monkeypatch, caplog):
    """Return chosen(choice, seconds, ...): a session whose choice is made as on a device, and the log's last line.

    seconds: that plain and fused take, or the error of timing fused. rank_zero: what the first process says, if it is
    another one. missing: a package that is not there. before: how a run was computed that goes on.
    """

    def choose(choice, seconds=(), device="cuda", rank_zero=None, missing="", before="", **overrides):
        def timed(block, images, runtime, forms=token_mixing.FORMS, rounds=10):
            asked.append((images, *forms))
            if isinstance(seconds, Exception):
                raise seconds
            return {form: [seconds[token_mixing.FORMS.index(form)]] for form in forms}

        asked = []
        cfg = load("debug/base_debug", DEVICE="cpu", TRAIN__EMA_DECAY=0.9, **overrides)
        session, *_ = build_all(cfg, build_runtime(cfg))
        session.runtime.device, session.runtime.token_mixing = torch.device(device), before
        if rank_zero:
            monkeypatch.setattr(session.runtime.world, "broadcast_from_rank_zero", lambda make: rank_zero)
        monkeypatch.setattr(token_mixing, "time_forms", timed)
        monkeypatch.setattr(token_mixing, "find_spec", lambda name: name != missing)
        cfg.defrost()
        cfg.CUDA.TOKEN_MIXING = choice
        token_mixing.choose_token_mixing(cfg, session)
        lines = [line for line in caplog.messages if "TOKEN_MIXING" in line]
        return SimpleNamespace(session=session, line=lines[-1] if lines else "", asked=asked)

    return choose


def forms(session):
    """How student and average mix tokens."""
    models = session.trainer.student, session.ema.module
    kinds = {type(block.mlp_tokens) for model in models for block in mixer_blocks(model)}
    return {Mlp: "plain", layers.TokenMixing: "fused"}[kinds.pop()] if len(kinds) == 1 else "mixed"


@pytest.mark.parametrize(
    ("choice", "words", "form", "line"),
    [
        ("plain", {}, "plain", ""),
        ("fused", {"seconds": (0.02, 0.03)}, "fused", "CUDA.TOKEN_MIXING fused: fused"),
        (
            "auto",
            {"seconds": (0.03, 0.02)},
            "fused",
            "CUDA.TOKEN_MIXING auto: fused, fused is 1.50 times as fast on a block, forward and backward, 3.000 ms and "
            "2.000 ms",
        ),
        (
            "auto",
            {"seconds": (0.02, 0.025)},
            "plain",
            "CUDA.TOKEN_MIXING auto: plain, fused is 0.80 times as fast on a block, forward and backward, 2.000 ms and "
            "2.500 ms",
        ),
        (
            "auto",
            {"seconds": ValueError("out of resources\nand a page of it")},
            "plain",
            "CUDA.TOKEN_MIXING auto: plain, not fused, which fails here: out of resources and a page of it",
        ),
        ("auto", {"device": "cpu"}, "plain", "CUDA.TOKEN_MIXING auto: plain, not fused, which needs DEVICE cuda"),
        (
            "auto",
            {"missing": "triton"},
            "plain",
            "CUDA.TOKEN_MIXING auto: plain, not fused, which needs triton, and it is not installed",
        ),
        ("auto", {"MODEL__ARGS__proj_drop_rate": 0.1}, "plain", f"CUDA.TOKEN_MIXING auto: plain, not fused, {DROPOUT}"),
        (
            "auto",
            {"seconds": (0.02, 0.03), "rank_zero": ("fused", "as told")},
            "fused",
            "CUDA.TOKEN_MIXING auto: fused, as told",
        ),
        # what a run goes on by, whatever is faster now, where it can be
        ("auto", {"before": "plain"}, "plain", "CUDA.TOKEN_MIXING auto: plain, not timed here"),
        (
            "auto",
            {"before": "fused", "seconds": (0.02, 0.03)},
            "fused",
            "CUDA.TOKEN_MIXING auto: fused, not timed here",
        ),
        (
            "auto",
            {"before": "fused", "seconds": RuntimeError("out of resources")},
            "plain",
            "CUDA.TOKEN_MIXING auto: plain, not fused, which fails here: out of resources",
        ),
        (
            "auto",
            {"before": "fused", "missing": "triton"},
            "plain",
            "CUDA.TOKEN_MIXING auto: plain, not fused, which needs triton, and it is not installed",
        ),
    ],
)
def test_what_is_chosen_and_that_it_is_said(chosen, choice, words, form, line):
    found = chosen(choice, **words)
    assert (forms(found.session), found.session.runtime.token_mixing, found.line) == (form, form, line)
    assert bool(found.asked) is ("seconds" in words)


def test_each_form_is_timed_on_what_a_process_computes_at_once(chosen):
    found = chosen("auto", (1.0, 1.0), TRAIN__BATCH_SIZE=48, TRAIN__ACCUMULATE=3)
    assert found.asked == [(16, "fused"), (16, "plain", "fused")]  # the first to see that it can be
    assert forms(found.session) == "plain"  # no gain


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ({"device": "cpu"}, "which needs DEVICE cuda"),
        (
            {"seconds": RuntimeError("out of resources\nand a page of it")},
            "which fails here: out of resources and a page of it",
        ),
        ({"missing": "triton"}, "which needs triton, and it is not installed"),
        ({"MODEL__ARGS__proj_drop_rate": 0.1}, DROPOUT),
    ],
)
def test_where_it_cannot_be_is_told_in_a_line(chosen, words, reason):
    with pytest.raises(ValueError, match=f"^CUDA.TOKEN_MIXING is fused, {reason}$"):
        chosen("fused", **words)


def test_a_cpu_that_is_asked_for_is_a_mistake_of_the_options(load):
    with pytest.raises(ConfigError, match="CUDA.TOKEN_MIXING is 'fused', expected plain or auto, for fused needs"):
        load("debug/base_debug", DEVICE="cpu", CUDA__TOKEN_MIXING="fused")


def test_timing_leaves_the_block_as_it_is(load):
    cfg = load("debug/base_debug", DEVICE="cpu")
    runtime = build_runtime(cfg)
    block = mixer_blocks(small_mixer())[0]
    before = copy.deepcopy(block.state_dict())
    seconds = token_mixing.time_forms(block, 2, runtime, forms=["plain"], rounds=2)
    assert len(seconds["plain"]) == 2 and min(seconds["plain"]) > 0
    assert all(torch.equal(value, before[name]) for name, value in block.state_dict().items())
    assert all(p.grad is None for p in block.parameters())


# -------------------------------------------------------------------------------------------------------------- records
def test_records_say_how_it_was_computed(load, tmp_path):
    runner.train(load("debug/base_debug", **SHORT, OPTIM__MAX_EPOCH=1, OUT_DIR=tmp_path, CUDA__TOKEN_MIXING="auto"))
    assert load_state(tmp_path)["token_mixing"] == "plain"
    assert json.loads((tmp_path / "run.json").read_text())["starts"][0]["token_mixing"] == "plain"


@pytest.fixture
def kernels(monkeypatch):
    """Let fused be chosen on this CPU, where a plain function stands for the kernels; returns a list of its calls."""

    def computed(*inputs):
        calls.append(inputs[0].shape)
        return plain(*inputs)

    calls = []
    monkeypatch.setattr(token_mixing, "_missing", lambda runtime: "")
    monkeypatch.setattr(token_mixing, "_failure", lambda *_: "")
    monkeypatch.setattr(token_mixing, "_faster", lambda *_: ("fused", "as told"))
    monkeypatch.setattr(layers, "token_mixing", computed)
    return calls


def test_a_run_goes_on_as_it_was_begun_and_by_plain_layers_where_the_kernels_cannot_be(
    load, tmp_path, kernels, monkeypatch, caplog
):
    def go_on(epochs):
        caplog.clear()
        words = SHORT | {"OPTIM__MAX_EPOCH": epochs, "OUT_DIR": tmp_path, "CUDA__TOKEN_MIXING": "auto"}
        runner.train(load("debug/base_debug", **words))
        return [line for line in caplog.messages if "bit for bit" in line]

    assert go_on(1) == [] and kernels
    monkeypatch.setattr(token_mixing, "_faster", lambda *_: ("plain", "as told"))
    assert go_on(2) == []
    kernels.clear()
    monkeypatch.setattr(token_mixing, "_failure", lambda *_: "which fails here: out of resources")
    assert go_on(3) == [
        f"{tmp_path}/checkpoints/last.pt was computed by fused token mixing, it goes on by plain: sums round "
        "otherwise, so the run will not end as one that was not interrupted, bit for bit (CUDA.TOKEN_MIXING)"
    ]
    assert not kernels and go_on(4) == []
    starts = json.loads((tmp_path / "run.json").read_text())["starts"]
    assert [start["token_mixing"] for start in starts] == ["fused", "fused", "plain", "plain"]


def test_a_run_of_fused_that_goes_on_where_the_kernels_fail_is_refused_in_a_line(load, tmp_path, kernels, monkeypatch):
    """Its folder stays as it was, to go on elsewhere."""

    def fails(*_):
        raise RuntimeError("out of resource: shared memory\nand a page of it")

    def content():
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    words = SHORT | {"OUT_DIR": tmp_path, "CUDA__TOKEN_MIXING": "fused"}
    runner.train(load("debug/base_debug", **words, OPTIM__MAX_EPOCH=1))
    before = content()
    monkeypatch.setattr(token_mixing, "_failure", FAILURE)
    monkeypatch.setattr(layers, "token_mixing", fails)
    said = "^CUDA.TOKEN_MIXING is fused, which fails here: out of resource: shared memory and a page of it$"
    with pytest.raises(ValueError, match=said):
        runner.train(load("debug/base_debug", **words, OPTIM__MAX_EPOCH=2))
    assert kernels and content() == before


def test_it_is_part_of_what_a_run_is(load):
    before, now = (config.dump(load("debug/base_debug", CUDA__TOKEN_MIXING=choice)) for choice in ("plain", "auto"))
    with pytest.raises(ValueError, match="CUDA.TOKEN_MIXING was 'plain', is 'auto'"):
        refuse_other_options({"config": before, "processes": 1}, now, 1, Path("last.pt"))


# ------------------------------------------------------------------------------------------------------- a run in small
@pytest.mark.parametrize(
    ("choice", "kind", "failure", "used"),
    [
        ("fused", "cuda", "", True),
        ("auto", "cuda", "", True),  # without timing
        ("auto", "cuda", "which fails here", False),
        ("fused", "cpu", "", False),  # where another device is meant
    ],
)
def test_check_tries_the_kernels_where_the_run_may(load, tmp_path, kernels, monkeypatch, choice, kind, failure, used):
    """But for its two processes, which are on a CPU."""
    monkeypatch.setattr(token_mixing, "_failure", lambda *_: failure)
    monkeypatch.setattr(token_mixing, "_faster", lambda *_: pytest.fail("it was timed"))
    reduced = trial.reduced
    monkeypatch.setattr(trial, "reduced", lambda cfg, _: reduced(cfg, kind))
    if choice == "auto":
        monkeypatch.setattr(trial, "spread_over_two", lambda *_: None)
    runner.check(load("debug/base_debug", DEVICE="auto", OUT_DIR=tmp_path, CUDA__TOKEN_MIXING=choice))
    assert bool(kernels) is used


def test_check_refuses_kernels_that_fail_as_the_run_does(load, tmp_path, kernels, monkeypatch, caplog):
    monkeypatch.setattr(token_mixing, "_failure", lambda *_: "which fails here: out of resources")
    reduced = trial.reduced
    monkeypatch.setattr(trial, "reduced", lambda cfg, _: reduced(cfg, "cuda"))
    with pytest.raises(ValueError, match="^1 of 8 checks failed$"):
        runner.check(load("debug/base_debug", DEVICE="auto", OUT_DIR=tmp_path, CUDA__TOKEN_MIXING="fused"))
    assert "FAIL  models      CUDA.TOKEN_MIXING is fused, which fails here: out of resources" in caplog.messages
