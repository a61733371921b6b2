"""The token branches and the student they are part of: equations, sizes, independence of the backbone."""

import pytest
import torch
from methods import FAMILIES
from torch import nn
from torch.nn.functional import conv1d, gelu, layer_norm, linear

from pycls_std.engine.optim import create_optimizer
from pycls_std.layers.token_branches import TokenBranch, TokenBranches, TokenLayout
from pycls_std.measure.description import operations
from pycls_std.models.create import create_backbone
from pycls_std.models.describe import Description
from pycls_std.models.student import Student
from pycls_std.models.taps import choose_taps

NANO = FAMILIES["mixer_nano4"]


def build(name, taps, teachers, *, classes=10, size=32, options=(), **args):
    """A student on a backbone of random weights."""
    shapes = Description(name, num_classes=classes, image_size=size, **args).taps
    layout = TokenLayout(choose_taps("STD.TAPS", taps, list(shapes)), teachers, **dict(options))
    backbone = create_backbone(name, num_classes=classes, image_size=size, **args)
    sizes = [(shapes[tap].channels, shapes[tap].patches) for tap in layout.taps]
    return Student(backbone, {"std": TokenBranches(layout, sizes, num_classes=classes)})


def make(name, taps, teachers, options=(), **args):
    """The same with every parameter perturbed, so that none is at its initial zero."""
    torch.manual_seed(0)
    student = build(name, taps, teachers, options=options, **args)
    for parameter in student.parameters():
        nn.init.normal_(parameter, std=0.05) if parameter.ndim > 1 else parameter.data.add_(0.01)
    return student.eval()


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_branch_follows_its_equations():
    """The branch as the reference states it: 1x1 convolutions over patches and tokens, a linear layer over channels."""
    torch.manual_seed(0)
    batch, patches, channels, tokens = 2, 9, 8, 3
    branch = TokenBranch(channels, patches, tokens).double()
    z = torch.randn(batch, patches, channels, dtype=torch.double)
    spatial, channel = torch.randn(batch, tokens, channels).double(), torch.randn(batch, patches, tokens).double()
    new_spatial, new_channel = branch(z, spatial, channel)

    first, _, last = branch.spatial_mlp
    assert (first.out_features, branch.channel_mlp[0].out_features) == (channels // 2, 4 * channels)
    rows = layer_norm(torch.cat([z, spatial], dim=1), (channels,), branch.spatial_norm.weight, branch.spatial_norm.bias)
    hidden = gelu(conv1d(rows, first.weight.unsqueeze(-1), first.bias))
    torch.testing.assert_close(new_spatial, spatial + conv1d(hidden, last.weight.unsqueeze(-1), last.bias))

    first, _, last = branch.channel_mlp
    for b in range(batch):
        for p in range(patches):
            row = layer_norm(torch.cat([z[b, p], channel[b, p]]), (channels + tokens,))
            update = linear(gelu(linear(row, first.weight, first.bias)), last.weight, last.bias)
            torch.testing.assert_close(new_channel[b, p], channel[b, p] + update)


@pytest.mark.defect(5)
@pytest.mark.parametrize("shared", [True, False])
def test_each_token_has_its_own_update_unless_it_is_shared(shared):
    """The reference's update has width 1: all tokens of a tap move by the same amount."""
    student = make("mixer_nano4", ["last"], ((0, 1),), {"shared_update": shared}, **NANO)
    features, tokens = student(torch.randn(2, 3, 32, 32)).features, student.branches["std"].tokens[0]
    moved_spatial = features["tokens0.spatial"] - tokens.spatial
    moved_channel = features["tokens0.channel"] - tokens.channel
    assert torch.allclose(moved_spatial[:, 0], moved_spatial[:, 1], atol=1e-6) == shared
    assert torch.allclose(moved_channel[..., 0], moved_channel[..., 1], atol=1e-6) == shared


@pytest.mark.defect(16)
@pytest.mark.parametrize("decay", [True, False])
def test_tokens_are_decayed_only_if_asked(decay):
    student = make("mixer_nano4", ["last"], ((0, 1),), {"decay_tokens": decay}, **NANO)
    optimizer = create_optimizer(student, name="adamw", lr=0.1, weight_decay=0.05)
    decayed = [p for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]]
    assert any(p is student.branches["std"].tokens[0].spatial for p in decayed) == decay
    assert any(p is student.backbone.head.weight for p in decayed)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", ["both", "none"])
def test_any_backbone_keeps_its_logits_bit_for_bit(name, kind):
    student = make(name, ["-2", "last"], ((0,), (1,)), {"kind": kind}, **FAMILIES[name])
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        output = student(images)
        assert torch.equal(output.heads["cls"], student.backbone(images))
    assert {name: logits.shape for name, logits in output.heads.items()} == dict.fromkeys(student.heads, (2, 10))
    assert student.heads == ("cls", "std0", "std1")


