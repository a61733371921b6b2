"""Teachers made fast: what is folded and converted, that they name the same classes, and what follows if not."""

import pytest
import torch
from processes import ROOT
from records import load_state, same

from pycls_std import runner
from pycls_std.builders.teachers import settle_teachers
from pycls_std.builders.training import build_all, build_runtime
from pycls_std.engine import checkpoint, loop
from pycls_std.engine.runtime import Runtime
from pycls_std.losses.logit import soft_distillation


@pytest.fixture
def settled(std):
    """Return settled(change=.., **overrides): a trained teacher, changed and settled; the line on it; the session."""

    def settle(change=lambda teacher: None, **overrides):
        cfg = std(**overrides)
        session, _ = build_all(cfg, build_runtime(cfg))
        (teacher,) = session.trainer.teachers
        change(teacher)
        (line,) = settle_teachers(cfg, [teacher], session.test_loader, session.runtime)
        return teacher, line, session

    return settle


def images():
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def kinds(teacher):
    return {value.dtype for value in teacher.backbone.state_dict().values() if value.is_floating_point()}


FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16


@pytest.mark.parametrize(
    ("precision", "teachers", "fold", "found"),
    [
        ("fp32", "auto", True, {FP32}),
        ("bf16", "auto", True, {BF16}),
        ("bf16", "fp32", True, {FP32}),
        ("fp32", "bf16", True, {BF16}),
        ("fp32", "fp16", True, {FP16}),
        ("bf16", "auto", False, {BF16, FP32}),  # batch norms stay in fp32
    ],
)
def test_precision_and_folding_are_those_asked_for(settled, precision, teachers, fold, found):
    options = {"PRECISION": precision, "DISTILLATION__TEACHER_PRECISION": teachers, "DISTILLATION__TEACHER_FOLD": fold}
    plain = {}
    teacher, line, _ = settled(lambda teacher: plain.update(logits=teacher(images()).logits), **options)
    assert kinds(teacher) == found
    used = precision if teachers == "auto" else teachers
    assert line.startswith(f"teacher 0 resnet8: {9 if fold else 0} batch norms folded, {used}; same class as in fp32 ")
    assert line.endswith("% of 360 test images")
    logits = teacher(images()).logits
    assert logits.dtype == FP32
    error = 1e-4 if used == "fp32" else 0.05
    torch.testing.assert_close(logits, plain["logits"], rtol=error, atol=error * float(logits.abs().max()))


@pytest.mark.parametrize("own", ["fp32", "bf16"])
def test_a_settled_teacher_does_not_mind_the_precision_around_it(settled, own):
    teacher, _, session = settled(DISTILLATION__TEACHER_PRECISION=own)
    expected = teacher(images()).logits
    for enabled in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            assert torch.equal(teacher(images()).logits, expected)


def test_a_student_may_keep_a_teachers_logits_for_its_gradient(settled):
    teacher, _, session = settled()
    logits = teacher(images()).logits
    assert not logits.requires_grad and not logits.is_inference()
    scale = torch.ones(1, requires_grad=True)
    (soft_distillation(scale * images().flatten(1)[:, :10], logits, 2.0).mean() + (scale * logits).sum()).backward()
    assert scale.grad.isfinite()


def near(teacher):
    """Raise all logits so far that bf16 does not tell them apart, and fp32 does."""
    torch.nn.init.constant_(teacher.backbone.fc.bias, 3000.0)


def test_a_teacher_that_bf16_would_confuse_stays_in_fp32(settled):
    teacher, line, _ = settled(near, PRECISION="bf16")
    assert kinds(teacher) == {FP32}
    assert line.startswith("teacher 0 resnet8: 9 batch norms folded, fp32; same class as in fp32 for 100.00 % of 360 ")
    assert "; not with 9 batch norms folded, bf16: same class as in fp32 for" in line
    logits = teacher(images()).logits
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(teacher(images()).logits, logits)


@pytest.mark.parametrize(("same", "stays"), [(98.9, False), (99.0, True)])
def test_a_teacher_may_name_one_image_of_a_hundred_otherwise(settled, monkeypatch, same, stays):
    monkeypatch.setattr("pycls_std.builders.teachers._agreement", lambda *_: (same, "so many"))
    teacher, *_ = settled(PRECISION="bf16")
    assert (teacher.dtype == torch.bfloat16) == stays


def test_a_teacher_of_another_size_is_folded_at_its_own(std):
    """A mixer takes only its own size; without batch norms nothing is folded, and nothing fails."""
    cfg = std(DISTILLATION__TEACHER_SIZES="[16]", DISTILLATION__TEACHER_MIN_ACC=0)
    session, _ = build_all(cfg, build_runtime(cfg))
    seen = []
    session.trainer.teachers[0].backbone.conv1.register_forward_hook(
        lambda module, inputs, _: seen.append(inputs[0].shape)
    )
    settle_teachers(cfg, session.trainer.teachers, session.test_loader, session.runtime)
    assert {shape[2:] for shape in seen} == {(16, 16)}


