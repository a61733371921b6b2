"""Views of images with boxes against closed forms and a plain second computation; padded batches."""

import copy
import os

import numpy as np
import pytest
import torch
from coco_files import write_coco
from PIL import Image
from torchvision.transforms.functional import normalize, to_tensor
from torchvision.tv_tensors import BoundingBoxes

from pycls_std.core.structures import Normalization, Padded, Sample, mapped
from pycls_std.datasets import detection_views, loader
from pycls_std.datasets.box_targets import box_target
from pycls_std.datasets.coco import coco
from pycls_std.datasets.detection_views import BEFORE_CROP, SHORTEST, DetectionPipeline, pad_to_batch, view_size
from pycls_std.datasets.shapes import Shapes

PLAIN = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def pipeline(image_size=64, **options):
    return DetectionPipeline(image_size, PLAIN, **options)


def picture(height, width):
    """An image whose red is its column and whose green is its row, so that a part of it says where it was."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(width), np.arange(height)[:, None]
    return Image.fromarray(pixels)


def target_of(boxes, size, labels=None):
    count = len(boxes)
    truth = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.arange(count) if labels is None else torch.tensor(labels),
        "area": torch.ones(count),
        "crowd": torch.zeros(count, dtype=torch.bool),
    }
    return box_target(truth, image_id=7, size=size)


def unchecked(index, target):
    return target


def views(dataset, transform, seed=0):
    return loader.Views(dataset, transform, seed=seed, check=unchecked, collate=pad_to_batch)


def same(first, second):
    """Whether two nests of tuples, lists, dictionaries and tensors are equal to the bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


# --------------------------------------------------------------------------------------------------------------- sizes
@pytest.mark.parametrize(
    ("size", "shortest", "longest", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1056)),  # 1066.7, rounded down to a multiple of 16
        ((640, 480), 800, 1333, (1056, 800)),
        ((480, 640), 480, 1333, (480, 640)),
        ((500, 500), 500, None, (496, 496)),
        ((300, 1200), 800, 1333, (320, 1328)),  # shortest round(1333 / 4) = 333, longest 1332
        ((1200, 300), 800, 1333, (1328, 320)),
        ((300, 1200), 800, None, (800, 3200)),
        ((10, 1000), 800, 1333, (16, 1296)),  # shortest 13, which would be rounded down to 0
        ((1, 5000), 800, 1333, (16, 1328)),  # shortest 1, for 0.27 would be rounded down
    ],
)
def test_size_of_a_view(size, shortest, longest, expected):
    assert view_size(size, shortest, longest, multiple=16) == expected


def test_size_of_a_view_is_not_rounded_to_multiples_of_one():
    assert view_size((480, 640), 800, 1333, multiple=1) == (800, 1066)


@pytest.mark.parametrize(
    ("image_size", "multiple"), [(1600, 32), (800, 16), (480, 8), (320, 4), (256, 4), (192, 2), (64, 1), (32, 1)]
)
def test_multiples_scale_with_the_image(image_size, multiple):
    """At 800 the published one; the shortest side at test is image_size."""
    made = pipeline(image_size)
    assert made._multiple == multiple
    assert min(made.test_transform()(picture(48, 64), target_of([], (48, 64)))[0].shape[1:]) == image_size


def test_sizes_that_are_drawn():
    """The published ones at 800, scaled at other sizes; each of them, and no other."""
    assert {pipeline(800)._drawn(SHORTEST) for _ in range(400)} == set(range(480, 801, 16))
    assert {pipeline(800)._drawn(BEFORE_CROP) for _ in range(40)} == {400, 500, 600}
    image, target = picture(60, 60), target_of([], (60, 60))
    small = pipeline(50, crop=False).train_transform()
    assert {small(image, target)[0].shape[1] for _ in range(400)} == set(range(30, 51))
    fixed = pipeline(50, crop=False, multi_scale=False).train_transform()
    assert {fixed(image, target)[0].shape[1] for _ in range(20)} == {50}


