"""VkD: its objective against plain loops, whom its gradients reach, any student and teacher, and what a run keeps."""

import math

import pytest
import torch
from methods import DEIT, STUDENTS, Method, batch, make, options_of
from records import SMALL, assert_same_run, load_state

from pycls_std import runner
from pycls_std.builders.training import build_described_trainer
from pycls_std.core.structures import World
from pycls_std.engine import loop
from pycls_std.layers.orthogonal import MAPS
from pycls_std.layers.projection import PROJECTIONS
from pycls_std.losses.feature_norm import standardize, whiten
from pycls_std.models.create import create_backbone
from pycls_std.models.student import Student
from pycls_std.tasks.classification import Classification
from pycls_std.teachers.predicting import PredictingStudent
from pycls_std.teachers.teacher import Request, compute
from pycls_std.terms.vkd import VkD

WIDTH, TEACHERS = STUDENTS[DEIT]["embed_dim"], 64  # channels of the student's patches, of a ResNet-8's pooled features


def vkd(load, name=DEIT, **overrides):
    """The method with one teacher, a ResNet-8, unless it has to do without."""
    return make(load, "vkd", name, **({"teachers": 1} | overrides))


def smooth_l1(first, second):
    """Entry by entry: d^2 / 2 for a distance of less than 1, else d - 1/2."""
    pairs = zip(first.flatten().tolist(), second.flatten().tolist(), strict=True)
    each = [d * d / 2 if d < 1 else d - 0.5 for d in (abs(a - b) for a, b in pairs)]
    return sum(each) / len(each)


def teachers_of(method, data):
    """Pooled features and logits of the teacher, by its own layers."""
    backbone = method.teachers[0].backbone
    with torch.no_grad():
        pooled = backbone.forward_features(method.teachers[0].own_input(data.images)).mean(dim=(2, 3))
        return pooled, backbone.fc(pooled)


# ------------------------------------------------------------------------------------------------------- the objective
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.3, 2.0, 0.7)])
def test_objective_is_that_of_the_publication(load, weights):
    """Each of the three against loops over what timm's DeiT and the teacher's own layers give."""
    alpha, gamma, labels = weights
    options = {"VKD__WEIGHT": alpha, "KD__WEIGHT": gamma, "TASK__WEIGHT": labels}
    method, data = vkd(load, **options), batch()
    losses, backbone = method.losses(data), method.student.backbone
    with torch.no_grad():
        tokens = backbone.forward_features(data.images)
        own = tokens[:, 2:].mean(dim=1)
        logits, distillation = backbone.head(tokens[:, 0]), backbone.head_dist(tokens[:, 1])
    pooled, teacher = teachers_of(method, data)
    weight = method.trainer.terms["vkd"].projection.weight().detach()
    assert weight.shape == (TEACHERS, WIDTH)
    torch.testing.assert_close(weight.T @ weight, torch.eye(WIDTH), rtol=0, atol=1e-5)
    target = torch.stack([(z - z.mean()) / math.sqrt(z.var(correction=0) + 1e-5) for z in pooled])
    assert float(losses["vkd"].detach()) == pytest.approx(alpha * smooth_l1(own @ weight.T, target), rel=1e-4)
    p, log_q = teacher.softmax(dim=1), distillation.log_softmax(dim=1)
    divergence = sum(float((p[i] * (p[i].log() - log_q[i])).sum()) for i in range(len(p))) / len(p)
    assert float(losses["kd"]) == pytest.approx(gamma * divergence, rel=1e-4)
    entropy = -(data.targets * logits.log_softmax(dim=1)).sum(dim=1).mean()
    assert float(losses["ce"]) == pytest.approx(labels * float(entropy), rel=1e-4)
    assert losses.keys() == {"vkd", "kd", "ce"}


def test_the_projected_features_keep_their_inner_products(load):
    method, data = vkd(load), batch()
    with torch.no_grad():
        own = method.student(data.images, ("patches",)).features["patches"]
        projected = method.trainer.terms["vkd"].projection(own)
    for i in range(len(own)):
        for j in range(len(own)):
            assert float(projected[i] @ projected[j]) == pytest.approx(float(own[i] @ own[j]), rel=1e-4, abs=1e-4)