def test_a_precision_that_is_asked_for_by_name_is_kept_and_the_difference_told(settled):
    teacher, line, _ = settled(near, PRECISION="bf16", DISTILLATION__TEACHER_PRECISION="bf16")
    assert kinds(teacher) == {BF16}
    assert float(line.split("as in fp32 for ")[1].split()[0]) < 99


def test_a_teacher_that_can_only_be_computed_in_fp32(settled):
    def insist(teacher):
        def check(module, inputs):
            if inputs[0].dtype != torch.float32:
                raise RuntimeError("expected float\nand more")

        teacher.backbone.register_forward_pre_hook(check)

    teacher, line, _ = settled(insist, PRECISION="bf16")
    assert line == (
        "teacher 0 resnet8: 0 batch norms folded, fp32; not with 0 batch norms folded, bf16: same class as in fp32 for "
        "0.00 % of 360 test images (expected float and more)"
    )
    assert kinds(teacher) == {FP32}


def test_nothing_asked_for_is_nothing_done(settled):
    seen = {}
    teacher, line, _ = settled(lambda t: seen.update(backbone=t.backbone), DISTILLATION__TEACHER_FOLD=False)
    assert teacher.backbone is seen["backbone"]
    assert line == "teacher 0 resnet8: 0 batch norms folded, fp32"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_batch_norms_may_take_the_statistics_of_each_batch(settled, precision):
    """TEACHER_BN batch: as if the teacher were in train mode, but its weights and buffers stay as they are."""
    options = {"DISTILLATION__TEACHER_BN": "batch", "PRECISION": precision}
    teacher, line, session = settled(**options)
    assert line.startswith(f"teacher 0 resnet8: 0 batch norms folded, {precision}")
    awake, batch = settled(DISTILLATION__TEACHER_FOLD=False)[0].backbone, images()
    awake.train()
    expected = awake(teacher.own_input(batch))
    teacher.use_batch_statistics()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    session.trainer.teachers.train()
    limit = {} if precision == "fp32" else {"rtol": 0.05, "atol": 0.3}
    torch.testing.assert_close(teacher(batch).logits, expected, **limit)
    assert same(before, dict(teacher.state_dict()))
    assert not torch.allclose(expected, awake.eval()(teacher.own_input(batch)), atol=0.3)


def test_a_teacher_is_scored_by_its_own_statistics_and_then_woken(method, monkeypatch, caplog):
    """A test split in the order of its classes would not be known by the statistics of its batches."""
    seen = []

    def fit(session, **_):
        (teacher,) = session.trainer.teachers
        seen.append([m.running_mean for m in teacher.modules() if isinstance(m, torch.nn.BatchNorm2d)])

    monkeypatch.setattr(loop, "fit", lambda session, **options: (fit(session), session.best.update(top1=0, epoch=0)))
    with caplog.at_level("INFO"):
        for choice in ("eval", "batch"):
            options = {"DISTILLATION__TEACHER_BN": choice, "DISTILLATION__TEACHER_FOLD": "false"}
            runner.train(method("kd", TEST__BATCH_SIZE=2, **options))
    first, second = [line for line in caplog.messages if line.startswith("teacher 0 resnet8: top-1")]
    assert first == second
    assert len(seen[1]) == 9 and all(mean is None for mean in seen[1])
    assert all(mean is not None for mean in seen[0])


def test_random_weights_are_settled_without_falling_back(std):
    cfg = std(PRECISION="bf16")
    session, _ = build_all(cfg, build_runtime(cfg))
    near(session.trainer.teachers[0])
    settle_teachers(cfg, session.trainer.teachers, session.test_loader, session.runtime, fall_back=False)
    assert kinds(session.trainer.teachers[0]) == {BF16}


def test_all_processes_together_try_1000_images_and_decide_alike(std, monkeypatch):
    """This process tries 250 images, three others as many."""
    cfg = std(PRECISION="bf16", TEST__BATCH_SIZE=100)
    session, _ = build_all(cfg, build_runtime(cfg))
    world = session.runtime.world
    own = []

    def add(counts):
        own.append(counts.clone())
        return counts + torch.tensor([750.0, 750.0])

    world.size, world.sum = 4, add
    (line,) = settle_teachers(cfg, session.trainer.teachers, session.test_loader, session.runtime)
    assert float(own[0][1]) == 250
    assert line.endswith("of 1000 test images")


def test_checkpoints_know_teachers_by_the_weights_that_were_found(std, tmp_path):
    cfg = std(OPTIM__MAX_EPOCH=1)
    session, _ = build_all(cfg, build_runtime(cfg))
    found = [checkpoint.fingerprint(teacher) for teacher in session.trainer.teachers]
    settle_teachers(cfg, session.trainer.teachers, session.test_loader, session.runtime)
    assert [checkpoint.fingerprint(teacher) for teacher in session.trainer.teachers] != found
    runner.train(cfg)
    assert load_state(tmp_path / "run")["teachers"] == found


def test_a_run_says_how_its_teachers_are_computed(std, caplog):
    caplog.set_level("INFO")
    runner.train(std(OPTIM__MAX_EPOCH=1, PRECISION="bf16"))
    (line,) = [text for text in caplog.messages if "batch norms folded" in text]
    assert line.startswith("teacher 0 resnet8: 9 batch norms folded, bf16; same class as in fp32 for ")


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
