"""CvT: sizes, attention computed from its parts, batches of one, what every backbone offers."""

import backbones
import pytest
import torch

from pycls_std.models.cvt import ConvAttention, Projection
from pycls_std.models.pyramid import Tokens

SMALL = {"depths": (1, 1, 2), "channels": (8, 16, 24), "heads": (1, 2, 3), "mlp_ratio": 2}
# The class token alone is read of the last block, and no convolution makes its query.
UNREAD = {f"blocks.3.attn.q.{name}" for name in ("conv.weight", "bn.weight", "bn.bias")}


def counted(classes, depths=(1, 2, 10), channels=(64, 192, 384)):
    """Parameters, from the sizes of the layers."""
    total, before = 0, 3
    for stage, (depth, c) in enumerate(zip(depths, channels, strict=True)):
        embedding = (9 if stage else 49) * before * c + c + 2 * c + c * (stage == 2)
        attention = 3 * (9 * c + 2 * c + c * c + c) + c * c + c
        total += embedding + depth * (attention + 8 * c * c + 5 * c + 4 * c)
        before = c
    return total + 2 * before + before * classes + classes


def test_parameters_are_the_published_ones():
    assert backbones.count("cvt_13", classes=100) == 19_650_980 == counted(100)


@pytest.mark.parametrize("check", backbones.CHECKS, ids=lambda check: check.__name__)
def test_backbone(check):
    unread = {"unread": UNREAD} if check is backbones.check_gradients else {}
    check("cvt_13", size=64, **SMALL, **unread)


def test_sizes_of_the_taps():
    assert backbones.sides("cvt_13", 224) == [(64, 56, 56)] + [(192, 28, 28)] * 2 + [(384, 14, 14)] * 10
    assert backbones.sides("cvt_13", 36, **SMALL) == [(8, 9, 9), (16, 5, 5), (24, 3, 3), (24, 3, 3)]


@torch.no_grad()
def test_images_of_another_size_and_shape():
    """Nothing depends on it, so the model takes what it was not built for."""
    backbone = backbones.build("cvt_13", 32, **SMALL).eval()
    features, maps = backbone.forward_intermediates(torch.randn(1, 3, 48, 64))
    assert [tuple(each.shape) for each in maps] == [(1, 8, 12, 16), (1, 16, 6, 8), (1, 24, 3, 4), (1, 24, 3, 4)]
    assert features.shape == (1, 13, 24)


@torch.no_grad()
@pytest.mark.parametrize("tokens", [0, 1])
def test_attention_from_its_parts(tokens):
    """Keys and values at a quarter of the places; the scale is of all channels; class tokens see no convolution."""
    torch.manual_seed(0)
    layer, x = ConvAttention(8, 2).eval(), torch.randn(2, tokens + 24, 8)
    for projection in (layer.q, layer.k, layer.v):
        torch.nn.init.normal_(projection.bn.running_mean)
        torch.nn.init.normal_(projection.bn.bias)
    maps, prefix = x[:, tokens:].transpose(1, 2).reshape(2, 8, 4, 6), x[:, :tokens]

    def project(projection):
        rows = projection.bn(projection.conv(maps)).permute(0, 2, 3, 1).reshape(2, -1, 8)
        return projection.linear(torch.cat([prefix, rows], dim=1))

    queries, keys, values = project(layer.q), project(layer.k), project(layer.v)
    assert queries.shape == (2, tokens + 24, 8) and keys.shape == values.shape == (2, tokens + 6, 8)
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        shares = (queries[..., part] @ keys[..., part].transpose(1, 2) * 8**-0.5).softmax(dim=2)
        heads.append(shares @ values[..., part])
    torch.testing.assert_close(layer(Tokens(x, 4, 6)), layer.proj(torch.cat(heads, dim=2)))


def test_a_projection_keeps_every_second_place():
    projection = Projection(4, stride=2)
    torch.nn.init.dirac_(projection.conv.weight, groups=4)
    projection.linear.weight.data.copy_(torch.eye(4))
    torch.nn.init.zeros_(projection.linear.bias)
    maps = torch.randn(1, 4, 5, 4)
    found = projection.eval()(maps, maps.new_zeros(1, 0, 4))
    torch.testing.assert_close(found, maps[:, :, ::2, ::2].flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-5)


def test_the_last_stage_alone_drops_paths():
    backbone = backbones.build("cvt_13", 32, drop_path=0.1)
    rates = [block.drop_path.drop_prob for block in backbone.blocks]
    assert rates == pytest.approx([0, 0, 0] + [0.1 * index / 9 for index in range(10)])
    assert backbone.no_weight_decay() == {"embeddings.2.cls_token"}
