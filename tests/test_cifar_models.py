"""Networks of the CIFAR-100 distillation tables: contract, parameters, names of the published files, blocks."""

import pytest
import torch
from methods import START, batch, make
from processes import called
from torch.nn.functional import max_pool2d

from pycls_std.builders.weights import find_weights
from pycls_std.core.registry import BACKBONES
from pycls_std.models.contract import classifier_names
from pycls_std.models.create import create_backbone
from pycls_std.models.describe import Description
from pycls_std.teachers.folding import fold_batch_norms

NAMES = ("resnet8x4", "resnet32x4", "resnet110", "wrn_40_2", "wrn_16_2", "wrn_40_1", "vgg8_cifar", "vgg13_cifar")


def build(name, classes=100, size=32):
    torch.manual_seed(0)
    return create_backbone(name, num_classes=classes, image_size=size)


def norm(channels):
    return 2 * channels


def residual(stem, widths, blocks, classes):
    """Parameters of a ResNet: stem, two convolutions a block, 1x1 shortcuts where channels change, a classifier."""
    total, before = 27 * stem + norm(stem), stem
    for index, width in enumerate(widths):
        total += 9 * before * width + (2 * blocks - 1) * 9 * width * width + 2 * blocks * norm(width)
        total += before * width + norm(width) if index or before != width else 0
        before = width
    return total + before * classes + classes


def wide(width, blocks, classes):
    """As `residual`, with batch norms before the convolutions, one after all, and shortcuts without."""
    total, before = 27 * 16, 16
    for channels in (16 * width, 32 * width, 64 * width):
        total += 9 * before * channels + (2 * blocks - 1) * 9 * channels * channels
        total += norm(before) + (2 * blocks - 1) * norm(channels)
        total += before * channels if before != channels else 0
        before = channels
    return total + norm(before) + before * classes + classes


def vgg(layers, classes):
    """Convolutions with bias, batch norms, one linear layer."""
    total, before = 0, 3
    for channels in (64, 128, 256, 512, 512):
        for _ in range(layers):
            total += 9 * before * channels + channels + norm(channels)
            before = channels
    return total + before * classes + classes


# As published, at 100 classes, and as counted by the arithmetic above.
COUNTS = [
    ("resnet8x4", 1_233_540, residual(32, (64, 128, 256), 1, 100)),
    ("resnet32x4", 7_433_860, residual(32, (64, 128, 256), 5, 100)),
    ("resnet110", 1_736_564, residual(16, (16, 32, 64), 18, 100)),
    ("wrn_40_2", 2_255_156, wide(2, 6, 100)),
    ("wrn_16_2", 703_284, wide(2, 2, 100)),
    ("wrn_40_1", 569_780, wide(1, 6, 100)),
    ("vgg8_cifar", 3_965_028, vgg(1, 100)),
    ("vgg13_cifar", 9_462_180, vgg(2, 100)),
]


@pytest.mark.parametrize(("name", "published", "counted"), COUNTS, ids=[name for name, *_ in COUNTS])
def test_parameters_are_the_published_ones(name, published, counted):
    assert sum(p.numel() for p in build(name).parameters()) == published == counted


@pytest.mark.parametrize("name", NAMES)
def test_backbone_contract(name):
    """Features and head make the logits, taps come in order, of the sizes that are said of them."""
    backbone, images = build(name).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        logits = backbone(images)
        features, maps = backbone.forward_intermediates(images)
        some = backbone.forward_intermediates(images, indices=[0, 2], stop_early=True, intermediates_only=True)
        assert torch.equal(backbone.forward_head(features), logits)
        assert torch.equal(backbone.forward_head(backbone.forward_features(images)), logits)
        pooled = backbone.forward_head(features, pre_logits=True)
        torch.testing.assert_close(backbone.get_classifier()(pooled), logits)
    assert torch.equal(some[0], maps[0]) and torch.equal(some[1], maps[2]) and len(some) == 2
    assert classifier_names(backbone) == ["classifier" if "vgg" in name else "fc"]
    described = Description(name, num_classes=100, image_size=32)
    assert list(described.taps) == [info["module"] for info in backbone.feature_info]
    assert [tuple(shape) for shape in described.taps.values()] == [tuple(each.shape[1:]) for each in maps]
    scales = [info["reduction"] * each.shape[2] for info, each in zip(backbone.feature_info, maps, strict=True)]
    assert set(scales) == {32}
    assert set(described.taps) <= dict(backbone.named_modules()).keys()


