"""Backbones: the contract, the sizes, the published names; teachers that stay as they are."""

import copy
from functools import partial

import pytest
import timm
import torch
from methods import FAMILIES
from timm.layers import DropPath
from torch import nn

from pycls_std.builders.method import build_backbone
from pycls_std.core.registry import BACKBONES
from pycls_std.core.structures import Normalization, Padded
from pycls_std.engine.optim import create_optimizer
from pycls_std.models.contract import classifier_names
from pycls_std.models.create import create_backbone
from pycls_std.models.describe import Description
from pycls_std.models.resnet_cifar import PUBLISHED
from pycls_std.models.student import Student
from pycls_std.teachers.teacher import Request, Teacher

HALF = Normalization((0.5,) * 3, (0.5,) * 3)


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_backbone_contract(name):
    """With perturbed weights: features and head make the logits, taps come in order and end in the features' source."""
    torch.manual_seed(0)
    backbone = create_backbone(name, num_classes=10, image_size=32, **FAMILIES[name]).eval()
    for parameter in backbone.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        logits = backbone(images)
        features, maps = backbone.forward_intermediates(images, output_fmt="NCHW")
        _, some = backbone.forward_intermediates(images, indices=[0, len(maps) - 1], output_fmt="NCHW")
        assert torch.equal(backbone.forward_head(backbone.forward_features(images)), logits)
        assert torch.equal(backbone.forward_head(features), logits)
    heads = [backbone.get_submodule(name) for name in classifier_names(backbone)]
    assert heads and all(next(iter(head.parameters())).shape[0] == 10 for head in heads)
    assert len(maps) == len(backbone.feature_info)
    assert torch.equal(some[0], maps[0])
    assert torch.equal(some[1], maps[-1])
    assert [m.shape[1] for m in maps] == [entry["num_chs"] for entry in backbone.feature_info]
    described = Description(name, num_classes=10, image_size=32, **FAMILIES[name])
    assert [shape.patches for shape in described.taps.values()] == [m.shape[2] * m.shape[3] for m in maps]


def test_a_model_is_described_once_for_what_it_is_built_by(monkeypatch):
    """Each of name, maker, classes, size and arguments is a part of that."""
    built = []

    def make(channels, **args):
        built.append(channels)
        return create_backbone("mixer_nano4", **args, embed_dim=channels, num_blocks=1)

    monkeypatch.setitem(BACKBONES.entries, "odd_one", partial(make, 8))
    options = {"num_classes": 10, "image_size": 32}
    assert [Description("odd_one", **options).pooled for _ in range(3)] == [8] * 3 and built == [8]
    for changed in ({"num_classes": 11}, {"image_size": 16}, {"patch_size": 8}):
        assert Description("odd_one", **options | changed).taps
    assert built == [8] * 4
    monkeypatch.setitem(BACKBONES.entries, "odd_one", partial(make, 12))
    assert Description("odd_one", **options).pooled == 12


SIZES = [
    ("mixer_s4", 100, 32, 17_156_196),
    ("mixer_nano4", 100, 32, 1_143_780),
    ("mixer_s16", 1000, 224, 18_528_264),
    ("resmlp_b24", 1000, 224, 115_736_776),
    ("resnet20", 10, 32, 272_474),
    ("resnet32", 100, 32, 472_756),
    ("resnet56", 100, 32, 861_620),
]


@pytest.mark.parametrize(("name", "classes", "image_size", "expected"), SIZES)
def test_parameter_counts(name, classes, image_size, expected):
    with torch.device("meta"):
        assert count(create_backbone(name, num_classes=classes, image_size=image_size)) == expected


@pytest.mark.parametrize(
    ("ours", "timms"),
    [
        ("mixer_s16", "mixer_s16_224"),
        ("mixer_b16", "mixer_b16_224"),
        ("resmlp_s12", "resmlp_12_224"),
        ("resmlp_s24", "resmlp_24_224"),
        ("resmlp_s36", "resmlp_36_224"),
        ("gmlp_ti", "gmlp_ti16_224"),
        ("gmixer_12", "gmixer_12_224"),
    ],
)
def test_named_sizes_are_timms(ours, timms):
    """timm's weights fit, and then give the same logits."""
    torch.manual_seed(0)
    reference = timm.create_model(timms, num_classes=10, img_size=32).eval()
    backbone = create_backbone(ours, num_classes=10, image_size=32).eval()
    backbone.load_state_dict(reference.state_dict())
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(backbone(images), reference(images))


