"""The token branch and the student built on it: equations, sizes, independence of the backbone."""

import pytest
import torch
from torch import nn
from torch.nn.functional import conv1d, gelu, layer_norm, linear

from pycls_std.engine.optim import create_optimizer
from pycls_std.layers.token_branch import TokenBranch
from pycls_std.models.create import create_backbone
from pycls_std.models.std_student import STDStudent, TokenLayout, tap_positions

FAMILIES = {
    "mixer_nano4": {"num_blocks": 4, "embed_dim": 16, "patch_size": 8},
    "resmlp_s12": {"num_blocks": 4, "embed_dim": 16, "patch_size": 8},
    "gmlp_ti16_224": {},
    "deit_tiny_patch16_224": {"depth": 4, "embed_dim": 24, "patch_size": 8},
    "pvt_v2_b0": {},
    "resnet18": {},
    "resnet8": {},
}


def make(name, layout, *, classes=10, size=32, **args):
    """A student on a backbone of random weights, every parameter perturbed so that none is at its initial zero."""
    torch.manual_seed(0)
    backbone = create_backbone(name, num_classes=classes, image_size=size, **args)
    student = STDStudent(backbone, layout, image_size=size, num_classes=classes)
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
    student = make("mixer_nano4", TokenLayout((3,), ((0, 1),), shared_update=shared), **FAMILIES["mixer_nano4"])
    spatial, channel = student(torch.randn(2, 3, 32, 32)).tokens[0]
    moved_spatial, moved_channel = spatial - student.tokens[0].spatial, channel - student.tokens[0].channel
    assert torch.allclose(moved_spatial[:, 0], moved_spatial[:, 1], atol=1e-6) == shared
    assert torch.allclose(moved_channel[..., 0], moved_channel[..., 1], atol=1e-6) == shared


@pytest.mark.defect(16)
@pytest.mark.parametrize("decay", [True, False])
def test_tokens_are_decayed_only_if_asked(decay):
    student = make("mixer_nano4", TokenLayout((3,), ((0, 1),), decay_tokens=decay), **FAMILIES["mixer_nano4"])
    optimizer = create_optimizer(student, name="adamw", lr=0.1, weight_decay=0.05)
    decayed = [p for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]]
    assert any(p is student.tokens[0].spatial for p in decayed) == decay
    assert any(p is student.backbone.head.weight for p in decayed)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", ["both", "none"])
def test_any_backbone_keeps_its_logits_bit_for_bit(name, kind):
    args = FAMILIES[name]
    depth = len(create_backbone(name, num_classes=10, image_size=32, **args).feature_info)
    student = make(name, TokenLayout(tap_positions(["-2", "last"], depth), ((0,), (1,)), kind=kind), **args)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        output = student(images)
        assert torch.equal(output.logits, student.backbone(images))
    assert output.distillation.shape == (2, 2, 10)


