"""PVT of the first version: sizes, a block computed from its parts, what every backbone offers."""

import backbones
import pytest
import torch

from pycls_std.models.create import create_backbone
from pycls_std.models.pvt import PVTBlock
from pycls_std.models.pyramid import tokens_of

SMALL = {
    "depths": (1, 2, 1),
    "channels": (8, 16, 24),
    "heads": (1, 2, 3),
    "mlp_ratios": (2, 2, 2),
    "fewer": (4, 2, 1),
    "size": 32,
}


def counted(size, classes):
    """Parameters of PVT-Tiny, from the sizes of its layers."""
    total, before = 0, 3
    for stage, (c, ratio, fewer) in enumerate(zip((64, 128, 320, 512), (8, 8, 4, 4), (8, 4, 2, 1), strict=True)):
        patch, places, token = (4 if stage == 0 else 2), (size // (4 * 2**stage)) ** 2, stage == 3
        embedding = patch**2 * before * c + c + 2 * c + (places + token) * c + token * c
        keys = fewer**2 * c * c + c + 2 * c if fewer > 1 else 0
        block = 4 * (c * c + c) + keys + 2 * ratio * c * c + ratio * c + c + 4 * c
        total += embedding + 2 * block
        before = c
    return total + 2 * before + before * classes + classes


def test_parameters_are_the_published_ones():
    assert backbones.count("pvt_tiny", classes=100) == 12_767_588 == counted(224, 100)


@pytest.mark.parametrize(("size", "classes"), [(32, 10), (64, 1000)])
def test_parameters_are_those_of_the_layers(size, classes):
    assert backbones.count("pvt_tiny", size, classes) == counted(size, classes)


@torch.no_grad()
def test_a_block_attends_to_fewer_keys():
    """Each is a patch of 2 x 2 places; computed without timm's attention."""
    torch.manual_seed(0)
    block, maps = PVTBlock(8, 2, 3, 2, drop_path=0.0).eval(), torch.randn(2, 8, 4, 6)
    x = maps.flatten(2).transpose(1, 2)
    own = block.norm1(x)
    fewer = block.attn.sr(own.transpose(1, 2).reshape(2, 8, 4, 6)).flatten(2).transpose(1, 2)
    keys, values = block.attn.kv(block.attn.norm(fewer)).chunk(2, dim=2)
    assert keys.shape == (2, 6, 8)
    queries, heads = block.attn.q(own), []
    for part in (slice(0, 4), slice(4, 8)):
        shares = (queries[..., part] @ keys[..., part].transpose(1, 2) / 4**0.5).softmax(dim=2)
        heads.append(shares @ values[..., part])
    x = x + block.attn.proj(torch.cat(heads, dim=2))
    expected = x + block.mlp(block.norm2(x))
    torch.testing.assert_close(block(tokens_of(maps)).values, expected)


@pytest.mark.parametrize("check", backbones.CHECKS, ids=lambda check: check.__name__)
def test_backbone(check):
    check("pvt_tiny", **SMALL)


def test_sizes_of_the_taps():
    blocks = [(64, 56, 56)] * 2 + [(128, 28, 28)] * 2 + [(320, 14, 14)] * 2 + [(512, 7, 7)] * 2
    assert backbones.sides("pvt_tiny", 224) == blocks
    assert backbones.sides("pvt_tiny", 32) == [(c, side // 7, side // 7) for c, side, _ in blocks]


def test_positions_and_the_class_token_are_not_decayed():
    backbone = create_backbone("pvt_tiny", num_classes=10, image_size=32)
    positions = {f"embeddings.{stage}.pos_embed" for stage in range(4)}
    assert backbone.no_weight_decay() == positions | {"embeddings.3.cls_token"}


def test_an_image_that_the_stages_cannot_halve_is_refused():
    with pytest.raises(ValueError, match="pvt_tiny at 48 px: image size 48 is no multiple of 32"):
        create_backbone("pvt_tiny", num_classes=10, image_size=48)
