"""Exit heads (OFA-KD): where they are, what they are, who teaches them, and the two controls."""

import pytest
import torch
from methods import START, batch, logit_loss, make, two_steps
from test_check import check  # noqa: F401  (a fixture)

from pycls_std.core.registry import LOGIT_LOSSES
from pycls_std.layers.exit_heads import AttentionExit, MapExit, PatchMerging, SeparableDownsampling, exit_heads
from pycls_std.losses.classification import soft_target_cross_entropy
from pycls_std.losses.confidence import confidence_weights
from pycls_std.losses.logit import standardized

STUDENTS = ("mixer_nano4", "deit_tiny_patch16_224", "resnet14")


def exits(load, name="mixer_nano4", **overrides):
    return make(load, "ofa", name, 1, **overrides).trainer.terms["exits"]


# --------------------------------------------------------------------------------------------------------------- heads
@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        ("mixer_nano4", {"MODEL__ARGS__num_blocks": 12}, [f"blocks.{i}" for i in (1, 3, 9, 11)]),
        ("mixer_nano4", {"MODEL__ARGS__num_blocks": 8}, [f"blocks.{i}" for i in (1, 2, 6, 7)]),
        ("deit_tiny_patch16_224", {}, [f"blocks.{i}" for i in range(4)]),
        ("resnet18", {}, [f"layer{i}" for i in (1, 2, 3, 4)]),
        ("resnet14", {}, ["layer1", "layer2", "layer3"]),
        ("mixer_nano4", {"EXITS__TAPS": "[1, last]"}, ["blocks.1", "blocks.3"]),
    ],
)
def test_where_the_exits_are(load, name, overrides, expected):
    """Of 12 blocks after the second, the fourth, the tenth and the last, as published; the four stages of a ResNet."""
    assert list(exits(load, name, **overrides).student_taps) == expected


def test_downsampling_is_separable():
    block = SeparableDownsampling(6, 10).eval()
    assert block(torch.randn(2, 6, 8, 8)).shape == (2, 10, 4, 4) and block(torch.randn(2, 6, 1, 1)).shape[2:] == (1, 1)
    assert sum(p.numel() for p in block.parameters()) == 2 * 9 * 6 + 36 + 60 + 2 * (6 + 10)


def test_merging_takes_four_neighbours():
    merging, maps = PatchMerging(3), torch.randn(1, 4, 6, 3)
    found = merging(maps)
    assert found.shape == (1, 2, 3, 3)
    for y in range(2):
        for x in range(3):
            four = torch.cat([maps[0, 2 * y + i, 2 * x + j] for i in (0, 1) for j in (0, 1)])
            torch.testing.assert_close(found[0, y, x], merging.layers(four))


def test_heads_do_what_the_student_has_not_done_yet():
    """Of a ResNet-18 at 224 px: three, two, one halvings, then a 1x1 convolution; all hand over 768 channels."""
    shapes = [(64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)]
    heads = exit_heads(shapes, kind="blocks", width=768, num_classes=100)
    assert [type(head) for head in heads] == [MapExit] * 4
    assert [len(head.blocks) for head in heads] == [3, 2, 1, 1]
    assert sum(p.numel() for p in heads[3].parameters()) == 512 * 768 + 768 + 768 * 100 + 100
    for shape, head in zip(shapes, heads, strict=True):
        assert head(torch.randn(2, *shape)).shape == (2, 100)


@pytest.mark.parametrize(("side", "merges"), [(56, 3), (28, 2), (14, 1), (8, 0), (4, 0), (15, 0)])
def test_heads_of_patches(side, merges):
    heads = exit_heads([(24, side, side)] * 4, kind="blocks", width=99, num_classes=10)
    assert [type(head) for head in heads] == [AttentionExit] * 4
    assert [len(head.blocks) for head in heads] == [3, 2, 1, 1]
    assert {len(head.merge) for head in heads} == {merges}
    assert heads[0].blocks[0].attn.num_heads == 4
    assert heads[3](torch.randn(2, 24, side, side)).shape == (2, 10)
    (linear,) = exit_heads([(24, side, side)], kind="linear", width=99, num_classes=10)
    sizes = {name: tuple(value.shape) for name, value in linear.state_dict().items()}
    assert sizes == {"classifier.weight": (10, 24), "classifier.bias": (10,)}


# ----------------------------------------------------------------------------------------------------------- objective
@pytest.mark.parametrize("standard", ["false", "true"])
@pytest.mark.parametrize("form", sorted(LOGIT_LOSSES.entries))
def test_all_heads_learn_from_all_teachers(load, form, standard):
    options = {"DISTILLATION__TYPE": form, "DISTILLATION__LOGIT_STANDARD": standard}
    own = {"ofa_eps": 1.5} if form == "ofa" else {}
    options |= {f"DISTILLATION__{key.upper()}": value for key, value in own.items()}
    method = make(load, "ofa", teachers=2, EXITS__WEIGHT=0.3, **options)
    data, term = batch(), method.trainer.terms["exits"]
    losses = method.losses(data)
    assert losses.keys() == {"ce", "kd", "exits"}
    labels, total = data.targets.argmax(1), 0.0
    teachers = torch.stack([teacher(data.images).heads["cls"] for teacher in method.teachers])
    weights = confidence_weights(teachers)
    _, maps = method.student.backbone.forward_intermediates(data.images, output_fmt="NCHW")
    for features, head in zip(maps, term.exits, strict=True):
        for m, logits in enumerate(teachers):
            pair = (head(features), logits)
            pair = tuple(map(standardized, pair)) if standard == "true" else pair
            total = total + (weights[:, m] * logit_loss(form, *pair, labels, **own)).mean()
    torch.testing.assert_close(losses["exits"], 0.3 * total, rtol=1e-4, atol=1e-5)