@pytest.mark.defect(6)
@pytest.mark.parametrize("kind", ["both", "spatial", "channel", "none"])
@pytest.mark.parametrize("arrangement", ["last", "separate", "all at both", "propagate"])
def test_every_parameter_is_used(kind, arrangement):
    """Only used taps allocate: after one backward pass no parameter is without a gradient."""
    if kind == "none" and arrangement == "propagate":
        return
    layout = {
        "last": TokenLayout((3,), ((0, 1),), kind=kind),
        "separate": TokenLayout((2, 3), ((0,), (1,)), kind=kind),
        "all at both": TokenLayout((2, 3), ((0, 1), (0, 1)), kind=kind),
        "propagate": TokenLayout((2, 3), ((0, 1),), kind=kind, propagate=True),
    }[arrangement]
    student = make("mixer_nano4", layout, **FAMILIES["mixer_nano4"])
    output = student(torch.randn(2, 3, 32, 32))
    (output.logits.square().sum() + output.distillation.square().sum()).backward()
    assert [name for name, p in student.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert len(output.distillation) == {"last": 2, "separate": 2, "all at both": 4, "propagate": 2}[arrangement]
    assert layout.head_teachers == {"all at both": (0, 1, 0, 1)}.get(arrangement, (0, 1))


def test_heads_read_the_spatial_token_before_the_channel_token():
    layout = TokenLayout((3,), ((0, 1),))
    student = make("mixer_nano4", layout, **FAMILIES["mixer_nano4"])
    output = student(torch.randn(2, 3, 32, 32))
    spatial, channel = output.tokens[0]
    for teacher, head in enumerate(student.heads):
        reading = torch.cat([spatial[:, teacher], channel[:, :, teacher]], dim=1)
        torch.testing.assert_close(output.distillation[teacher], head(reading))


def test_plain_heads_read_the_mean_of_the_patches():
    student = make("mixer_nano4", TokenLayout((3,), ((0,),), kind="none"), **FAMILIES["mixer_nano4"])
    images = torch.randn(2, 3, 32, 32)
    _, maps = student.backbone.forward_intermediates(images, indices=[3])
    torch.testing.assert_close(student(images).distillation[0], student.heads[0](maps[0].mean(dim=(2, 3))))


def test_propagated_tokens_pass_through_every_tap():
    """Carried tokens are the second branch's update of the first branch's."""
    student = make("mixer_nano4", TokenLayout((1, 3), ((0,),), propagate=True), **FAMILIES["mixer_nano4"])
    images = torch.randn(2, 3, 32, 32)
    _, maps = student.backbone.forward_intermediates(images, indices=[1, 3])
    first, last = (m.flatten(2).transpose(1, 2) for m in maps)
    expected = student.branches[1](last, *student.branches[0](first, *student.tokens[0](2)))
    for found, wanted in zip(student(images).tokens[0], expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_tokens_do_not_propagate_between_taps_of_different_size():
    with pytest.raises(ValueError, match="cannot propagate between taps of the sizes"):
        make("resnet8", TokenLayout((1, 2), ((0,),), propagate=True))


COUNTS = [
    ("mixer_s4", 100, 32, TokenLayout((7,), ((0,),)), 18_288_396),
    ("mixer_s4", 100, 32, TokenLayout((7,), ((0, 1),), shared_update=True), 18_348_978),
    ("mixer_s4", 100, 32, TokenLayout((7,), ((0, 1),)), 18_348_978 + 2_306),
    ("mixer_s4", 100, 32, TokenLayout((5, 7), ((0,), (1,))), 19_420_596),
    ("mixer_s4", 100, 32, TokenLayout((5, 7), ((0,),), propagate=True), 19_362_320),
    ("mixer_s4", 100, 32, TokenLayout((5, 7), ((0, 1),), propagate=True, shared_update=True), 19_425_208),
    ("mixer_s4", 100, 32, TokenLayout((5, 7), ((0, 1), (0, 1)), shared_update=True), 19_541_760),
    ("mixer_s16", 1000, 224, TokenLayout((5, 7), ((0,), (1,))), 22_163_112),
    ("resmlp_b24", 1000, 224, TokenLayout((16, 23), ((0,), (1,))), 122_564_712),
]


@pytest.mark.parametrize(("name", "classes", "size", "layout", "expected"), COUNTS)
def test_parameter_counts_of_the_publications(name, classes, size, layout, expected):
    with torch.device("meta"):
        backbone = create_backbone(name, num_classes=classes, image_size=size)
        assert count(STDStudent(backbone, layout, image_size=size, num_classes=classes)) == expected


def test_tap_positions():
    assert tap_positions(["last"], 8) == (7,)
    assert tap_positions(["2/3", "last"], 8) == (5, 7)
    assert tap_positions(["2/3", "last"], 24) == (16, 23)
    assert tap_positions(["0", "-2", "-1"], 8) == (0, 6, 7)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["middle"], "'middle', expected last, a position or a share"),
        (["8"], "'8', the backbone has the taps 0 to 7"),
        (["3/0"], "'3/0', expected"),
        (["last", "2/3"], "are the taps \\[7, 5\\], expected ascending"),
        (["last", "7"], "are the taps \\[7, 7\\], expected ascending"),
        ([], "expected ascending"),
    ],
)
def test_taps_that_do_not_exist(names, text):
    with pytest.raises(ValueError, match=text):
        tap_positions(names, 8)