@pytest.mark.parametrize(
    ("ours", "timms", "args"),
    [
        ("resmlp_b24", "resmlp_big_24_224", {"patch_size": 8}),
        ("gmlp_s", "gmlp_s16_224", {}),
        ("gmlp_b", "gmlp_b16_224", {}),
        ("gmixer_24", "gmixer_24_224", {}),
    ],
)
def test_large_named_sizes_have_timms_shapes(ours, timms, args):
    with torch.device("meta"):
        own = create_backbone(ours, num_classes=1000, image_size=224, **args).state_dict()
        reference = timm.create_model(timms).state_dict()
    assert {key: value.shape for key, value in own.items()} == {key: value.shape for key, value in reference.items()}


TWO, FOUR = {"num_blocks": 2}, {"depth": 4}
STUDENTS = [  # those of the sources' tables that are timm's: arguments at 224 px and at 32 px, places a side of a tap
    *((f"resmlp_{size}", TWO, {"patch_size": 4}, 14, 8) for size in ("s12", "s24", "s36", "b24")),
    *((f"resmlp_{size}", TWO | {"patch_size": 8}, {}, 28, 4) for size in ("s12", "s24", "s36", "b24")),
    *((name, TWO, {"patch_size": 4}, 14, 8) for name in ("gmlp_ti", "gmlp_s", "gmlp_b", "gmixer_12", "gmixer_24")),
    *((name, FOUR, {"patch_size": 4}, 14, 8) for name in ("deit_small_patch16_224", "convit_tiny", "convit_small")),
    *((name, {}, {"patch_size": 4, "stride": 2}, 27, 15) for name in ("pit_ti_224", "pit_s_224")),
]


@pytest.mark.parametrize(("name", "args", "small", "side", "small_side"), STUDENTS)
def test_students_of_timm_are_built_at_224_and_at_32_px(name, args, small, side, small_side):
    """By MODEL.ARGS alone; the first tap has the places that the patches cut. Few blocks, for they are alike."""
    for image_size, changes, expected in ((224, args, side), (32, args | small, small_side)):
        taps = Description(name, num_classes=10, image_size=image_size, **changes).taps
        assert next(iter(taps.values()))[1:] == (expected, expected)


@pytest.mark.parametrize(("name", "size"), [("resmlp_s12", 32), ("resmlp_12_224", 224)])
def test_weight_decay_spares_the_affine_transforms_of_resmlp(name, size):
    """They are (1, 1, C) in timm; what is decayed are matrices and the kernel of the patches."""
    student = Student(create_backbone(name, num_classes=10, image_size=size, **FAMILIES.get(name, {})))
    optimizer = create_optimizer(student, name="adamw", lr=0.1, weight_decay=0.05)
    decayed = [p for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]]
    assert {p.ndim for p in decayed} == {2, 4} and any(p.ndim == 3 for p in student.parameters())


@pytest.mark.parametrize(("name", "rates"), [("resmlp_s12", [0.3] * 4), ("deit_tiny_patch16_224", [0, 0.1, 0.2, 0.3])])
def test_the_rate_of_stochastic_depth_is_the_last_blocks_and_of_timms_mixers_every_blocks(name, rates):
    backbone = create_backbone(name, num_classes=10, image_size=32, drop_path=0.3, **FAMILIES[name])
    drops = [[m.drop_prob for m in block.modules() if isinstance(m, DropPath)] for block in backbone.blocks]
    assert [max(found, default=0) for found in drops] == pytest.approx(rates)


def test_resnet_has_the_published_parameter_names():
    state = create_backbone("resnet20", num_classes=10, image_size=32).state_dict()
    assert list(state)[:6] == [
        "conv1.weight",
        *(f"bn1.{n}" for n in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
    ]
    for key, shape in {
        "layer1.0.conv1.weight": (16, 16, 3, 3),
        "layer2.0.downsample.0.weight": (32, 16, 1, 1),
        "layer2.0.downsample.1.running_var": (32,),
        "layer3.2.bn2.weight": (64,),
        "fc.weight": (10, 64),
        "fc.bias": (10,),
    }.items():
        assert tuple(state[key].shape) == shape
    assert not any("layer1.0.downsample" in key for key in state)
    assert set(PUBLISHED) == {f"cifar{k}_resnet{d}" for k in (10, 100) for d in (20, 32, 44, 56)}


def test_resnet_block_is_two_convolutions_and_a_shortcut():
    """layer2's first block, computed from its parts."""
    backbone = create_backbone("resnet8", num_classes=10, image_size=16).eval()
    block = backbone.layer2[0]
    for norm in (block.bn1, block.bn2, block.downsample[1]):
        nn.init.normal_(norm.running_mean)
    x = torch.randn(2, 16, 8, 8)
    y = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu()))
    torch.testing.assert_close(block(x), (y + block.downsample[1](block.downsample[0](x))).relu())
    assert block(x).shape == (2, 32, 4, 4)


