"""What the places of a detector's maps learn: outlines, their views, shares of classes, the losses, the head.

Shapes: B batch, H height, W width, K classes.
"""

import math

import numpy as np
import pytest
import torch
from coco_files import write_coco
from faster_coco_eval import mask as runs
from test_detection import TINY
from test_detection_views import pipeline
from test_vidt import SMALL, batch, small
from torch.nn.functional import one_hot, pad
from torch.utils.data import Subset
from torchvision.ops import masks_to_boxes

from pycls_std.builders.data import build_data, build_task
from pycls_std.builders.models import start_from
from pycls_std.builders.training import build_described_trainer
from pycls_std.builders.weights import Weights
from pycls_std.core.structures import World
from pycls_std.datasets.coco import coco
from pycls_std.datasets.segments import Segmented, segments_of
from pycls_std.datasets.shapes import Shapes
from pycls_std.losses.token_labels import shares, token_losses
from pycls_std.models.create import create_backbone

ONE = torch.ones(())


def outlined(split, content):
    """Give each annotation the outline of its box: polygons, runs as numbers, and runs as text, in turns."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    for place, row in enumerate(content["annotations"]):
        left, top, width, height = (round(value) for value in row["bbox"])
        right, bottom, size = left + width, top + height, sizes[row["image_id"]]
        row["bbox"] = [left, top, width, height]
        mask = np.zeros(size, dtype=np.uint8, order="F")
        mask[top:bottom, left:right] = 1
        flat = mask.flatten(order="F")
        changes = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
        counts = np.diff([0, *changes, len(flat)]).tolist()
        text = runs.encode(mask)["counts"]
        row["segmentation"] = [
            [[left, top, right, top, right, bottom, left, bottom]],
            {"size": list(size), "counts": counts},
            {"size": list(size), "counts": text.decode() if isinstance(text, bytes) else text},
        ][place % 3]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Shapes with outlines that are their boxes."""
    return str(write_coco(tmp_path_factory.mktemp("outlined") / "coco", train=12, edit=outlined))


# ------------------------------------------------------------------------------------------------------------ outlines
def test_the_first_object_wins():
    masks = [np.array([[1, 1, 0], [0, 0, 0]]), np.array([[0, 1, 1], [0, 0, 0]])]
    assert segments_of(masks, [4, 0], (2, 3)).tolist() == [[5, 5, 1], [0, 0, 0]]
    assert segments_of(masks[::-1], [0, 4], (2, 3)).tolist() == [[5, 1, 1], [0, 0, 0]]
    assert not segments_of([], [], (2, 3)).any()


def test_outlines_in_every_form_are_read(root):
    """As polygons and as runs: the pixels of the box. Crowds and images without objects have background."""
    dataset = coco(root=root, split="train")[0]
    made, part = Segmented(dataset), Segmented(Subset(dataset, [5, 1, 3]))
    assert len(made) == 12 and len(part) == 3 and part.sizes.tolist() == made.sizes[[5, 1, 3]].tolist()
    for index in range(12):
        image, target = made[index]
        expected = torch.zeros(1, image.height, image.width, dtype=torch.int32)
        for box, label in zip(target["boxes"].int().tolist(), target["labels"].tolist(), strict=True):
            expected[0, box[1] : box[3], box[0] : box[2]] = label + 1  # the boxes of shapes do not overlap
        assert torch.equal(target["segments"].as_subclass(torch.Tensor), expected)
    assert not made[0][1]["segments"].any()
    for place, index in enumerate((5, 1, 3)):
        assert part[place][1]["image_id"] == made[index][1]["image_id"]
        assert torch.equal(part[place][1]["segments"], made[index][1]["segments"])