# ------------------------------------------------------------------------------------------------------ image and boxes
def test_the_test_view():
    """Resized by Pillow as torchvision does it; boxes as shares of it; the rest of the target as it was."""
    image, target = picture(48, 96), target_of([[0, 0, 96, 48], [24, 12, 48, 36]], (48, 96), [1, 0])
    pixels, view = DetectionPipeline(32, Normalization((0.5, 0.4, 0.3), (0.2, 0.1, 0.3))).test_transform()(
        image, target
    )
    assert pixels.shape == (3, 26, 52) and type(pixels) is torch.Tensor and pixels.dtype == torch.float32
    expected = to_tensor(image.resize((52, 26), Image.Resampling.BILINEAR))
    torch.testing.assert_close(pixels, normalize(expected, (0.5, 0.4, 0.3), (0.2, 0.1, 0.3)))
    assert view["boxes"].tolist() == [[0.5, 0.5, 1, 1], [0.375, 0.5, 0.25, 0.5]]
    assert type(view["boxes"]) is torch.Tensor and view["boxes"].dtype == torch.float32
    assert view["labels"].tolist() == [1, 0] and view["size"].tolist() == [48, 96] and view["image_id"] == 7
    assert view["truth"]["boxes"].tolist() == [[0, 0, 96, 48], [24, 12, 48, 36]]
    assert target["boxes"].tolist() == view["truth"]["boxes"].tolist()  # not changed in place


def test_flip():
    """Left and right are exchanged: a box from 1/8 to 1/2 of the width comes to lie from 1/2 to 7/8."""
    image, target = picture(64, 64), target_of([[8, 16, 32, 24]], (64, 64))
    made = {}
    for flip in (0.0, 1.0):
        made[flip] = pipeline(flip=flip, crop=False, multi_scale=False).train_transform()(image, target)
    assert torch.equal(made[1.0][0], made[0.0][0].flip(2))
    assert made[0.0][1]["boxes"].tolist() == [[0.3125, 0.3125, 0.375, 0.125]]
    assert made[1.0][1]["boxes"].tolist() == [[0.6875, 0.3125, 0.375, 0.125]]


def test_crop_by_hand(monkeypatch):
    """A crop of 40 x 48 pixels from column 20, row 10: what it cuts off, cuts away, and touches."""
    draws = iter([48, 40, 10, 20])  # width, height, top, left
    monkeypatch.setattr(detection_views, "_whole", lambda least, most: next(draws))
    boxes = [[0, 0, 30, 20], [25, 15, 35, 30], [0, 0, 20, 60], [60, 40, 80, 50.5], [0, 0, 10, 10], [68, 12, 70, 14]]
    image, target = pipeline()._cropped(picture(64, 80), target_of(boxes, (64, 80)))
    assert image.size == (48, 40)
    assert image.getpixel((0, 0)) == (20, 10, 0) and image.getpixel((47, 39)) == (67, 49, 0)
    assert target["boxes"].tolist() == [[0, 0, 10, 10], [5, 5, 15, 20], [40, 30, 48, 40]]
    assert isinstance(target["boxes"], BoundingBoxes) and target["boxes"].canvas_size == (40, 48)
    assert target["labels"].tolist() == [0, 1, 3]
    assert len(target["truth"]["boxes"]) == 6 and target["size"].tolist() == [64, 80]


def test_sides_of_a_crop():
    """From 384 to 600 at 800 px, each side by itself, as far as the image has them, anywhere in it."""
    made = pipeline(80)
    sizes, places = set(), set()
    for _ in range(1500):
        image, _ = made._cropped(picture(70, 45), target_of([], (70, 45)))
        sizes.add(image.size)
        places.add((image.getpixel((0, 0))[1], image.getpixel((0, 0))[1] + image.height))
    widths, heights = map(set, zip(*sizes, strict=True))
    assert widths == set(range(38, 46)) and heights == set(range(38, 61))
    assert min(top for top, _ in places) == 0 and max(bottom for _, bottom in places) == 70
    assert made._cropped(picture(20, 30), target_of([], (20, 30)))[0].size == (30, 20)  # smaller than the least


