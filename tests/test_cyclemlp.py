"""CycleMLP: sizes, the cycle layer against a loop and deformable convolution, what every backbone offers."""

import backbones
import pytest
import timm
import torch
from torch.nn.functional import linear
from torchvision.ops import deform_conv2d

from pycls_std.models.create import create_backbone
from pycls_std.models.cyclemlp import HEIGHT, WIDTH, CycleLinear, CycleMixer, cycled

SMALL = {"depths": (1, 2, 1), "channels": (8, 16, 24), "mlp_ratios": (2, 2, 2)}


def counted(depths, channels, ratios, classes):
    """Parameters, from the sizes of the layers."""
    total, before = 0, 3
    for stage, (depth, c, ratio) in enumerate(zip(depths, channels, ratios, strict=True)):
        total += (9 if stage else 49) * before * c + c
        cycles, plain, out = 2 * (c * c + c), c * c, c * c + c
        weights = (c * (c // 4) + c // 4) + (c // 4 * 3 * c + 3 * c)
        mlp = 2 * ratio * c * c + ratio * c + c
        total += depth * (cycles + plain + out + weights + mlp + 4 * c)
        before = c
    return total + 2 * before + before * classes + classes


@pytest.mark.parametrize(("name", "published"), [("cyclemlp_b1", 15_155_400), ("cyclemlp_b2", 26_802_504)])
def test_parameters_are_the_published_ones(name, published):
    assert backbones.count(name) == published


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("cyclemlp_b1", ((2, 2, 4, 2), (64, 128, 320, 512), (4, 4, 4, 4))),
        ("cyclemlp_b2", ((2, 3, 10, 3), (64, 128, 320, 512), (4, 4, 4, 4))),
        ("cyclemlp_b3", ((3, 4, 18, 3), (64, 128, 320, 512), (8, 8, 4, 4))),
        ("cyclemlp_b4", ((3, 8, 27, 3), (64, 128, 320, 512), (8, 8, 4, 4))),
        ("cyclemlp_b5", ((3, 4, 24, 3), (96, 192, 384, 768), (4, 4, 4, 4))),
    ],
)
def test_parameters_are_those_of_the_layers(name, sizes):
    assert backbones.count(name, classes=10) == counted(*sizes, classes=10)


@pytest.mark.parametrize("axis", [HEIGHT, WIDTH])
@pytest.mark.parametrize("channels", [1, 2, 3, 8])
def test_cycled_is_a_loop_over_channels(axis, channels):
    x = torch.randn(2, 4, 5, channels)
    expected = torch.zeros_like(x)
    for c in range(channels):
        step = (c + 1) % 3 - 1
        for place in range(x.shape[axis]):
            if 0 <= place + step < x.shape[axis]:
                expected.select(axis, place)[..., c] = x.select(axis, place + step)[..., c]
    assert torch.equal(cycled(x, axis), expected)


def test_cycled_at_one_place_keeps_every_third_channel():
    x = torch.randn(1, 1, 1, 7)
    assert torch.equal(cycled(x, WIDTH)[0, 0, 0], x[0, 0, 0] * torch.tensor([1, 0, 0, 1, 0, 0, 1]))


@pytest.mark.parametrize("axis", [HEIGHT, WIDTH])
def test_the_layer_is_a_deformable_convolution(axis):
    """Of one place, offset by a channel's step: the form in which it is published; values and gradients."""
    torch.manual_seed(0)
    layer, x = CycleLinear(10, axis).double(), torch.randn(2, 6, 5, 10, dtype=torch.float64, requires_grad=True)
    offsets = torch.zeros(2, 20, 6, 5, dtype=torch.float64)
    for c in range(10):
        offsets[:, 2 * c + (axis == WIDTH)] = (c + 1) % 3 - 1
    weight = layer.weight[:, :, None, None]
    expected = deform_conv2d(x.permute(0, 3, 1, 2), offsets, weight, layer.bias).permute(0, 2, 3, 1)
    torch.testing.assert_close(layer(x), expected)
    given, values = torch.randn_like(expected), (x, layer.weight)
    for own, other in zip(
        torch.autograd.grad((layer(x) * given).sum(), values),
        torch.autograd.grad((expected * given).sum(), values),
        strict=True,
    ):
        torch.testing.assert_close(own, other)


def test_the_mixer_weighs_its_three_ways():
    """Channel by channel, by a softmax over the ways, from the mean over the places."""
    torch.manual_seed(0)
    mixer, x = CycleMixer(8).eval(), torch.randn(1, 3, 4, 8)
    ways = [linear(cycled(x, WIDTH), mixer.sfc_h.weight, mixer.sfc_h.bias)]
    ways += [linear(cycled(x, HEIGHT), mixer.sfc_w.weight, mixer.sfc_w.bias), linear(x, mixer.mlp_c.weight)]
    scores = mixer.reweight((ways[0] + ways[1] + ways[2]).mean(dim=(0, 1, 2)))
    mixed = torch.zeros_like(x)
    for c in range(8):
        for way, share in zip(ways, scores[3 * c : 3 * c + 3].softmax(0), strict=True):
            mixed[..., c] += share * way[..., c]
    torch.testing.assert_close(mixer(x), mixer.proj(mixed))


@pytest.mark.parametrize("check", backbones.CHECKS, ids=lambda check: check.__name__)
def test_backbone(check):
    check("cyclemlp_b1", **SMALL)


def test_sizes_of_the_taps():
    blocks = [(64, 56, 56)] * 2 + [(128, 28, 28)] * 3 + [(320, 14, 14)] * 10 + [(512, 7, 7)] * 3
    assert backbones.sides("cyclemlp_b2", 224) == blocks
    assert backbones.sides("cyclemlp_b1", 40, **SMALL) == [(8, 10, 10), (16, 5, 5), (16, 5, 5), (24, 3, 3)]


def test_images_of_another_size_and_shape():
    """Nothing depends on it, so the model takes what it was not built for."""
    backbone = backbones.build("cyclemlp_b1", 32, **SMALL).eval()
    assert backbone(torch.randn(1, 3, 48, 64)).shape == (1, 10)


def test_timm_has_no_weights_of_it():
    with pytest.raises(ValueError, match="no published weights of cyclemlp_b1"):
        timm.create_model("cyclemlp_b1", pretrained=True)
    with pytest.raises(ValueError, match="no model 'cyclemlp_b1.in1k' here or in timm; near it: cyclemlp_b1"):
        create_backbone("cyclemlp_b1.in1k", num_classes=10, image_size=32)