@pytest.mark.parametrize(
    ("segmentation", "text"),
    [
        ([], "there is none$"),
        (None, "there is none$"),
        ([[1, 2, 3]], r"it is \[\[1, 2, 3\]\]$"),
        ({"size": [5, 6], "counts": [30]}, r"it is of \[5, 6\] places, the image has"),
        ({"size": [5, 6]}, "the image has"),
    ],
)
def test_an_annotation_without_an_outline_is_told(tmp_path, load, segmentation, text):
    """At the start, with the image; without the option nothing asks for it."""

    def edit(split, content):
        outlined(split, content)
        content["annotations"][-1]["segmentation"] = segmentation

    own = {"DATA__NAME": "coco", "DATA__ROOT": write_coco(tmp_path / "coco", edit=edit), "TRAIN__BATCH_SIZE": 2}
    build_data(load("debug/detection_debug", **own))
    with pytest.raises(ValueError) as error:
        build_data(load("debug/detection_debug", **own, DETECTION__TOKEN_WEIGHT=2))
    assert len(str(error.value).splitlines()) == 1
    assert error.match("^DETECTION.TOKEN_WEIGHT is 2.0: an annotation of image 000005.png has no segmentation that can")
    assert error.match(text)


def test_a_dataset_without_outlines_is_told(load):
    with pytest.raises(ValueError, match="^DETECTION.TOKEN_WEIGHT is 2.0: Shapes has no outlines of objects$"):
        build_data(load("debug/detection_debug", DETECTION__TOKEN_WEIGHT=2))
    dataset = Shapes(3, 0)
    assert build_task(load("debug/detection_debug"), 3).training_set(dataset) is dataset


# --------------------------------------------------------------------------------------------------------------- views
def test_segments_go_where_the_boxes_go(root):
    """Flipped, cropped and resized, twice after a crop, by nearest neighbours: a pixel or two."""
    made, transform, compared = Segmented(coco(root=root, split="train")[0]), pipeline(64).train_transform(), 0
    for seed in range(60):
        torch.manual_seed(seed)
        pixels, view = transform(*made[seed % 12])
        segments = view["segments"]
        assert type(segments) is torch.Tensor and segments.shape == pixels.shape[1:]
        height, width = segments.shape
        assert set(segments.unique().tolist()) <= {0, *(view["labels"] + 1).tolist()}
        for (x, y, w, h), label in zip(view["boxes"].tolist(), view["labels"].tolist(), strict=True):
            if view["labels"].tolist().count(label) > 1 or min(w * width, h * height) < 3:
                continue
            found = masks_to_boxes((segments == label + 1)[None])[0] + torch.tensor([0, 0, 1, 1])
            corners = [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height]
            assert (found - torch.tensor(corners)).abs().max() < 2.5
            compared += 1
    assert compared > 30


def test_batches_are_padded_with_background(root, load):
    own = {"DATA__NAME": "coco", "DATA__ROOT": root, "TRAIN__BATCH_SIZE": 4, "DETECTION__TOKEN_WEIGHT": 2}
    data = build_data(load("debug/detection_debug", **own, DATA__VAL_FRACTION=0.2, DETECTION__ASPECT_GROUPS=2))
    assert data.images == 10
    loaded = next(iter(data.train))
    made = data.task.batch(loaded, None)
    segments, mask = made.targets.segments, loaded.images.mask
    assert segments.shape == mask.shape and segments.any() and not segments[~mask].any()
    for place, target in enumerate(loaded.targets):
        assert torch.equal(segments[place][mask[place]], target["segments"].flatten())
    assert "segments" not in next(iter(data.test)).targets[0] and "segments" not in next(iter(data.val)).targets[0]


# -------------------------------------------------------------------------------------------------------------- losses
def test_shares_of_places():
    """Square by square, of ones and zeros for each class; more classes than are computed at once.

    The places of a map are squares of its stride, the last of which reach beyond images of no multiple of it.
    """
    segments = torch.randint(0, 21, (2, 13, 22), generator=torch.Generator().manual_seed(0))
    sizes = {4: (4, 6), 8: (2, 3), 16: (1, 2), 32: (1, 1)}
    plain = one_hot(segments, 21).permute(0, 3, 1, 2).float()
    plain[:, 0] = 1 - plain[:, 0]  # something
    for found, (side, size) in zip(shares(segments.int(), [*sizes.values()], classes=20), sizes.items(), strict=True):
        assert found.shape == (2, 21, *size)
        for row, column in np.ndindex(*size):
            square = plain[:, :, row * side : (row + 1) * side, column * side : (column + 1) * side]
            torch.testing.assert_close(found[:, :, row, column], square.sum(dim=(2, 3)) / side**2)