@pytest.mark.defect(31)
@pytest.mark.parametrize("alpha", [0, 1])
@pytest.mark.parametrize("gamma", [0, 1])
@pytest.mark.parametrize("labels", [0, 1])
def test_any_weight_may_be_0(load, alpha, gamma, labels):
    """The heads learn as long as something teaches them; two of them are one where only one thing does."""
    options = {"VKD__WEIGHT": alpha, "KD__WEIGHT": gamma, "TASK__WEIGHT": labels, "teachers": int(alpha or gamma)}
    if not gamma and not labels:
        expected = "head cls of the student would not learn" if alpha else "nothing to learn from"
        with pytest.raises(ValueError, match=expected):
            vkd(load, **options)
        return
    method = vkd(load, **options)
    losses = method.losses(batch())
    assert list(losses) == ["ce"] * labels + ["kd"] * gamma + ["vkd"] * alpha
    assert method.student.heads == (("cls", "dist") if gamma and labels else ("cls",))
    sum(losses.values()).backward()
    without = [name for name, p in method.trainer.objective.named_parameters() if p.grad is None]
    assert without == []


def test_gradients_reach_the_student_and_its_projection_and_nothing_else(load):
    method = vkd(load)
    method.losses(batch())["vkd"].backward()
    backbone, reached = (
        method.student.backbone,
        {name for name, p in method.trainer.objective.named_parameters() if p.grad is not None and p.grad.any()},
    )
    heads = {f"student.backbone.{head}.{key}" for head in ("head", "head_dist") for key in ("weight", "bias")}
    everything = {f"student.backbone.{name}" for name, _ in backbone.named_parameters()} | {"terms.vkd.projection.free"}
    assert reached == everything - heads
    assert all(p.grad is None and not p.requires_grad for p in method.teachers.parameters())


