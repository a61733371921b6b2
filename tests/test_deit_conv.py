"""DeiT with the convolutional stem and the image's own distillation token: sizes, equations, options."""

import pytest
import timm
import torch
from methods import DEIT, batch, make
from torch import nn
from torch.nn.functional import batch_norm, conv2d

from pycls_std.models.create import create_backbone
from pycls_std.models.deit import ConvStem, ImageTokenDeiT
from pycls_std.models.student import Student, has_distillation_head
from pycls_std.models.taps import tap_names

SMALL = {"depth": 2, "embed_dim": 24, "num_heads": 3, "patch_size": 8}


def count(module):
    return sum(p.numel() for p in module.parameters())


def build(name="deit_ti_conv", size=32, **args):
    torch.manual_seed(0)
    return create_backbone(name, num_classes=10, image_size=size, **(SMALL | args))


@pytest.mark.parametrize(
    ("name", "parameters", "stem"), [("deit_ti_conv", 6_633_104, 870_144), ("deit_s_conv", 23_797_520, 1_656_768)]
)
def test_sizes_are_the_published_ones(name, parameters, stem):
    """1000 classes, 224 px; both heads, and no distillation token."""
    with torch.device("meta"):
        backbone = create_backbone(name, num_classes=1000, image_size=224)
    assert count(backbone) == parameters
    assert count(backbone.patch_embed) == stem
    assert backbone.pos_embed.shape[1] == 14 * 14 + 2
    assert tap_names(backbone) == [f"blocks.{index}" for index in range(12)]


@pytest.mark.parametrize(("size", "patch"), [(32, 4), (32, 2), (48, 16), (64, 8), (224, 16), (36, 6)])
def test_the_stem_takes_any_size_and_patch(size, patch):
    backbone = build(size=size, patch_size=patch).eval()
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert backbone.patch_embed(images).shape == (2, (size // patch) ** 2, 24)
        assert backbone(images).shape == (2, 10)
        _, maps = backbone.forward_intermediates(images, output_fmt="NCHW")
    assert [m.shape for m in maps] == [(2, 24, size // patch, size // patch)] * 2


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ({"patch_size": 3}, "patch_size is 3, the stem halves the image first and needs an even one"),
        ({"patch_size": 12}, "image size 32 is no multiple of the patch 12"),
        ({"dynamic_img_size": True}, "dynamic_img_size is True, the image's token needs images of one size"),
    ],
)
def test_what_cannot_be_built(args, text):
    with pytest.raises(ValueError, match=text):
        build(**args)


def test_the_stem_is_its_convolutions():
    """Each by torch's functions, of the stem's own weights; in training a batch norm takes the batch's statistics."""
    stem, images = build().patch_embed, torch.randn(2, 3, 32, 32)
    x, layers = images, list(stem.proj)
    for place, stride in ((0, 2), (3, 1), (6, 1)):
        convolution, norm = layers[place : place + 2]
        assert convolution.bias is None and convolution.out_channels == 64
        x = conv2d(x, convolution.weight, stride=stride, padding=convolution.weight.shape[-1] // 2)
        x = batch_norm(x, None, None, norm.weight, norm.bias, training=True).clamp(min=0)
    assert [layers[place].weight.shape[-1] for place in (0, 3, 6, 9)] == [7, 3, 3, 4]
    x = conv2d(x, layers[9].weight, layers[9].bias, stride=4)
    torch.testing.assert_close(stem(images), x.flatten(2).transpose(1, 2))


def test_convolutions_start_as_kaiming_has_them():
    """Normal, of the variance 2 / inputs."""
    for module in build("deit_s_conv", embed_dim=96).patch_embed.modules():
        if isinstance(module, nn.Conv2d):
            inputs = module.weight[0].numel()
            assert float(module.weight.detach().std()) == pytest.approx((2 / inputs) ** 0.5, rel=0.05)


@pytest.mark.parametrize("name", ["deit_ti_conv", DEIT])
def test_the_token_is_the_mean_of_the_patch_embeddings(name):
    """Token by token, through timm's own blocks."""
    backbone = build(name, image_token=True).eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        for image, found in zip(images, backbone.forward_features(images), strict=True):
            patches = backbone.patch_embed(image.unsqueeze(0))[0]
            mean = sum(patches) / len(patches)
            tokens = torch.stack([backbone.cls_token[0, 0], mean, *patches]) + backbone.pos_embed[0]
            expected = backbone.norm(backbone.blocks(tokens.unsqueeze(0)))[0]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_token_is_an_option_of_timms_models():
    """All else is theirs, by name: their weights fit, but for the learned token, which is a parameter less."""
    backbone, theirs = build(DEIT, image_token=True), timm.create_model(DEIT, img_size=32, num_classes=10, **SMALL)
    assert isinstance(backbone, ImageTokenDeiT) and not isinstance(backbone.patch_embed, ConvStem)
    assert theirs.state_dict().keys() - backbone.state_dict().keys() == {"dist_token"}
    assert count(theirs) - count(backbone) == 24
    backbone.load_state_dict(theirs.state_dict(), strict=False)
    for own, other in ((backbone, False), (build(DEIT), True)):
        assert (own.dist_token is not None) is other
    learned = build(image_token=False)
    assert count(learned) - count(build()) == 24 and isinstance(learned.patch_embed, ConvStem)


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "pit_ti_distilled_224", "resnet18"])
def test_other_models_have_no_such_token(name):
    with pytest.raises(ValueError, match="image_token needs a DeiT with two heads, this is a "):
        create_backbone(name, num_classes=10, image_size=224, image_token=True)


def test_two_heads_are_averaged_at_test_and_kept_apart_in_training():
    backbone = build().eval()
    assert has_distillation_head(backbone)
    student, images = Student(backbone, split_heads=True).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens = backbone.forward_features(images)
        pair = backbone.head(tokens[:, 0]), backbone.head_dist(tokens[:, 1])
        assert torch.equal(backbone(images), sum(pair) / 2)
        heads = student(images).heads
    torch.testing.assert_close((heads["cls"], heads["dist"]), pair)


def test_nothing_that_is_learned_is_left_out(load):
    """A step reaches every parameter, the positions of both tokens, too; a token that is not there is no parameter."""
    method = make(load, "vkd", "deit_ti_conv", 1)
    sum(method.losses(batch()).values()).backward()
    assert [name for name, p in method.trainer.objective.named_parameters() if p.grad is None] == []
    assert method.student.backbone.pos_embed.grad[0, :2].any(dim=1).all()
    assert "backbone.dist_token" not in dict(method.student.named_parameters())