def names_of(state):
    return [key for key in state if "num_batches" not in key]


def norm_names(name):
    return [f"{name}.{part}" for part in ("weight", "bias", "running_mean", "running_var")]


def test_names_are_those_of_the_published_files():
    """As HobbitLong/RepDistiller's and megvii-research/mdistiller's modules have them."""
    resnet, wrn, narrow, vgg13 = (
        build(name).state_dict() for name in ("resnet8x4", "wrn_16_2", "wrn_40_1", "vgg13_cifar")
    )
    block = ["conv1.weight", *norm_names("bn1"), "conv2.weight", *norm_names("bn2")]
    block += ["downsample.0.weight", *norm_names("downsample.1")]
    layers = [f"layer{i}.0.{key}" for i in (1, 2, 3) for key in block]
    assert names_of(resnet) == ["conv1.weight", *norm_names("bn1"), *layers, "fc.weight", "fc.bias"]
    assert tuple(resnet["layer1.0.downsample.0.weight"].shape) == (64, 32, 1, 1)
    block = [*norm_names("bn1"), "conv1.weight", *norm_names("bn2"), "conv2.weight"]
    each = {f"block{i}.layer.{n}.{key}" for i in (1, 2, 3) for n in (0, 1) for key in block}
    each |= {f"block{i}.layer.0.convShortcut.weight" for i in (1, 2, 3)}
    assert set(names_of(wrn)) == {"conv1.weight", *each, *norm_names("bn1"), "fc.weight", "fc.bias"}
    shortcuts = {key for key in narrow if "convShortcut" in key}
    assert shortcuts == {f"block{i}.layer.0.convShortcut.weight" for i in (2, 3)}
    own = [f"block{i}.{key}" for i in range(5) for key in ("0.weight", "0.bias", *norm_names("1"))]
    own += [f"block{i}.{key}" for i in range(5) for key in ("3.weight", "3.bias", *norm_names("4"))]
    assert set(names_of(vgg13)) == {*own, "classifier.weight", "classifier.bias"}


def test_block_of_a_wide_resnet_from_its_parts():
    """With another number of channels the shortcut reads what the first convolution reads; else it is the input."""
    backbone, x = build("wrn_16_2").eval(), torch.randn(2, 32, 8, 8)
    for block in (backbone.block2.layer[0], backbone.block1.layer[1]):
        torch.nn.init.normal_(block.bn1.running_mean)
        active = block.bn1(x).relu()
        y = block.conv2(block.bn2(block.conv1(active)).relu())
        shortcut = block.convShortcut(active) if block.convShortcut is not None else x
        torch.testing.assert_close(block(x), y + shortcut)
    images = torch.randn(2, 3, 32, 32)
    _, maps = backbone.forward_intermediates(images)
    pooled = backbone.bn1(maps[2]).relu().mean(dim=(2, 3))
    torch.testing.assert_close(backbone(images), backbone.fc(pooled))


@pytest.mark.parametrize(("size", "sides"), [(32, [32, 16, 8, 4, 4]), (64, [64, 32, 16, 8, 4])])
def test_vgg_pools_before_its_last_stage_from_64_px_on(size, sides):
    backbone, images = build("vgg8_cifar", size=size).eval(), torch.randn(2, 3, size, size)
    _, maps = backbone.forward_intermediates(images)
    assert [each.shape[2] for each in maps] == sides
    x = maps[3] if size == 32 else max_pool2d(maps[3], 2)
    torch.testing.assert_close(maps[4], backbone.block4(x).relu())
    torch.testing.assert_close(maps[1], backbone.block1(max_pool2d(maps[0], 2)).relu())


