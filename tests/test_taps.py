"""Taps of any backbone: how they are chosen, what is read at them, and what is known of them without weights."""

import pytest
import torch
from methods import DEIT, FAMILIES, STUDENTS
from torch import nn

from pycls_std.models.create import create_backbone
from pycls_std.models.describe import Description
from pycls_std.models.taps import PATCHES, POOLED, VECTORS, TapShape, choose_features, choose_taps, read, tap_names

BLOCKS = [f"blocks.{index}" for index in range(8)]


def test_taps_are_chosen_by_name_position_share_and_last():
    def positions(*choices, count=8):
        names = [f"blocks.{index}" for index in range(count)]
        return tuple(names.index(name) for name in choose_taps("STD.TAPS", list(choices), names))

    assert positions("last") == (7,)
    assert positions("2/3", "last") == (5, 7)
    assert positions("2/3", "last", count=24) == (16, 23)
    assert positions("0", "1/2", "last", count=12) == (0, 6, 11)
    assert positions("0", "-2", "-1") == (0, 6, 7)
    assert positions("blocks.3", "last") == (3, 7)


@pytest.mark.parametrize(
    ("choices", "text"),
    [
        (["middle"], "STD.TAPS has 'middle', expected last, a position, a share such as 2/3, or one of blocks.0, "),
        (["8"], "STD.TAPS has '8', the backbone has the taps 0 to 7: blocks.0, "),
        (["3/0"], "'3/0', expected"),
        (["last", "2/3"], "are the taps \\[7, 5\\], expected ascending"),
        (["last", "blocks.7"], "are the taps \\[7, 7\\], expected ascending"),
        ([], "STD.TAPS is empty, expected at least one tap of blocks.0, "),
    ],
)
def test_taps_that_do_not_exist(choices, text):
    with pytest.raises(ValueError, match=text):
        choose_taps("STD.TAPS", choices, BLOCKS)


def test_features_are_chosen_by_their_name_or_as_one_tap():
    assert [choose_features("VKD.STUDENT_TAP", name, BLOCKS) for name in (POOLED, PATCHES)] == [POOLED, PATCHES]
    assert [choose_features("VKD.STUDENT_TAP", name, BLOCKS) for name in ("last", "1/2", "blocks.1")] == [
        *("blocks.7", "blocks.4", "blocks.1")
    ]
    with pytest.raises(
        ValueError, match="VKD.STUDENT_TAP has 'pool', expected pooled, patches, last, a position, a share"
    ):
        choose_features("VKD.STUDENT_TAP", "pool", BLOCKS)


@pytest.mark.parametrize("name", STUDENTS)
def test_features_are_timms_intermediates_and_what_the_classifier_reads(name):
    torch.manual_seed(0)
    backbone = create_backbone(name, num_classes=10, image_size=32, **STUDENTS[name]).eval()
    images, names = torch.randn(2, 3, 32, 32), tap_names(backbone)
    with torch.no_grad():
        last, features = read(backbone, images, (POOLED, names[-1], names[0]))
        _, maps = backbone.forward_intermediates(images, output_fmt="NCHW")
        assert torch.equal(backbone.forward_head(last), backbone(images))
        _, early = read(backbone, images, (names[0],), head=False)
    assert torch.equal(features[names[0]], maps[0]) and torch.equal(features[names[-1]], maps[-1])
    assert early.keys() == {names[0]} and torch.equal(early[names[0]], maps[0])
    if name not in (DEIT, "pit_ti_distilled_224", "deit_ti_conv"):
        classifier = backbone.get_classifier()
        expected = classifier(features[POOLED]) if features[POOLED].ndim == 2 else None
        torch.testing.assert_close(expected, backbone(images))


def test_what_two_classifiers_read_is_averaged():
    """The mean of the class and the distillation token: their classifiers' mean, where both have the same weights."""
    torch.manual_seed(0)
    backbone = create_backbone(DEIT, num_classes=10, image_size=32, **STUDENTS[DEIT]).eval()
    torch.nn.init.normal_(backbone.head.weight)
    backbone.head_dist.load_state_dict(backbone.head.state_dict())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        _, features = read(backbone, images, (POOLED,))
        torch.testing.assert_close(backbone.head(features[POOLED]), backbone(images))


