"""Teachers made fast: what is folded and converted, that they say the same, and what follows if not."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from processes import ROOT
from records import SMALL, load_state, logged, same, words
from waits import Products

from pycls_std import config, runner
from pycls_std.builders.models import describe_teachers
from pycls_std.builders.teachers import optimize_teachers
from pycls_std.builders.training import build_all, build_described_trainer, build_runtime
from pycls_std.engine import checkpoint, loop
from pycls_std.engine.runtime import Runtime
from pycls_std.losses.logit import soft_distillation
from pycls_std.teachers import variants
from pycls_std.teachers.teacher import Request

TAPS = ("layer1", "layer3", "pooled")  # of a ResNet-8


@pytest.fixture
def optimized(std):
    """Return optimized(change=.., taps=.., **overrides): a trained teacher, changed and made fast.

    change(teacher): what is done to it before. taps: that are asked of it beside its prediction.
    Returns it, the line on it, and the session.
    """

    def optimize(change=lambda teacher: None, taps=(), fall_back=True, **overrides):
        cfg = std(**overrides)
        session, *_ = build_all(cfg, build_runtime(cfg))
        (teacher,) = session.trainer.teachers
        change(teacher)
        session.teacher_outputs.requests = [Request(taps=taps)]
        (line,) = optimize_teachers(cfg, session, fall_back=fall_back)
        return teacher, line, session

    return optimize


def test_each_file_is_read_once_to_describe_the_teachers(load, teacher, tmp_path, monkeypatch):
    paths = [str(shutil.copy(teacher, tmp_path / f"{index}.pt")) for index in range(3)]
    words = {"DISTILLATION__TEACHERS": "[resnet8, resnet8, resnet8]", "DISTILLATION__TEACHER_WEIGHTS": paths}
    described = describe_teachers(load("debug/kd_debug", **words), 10)
    found, read = [], checkpoint.read
    monkeypatch.setattr(checkpoint, "read", lambda path: found.append(path) or read(path))
    assert [each.image_size for each in described] == [8, 8, 8]
    assert [each.args for each in described] == [{"norm_eps": 0.0}] * 3
    assert found == [*map(Path, paths)]


def images():
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def logits(teacher):
    """What a teacher says of these images."""
    return teacher(images()).heads["cls"]


def kinds(teacher):
    return {value.dtype for value in teacher.backbone.state_dict().values() if value.is_floating_point()}


FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16


@pytest.mark.parametrize(
    ("precision", "teachers", "fold", "found"),
    [
        ("fp32", "auto", True, {FP32}),
        ("bf16", "auto", True, {BF16}),
        ("bf16", "fp32", True, {FP32}),
        ("fp32", "fp16", True, {FP16}),
        ("bf16", "auto", False, {BF16, FP32}),  # batch norms stay in fp32
    ],
)
def test_precision_and_folding_are_those_asked_for(optimized, precision, teachers, fold, found):
    """Logits and features are those of the plain teacher but for rounding, whatever the precision around it is."""
    options = {"PRECISION": precision, "DISTILLATION__TEACHER_PRECISION": teachers, "DISTILLATION__TEACHER_FOLD": fold}
    plain, asked = [], Request(taps=TAPS)
    teacher, line, _ = optimized(lambda teacher: plain.append(teacher(images(), asked)), TAPS, **options)
    assert kinds(teacher) == found
    used = precision if teachers == "auto" else teachers
    assert line.startswith(
        f"teacher 0 resnet8: {9 if fold else 0} batch norms folded, {used}; same prediction as the original "
    )
    assert "% of 360 test images, features within " in line
    output = teacher(images(), asked)
    assert [list(part) for part in output] == [["cls"], list(TAPS)]
    for before, after in zip(*((*o.heads.values(), *o.features.values()) for o in (plain[0], output)), strict=True):
        assert after.dtype == FP32
        error = 1e-4 if used == "fp32" else 0.05
        torch.testing.assert_close(after, before, rtol=error, atol=error * float(after.abs().max()))
    for enabled in (True, False):
        with torch.autocast("cpu", BF16, enabled=enabled):
            assert same(teacher(images(), asked), output)
    assert same(teacher(images(), Request(False, TAPS[:1])).features, {TAPS[0]: output.features[TAPS[0]]})


def test_a_teacher_in_bf16_is_tried_as_it_teaches(optimized, monkeypatch):
    """On a CPU without instructions for bf16 its products are in fp32, in the trial too, which is before any step."""
    monkeypatch.setattr("pycls_std.engine.runtime.cpu_has_bf16", lambda: False)
    with Products() as seen:
        teacher, *_ = optimized(PRECISION="bf16")
        assert kinds(teacher) == {BF16} and logits(teacher).dtype == FP32
    assert {FP32} <= {dtype for _, dtype in seen.products} <= {FP32, torch.float64}  # in which norms are folded


def test_a_student_may_keep_what_a_teacher_says_for_its_gradient(optimized):
    teacher, *_ = optimized()
    output = teacher(images(), Request(taps=TAPS))
    said = (*output.heads.values(), *output.features.values())
    assert not any(value.requires_grad or value.is_inference() for value in said)
    scale = torch.ones(1, requires_grad=True)
    of_logits = soft_distillation(scale * images().flatten(1)[:, :10], said[0], 2.0).mean()
    (of_logits + sum((scale * value).sum() for value in said)).backward()
    assert scale.grad.isfinite()


def near(teacher):
    """Raise all logits so far that bf16 does not tell them apart, and fp32 does."""
    torch.nn.init.constant_(teacher.backbone.fc.bias, 3000.0)


def test_a_teacher_that_bf16_would_confuse_stays_in_fp32(optimized):
    teacher, line, _ = optimized(near, PRECISION="bf16")
    assert kinds(teacher) == {FP32}
    assert line.startswith(
        "teacher 0 resnet8: 9 batch norms folded, fp32; same prediction as the original for 100.00 % of 360"
    )
    assert "; not used, as it is too different: 9 batch norms folded, bf16, same prediction as the original for" in line
    found = logits(teacher)
    with torch.autocast("cpu", BF16):
        assert torch.equal(logits(teacher), found)


def test_a_precision_that_is_asked_for_by_name_is_kept_and_the_difference_told(optimized):
    """So it is of random weights, whose classes are near each other."""
    for own in ({"DISTILLATION__TEACHER_PRECISION": "bf16"}, {"fall_back": False}):
        teacher, line, _ = optimized(near, PRECISION="bf16", **own)
        assert kinds(teacher) == {BF16}
        assert float(line.split("as the original for ")[1].split()[0]) < 99


@pytest.mark.parametrize(
    ("same", "error", "stays"), [(98.9, 0.0, False), (99.0, 0.0, True), (100.0, 5.0, True), (100.0, 5.1, False)]
)
def test_a_teacher_may_say_one_image_of_a_hundred_and_a_twentieth_of_its_features_otherwise(same, error, stays):
    assert variants.Comparison(same, error, "").good == stays


def test_a_variant_whose_features_are_off_is_rejected(optimized, monkeypatch):
    """Though it names the same classes. What is off is not asked for, or by less than GREATEST_ERROR: it stays."""
    convert = Runtime.convert

    def spoil(features, logits):
        def spoiled(runtime, module, precision):
            module = convert(runtime, module, precision)
            module.layer3.register_forward_hook(lambda layer, inputs, output: features(output))
            module.fc.register_forward_pre_hook(lambda layer, inputs: logits(inputs[0]))
            return module

        monkeypatch.setattr(Runtime, "convert", spoiled)

    def line_of(taps):
        teacher, line, _ = optimized(taps=taps, PRECISION="bf16")
        assert kinds(teacher) == ({FP32} if "not used" in line else {BF16})
        return line

    spoil(lambda x: x * 1.1, lambda x: x / 1.1)
    _, _, rejected = line_of(TAPS).partition(
        "; not used, as it is too different: 9 batch norms folded, bf16, same prediction as the original for "
    )
    assert float(rejected.split()[0]) >= variants.LEAST_AGREEMENT
    assert rejected.endswith(" test images, features within 10 %")
    assert "not used" not in line_of(TAPS[:1])
    spoil(lambda x: x * 1.04, lambda x: x / 1.04)
    assert "not used" not in line_of(TAPS)
    spoil(lambda x: x.index_fill(0, torch.tensor([5]), torch.nan), lambda x: x.nan_to_num(0))
    assert line_of(TAPS[:2]).endswith(" test images, features within nan %")


def test_a_teacher_of_another_size_is_folded_at_its_own(std):
    """A mixer takes only its own size; without batch norms nothing is folded, and nothing fails."""
    cfg = std(DISTILLATION__TEACHER_SIZES="[16]", DISTILLATION__TEACHER_MIN_ACC=0)
    session, *_ = build_all(cfg, build_runtime(cfg))
    seen = []
    session.trainer.teachers[0].backbone.conv1.register_forward_hook(
        lambda module, inputs, _: seen.append(inputs[0].shape)
    )
    optimize_teachers(cfg, session)
    assert {shape[2:] for shape in seen} == {(16, 16)}


def test_a_teacher_that_can_only_be_computed_in_fp32(optimized):
    def insist(teacher):
        def check(module, inputs):
            if inputs[0].dtype != torch.float32:
                raise RuntimeError("expected float\nand more")

        teacher.backbone.register_forward_pre_hook(check)

    teacher, line, _ = optimized(insist, PRECISION="bf16")
    assert line == (
        "teacher 0 resnet8: 0 batch norms folded, fp32; not used, as it is too different: "
        "0 batch norms folded, bf16, same prediction as the original for 0.00 % of 360 test images "
        "(expected float and more)"
    )
    assert kinds(teacher) == {FP32}


def test_nothing_asked_for_is_nothing_done(optimized):
    seen = {}
    teacher, line, _ = optimized(lambda t: seen.update(backbone=t.backbone), DISTILLATION__TEACHER_FOLD=False)
    assert teacher.backbone is seen["backbone"]
    assert line == "teacher 0 resnet8: 0 batch norms folded, fp32"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_batch_norms_may_take_the_statistics_of_each_batch(optimized, precision):
    """TEACHER_BN batch: as if the teacher were in train mode, but its weights and buffers stay as they are."""
    options = {"DISTILLATION__TEACHER_BN": "batch", "PRECISION": precision}
    teacher, line, session = optimized(**options)
    assert line.startswith(f"teacher 0 resnet8: 0 batch norms folded, {precision}")
    awake, batch = optimized(DISTILLATION__TEACHER_FOLD=False)[0].backbone, images()
    awake.train()
    expected = awake(teacher.own_input(batch).float())
    teacher.use_batch_statistics()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    session.trainer.teachers.train()
    limit = {} if precision == "fp32" else {"rtol": 0.05, "atol": 0.3}
    torch.testing.assert_close(logits(teacher), expected, **limit)
    assert same(before, dict(teacher.state_dict()))
    assert not torch.allclose(expected, awake.eval()(teacher.own_input(batch).float()), atol=0.3)


def test_a_teacher_is_scored_by_its_own_statistics_and_then_switches_to_those_of_batches(method, monkeypatch, caplog):
    """A test split in the order of its classes would not be known by the statistics of its batches."""
    seen = []

    def fit(session, **_):
        (teacher,) = session.trainer.teachers
        seen.append([m.running_mean for m in teacher.modules() if isinstance(m, torch.nn.BatchNorm2d)])

    monkeypatch.setattr(loop, "fit", lambda session, **options: (fit(session), session.best.update(top1=0, epoch=0)))
    for choice in ("eval", "batch"):
        options = {"DISTILLATION__TEACHER_BN": choice, "DISTILLATION__TEACHER_FOLD": "false"}
        runner.train(method("kd", TEST__BATCH_SIZE=2, **options))
    first, second = [line for line in caplog.messages if line.startswith("teacher 0 resnet8: top-1")]
    assert first == second
    assert len(seen[1]) == 9 and all(mean is None for mean in seen[1])
    assert all(mean is not None for mean in seen[0])


def test_all_processes_together_try_1000_images_and_decide_alike(std, monkeypatch):
    """This process tries 250 images, three others as many."""
    cfg = std(PRECISION="bf16", TEST__BATCH_SIZE=100)
    session, *_ = build_all(cfg, build_runtime(cfg))
    world = session.runtime.world
    session.teacher_outputs.requests = [Request(taps=TAPS[:1])]
    own = []

    def add(counts):
        own.append(counts.clone())
        return counts + torch.tensor([750.0, 750.0, *counts[2:].tolist()], dtype=counts.dtype)

    world.size, world.sum = 4, add
    (line,) = optimize_teachers(cfg, session)
    assert float(own[0][1]) == 250
    assert "% of 1000 test images, features within " in line


def test_checkpoints_know_teachers_by_the_weights_that_were_found(std, tmp_path, caplog):
    """And the log says how they are computed."""
    cfg = std(OPTIM__MAX_EPOCH=1, PRECISION="bf16", **SMALL)
    session, *_ = build_all(cfg, build_runtime(cfg))
    found = [checkpoint.fingerprint(teacher) for teacher in session.trainer.teachers]
    optimize_teachers(cfg, session)
    assert [checkpoint.fingerprint(teacher) for teacher in session.trainer.teachers] != found
    runner.train(cfg)
    assert load_state(tmp_path / "run")["teachers"] == found
    (line,) = [text for text in caplog.messages if "batch norms folded" in text]
    assert line.startswith("teacher 0 resnet8: 9 batch norms folded, bf16; same prediction as the original for ")


def test_the_benchmark_compares_all_ways(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from tools.benchmarks.teachers import compare

    lines = compare("resnet8", 8, batch=4, rounds=1, runtime=Runtime(device="cpu"))
    assert lines[0].startswith("resnet8, 4 images of 8 px, ")
    assert [line.split("  ")[0].strip() for line in lines[1:]] == [
        "plain, fp32",
        "9 folded, fp32",
        "plain, bf16 by autocast",
        "converted, bf16",
        "9 folded, converted, bf16",
    ]
    assert all("images/s" in line for line in lines[1:])
    assert all("x (" in line for line in lines[2:])


# ----------------------------------------------------------------------------------------------- students that teach
@pytest.fixture(scope="module")
def taught_student(teacher, tmp_path_factory):
    """Path of the checkpoint of an STD student, whose class head has not learnt, and the scores of its predictions."""
    folder = tmp_path_factory.mktemp("student")
    own = {"DISTILLATION__TEACHER_WEIGHTS": f"[{teacher}]", "OUT_DIR": folder, "OPTIM__MAX_EPOCH": 2}
    own |= {"STD__WEIGHT": 1.0, "TASK__WEIGHT": 1e-6}
    runner.train(config.load(str(ROOT / "configs/debug/std_debug.yaml"), words(**own)))
    line = logged(folder)[-1]
    scores = {name: line[f"test/{name}_top1"] for name in ("avg", "cls", "dist")}
    assert len(set(scores.values())) == 3
    return folder / "checkpoints" / "last.pt", scores


def by_student(path, **own):
    """Options of a run that such a student teaches."""
    own = {"TEACHERS": "[mixer_nano4]", "TEACHER_WEIGHTS": f"[{path}]", "TEACHER_MIN_ACC": 0} | own
    return {f"DISTILLATION__{key}": value for key, value in own.items()}


def test_a_teacher_is_judged_on_what_is_held_out(load, taught_student, tmp_path):
    path, scores = taught_student
    words = by_student(path) | {"OPTIM__MAX_EPOCH": 1}
    runner.train(load("debug/kd_debug", OUT_DIR=tmp_path / "run", DATA__VAL_FRACTION=0.3, **words))
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["teachers"] == {"0_mixer_nano4": pytest.approx(scores["avg"])}  # on the test split
    assert (
        facts["teacher_fingerprints"] == load_state(tmp_path / "run")["teachers"]
        and len(facts["teacher_fingerprints"]) == 1
    )
    held_out = facts["held_out_teachers"]["0_mixer_nano4"]
    assert held_out != pytest.approx(scores["avg"])
    words["DISTILLATION__TEACHER_MIN_ACC"] = held_out + 0.1
    with pytest.raises(ValueError, match=f"top-1 {held_out:.2f} on the held-out images, below"):
        runner.train(load("debug/kd_debug", OUT_DIR=tmp_path / "other", DATA__VAL_FRACTION=0.3, **words))


@pytest.mark.parametrize("prediction", ["", "avg", "cls", "dist"])
def test_a_student_that_teaches_does_so_by_its_own_prediction(load, taught_student, tmp_path, prediction):
    """By its class head alone an STD student of 83.3 taught at 39.5. Its score as a teacher is that of its run."""
    path, scores = taught_student
    own = by_student(path, **({"TEACHER_PREDICTIONS": f"[{prediction}]"} if prediction else {}))
    cfg = load("debug/kd_debug", OUT_DIR=tmp_path / "run", OPTIM__MAX_EPOCH=1, **SMALL, **own)
    session, _, _ = build_all(cfg, build_runtime(cfg))
    runner.train(cfg)
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["teachers"] == {"0_mixer_nano4": pytest.approx(scores[prediction or "avg"])}
    (its,) = session.trainer.teachers
    assert f"by its prediction {prediction or 'avg'}" in its.description
    # a plain second computation, by the student of the checkpoint
    state = torch.load(path, weights_only=True)
    student_cfg = config.load(str(path.parents[1] / "config.yaml"))
    described = build_described_trainer(student_cfg, 10)[0].student.eval()
    described.load_state_dict(state["student"])
    images = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        heads = described(images).heads
        others = torch.stack([value for name, value in heads.items() if name != "cls"]).mean(dim=0)
    expected = {"cls": heads["cls"], "dist": others, "avg": (heads["cls"] + others) / 2}[prediction or "avg"]
    torch.testing.assert_close(its(images).heads["cls"], expected)
    both = its(images, Request(taps=("blocks.1",)))
    torch.testing.assert_close(both.heads["cls"], expected)
    assert (
        both.features["blocks.1"].shape
        == its(images, Request(head=False, taps=("blocks.1",))).features["blocks.1"].shape
    )


def test_a_student_that_teaches_takes_arguments(load, taught_student):
    cfg = load("debug/kd_debug", **by_student(taught_student[0], TEACHER_ARGS="[{drop_rate: 0.3}]"))
    (its,) = build_all(cfg, build_runtime(cfg))[0].trainer.teachers
    assert its.backbone.prediction == "avg" and its.backbone.student.backbone.head_drop.p == 0.3


def test_predictions_that_a_teacher_does_not_offer(load, teacher, taught_student, tmp_path):
    for name, path, wanted, known in (
        ("resnet8", teacher, "avg", "cls"),
        ("mixer_nano4", taught_student[0], "mean", "avg, cls, dist"),
    ):
        own = by_student(path, TEACHERS=f"[{name}]", TEACHER_PREDICTIONS=f"[{wanted}]")
        cfg = load("debug/kd_debug", OUT_DIR=tmp_path, **own)
        with pytest.raises(ValueError, match=f"TEACHER_PREDICTIONS is '{wanted}', it offers {known}$"):
            runner.train(cfg)


def test_the_prediction_belongs_to_what_is_kept_of_a_teacher(load, taught_student, tmp_path):
    """Two runs that a student teaches by two of its predictions do not read each other's cache."""
    folders = []
    for prediction in ("avg", "cls"):
        own = by_student(taught_student[0], TEACHER_PREDICTIONS=f"[{prediction}]", CACHE=tmp_path / "kept")
        runner.train(load("debug/kd_debug", OUT_DIR=tmp_path / prediction, OPTIM__MAX_EPOCH=1, **SMALL, **own))
        folders.append({path.name for path in (tmp_path / "kept").iterdir()})
    assert [len(found) for found in folders] == [1, 2]
