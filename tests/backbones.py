"""What is asked of every backbone of blocks in stages: one function for each property, at sizes that fit a test."""

import timm
import torch
from torch import nn

from pycls_std.models.contract import classifier_names
from pycls_std.models.create import create_backbone
from pycls_std.models.describe import Description


def build(name, size=32, classes=10, **args):
    """A backbone whose weights and biases all count: published initial values hide what they multiply by 0 or 1."""
    torch.manual_seed(0)
    backbone = create_backbone(name, num_classes=classes, image_size=size, **args)
    for parameter in backbone.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.02)
    return backbone


def images(size=32, number=2):
    """Always the same ones."""
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(1))


def count(name, size=224, classes=1000, buffers=False, **args):
    """Parameters, and the numbers in buffers as well."""
    with torch.device("meta"):
        backbone = create_backbone(name, num_classes=classes, image_size=size, **args)
    values = [*backbone.parameters(), *(backbone.buffers() if buffers else ())]
    return sum(value.numel() for value in values)


def sides(name, size=32, **args):
    """(C, H, W) of every tap, as it is without the weights."""
    return [tuple(tap) for tap in Description(name, num_classes=10, image_size=size, **args).taps.values()]


@torch.no_grad()
def check_contract(name, size=32, **args):
    """Features and head make the logits; taps are those that are named, in their order, of the sizes described."""
    backbone, batch = build(name, size, **args).eval(), images(size)
    logits = backbone(batch)
    features, maps = backbone.forward_intermediates(batch, output_fmt="NCHW")
    assert torch.equal(features, backbone.forward_features(batch))
    assert torch.equal(backbone.forward_head(features), logits) and logits.shape == (2, 10)
    pooled = backbone.forward_head(features, pre_logits=True)
    assert torch.equal(backbone.get_classifier()(pooled), logits)
    assert classifier_names(backbone) == ["head"]
    assert [tuple(each.shape[1:]) for each in maps] == sides(name, size, **args)
    modules = dict(backbone.named_modules())
    assert all(info["module"] in modules for info in backbone.feature_info)
    assert [info["num_chs"] for info in backbone.feature_info] == [each.shape[1] for each in maps]
    few = backbone.forward_intermediates(batch, [0, 1], stop_early=True, intermediates_only=True)
    assert len(few) == 2 and all(torch.equal(own, each) for own, each in zip(few, maps, strict=False))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in backbone.modules())


def check_stops_early(name, size=32, **args):
    """No block after the last that is asked for is run."""
    backbone, seen = build(name, size, **args).eval(), []
    for index, block in enumerate(backbone.blocks):
        block.register_forward_hook(lambda *_, index=index: seen.append(index))
    backbone.forward_intermediates(images(size), [1], stop_early=True, intermediates_only=True)
    assert seen == [0, 1]


@torch.no_grad()
def check_last_tap_makes_the_features(name, size=32, **args):
    """Of the last tap, by the norm and without class tokens."""
    backbone = build(name, size, **args).eval()
    features, maps = backbone.forward_intermediates(images(size), [-1])
    places = maps[0].flatten(2).transpose(1, 2)
    normalised = features.reshape(2, -1, places.shape[2])[:, -places.shape[1] :]
    torch.testing.assert_close(backbone.norm(places), normalised)


def check_gradients(name, size=32, unread=frozenset(), **args):
    """All parameters have one that is finite, and not 0 but for those that the design does not read."""
    backbone = build(name, size, **args).train()
    backbone(images(size)).square().sum().backward()
    assert {n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.any()} == unread
    assert all(p.grad.isfinite().all() for p in backbone.parameters())


@torch.no_grad()
def check_batch_of_one(name, size=32, **args):
    """An image has the same logits alone as beside another, and every time."""
    backbone, batch = build(name, size, drop_path=0.5, **args).eval(), images(size)
    both, alone = backbone(batch), backbone(batch[:1])
    assert alone.shape == (1, 10)
    torch.testing.assert_close(alone, both[:1])
    assert torch.equal(backbone(batch), both)


def check_stochastic_depth(name, size=32, **args):
    """In training it acts, and no other noise is there."""
    plain, deep = build(name, size, **args).train(), build(name, size, drop_path=0.5, **args).train()
    batch = images(size, 8)
    assert torch.equal(plain(batch), plain(batch))
    assert not torch.equal(deep(batch), deep(batch))


def check_compiled(name, size=32, **args):
    """As in eager, without a graph break."""
    torch._dynamo.reset()
    backbone, batch = build(name, size, **args).eval(), images(size)
    compiled = torch.compile(backbone, backend="eager", fullgraph=True)
    assert torch.equal(compiled(batch), backbone(batch))


def check_bf16(name, size=32, **args):
    """Autocast gives nearly the same logits and finite gradients."""
    backbone, batch = build(name, size, **args).eval(), images(size)
    expected = backbone(batch)
    with torch.autocast("cpu", torch.bfloat16):
        logits = backbone(batch)
    assert (logits - expected).abs().max() < 0.05 * expected.abs().max()
    logits.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in backbone.parameters())


def check_timm_finds_it(name, size=32, **args):
    """By the same name, with timm's names of arguments, and with the same weights."""
    torch.manual_seed(0)
    ours = create_backbone(name, num_classes=7, image_size=size, drop_path=0.1, **args)
    torch.manual_seed(0)
    found = timm.create_model(name, num_classes=7, img_size=size, drop_path_rate=0.1, **args)
    assert type(found) is type(ours) and isinstance(found, nn.Module)
    assert all(torch.equal(value, found.state_dict()[key]) for key, value in ours.state_dict().items())
    assert name in timm.list_models()


CHECKS = [
    check_contract,
    check_stops_early,
    check_last_tap_makes_the_features,
    check_gradients,
    check_batch_of_one,
    check_stochastic_depth,
    check_compiled,
    check_bf16,
    check_timm_finds_it,
]