@pytest.mark.parametrize("more", [1, 3])
def test_an_image_learns_the_same_whatever_it_is_padded_to(more):
    """Also where the padded side is no multiple of the maps' strides, and where the maps are larger by it."""
    draws = torch.Generator().manual_seed(0)
    segments = torch.randint(0, 4, (1, 12, 20), generator=draws)
    maps = [torch.randn(1, *size, 4, generator=draws) for size in ((3, 5), (2, 3))]
    alone = token_losses(maps, segments, segments >= 0, num_boxes=ONE)
    widths = [-(-(20 + more) // side) for side in (4, 8)]
    wider = [pad(each, (0, 0, 0, width - each.shape[2])) for each, width in zip(maps, widths, strict=True)]
    image = pad(segments >= 0, (0, more))
    padded = token_losses(wider, pad(segments, (0, more)), image, num_boxes=ONE)
    for name, value in alone.items():
        torch.testing.assert_close(padded[name], value)


def test_losses_by_hand():
    """One place, of which a quarter is of the one class; with logits 0.7 and -0.4."""
    segments = torch.tensor([[[1, 0], [0, 0]]])
    logits = torch.tensor([0.7, -0.4]).view(1, 1, 1, 2)
    found = token_losses([logits, logits], segments, segments >= 0, num_boxes=torch.tensor(3.0))
    focal, shares_of, both = 0.0, 0.25, 0.0
    for x in (0.7, -0.4):
        p = 1 / (1 + math.exp(-x))
        entropy = -shares_of * math.log(p) - (1 - shares_of) * math.log(1 - p)
        right = p * shares_of + (1 - p) * (1 - shares_of)
        focal += (0.25 * shares_of + 0.75 * (1 - shares_of)) * (1 - right) ** 2 * entropy
        both += p
    dice = 1 - (2 * 0.25 * both + 1) / (both + 2 * 0.25 + 1)
    assert float(found["token_focal"]) == pytest.approx(2 * focal / 3, rel=1e-5)
    assert float(found["token_dice"]) == pytest.approx(2 * dice / 3, rel=1e-5)


def test_padding_is_no_place():
    """What is said there has no effect; images of a batch add up to what each has alone."""
    draws = torch.Generator().manual_seed(0)
    segments = torch.randint(0, 4, (2, 16, 16), generator=draws)
    maps = [torch.randn(2, side, side, 4, generator=draws) for side in (4, 2)]
    image = torch.ones(2, 16, 16, dtype=torch.bool)
    image[1, :, 8:], segments[1, :, 8:] = False, 0
    whole = token_losses(maps, segments, image, num_boxes=ONE)
    first = token_losses([each[:1] for each in maps], segments[:1], image[:1], num_boxes=ONE)
    narrow = [each[1:, :, : each.shape[2] // 2] for each in maps]
    second = token_losses(narrow, segments[1:, :, :8], image[1:, :, :8], num_boxes=ONE)
    for name, value in whole.items():
        torch.testing.assert_close(value, first[name] + second[name])


def test_what_is_learned_is_what_is_there():
    """Logits that say each place rightly have nearly no loss, others more."""
    segments = torch.zeros(1, 8, 8, dtype=torch.int32)
    segments[:, :4, :4] = 2
    right = torch.full((1, 2, 2, 4), -9.0)
    right[0, 0, 0, [0, 2]] = 9.0
    good = token_losses([right], segments, segments >= 0, num_boxes=ONE)
    bad = token_losses([-right], segments, segments >= 0, num_boxes=ONE)
    assert all(float(good[name]) < 1e-3 and float(bad[name]) > 0.8 for name in good)


# ---------------------------------------------------------------------------------------------------------------- head
def test_the_head_is_there_in_training():
    """Of every map, K + 1 logits of rare things at the start; it is not computed at test, and nothing else changes."""
    model, plain = small(token_label=True), small()
    plain.load_state_dict(model.state_dict(), strict=False)
    more = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in plain.parameters())
    assert more == (64 * 64 + 64) + 2 * 64 + 4 * 65
    assert model.head_names == ("classes", "boxes", "tokens") and plain.head_names == ("classes", "boxes")
    images = batch()[1]
    with torch.no_grad():
        found, expected = model(images), plain(images)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    found = model.train()(images)["tokens"]
    assert [tuple(each.shape) for each in found] == [(2, 13, 10, 4), (2, 7, 5, 4), (2, 4, 3, 4), (2, 2, 2, 4)]
    fresh = type(model)(*_sizes(), num_classes=3).tokens
    assert abs(fresh(torch.randn(99, 64)).sigmoid().mean() - 0.01) < 0.02


def _sizes():
    from pycls_std.layers.deformable_decoder import DecoderSizes
    from pycls_std.models.swin_ram import BodySizes
    from pycls_std.models.vidt import Extras

    body, decoder = ({key: SMALL[key] for key in kind._fields if key in SMALL} for kind in (BodySizes, DecoderSizes))
    return BodySizes(**body), DecoderSizes(**decoder), Extras(token_label=True)


def test_published_heads_are_left_out(caplog):
    """They have 91 outputs, whatever the classes, and are not needed to predict; ours stays as it is."""
    from test_vidt import published

    model, other = small(token_label=True), small()
    state = published(other) | {"transformer.enc_output_norm.weight": torch.ones(64)}
    state |= {"transformer.enc_output.weight": torch.ones(64, 64), "transformer.token_embed.bias": torch.ones(91)}
    before = model.tokens[2].weight.clone()
    start_from(model, Weights(state, "vidt.pth"))
    assert torch.equal(model.tokens[2].weight, before) and "6 tensors are new: tokens.0.weight" in caplog.text
    start_from(small(), Weights(state, "vidt.pth"))


def test_weights_of_other_classes_are_a_start(caplog):
    """Of a published ViDT, and of one of ours with such a head, whose first layers are taken."""
    from test_vidt import published

    other = create_backbone("vidt_swin_nano", num_classes=5, image_size=64, token_label=True, **SMALL)
    for state, taken in ((published(small()), False), (other.state_dict(), True)):
        model = create_backbone("vidt_swin_nano", num_classes=7, image_size=64, token_label=True, **SMALL)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        start_from(model, Weights(state, "x.pt"))
        now = model.state_dict()
        assert all(torch.equal(now[name], before[name]) for name in now if name.startswith(("classes.", "tokens.2.")))
        assert torch.equal(now["tokens.0.weight"], state["tokens.0.weight"] if taken else before["tokens.0.weight"])
        assert not torch.equal(now["body.det_token"], before["body.det_token"])
    lines = [line for line in caplog.messages if "is new" in line]
    assert lines[0].endswith("and tokens.2 is new, 3 -> 7 classes") and lines[1].endswith("5 -> 7 classes")


def test_a_head_and_its_weight_belong_together(load):
    for args, text in (
        ({"MODEL__ARGS__token_label": "true"}, "TOKEN_WEIGHT is 0, the student has a head tokens .MODEL.ARGS token_l"),
        ({"DETECTION__TOKEN_WEIGHT": 2}, "TOKEN_WEIGHT is above 0, the student has no head tokens .MODEL.ARGS token_l"),
    ):
        with pytest.raises(ValueError, match=f"^DETECTION.{text}"):
            build_described_trainer(load("debug/detection_debug", **TINY, **args), 3)


def test_a_detector_learns_by_it(load, root):
    """The losses of a batch, weighted, beside the others; every parameter of student and head has a gradient."""
    own = TINY | {"DATA__NAME": "coco", "DATA__ROOT": root, "TRAIN__BATCH_SIZE": 4, "DETECTION__TOKEN_WEIGHT": 3}
    cfg = load("debug/detection_debug", **own, MODEL__ARGS__token_label="true", MODEL__ARGS__dropout=0.0)
    data = build_data(cfg)
    student = build_described_trainer(cfg, 3)[0].student.train()
    made = data.task.batch(next(iter(data.train)), None)
    output = student(made.images)
    losses = data.task.losses(output, made, World())
    assert list(losses) == ["class", "l1", "giou", "aux", "token_focal", "token_dice"]
    num_boxes = (made.targets.labels >= 0).sum()
    alone = token_losses(output.heads["tokens"], made.targets.segments, made.images.mask, num_boxes=num_boxes)
    for name, value in alone.items():
        torch.testing.assert_close(losses[name], 3 * value)
    sum(losses.values()).backward()
    assert [name for name, p in student.named_parameters() if p.grad is None] == []
    assert student.backbone.tokens[0].weight.grad.any() and student.backbone.neck.maps[3][0].weight.grad.any()
