"""T2T-ViT: sizes, the performer against its kernel, fixed positions and directions, what every backbone offers."""

import math

import backbones
import pytest
import torch
from timm.models.vision_transformer import Block

from pycls_std.models.create import create_backbone
from pycls_std.models.t2t import NORM, Performer, TokensToToken, sinusoids

SMALL = {"channels": 24, "depth": 2, "heads": 2, "width": 8}


def counted(c, depth, ratio, classes, width=64):
    """Parameters, from the sizes of the layers, and numbers that do not train: directions and positions."""
    total, before = 9 * width * c + c + c, 147
    for _ in range(2):
        total += 2 * before + before * 3 * width + 3 * width + 2 * width + 3 * (width**2 + width)
        before = 9 * width
    block = 3 * c * c + c * c + c + 2 * ratio * c * c + ratio * c + c + 4 * c
    return total + depth * block + 2 * c + c * classes + classes, 2 * (width // 2) * width + 197 * c


@pytest.mark.parametrize(
    ("name", "trained", "all_of_it", "size"),
    [("t2t_vit_7", 4_024_394, 4_078_922, (256, 7, 2)), ("t2t_vit_14", 21_119_306, 21_199_050, (384, 14, 3))],
)
def test_parameters_are_the_published_ones(name, trained, all_of_it, size):
    own, fixed = counted(*size, classes=100)
    assert backbones.count(name, classes=100) == trained == own
    assert backbones.count(name, classes=100, buffers=True) == all_of_it == own + fixed


@pytest.mark.parametrize("check", backbones.CHECKS, ids=lambda check: check.__name__)
def test_backbone(check):
    check("t2t_vit_7", **SMALL)


def test_sizes_of_the_taps():
    assert backbones.sides("t2t_vit_7", 224) == [(256, 14, 14)] * 7
    assert backbones.sides("t2t_vit_14", 64) == [(384, 4, 4)] * 14
    assert backbones.sides("t2t_vit_7", 36, **SMALL) == [(24, 3, 3)] * 2  # 36 -> 9 -> 5 -> 3


def test_small_images_are_cut_finer():
    """Other splits: 32 px become 16 x 16, then 8 x 8 and 8 x 8."""
    splits = ((3, 2, 1), (3, 2, 1), (3, 1, 1))
    assert backbones.sides("t2t_vit_7", 32, splits=splits, **SMALL) == [(24, 8, 8)] * 2


def performer(channels=6, width=8):
    torch.manual_seed(0)
    return Performer(channels, width).double().eval()


@torch.no_grad()
def test_the_performer_weighs_values_by_a_kernel():
    """Of every query with every key, all weights computed one by one, though the layer computes none of them."""
    layer, x = performer(), torch.randn(2, 5, 6, dtype=torch.float64)
    keys, queries, values = layer.kqv(layer.norm1(x)).split(8, dim=2)

    def kernel(query, key):
        exponents = [d @ query - query @ query / 2 + d @ key - key @ key / 2 for d in layer.directions]
        return sum(map(math.exp, exponents)) / len(exponents)

    attended = torch.zeros_like(values)
    for image in range(2):
        for place, query in enumerate(queries[image]):
            weights = torch.tensor([kernel(query, key) for key in keys[image]], dtype=torch.float64)
            attended[image, place] = weights / weights.sum() @ values[image]
    expected = values + layer.proj(attended)
    torch.testing.assert_close(layer(x), expected + layer.mlp(layer.norm2(expected)), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_equal_keys_share_alike():
    layer, x = performer(), torch.randn(2, 5, 6, dtype=torch.float64)
    layer.kqv.weight[:8] = 0
    values = layer.kqv(layer.norm1(x))[..., 16:]
    expected = values + layer.proj(values.mean(dim=1, keepdim=True))
    torch.testing.assert_close(layer(x), expected + layer.mlp(layer.norm2(expected)), rtol=1e-5, atol=1e-6)


def test_directions_are_orthogonal_of_one_length():
    directions = performer(width=64).directions
    torch.testing.assert_close(directions @ directions.T, 32 * torch.eye(32, dtype=torch.float64), rtol=0, atol=1e-4)


def test_directions_follow_from_the_seed_and_are_saved():
    """They are no parameters; another seed's model with this one's state says the same."""

    def build(seed):
        torch.manual_seed(seed)
        return create_backbone("t2t_vit_7", num_classes=10, image_size=32, **SMALL).eval()

    first, again, other = build(0), build(0), build(1)
    name = "embeddings.0.layers.0.directions"
    assert name in first.state_dict() and name not in dict(first.named_parameters())
    assert torch.equal(first.state_dict()[name], again.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])
    other.load_state_dict(first.state_dict())
    with torch.no_grad():
        assert torch.equal(other(backbones.images()), first(backbones.images()))
    assert not any("positions" in key for key in first.state_dict())  # they follow from the size


def test_the_exponent_is_not_of_bf16():
    """Features of keys and queries are those of fp32, within autocast as well."""
    torch.manual_seed(0)
    layer, (keys, queries, values) = Performer(6, 64), (4 * torch.randn(1, 50, 64) for _ in range(3))
    expected = layer._attend(keys, queries, values)
    layer.kqv.forward = lambda x: torch.cat([keys, queries, values], dim=2)
    seen = []
    layer.proj.forward = lambda attended: seen.append(attended) or attended
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.randn(1, 50, 6))
    assert torch.equal(seen[0], expected)


def test_positions_are_sinusoids():
    expected = [
        [(math.sin, math.cos)[c % 2](place / 10000 ** (2 * (c // 2) / 7)) for c in range(7)] for place in range(20)
    ]
    torch.testing.assert_close(sinusoids(20, 7), torch.tensor(expected))


@torch.no_grad()
def test_tokens_are_cut_as_a_convolution_cuts():
    """With nothing between the cuts, the last layer is a convolution of the last map."""
    torch.manual_seed(0)
    module = TokensToToken(5, 4, splits=((7, 4, 2), (3, 2, 1)), image_size=32).eval()
    seen = []
    module.layers[0].register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    images = backbones.images()
    tokens = module(images)
    (patches, mixed), last = seen[0], module.layers[1]
    padded = torch.nn.functional.pad(images, (2,) * 4)
    assert torch.equal(patches[0, 9].view(3, 7, 7), padded[0, :, 4:11, 4:11])  # row 1, column 1 of 8 x 8
    maps = mixed.transpose(1, 2).reshape(2, 4, 8, 8)
    kernel = last.weight.view(5, 4, 3, 3)
    expected = torch.nn.functional.conv2d(maps, kernel, last.bias, stride=2, padding=1).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens.values[:, 1:] - module.positions[1:], expected)
    torch.testing.assert_close(tokens.values[:, 0], (module.cls_token[:, 0] + module.positions[0]).expand(2, -1))


@torch.no_grad()
def test_blocks_are_timms():
    torch.manual_seed(0)
    own = backbones.build("t2t_vit_7", **SMALL).eval().blocks[1]
    timms = Block(24, 2, 2, norm_layer=NORM).eval()
    timms.load_state_dict(own.state_dict())
    tokens = TokensToToken(24, 8, splits=((7, 4, 2), (3, 2, 1), (3, 2, 1)), image_size=32)(backbones.images())
    assert torch.equal(own(tokens).values, timms(tokens.values))