def test_views_follow_the_steps_of_the_recipe():
    """A second computation in arrays, with the same draws: flip, sizes, crop, boxes and pixels."""
    shapes, size = Shapes(6, 3), 64
    transform = pipeline(size).train_transform()
    cropped = 0
    for index in range(30):
        image, target = shapes[index % 6]
        torch.manual_seed(index)
        pixels, view = transform(image, target)
        torch.manual_seed(index)
        expected, boxes, labels, crop = by_hand(image, target, size)
        cropped += crop
        torch.testing.assert_close(pixels, to_tensor(expected))
        torch.testing.assert_close(view["boxes"], torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        assert view["labels"].tolist() == labels
    assert 5 < cropped < 25


def by_hand(image, target, size):
    """Image, boxes and labels of a training view, box by box."""
    boxes = [(*box, label) for box, label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True)]

    def resized(image, boxes, shortest, longest):
        width, height = image.size
        if longest and max(image.size) / min(image.size) * shortest > longest:
            shortest = round(longest * min(image.size) / max(image.size))
        wide, high = (int(shortest * side / min(image.size)) for side in image.size)
        factors = (wide / width, high / height) * 2
        scaled = [(*(value * factor for value, factor in zip(box, factors, strict=False)), box[4]) for box in boxes]
        return image.resize((wide, high), Image.Resampling.BILINEAR), scaled

    def draw(least, most):
        return int(torch.randint(least, most + 1, ()))

    if torch.rand(()) < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        boxes = [(image.width - right, top, image.width - left, bottom, k) for left, top, right, bottom, k in boxes]
    crop = bool(torch.rand(()) < 0.5)
    if crop:
        image, boxes = resized(image, boxes, round((400, 500, 600)[draw(0, 2)] * size / 800), None)
        wide, high = (draw(min(31, side), min(48, side)) for side in image.size)
        up, at = draw(0, image.height - high), draw(0, image.width - wide)
        image = image.crop((at, up, at + wide, up + high))
        boxes = [
            (max(a - at, 0), max(b - up, 0), min(c - at, wide), min(d - up, high), label) for a, b, c, d, label in boxes
        ]
        boxes = [box for box in boxes if box[0] < box[2] and box[1] < box[3]]
    image, boxes = resized(image, boxes, round((480 + 16 * draw(0, 20)) * size / 800), size * 1333 // 800)
    shares = [
        ((a + c) / 2 / image.width, (b + d) / 2 / image.height, (c - a) / image.width, (d - b) / image.height)
        for a, b, c, d, _ in boxes
    ]
    return image, shares, [box[4] for box in boxes], crop


def test_an_image_without_boxes_and_a_thin_one():
    for made in (pipeline().train_transform(), pipeline().test_transform()):
        for size in ((70, 90), (3, 400)):
            for _ in range(5):
                pixels, view = made(picture(*size), target_of([], size))
                assert min(pixels.shape[1:]) >= 1
                assert view["boxes"].shape == (0, 4) and view["labels"].shape == (0,)


def test_an_image_of_one_row_stays_small_before_its_crop(monkeypatch):
    """Published is no limit: 1 x 5000 would be 1,600,000 pixels wide at 32 px; up to 10 to 1 nothing changes."""
    seen, crop = set(), DetectionPipeline._cropped
    monkeypatch.setattr(DetectionPipeline, "_cropped", lambda self, *pair: seen.add(pair[0].size) or crop(self, *pair))
    for size, expected in (((1, 5000), {(240, 1)}), ((10, 100), {(160, 16), (200, 20), (240, 24)})):
        seen.clear()
        for _ in range(40):
            pipeline(32).train_transform()(picture(*size), target_of([], size))
        assert seen == expected


def test_the_truth_is_for_scores_alone():
    """It does not go to the device with what is trained on."""
    image, target = picture(48, 96), target_of([[0, 0, 96, 48]], (48, 96))
    trained, tested = pipeline().train_transform()(image, target)[1], pipeline().test_transform()(image, target)[1]
    assert tested.keys() - trained.keys() == {"truth"} and trained.keys() <= target.keys() and "truth" in target


def test_grey_images(tmp_path):
    Image.new("L", (40, 30), 51).save(tmp_path / "grey.png")
    pixels, _ = pipeline().test_transform()(Image.open(tmp_path / "grey.png"), target_of([], (30, 40)))
    torch.testing.assert_close(pixels, torch.full((3, 64, 85), 0.2))


# --------------------------------------------------------------------------------------------------------- reproducible
@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return coco(root=str(write_coco(tmp_path_factory.mktemp("coco"), train=9)), split="train")[0]


def test_a_view_is_a_function_of_seed_epoch_and_index(dataset):
    transform = pipeline().train_transform()
    first, again, other = (views(dataset, transform, seed) for seed in (0, 0, 1))
    ahead = [first[0, index] for index in range(9)]
    torch.rand(5)
    assert all(same(ahead[index], again[0, index]) for index in reversed(range(9)))
    for elsewhere in ([other[0, index] for index in range(9)], [first[1, index] for index in range(9)]):
        assert sum(same(*pair) for pair in zip(ahead, elsewhere, strict=True)) < 3
    state = torch.get_rng_state()
    first[0, 2]
    assert torch.equal(state, torch.get_rng_state())


def test_workers_change_nothing(dataset):
    passes = []
    for workers in (0, 2):
        batches = loader.train_loader(
            views(dataset, pipeline().train_transform()), batch_size=4, workers=workers, seed=0
        )
        tested = loader.test_loader(views(dataset, pipeline().test_transform()), batch_size=4, workers=workers)
        passes.append([*batches, *tested])
    assert len(passes[0]) == 5 and same(*passes)


# -------------------------------------------------------------------------------------------------------------- batches
def test_padding_to_a_batch():
    """Zeros at the right and at the bottom, and the mask says where."""
    sizes = [(16, 48), (32, 32), (32, 16)]
    samples = [Sample(torch.rand(3, *size) + 1, {"image_id": i}, 5 - i) for i, size in enumerate(sizes)]
    loaded = pad_to_batch(samples)
    assert isinstance(loaded.images, Padded) and loaded.images.pixels.shape == (3, 3, 32, 48)
    assert loaded.images.mask.dtype == torch.bool and loaded.images.mask.shape == (3, 32, 48)
    for place, (height, width) in enumerate(sizes):
        pixels, mask = loaded.images.pixels[place], loaded.images.mask[place]
        assert torch.equal(pixels[:, :height, :width], samples[place].pixels)
        assert mask[:height, :width].all() and mask.sum() == height * width
        assert torch.equal(pixels != 0, mask.expand(3, -1, -1))
    assert [target["image_id"] for target in loaded.targets] == [0, 1, 2]
    assert loaded.index.tolist() == [5, 4, 3] and loaded.crop is None
    alone = pad_to_batch(samples[:1])
    assert torch.equal(alone.images.pixels[0], samples[0].pixels) and alone.images.mask.all()


def test_targets_come_from_workers_without_files():
    """Of 7 tensors an image, that a metric may keep, none is in shared memory, where each would be an open file."""
    data = loader.test_loader(views(Shapes(40, 0), pipeline(32).test_transform()), batch_size=20, workers=1)
    held, before = [], len(os.listdir("/proc/self/fd"))
    for batch in data:
        held += batch.targets
        assert not any(values.is_shared() for target in batch.targets for values in target["truth"].values())
    assert len(held) == 40 and len(os.listdir("/proc/self/fd")) < before + 20
    held[0]["boxes"].add_(1)  # they can be written to
    own = pad_to_batch([Sample(torch.ones(3, 4, 4), target_of([[1, 2, 3, 4]], (4, 4)), 0)]).targets
    assert same(copy.copy(own), own) and same(mapped(own, torch.clone), own)  # as pinning and moving do