@pytest.mark.defect(6)
@pytest.mark.parametrize("kind", ["both", "spatial", "channel", "none"])
@pytest.mark.parametrize("arrangement", ["last", "separate", "all at both", "propagate"])
def test_every_parameter_is_used(kind, arrangement):
    """Only used taps allocate: after one backward pass no parameter is without a gradient."""
    if kind == "none" and arrangement == "propagate":
        return
    taps, teachers = {
        "last": (["last"], ((0, 1),)),
        "separate": (["2", "3"], ((0,), (1,))),
        "all at both": (["2", "3"], ((0, 1), (0, 1))),
        "propagate": (["2", "3"], ((0, 1),)),
    }[arrangement]
    student = make("mixer_nano4", taps, teachers, {"kind": kind, "propagate": arrangement == "propagate"}, **NANO)
    heads = student(torch.randn(2, 3, 32, 32)).heads
    sum(logits.square().sum() for logits in heads.values()).backward()
    assert [name for name, p in student.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert len(heads) - 1 == {"last": 2, "separate": 2, "all at both": 4, "propagate": 2}[arrangement]
    layout = student.branches["std"].layout
    assert layout.head_teachers == {"all at both": (0, 1, 0, 1)}.get(arrangement, (0, 1))


def test_heads_read_the_spatial_token_before_the_channel_token():
    student = make("mixer_nano4", ["last"], ((0, 1),), **NANO)
    output = student(torch.randn(2, 3, 32, 32))
    spatial, channel = output.features["tokens0.spatial"], output.features["tokens0.channel"]
    for teacher, classifier in enumerate(student.branches["std"].classifiers):
        reading = torch.cat([spatial[:, teacher], channel[:, :, teacher]], dim=1)
        torch.testing.assert_close(output.heads[f"std{teacher}"], classifier(reading))


def test_plain_heads_read_the_mean_of_the_patches():
    student = make("mixer_nano4", ["last"], ((0,),), {"kind": "none"}, **NANO)
    images = torch.randn(2, 3, 32, 32)
    _, maps = student.backbone.forward_intermediates(images, indices=[3])
    (classifier,) = student.branches["std"].classifiers
    torch.testing.assert_close(student(images).heads["std0"], classifier(maps[0].mean(dim=(2, 3))))


def test_propagated_tokens_pass_through_every_tap():
    """Carried tokens are the second branch's update of the first branch's."""
    student = make("mixer_nano4", ["1", "3"], ((0,),), {"propagate": True}, **NANO)
    images, branch = torch.randn(2, 3, 32, 32), student.branches["std"]
    _, maps = student.backbone.forward_intermediates(images, indices=[1, 3])
    first, last = (m.flatten(2).transpose(1, 2) for m in maps)
    expected = branch.updates[1](last, *branch.updates[0](first, *branch.tokens[0](2)))
    features = student(images).features
    for name, wanted in zip(("spatial", "channel"), expected, strict=True):
        torch.testing.assert_close(features[f"tokens0.{name}"], wanted)


def test_tokens_do_not_propagate_between_taps_of_different_size():
    with pytest.raises(ValueError, match="cannot propagate between taps of the sizes"):
        make("resnet8", ["1", "2"], ((0,),), {"propagate": True})


S4, ONE, SHARED = ("mixer_s4", 100, 32), ((0,),), {"shared_update": True}
COUNTS = [
    (S4, ["last"], ONE, {}, 18_288_396),
    (S4, ["last"], ((0, 1),), SHARED, 18_348_978),
    (S4, ["last"], ((0, 1),), {}, 18_348_978 + 2_306),
    (S4, ["5", "7"], ((0,), (1,)), {}, 19_420_596),
    (S4, ["5", "7"], ONE, {"propagate": True}, 19_362_320),
    (S4, ["5", "7"], ((0, 1),), {"propagate": True} | SHARED, 19_425_208),
    (S4, ["5", "7"], ((0, 1), (0, 1)), SHARED, 19_541_760),
    (("mixer_s16", 1000, 224), ["5", "7"], ((0,), (1,)), {}, 22_163_112),
    (("resmlp_b24", 1000, 224), ["16", "23"], ((0,), (1,)), {}, 122_564_712),
    (("cyclemlp_b2", 1000, 224), ["16", "17"], ((0,), (1,)), {}, 30_067_794),
]
# G of the student with all heads; published: 4.3, 24.1 and 4.0
MULTIPLY_ADDS = {"mixer_s16": 4.24, "resmlp_b24": 24.07, "cyclemlp_b2": 3.99}


@pytest.mark.parametrize(("model", "taps", "teachers", "options", "expected"), COUNTS)
def test_parameter_counts_of_the_publications(model, taps, teachers, options, expected):
    name, classes, size = model
    with torch.device("meta"):
        student = build(name, taps, teachers, options=options, classes=classes, size=size)
    assert count(student) == expected
    if name in MULTIPLY_ADDS:
        assert round(operations(student, size) / 2e9, 2) == MULTIPLY_ADDS[name]