# ------------------------------------------------------------------------------------------ whatever learns and teaches
@pytest.mark.parametrize("name", ["mixer_nano4", DEIT, "deit_ti_conv", "resnet8", "pvt_v2_b0"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_any_student_learns(load, name, precision):
    """A step of a mixer, a transformer, a ResNet: all that trains moves; the projection stays orthonormal."""
    method = vkd(load, name)
    objective = method.trainer.objective
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-3, weight_decay=0.05)
    before = {key: value.clone() for key, value in objective.state_dict().items()}
    for _ in range(2):  # a head may start at zero, and lets nothing else of the labels through in its first step
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            losses = method.losses(batch())
        assert all(value.isfinite() and value.dtype == torch.float32 for value in losses.values())
        sum(losses.values()).backward()
        assert [key for key, p in objective.named_parameters() if p.grad is None] == []
        optimizer.step()
    moved = [key for key, p in objective.named_parameters() if not torch.equal(p, before[key])]
    assert "terms.vkd.projection.free" in moved and len(moved) > len(list(objective.parameters())) / 2
    weight = method.trainer.terms["vkd"].projection.weight().detach()
    tall = weight if weight.shape[0] >= weight.shape[1] else weight.T
    torch.testing.assert_close(tall.T @ tall, torch.eye(tall.shape[1]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("teacher", "channels"),
    [("regnety_002", 368), ("resnet18", 512), ("deit_tiny_patch16_224", 192), ("mixer_nano4", 128)]
    + [("mobilenetv3_small_050", 1024), ("pvt_v2_b0", 256), ("swin_tiny_patch4_window7_224", 768)],
)
def test_any_teacher_teaches(load, teacher, channels):
    """By what its classifier reads; at its own tap as well, and by its mean patch."""
    size = 56 if teacher.startswith("swin") else 32  # its windows are of 7 patches of 4
    words = options_of("vkd", DEIT, DISTILLATION__TEACHERS=f"[{teacher}]", DISTILLATION__TEACHER_SIZES=f"[{size}]")
    method, data = Method(load("debug/base_debug", **words)), batch()
    assert method.trainer.terms["vkd"].projection.weight().shape == (channels, WIDTH)
    assert method.losses(data)["vkd"].isfinite()
    for tap in ("last", "patches"):
        other = Method(load("debug/base_debug", **words, VKD__TEACHER_TAP=tap, VKD__STUDENT_TAP="1/2"))
        assert other.losses(data)["vkd"].isfinite()


def test_a_student_that_teaches_has_a_mean_patch_without_tokens():
    """One of two heads, trained here: asked for its logits as well or not."""
    backbone = create_backbone(DEIT, num_classes=10, image_size=32, **STUDENTS[DEIT])
    student = Student(backbone, split_heads=True)
    task = Classification(10, pipeline=None)
    teacher, images = PredictingStudent(student, task.predictions, "avg").eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = backbone.forward_features(images)[:, 2:].mean(dim=1)
        for head in (True, False):
            output = compute(teacher, images, Request(head, ("patches",)))
            torch.testing.assert_close(output.features["patches"], expected)


def test_a_map_is_averaged_over_its_places(load):
    method, data = vkd(load, VKD__STUDENT_TAP="0", VKD__TEACHER_TAP="layer2", VKD__NORM="none"), batch()
    loss = method.losses(data)["vkd"]
    with torch.no_grad():
        _, own = method.student.backbone.forward_intermediates(data.images, output_fmt="NCHW")
        _, other = method.teachers[0].backbone.forward_intermediates(data.images)
        own, other = own[0].mean(dim=(2, 3)), other[1].mean(dim=(2, 3))
        expected = smooth_l1(method.trainer.terms["vkd"].projection(own), other)
    assert float(loss) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("form", PROJECTIONS)
def test_the_ablation_of_the_projection(load, form):
    """At equal widths, so that none is one of them."""
    method, data = vkd(load, VKD__PROJECTION=form, MODEL__ARGS__embed_dim=TEACHERS, MODEL__ARGS__num_heads=2), batch()
    loss = method.losses(data)["vkd"]
    loss.backward()
    projection = method.trainer.terms["vkd"].projection
    with torch.no_grad():
        own = method.student(data.images, ("patches",)).features["patches"]
        pooled, _ = teachers_of(method, data)
        target = torch.nn.functional.layer_norm(pooled, (TEACHERS,))
        assert float(loss) == pytest.approx(smooth_l1(projection(own), target), rel=1e-4)
    assert all(p.grad.any() for p in projection.parameters())
    assert (
        sum(p.numel() for p in projection.parameters())
        == {**{"orthogonal": TEACHERS**2, "linear": TEACHERS**2, "mlp": 2 * (TEACHERS**2 + TEACHERS), "none": 0}}[form]
    )


@pytest.mark.parametrize("kind", MAPS)
def test_the_map_and_its_base_are_options(load, kind):
    term = vkd(load, VKD__MAP=kind, VKD__TRIVIALIZE="true").trainer.terms["vkd"]
    assert (term.projection.kind, term.projection.base.shape) == (kind, (TEACHERS, TEACHERS))
    assert vkd(load, VKD__MAP=kind).trainer.terms["vkd"].projection.base is None


def test_what_the_options_list_is_what_there_is():
    assert set(VkD.OPTIONS["MAP"].choices) == {"auto", *MAPS}
    assert set(VkD.OPTIONS["PROJECTION"].choices) == set(PROJECTIONS)


@pytest.mark.parametrize("name", ["standardize", "whiten"])
def test_statistics_are_of_the_images_of_all_processes(load, name):
    """What this one has, normalised by the statistics of what all have."""
    options = {"VKD__NORM": name} | ({"VKD__SHRINKAGE": 0.3} if name == "whiten" else {})
    method, data = vkd(load, **options), batch()
    pooled, _ = teachers_of(method, data)
    others = torch.randn(7, TEACHERS)

    class Two(World):
        def concatenated(self, tensor):
            return torch.cat([tensor.detach(), others])

    method.trainer.share(Two())
    loss = method.losses(data)["vkd"]
    together = torch.cat([pooled, others])
    target = standardize(pooled, together) if name == "standardize" else whiten(pooled, together, shrinkage=0.3)
    with torch.no_grad():
        own = method.student(data.images, ("patches",)).features["patches"]
        expected = smooth_l1(method.trainer.terms["vkd"].projection(own), target)
    assert float(loss) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({"teachers": 0}, "KD.WEIGHT needs at least one teacher, DISTILLATION.TEACHERS is empty"),
        ({"teachers": 0, "KD__WEIGHT": 0}, "VKD.TEACHER needs teacher 0, DISTILLATION.TEACHERS has 0 entries"),
        ({"VKD__TEACHER": 1}, "VKD.TEACHER needs teacher 1, DISTILLATION.TEACHERS has 1 entry"),
        ({"VKD__STUDENT_TAP": "blocks.7"}, "VKD.STUDENT_TAP has 'blocks.7', expected pooled, patches, last"),
        ({"VKD__TEACHER_TAP": "9"}, "VKD.TEACHER_TAP has '9', the backbone has the taps 0 to 2"),
        ({"VKD__PROJECTION": "none"}, "VKD.PROJECTION is none: features of 24 channels cannot .* features of 64"),
        ({"VKD__NORM": "batch"}, "VKD.NORM is 'batch', expected one of layer, standardize, whiten, none"),
        ({"VKD__SHRINKAGE": 0}, "VKD.SHRINKAGE is 0.0, expected 0.001 to 1"),
        ({"VKD__WEIGHT": 0, "VKD__MAP": "qr"}, "VKD.MAP is 'qr', which TRAINER vkd does not read"),
    ],
)
def test_options_that_contradict_each_other(load, overrides, text):
    with pytest.raises(ValueError, match=text):
        vkd(load, **overrides)