def test_layer_norm_epsilon_is_an_option():
    def epsilons(**options):
        backbone = create_backbone("mixer_nano4", num_classes=10, image_size=16, **options)
        return {m.eps for m in backbone.modules() if isinstance(m, nn.LayerNorm)}

    assert epsilons() == {1e-6}
    assert epsilons(norm_eps=1e-5) == {1e-5}


@pytest.mark.parametrize(("name", "classifier"), [("mixer_s4", "head"), ("pvt_v2_b0", "head")])
def test_layers_as_pytorch_starts_them(load, name, classifier):
    """Weights and biases are even within 1 / sqrt(n) of n inputs, so their deviation is 1 / sqrt(3 n); norms stay."""
    words = {"MODEL__NAME": name, "MODEL__NUM_CLASSES": 100, "DATA__IMAGE_SIZE": 32}

    def backbone(init, seed=0):
        torch.manual_seed(seed)
        return build_backbone(load("mixer/mixer-s4_c100_base", **words, MODEL__INIT=init), 100)

    plain, ours = backbone(""), backbone("torch")
    layers = {n: m for n, m in ours.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    assert classifier in layers and any(isinstance(layer, nn.Conv2d) for layer in layers.values())
    for layer in layers.values():
        inputs = layer.weight[0].numel()
        for values in [p.detach() for p in (layer.weight, layer.bias) if p is not None]:
            bound, count = inputs**-0.5, values.numel()
            assert values.abs().max() <= bound
            if count > 1000:
                assert values.std() == pytest.approx(bound / 3**0.5, rel=5 / (2 * count) ** 0.5)
                assert values.abs().max() > 0.98 * bound
    started = plain.state_dict()
    for key, value in ours.state_dict().items():
        assert (key.rpartition(".")[0] in layers) != torch.equal(value, started[key]), key
    again, other = backbone("torch").state_dict(), backbone("torch", seed=1).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in ours.state_dict().items())
    assert not torch.equal(other["head.weight"], again["head.weight"])


def test_what_timms_mixers_start_from():
    """Beside PyTorch's: a stem sqrt 3 times as wide, second layers of channel MLPs 2.2 times, a head of zeros."""
    mixer = create_backbone("mixer_s4", num_classes=100, image_size=32)
    stem, wide = mixer.stem.proj.weight, mixer.blocks[0].mlp_channels.fc2.weight
    assert float(stem.detach().std()) == pytest.approx(3**0.5 * (3 * 48) ** -0.5, rel=0.03)
    assert float(wide.detach().std()) == pytest.approx(2.2 * (3 * 2048) ** -0.5, rel=0.03)
    assert not mixer.head.weight.any()


def test_any_size_patch_and_resolution():
    args = {"num_classes": 7, "image_size": 24, "patch_size": 3, "embed_dim": 20, "num_blocks": 2}
    backbone = create_backbone("mixer_nano4", **args)
    assert list(Description("mixer_nano4", **args).taps.values()) == [(20, 8, 8)] * 2
    assert backbone(torch.zeros(1, 3, 24, 24)).shape == (1, 7)


@pytest.mark.parametrize(
    ("name", "args", "text"),
    [
        ("mixer_s5", {}, "no model 'mixer_s5' here or in timm; near it: mixer_s4"),
        ("mixer_s4", {"patch": 2}, "MODEL.ARGS .* of mixer_s4 at 32 px: .*'patch'"),
        ("mixer_s4", {"patch_size": 5}, r"the patch 5 of mixer_s4 \(DATA.IMAGE_SIZE, MODEL.ARGS.patch_size\)"),
        ("deit_tiny_patch16_224", {"patch_size": 12, "depth": 1}, "image size 32 is no multiple of the patch 12"),
        ("mixer_s4", {"embed_dim": 0}, "MODEL.ARGS {'embed_dim': 0} of mixer_s4 at 32 px: "),
        ("resnet20", {"drop_path": 0.1}, "MODEL.DROP_PATH is 0.1, a CIFAR ResNet has no"),
    ],
)
def test_models_that_cannot_be_built(name, args, text):
    with pytest.raises(ValueError, match=text):
        create_backbone(name, num_classes=10, image_size=32, **args)


@pytest.mark.defect(17)
def test_teacher_is_not_moved_by_train():
    backbone = create_backbone("resnet8", num_classes=10, image_size=16)
    teacher = Teacher(backbone, name="t", normalization=HALF, student=HALF)
    before = copy.deepcopy(teacher.state_dict())
    nn.ModuleList([teacher]).train()
    teacher.train()
    assert not any(module.training for module in teacher.modules())
    logits = teacher(torch.randn(4, 3, 16, 16)).heads["cls"]
    assert not logits.requires_grad
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