def test_what_they_read_is_averaged_in_training_too():
    """timm's PiT gives both then."""
    backbone = create_backbone("pit_ti_distilled_224", num_classes=10, image_size=32)
    backbone.set_distilled_training(True)
    images, pooled = torch.randn(2, 3, 32, 32), []
    for mode in (True, False):
        with torch.no_grad():
            pooled.append(read(backbone.train(mode), images, (POOLED,))[1][POOLED])
    torch.testing.assert_close(*pooled)


NORMED = {  # where the head takes what a final norm made, and how many tokens stand before the patches
    **{
        "deit_tiny_patch16_224": 1,
        DEIT: 2,
        "convit_tiny": 1,
        "deit_ti_conv": 2,
        "mixer_nano4": 0,
        "resmlp_s12": 0,
        "gmlp_ti16_224": 0,
    }
}


@pytest.mark.parametrize("name", [*STUDENTS, "swin_tiny_patch4_window7_224", "regnety_002", "levit_128s"])
def test_the_mean_patch_is_what_the_final_norm_leaves_without_tokens(name):
    torch.manual_seed(0)
    size = 96 if name == "levit_128s" else 56 if name.startswith("swin") else 32
    backbone = create_backbone(name, num_classes=10, image_size=size, **STUDENTS.get(name, {})).eval()
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        _, found = read(backbone, images, (PATCHES,))
        features, maps = backbone.forward_intermediates(images, output_fmt="NCHW")
    if name in NORMED:
        torch.testing.assert_close(found[PATCHES], features[:, NORMED[name] :].mean(dim=1))
        patches = backbone.norm(maps[-1].flatten(2).transpose(1, 2))
        torch.testing.assert_close(found[PATCHES], patches.mean(dim=1))
    elif name.startswith("pit"):  # whose norm is that of the tokens alone
        torch.testing.assert_close(found[PATCHES], maps[-1].mean(dim=(2, 3)))
    else:
        torch.testing.assert_close(found[PATCHES], read(backbone, images, (POOLED,))[1][POOLED])
    assert found.keys() == {PATCHES}


def test_nothing_is_computed_after_the_last_tap_that_is_asked_for():
    backbone = create_backbone("resnet8", num_classes=10, image_size=32).eval()
    seen = []
    for name in ("layer1", "layer2", "layer3", "fc"):
        module = backbone.get_submodule(name)
        module.register_forward_hook(lambda *_, name=name: seen.append(name))
    read(backbone, torch.randn(2, 3, 32, 32), ("layer2",), head=False)
    assert seen == ["layer1", "layer2"]


@pytest.mark.parametrize("name", [*FAMILIES, "convit_tiny", "pit_ti_distilled_224"])
def test_a_description_is_that_of_the_model_and_draws_nothing(name):
    state = torch.get_rng_state()
    described = Description(name, num_classes=10, image_size=32, **STUDENTS[name])
    taps, vectors = described.taps, described.vectors
    assert torch.equal(torch.get_rng_state(), state)
    backbone = described.build().eval()
    with torch.no_grad():
        _, features = read(backbone, torch.zeros(1, 3, 32, 32), (*tap_names(backbone), *VECTORS))
    assert {name: features[name].shape[1:] for name in features} == {n: described.shape(n) for n in features}
    assert vectors == {name: features.pop(name).shape[1] for name in VECTORS} and described.pooled == vectors[POOLED]
    assert taps == {tap: TapShape(*feature.shape[1:]) for tap, feature in features.items()}
    assert described.queries == set()


@pytest.mark.parametrize("error", [NotImplementedError, RuntimeError])
def test_a_model_that_needs_numbers_is_described_by_running_it(monkeypatch, error):
    make = create_backbone

    def refuses_meta(*args, **options):
        backbone = make(*args, **options)
        forward = backbone.forward_intermediates

        def checked(images, **options):
            if images.is_meta:
                raise error("no meta kernel")
            return forward(images, **options)

        backbone.forward_intermediates = checked
        return backbone

    monkeypatch.setattr("pycls_std.models.describe.create_backbone", refuses_meta)
    state = torch.get_rng_state()
    assert Description("resnet8", num_classes=10, image_size=32).taps["layer3"] == (64, 8, 8)
    assert torch.equal(torch.get_rng_state(), state)


def test_backbones_without_taps_and_images_that_do_not_fit():
    with pytest.raises(ValueError, match="Linear offers no forward_intermediates"):
        tap_names(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="LevitDistilled takes no images of 3x8x8: |Levit takes no images of 3x8x8: "):
        _ = Description("levit_128s", num_classes=10, image_size=8).taps