def test_heads_taught_by_the_labels_alone(load):
    """The same heads; no teacher is asked for them, and none is needed."""
    method, data = make(load, "ofa", teachers=1, EXITS__TAUGHT_BY="labels"), batch()
    term = method.trainer.terms["exits"]
    _, maps = method.student.backbone.forward_intermediates(data.images, output_fmt="NCHW")
    pairs = zip(maps, term.exits, strict=True)
    expected = sum(soft_target_cross_entropy(head(features), data.targets) for features, head in pairs)
    torch.testing.assert_close(method.losses(data)["exits"], expected)
    assert [tuple(p.shape) for p in term.parameters()] == [tuple(p.shape) for p in exits(load).parameters()]
    alone = make(load, "ofa", teachers=0, EXITS__TAUGHT_BY="labels", KD__WEIGHT=0)
    assert alone.losses(data).keys() == {"ce", "exits"} and not alone.live.requests
    torch.nn.init.normal_(method.teachers[0].backbone.fc.weight)
    torch.testing.assert_close(method.losses(data)["exits"], expected)


def test_without_heads_it_is_distillation_at_temperature_1(load):
    """The student's gradient is that of soft distillation, weight 1."""
    data = batch()
    methods = make(load, "ofa", teachers=1, EXITS__WEIGHT=0), make(load, "kd", teachers=1, DISTILLATION__TYPE="soft")
    found = []
    for method, weight in zip(methods, (1.0, 0.9), strict=True):
        losses = method.losses(data)
        assert losses.keys() == {"ce", "kd"}
        found.append(torch.autograd.grad(losses["kd"] / weight, method.student.backbone.head.weight)[0])
    torch.testing.assert_close(*found)


# ------------------------------------------------------------------------------------------------------------ training
WAYS = [(name, way) for name in STUDENTS for way in ("fp32", "bf16")] + [("mixer_nano4", "compiled")]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "way"), WAYS)
@pytest.mark.parametrize("head", ["blocks", "linear"])
def test_it_trains_student_and_heads_and_nothing_else(load, name, way, head):
    method = make(load, "ofa", name, 1, EXITS__HEAD=head)
    teacher = {key: value.clone() for key, value in method.teachers.state_dict().items()}
    two_steps(method, way)
    assert all(head.classifier.weight.grad.any() for head in method.trainer.terms["exits"].exits)
    assert all(torch.equal(value, teacher[key]) for key, value in method.teachers.state_dict().items())
    assert not any(p.grad is not None for p in method.teachers.parameters())


def test_heads_are_not_deployed(load):
    trainer = make(load, "ofa", "resnet14", 1).trainer
    heads = sum(p.numel() for p in trainer.terms["exits"].parameters())
    assert heads > 0
    assert trainer.trained_parameters() - trainer.deployed_parameters() == heads
    assert trainer.deployed_parameters() == make(load, "baseline", "resnet14").trainer.deployed_parameters()


def test_each_head_learns_by_its_own_loss(load):
    """The first exit's gradient reaches the blocks before its tap and no later one."""
    method = make(load, "ofa", teachers=1, EXITS__TAPS="[1]")
    value = method.losses(batch(), START)["exits"]
    parameters = dict(method.student.backbone.named_parameters())
    found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    reached = {key.split(".")[1] for key, g in zip(parameters, found, strict=True) if g is not None and "blocks" in key}
    assert reached == {"0", "1"}


@pytest.mark.parametrize("overrides", [{"EXITS__TAUGHT_BY": "labels"}, {"EXITS__HEAD": "linear"}])
def test_a_run_in_small_passes_all_checks(check, method, overrides):  # noqa: F811
    found = check(method("ofa", **overrides))
    assert all(ok for ok, _ in found.values()), found
    assert found["terms"][1] == "ce, exits, kd"


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({"teachers": 0}, "EXITS.WEIGHT needs at least one teacher, DISTILLATION.TEACHERS is empty"),
        ({"EXITS__TAPS": "[9]"}, "EXITS.TAPS has '9', the backbone has the taps 0 to 3"),
        ({"EXITS__TAUGHT_BY": "nobody"}, "EXITS.TAUGHT_BY is 'nobody', expected one of teachers, labels"),
    ],
)
def test_options_that_contradict_each_other(load, overrides, text):
    with pytest.raises(ValueError, match=text):
        make(load, "ofa", **({"teachers": 1} | overrides))