@pytest.mark.parametrize("kind", MAPS)
def test_graphs_hold_every_map_but_the_one_that_asks_the_device(load, kind):
    """Nor do they hold a whitening."""
    cfg = load("debug/kd_debug", TRAINER="vkd", VKD__MAP=kind, TRAIN__COMPILE="graphs")
    if kind == "matrix_exp":
        with pytest.raises(ValueError, match="^TRAIN.COMPILE is graphs, which cannot hold the MAP matrix_exp"):
            build_described_trainer(cfg, 10)
    else:
        build_described_trainer(cfg, 10)
        cfg = load("debug/kd_debug", TRAINER="vkd", VKD__MAP=kind, VKD__NORM="whiten", TRAIN__COMPILE="graphs")
        with pytest.raises(ValueError, match="^TRAIN.COMPILE is graphs, which cannot hold the NORM whiten;"):
            build_described_trainer(cfg, 10)


def test_with_std(load):
    """Both methods on one mixer: all terms are there, and each is what it is alone."""
    data = batch()
    both = make(load, "std", teachers=1, VKD__WEIGHT=1.0).losses(data)
    assert list(both) == ["ce", "std", "vkd"]
    torch.testing.assert_close(both["std"], make(load, "std", teachers=1).losses(data)["std"])


# ----------------------------------------------------------------------------------------------------------------- runs
@pytest.mark.parametrize(
    ("name", "student", "projection"), [("deit-ti", 6_633_104, 580_608), ("deit-s", 23_797_520, 1_161_216)]
)
def test_sizes_are_the_published_ones(load, name, student, projection):
    """Of the shipped configs for ImageNet, where nothing is allocated; the teacher is a RegNetY-160."""
    with torch.device("meta"):
        trainer, run = build_described_trainer(load(f"vkd/{name}_in1k_vkd"), 1000)
        (teacher,) = run.teachers
        assert sum(p.numel() for p in teacher.build().parameters()) == 83_590_140
    assert trainer.deployed_parameters() == student
    assert trainer.trained_parameters() - student == projection


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_is_continued_bit_for_bit(method, tmp_path, monkeypatch, precision):
    """Interrupted in its second epoch; the projection is in the checkpoint, and not in the student."""
    words = SMALL | {"PRECISION": precision, "VKD__NORM": "whiten", "OPTIM__MAX_EPOCH": 2}
    runner.train(method("vkd", **words, OUT_DIR=tmp_path / "whole"))
    step = loop.train_step

    def interrupt(session, data, progress):
        if (progress.epoch, progress.iteration) == (1, 5):
            raise Interrupted
        return step(session, data, progress)

    broken = method("vkd", **words, OUT_DIR=tmp_path / "broken")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(loop, "train_step", interrupt)
        runner.train(broken)
    runner.train(broken)
    assert_same_run(tmp_path / "whole", tmp_path / "broken")
    state = load_state(tmp_path / "whole")
    assert list(state["trainer"]["terms"]) == ["vkd.projection.free"]
    assert not any("projection" in key for key in state["student"])


@pytest.mark.defect(21)
def test_the_projection_is_not_deployed(load, method, tmp_path, caplog):
    trainer = vkd(load).trainer
    student = sum(p.numel() for p in trainer.student.parameters())
    assert trainer.deployed_parameters() == student
    assert trainer.trained_parameters() == student + WIDTH * TEACHERS
    runner.train(method("vkd", OPTIM__MAX_EPOCH=1, **SMALL))
    words = {"TEST__WEIGHTS": tmp_path / "run" / "checkpoints" / "best.pt"}
    runner.run("test", method("vkd", **words, DISTILLATION__TEACHER_WEIGHTS="[gone.pt]"))
    assert any(line.startswith("* avg") for line in caplog.messages)