@pytest.mark.defect(7)
def test_teacher_sees_its_own_normalisation_and_size():
    """Student and teacher are given the same picture, each in its own units."""
    picture = torch.rand(2, 3, 8, 8)
    student, own = Normalization((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)), Normalization((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))

    def normalised(by, image=picture):
        return (image - torch.tensor(by.mean).view(3, 1, 1)) / torch.tensor(by.std).view(3, 1, 1)

    class Camera(nn.Module):
        def forward(self, images):
            return images

    teacher = Teacher(Camera(), name="t", normalization=own, student=student)
    torch.testing.assert_close(teacher(normalised(student)).heads["cls"], normalised(own))
    larger = Teacher(Camera(), name="t", normalization=own, student=student, image_size=16)
    grown = nn.functional.interpolate(picture, (16, 16), mode="bilinear", align_corners=False)
    torch.testing.assert_close(larger(normalised(student)).heads["cls"], normalised(own, grown))


def test_padded_images_are_normalised_where_there_is_image_and_keep_their_size():
    pixels, mask = torch.rand(2, 3, 6, 8), torch.ones(2, 6, 8, dtype=torch.bool)
    mask[0, 4:], mask[1, :, 5:] = False, False
    teacher = Teacher(
        nn.Identity(), name="t", normalization=HALF, student=Normalization((0.0,) * 3, (1.0,) * 3), image_size=4
    )
    found = teacher.own_input(Padded(pixels * mask.unsqueeze(1), mask))
    assert found.mask is mask
    torch.testing.assert_close(found.pixels, torch.where(mask.unsqueeze(1), 2 * pixels - 1, 0.0))


def test_a_small_teacher_sees_small_images_as_they_were_before_they_were_enlarged():
    """Images of 8 px at 56 px for the student: the teacher at 8 px is given the same pixels as if they had stayed."""
    picture = torch.rand(2, 3, 8, 8)
    enlarged = nn.functional.interpolate(picture, (56, 56), mode="bilinear", align_corners=False)
    teacher = Teacher(nn.Identity(), name="t", normalization=HALF, student=HALF, image_size=8)
    torch.testing.assert_close(teacher(enlarged).heads["cls"], picture)


def teacher_of(name, size, **options):
    torch.manual_seed(0)
    backbone = create_backbone(name, num_classes=10, image_size=size, **FAMILIES.get(name, {}))
    return Teacher(backbone, name=name, normalization=HALF, student=HALF, image_size=size, **options)


@pytest.mark.parametrize("name", ["resnet8", "resnet18", "mixer_nano4"])
def test_a_teacher_says_what_it_is_asked_for(name):
    """Head, features, both, as the backbone itself computes them; of small images at the teacher's own size."""
    teacher, images = teacher_of(name, 32), torch.randn(2, 3, 64, 64)
    own = teacher.own_input(images)
    taps = tuple(info["module"] for info in teacher.backbone.feature_info[-2:])
    with torch.no_grad():
        _, maps = teacher.backbone.forward_intermediates(own, output_fmt="NCHW")
        logits = teacher.backbone(own)
    asked = {request: teacher(images, request) for request in (Request(), Request(True, taps), Request(False, taps))}
    for request, output in asked.items():
        assert list(output.heads) == ["cls"] * request.head and tuple(output.features) == request.taps
        for name, expected in zip(request.taps, maps[-2:], strict=False):
            assert torch.equal(output.features[name], expected)
            assert not output.features[name].is_inference()
        if request.head:
            torch.testing.assert_close(output.heads["cls"], logits)


def test_a_teacher_computes_no_more_than_it_is_asked_for():
    teacher, seen = teacher_of("resnet8", 32), []
    for name in ("layer1", "layer2", "layer3", "fc"):
        teacher.backbone.get_submodule(name).register_forward_hook(lambda *_, name=name: seen.append(name))
    teacher(torch.randn(2, 3, 32, 32), Request(False, ("layer1",)))
    assert seen == ["layer1"]
    teacher(torch.randn(2, 3, 32, 32), Request(True, ("layer1",)))
    assert seen == ["layer1", "layer1", "layer2", "layer3", "fc"]


def test_timm_finds_every_classifier_of_ours():
    """After `import pycls_std.models`; a detector is none."""
    ours = [name for name in BACKBONES.entries if not name.startswith("vidt_")]
    assert len(ours) > 30 and [name for name in ours if not timm.is_model(name)] == []
    model = timm.create_model("mixer_nano4", num_classes=7, img_size=16)
    assert model(torch.zeros(1, 3, 16, 16)).shape == (1, 7)
    with pytest.raises(ValueError, match="no published weights of resnet20"):
        timm.create_model("resnet20", pretrained=True)