@pytest.mark.parametrize("name", ["resnet8x4", "wrn_16_2", "vgg8_cifar"])
def test_as_student_and_folded_as_teacher(load, name):
    """A step trains every parameter; as a teacher its batch norms are folded where a convolution is before them."""
    method = make(load, "baseline", name)
    losses = method.losses(batch(), START)
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.student.parameters())
    backbone = build(name).eval()
    taps = tuple(info["module"] for info in backbone.feature_info)
    folded, count = fold_batch_norms(backbone, torch.randn(2, 3, 32, 32), taps)
    assert count == {"resnet8x4": 10, "wrn_16_2": 7, "vgg8_cifar": 5}[name]  # of a wide one's blocks the second, and 1
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(folded(images), backbone(images), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["resnet8", "resnet20", "resnet8x4"])
def test_stages_read_before_their_last_relu(name, layout):
    """By what enters the last block of each stage; nothing else is another: names, logits, pooled features."""
    plain, before = build(name), create_backbone(name, num_classes=100, image_size=32, taps="before_relu")
    assert names_of(plain.state_dict()) == names_of(before.state_dict())
    before.load_state_dict(plain.state_dict())
    for each in (plain, before):
        each.train().to(memory_format=layout)(torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
        each.eval()
    entered = []
    for stage in plain.stages():
        stage[-1].register_forward_pre_hook(lambda block, inputs: entered.append((block, inputs[0].clone())))
    images = torch.randn(4, 3, 32, 32).to(memory_format=layout)
    with torch.no_grad():
        logits, (features, maps) = before(images), before.forward_intermediates(images)
        _, active = plain.forward_intermediates(images)
        for (block, x), found, after in zip(entered, maps, active, strict=True):
            shortcut = x if block.downsample is None else block.downsample(x)
            assert torch.equal(found, block.bn2(block.conv2(block.bn1(block.conv1(x)).relu())) + shortcut)
            assert (found < 0).any() and torch.equal(found.relu(), after)
            assert found.is_contiguous(memory_format=layout)
        assert torch.equal(logits, plain(images)) and torch.equal(before.forward_head(features), logits)
        pooled = [each.forward_head(each.forward_features(images), pre_logits=True) for each in (plain, before)]
        assert torch.equal(*pooled)
        early = before.forward_intermediates(images, indices=[0, 1], stop_early=True, intermediates_only=True)
        assert len(early) == 2 and torch.equal(early[1], maps[1])
    folded, count = fold_batch_norms(before, images, tuple(info["module"] for info in before.feature_info))
    assert count == sum(isinstance(module, torch.nn.BatchNorm2d) for module in before.modules())
    for found, expected in zip(folded.forward_intermediates(images)[1], maps, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_a_student_read_before_its_last_relu_learns_the_same():
    plain, before = build("resnet8"), create_backbone("resnet8", num_classes=100, image_size=32, taps="before_relu")
    before.load_state_dict(plain.state_dict())
    images = torch.randn(4, 3, 32, 32)
    for each in (plain, before):
        each(images).square().sum().backward()
    pairs = zip(plain.parameters(), before.parameters(), strict=True)
    assert all(torch.equal(one.grad, two.grad) for one, two in pairs)


def test_a_published_teacher_is_imported(tmp_path):
    """Of a file as RepDistiller saves it: epoch and accuracy beside the weights."""
    wrn = build("wrn_40_2")
    torch.save({"epoch": 240, "best_acc": torch.tensor(75.61), "model": wrn.state_dict()}, tmp_path / "ckpt.pth")
    code, output, _ = called("tools/import_weights.py", tmp_path / "ckpt.pth", tmp_path / "wrn.pt", "--key", "model")
    assert code == 0, output
    state = find_weights("wrn_40_2", str(tmp_path / "wrn.pt")).state
    assert state.keys() == wrn.state_dict().keys()
    other = create_backbone("wrn_40_2", num_classes=100, image_size=32)
    other.load_state_dict(state)
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(other.eval()(images), wrn.eval()(images))


def test_no_name_hides_one_of_timm():
    from timm.models._registry import _module_to_models

    own = [name for name in BACKBONES.entries if name in NAMES]
    theirs = set().union(*(names for module, names in _module_to_models.items() if module != "entry_points"))
    assert sorted(own) == sorted(NAMES) and not theirs & set(own) and "resnet18" in theirs


@pytest.mark.parametrize("name", ["wrn_16_2", "vgg8_cifar", "resnet8x4"])
def test_stochastic_depth_is_refused(name):
    with pytest.raises(ValueError, match="MODEL.DROP_PATH is 0.1, a CIFAR .* has no stochastic depth"):
        create_backbone(name, num_classes=10, image_size=32, drop_path=0.1)
