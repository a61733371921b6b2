"""Images in memory: each operation against Pillow's, draws against timm's and torchvision's, views, and the choice."""

import math
import random
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from image_folders import write_images
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from timm.data import auto_augment as reference
from timm.data import random_erasing
from torchvision.transforms import ColorJitter, RandomResizedCrop
from waits import NoReads

from pycls_std.builders.data import build_data
from pycls_std.core.sending import send
from pycls_std.datasets import transforms
from pycls_std.datasets.loader import EpochSampler, Views, train_loader
from pycls_std.datasets.memory import NotInMemory, color, geometry, store
from pycls_std.datasets.memory.augment import BatchAugmentation, Plain, draw_rectangles, jitter
from pycls_std.datasets.memory.blur import blur, box_weights
from pycls_std.datasets.memory.counter_rng import CounterRNG
from pycls_std.datasets.memory.erasing import RandomErasing
from pycls_std.datasets.memory.pixels import padded
from pycls_std.datasets.memory.rand_augment import OPERATIONS, RandAugment
from pycls_std.datasets.memory.three_augment import draw, three_augment
from pycls_std.datasets.memory.views import BLOCK, MemoryViews
from pycls_std.datasets.normalizations import NORMALIZATIONS
from pycls_std.datasets.three_augment import ThreeAugment
from pycls_std.datasets.transforms import Augmentation
from pycls_std.tasks.classification import Classification

NORMALIZATION = NORMALIZATIONS["cifar100"]
FILL = (129, 124, 112)
FULL = Augmentation(rand_augment="rand-m9-mstd0.5-inc1", erasing=0.25, color_jitter=0.3)
CPU = torch.device("cpu")


def photograph(seed, width=32, height=32):
    """A picture with smooth and sharp parts, a little noise, and a range that does not reach 0 and 255."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (width, height), tuple(rng.integers(40, 200, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x, y = rng.integers(0, width), rng.integers(0, height)
        box = [x - 8, y - 6, x + rng.integers(2, 12), y + rng.integers(2, 12)]
        draw.ellipse([*map(int, box)], fill=tuple(rng.integers(10, 240, 3).tolist()))
    noisy = np.asarray(image) + rng.integers(-6, 7, (height, width, 3))
    return Image.fromarray(noisy.clip(5, 245).astype(np.uint8))


PICTURES = [photograph(seed) for seed in range(48)]


def pixels(pictures):
    """Pictures as (B, H, W, 4)."""
    return padded(torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])))


def differences(ours, theirs):
    """Absolute differences of (B, H, W, 4) from PIL images, as numbers."""
    return (ours[..., :3].int() - pixels(theirs)[..., :3].int()).abs()


def draws(count, seed=0):
    """CounterRNG of `count` images."""
    return CounterRNG(seed, np.zeros(count, dtype=np.int64), np.arange(count))


# ----------------------------------------------------------------------------------------------------------- operations
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_is_pillows(name):
    """At 48 strengths and both signs: colours exactly, moves within the rounding of one level."""
    operation, amounts = OPERATIONS[name]
    magnitudes, signs = np.linspace(0, 10, 48), np.tile([1.0, -1.0], 24)
    given = amounts(magnitudes, signs)
    ours = operation(pixels(PICTURES), torch.from_numpy(given), FILL)
    function, has_level = reference.NAME_TO_OP[name], reference.LEVEL_TO_ARG[name] is not None
    theirs = [
        function(picture, *([value] if has_level else []), resample=Image.BICUBIC, fillcolor=FILL)
        for picture, value in zip(PICTURES, given.tolist(), strict=True)
    ]
    apart = differences(ours, theirs)
    moves = ("Rotate", "Shear", "Translate")
    assert apart.max() <= (1 if name.startswith(moves) else 0)
    assert (apart > 0).float().mean() < 0.01  # float32 and double truncate to neighbours
    assert name == "AutoContrast" or any(a != b for a, b in zip(PICTURES, theirs, strict=True))


@pytest.mark.parametrize("name", [name for name in OPERATIONS if reference.LEVEL_TO_ARG[name]])
def test_strengths_are_timms(name, monkeypatch):
    magnitudes = np.linspace(0, 10, 101)
    for sign, drawn in ((1.0, 0.0), (-1.0, 1.0)):
        monkeypatch.setattr(random, "random", lambda drawn=drawn: drawn)
        theirs = [reference.LEVEL_TO_ARG[name](m, {})[0] for m in magnitudes]
        if name.startswith("Posterize"):
            theirs = np.maximum(1, theirs)  # Pillow 13 refuses 0 bits
        ours = OPERATIONS[name][1](magnitudes, np.full(101, sign))
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_flat_image_and_one_of_two_colours():
    """What Pillow leaves alone: equalize and autocontrast of a channel with a single value."""
    flat = Image.new("RGB", (32, 32), (10, 200, 30))
    two = flat.copy()
    two.paste((11, 200, 90), (0, 0, 16, 16))
    for ours, theirs in ((color.equalize, reference.equalize), (color.auto_contrast, reference.auto_contrast)):
        assert differences(ours(pixels([flat, two])), [theirs(flat), theirs(two)]).max() == 0


def test_crop_is_pillows_and_flips():
    top, left = torch.tensor([-4, 0, 3]).int(), torch.tensor([2, -3, 4]).int()
    flip = torch.tensor([False, False, True])
    ours = geometry.crop(pixels(PICTURES[:8]), torch.tensor([5, 0, 7]).int(), top, left, flip, 32)
    theirs = [
        PICTURES[which].crop((x, y, x + 32, y + 32))  # Pillow fills with black
        for which, y, x in zip((5, 0, 7), top.tolist(), left.tolist(), strict=True)
    ]
    theirs[2] = theirs[2].transpose(Image.FLIP_LEFT_RIGHT)
    assert differences(ours, theirs).max() == 0


@pytest.mark.parametrize("size", [8, 32, 48, 100])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_resize_of_a_rectangle_is_pillows(size, interpolation):
    """Within a level; where one side grows and the other shrinks, Pillow 13 takes them in another order."""
    rng = np.random.default_rng(0)
    height, width = (torch.from_numpy(rng.integers(6, 33, 48)) for _ in range(2))
    top, left = (torch.from_numpy(rng.integers(0, 33 - side.numpy())) for side in (height, width))
    ours = geometry.resample(pixels(PICTURES), top, left, height, width, size, interpolation=interpolation)
    boxes = zip(left.tolist(), top.tolist(), (left + width).tolist(), (top + height).tolist(), strict=True)
    method = Image.Resampling[interpolation.upper()]
    theirs = [p.crop(box).resize((size, size), method) for p, box in zip(PICTURES, boxes, strict=True)]
    apart = differences(ours, theirs)
    same_order = ((height >= size) == (width >= size)).view(-1, 1, 1, 1).expand_as(apart)
    assert apart[same_order].max() <= 2  # the cubic overshoots, so one level of the first pass may become two
    assert (apart[same_order] > 1).float().mean() < 1e-5
    assert (apart[same_order] > 0).float().mean() < 0.03
    assert (apart > 1).float().mean() < 0.01
    other = geometry.resample(pixels(PICTURES), top, left, height, width, size)
    assert interpolation == "bicubic" or (ours.int() - other.int()).abs().max() > 8


def test_images_need_not_be_square():
    wide = [photograph(seed, width=40, height=24) for seed in range(4)]
    slope = torch.tensor([0.3, -0.3, 0.1, -0.2], dtype=torch.float64)
    for ours, theirs in (
        (geometry.shear_x, reference.shear_x),
        (geometry.shear_y, reference.shear_y),
        (lambda x, s, f: geometry.rotate(x, 90 * s, f), lambda x, s, **k: reference.rotate(x, 90 * s, **k)),
        (geometry.translate_x, lambda x, s, **k: reference.translate_x_abs(x, s, **k)),
        (geometry.translate_y, lambda x, s, **k: reference.translate_y_abs(x, s, **k)),
    ):
        expected = [
            theirs(w, s, resample=Image.BICUBIC, fillcolor=FILL) for w, s in zip(wide, slope.tolist(), strict=True)
        ]
        assert differences(ours(pixels(wide), slope, FILL), expected).max() <= 1


def test_jitter_applies_three_changes_in_an_order_of_its_own(monkeypatch):
    """Each image against Pillow's enhancements with the factors and the order that were drawn for it."""
    ours = jitter(pixels(PICTURES).clone(), draws(48), 0.4)
    numbers = draws(48)
    factors, order = numbers.between(0.6, 1.4, 3), numbers.uniform(3).argsort(axis=1)
    theirs = []
    for picture, factor, turn in zip(PICTURES, factors, order, strict=True):
        for which in turn:
            picture = (reference.brightness, reference.contrast, reference.color)[which](picture, factor[which])
        theirs.append(picture)
    assert differences(ours, theirs).max() == 0
    assert len({tuple(turn) for turn in order}) == 6
    assert ColorJitter(0.4).brightness == (0.6, 1.4)
    strong = jitter(pixels(PICTURES).clone(), draws(48), 1.5)  # factors from 0, not from -0.5
    assert draws(48).between(0.0, 2.5, 3).min() < 0.2 and strong.shape == (48, 32, 32, 4)


@pytest.mark.parametrize("shape", [(32, 32), (40, 24), (5, 3), (2, 1)])
def test_blur_is_pillows(shape):
    """Pixel by pixel, at 48 deviations, of images smaller than what the filter reaches, too."""
    pictures = [photograph(seed, *shape) for seed in range(48)]
    for first in (0.1, 0.102, 0.111):
        sigmas = np.linspace(first, 2.0, 48)
        ours = blur(pixels(pictures), torch.from_numpy(box_weights(sigmas)))
        pairs = zip(pictures, sigmas.tolist(), strict=True)
        assert differences(ours, [p.filter(ImageFilter.GaussianBlur(sigma)) for p, sigma in pairs]).max() == 0


def test_blurring_in_parts_is_blurring(monkeypatch):
    weights = torch.from_numpy(box_weights(np.linspace(0.1, 2, 48)))
    whole = blur(pixels(PICTURES), weights)
    monkeypatch.setattr("pycls_std.datasets.memory.blur.PIXELS", 5 * 32 * 32)
    assert torch.equal(blur(pixels(PICTURES), weights), whole)
    assert blur(pixels(PICTURES)[:0], weights[:0]).shape == (0, 32, 32, 4)


def of_three(picture, which, sigma):
    """What Pillow makes of a picture by one of the three."""
    if which == 0:
        return picture.convert("L").convert("RGB")
    return ImageOps.solarize(picture, 128) if which == 1 else picture.filter(ImageFilter.GaussianBlur(sigma))


def test_three_augment_makes_one_of_three_changes():
    """Each image against Pillow's, with what was drawn for it; one alone, as well."""
    choice, sigma = draw(draws(48))
    theirs = [of_three(*each) for each in zip(PICTURES, choice.tolist(), sigma.tolist(), strict=True)]
    assert set(choice) == {0, 1, 2}
    assert differences(three_augment(pixels(PICTURES).clone(), draws(48)), theirs).max() == 0
    assert sum(a != b for a, b in zip(PICTURES, theirs, strict=True)) > 40, "the weakest blur rounds away"
    assert differences(three_augment(pixels(PICTURES[:1]).clone(), draws(1)), theirs[:1]).max() == 0


def test_the_three_are_drawn_alike_in_both_pipelines():
    """Chi-square of the choice, and mean and deviation of the blur, over 3,000 images; none is left as it was."""
    choice, sigma = draw(draws(3000))
    assert ((np.bincount(choice, minlength=3) - 1000) ** 2 / 1000).sum() < 2 + 5 * 2
    assert sigma.min() >= 0.1 and sigma.max() < 2
    assert sigma.mean() == pytest.approx(1.05, abs=0.04) and sigma.std() == pytest.approx(1.9 / 12**0.5, abs=0.03)
    picture = PICTURES[0]
    grey, solar = of_three(picture, 0, 0), of_three(picture, 1, 0)
    torch.manual_seed(0)
    views = [ThreeAugment()(picture) for _ in range(600)]
    blurred = [view for view in views if view not in (grey, solar)]
    sizes = np.array([sum(view == grey for view in views), sum(view == solar for view in views), len(blurred)])
    assert ((sizes - 200) ** 2 / 200).sum() < 2 + 5 * 2
    torch.manual_seed(0)
    for view in views[:30]:
        which, sigma = int(torch.randint(3, ())), float(torch.empty(()).uniform_(0.1, 2.0))
        assert view == of_three(picture, which, sigma)


# ---------------------------------------------------------------------------------------------------------------- draws
def test_draws_are_even_and_independent():
    """Over 20,000 images: means, neighbours' correlations and a chi-square of 16 bins, at five deviations."""
    numbers = draws(20000).uniform(8)
    assert 0 <= numbers.min() < numbers.max() < 1
    bins = np.stack([np.bincount((16 * column).astype(int), minlength=16) for column in numbers.T])
    chi_square = ((bins - 1250) ** 2 / 1250).sum(axis=1)
    assert chi_square.max() < 15 + 5 * math.sqrt(30)
    within = np.corrcoef(numbers.T) - np.eye(8)
    along = [np.corrcoef(numbers[1:, 0], numbers[:-1, 0])[0, 1], np.corrcoef(numbers[7:, 0], numbers[:-7, 1])[0, 1]]
    assert max(np.abs(within).max(), *np.abs(along)) < 5 / math.sqrt(20000)
    normal = draws(20000).normal(2)
    assert abs(normal.mean()) < 0.03
    assert abs(normal.std() - 1) < 0.02
    assert np.abs(np.corrcoef(normal.T)[0, 1]) < 0.04


def test_draws_depend_on_seed_view_and_index():
    def first(seed, view, index):
        return float(CounterRNG(seed, np.array([view]), np.array([index])).uniform(1)[0, 0])

    addresses = [(s, v, i) for s in range(6) for v in range(6) for i in range(30)]
    assert len({first(*address) for address in addresses}) == len(addresses)
    assert np.array_equal(draws(10).uniform(5)[3:5], CounterRNG(0, np.zeros(2, int), np.array([3, 4])).uniform(5))


def test_operations_are_drawn_as_often_as_timm_does():
    """15 operations, each layer with probability 0.5; strengths normal around 9, cut at 10; signs even."""
    augment, count = RandAugment("rand-m9-mstd0.5-inc1", 32, NORMALIZATION), 30000
    numbers = draws(count)
    assert augment.layers == 2
    for _ in range(2):
        groups = augment.draw(numbers)
        assert [name for name, *_ in groups] == reference._RAND_INCREASING_TRANSFORMS
        sizes = np.array([len(places) for _, places, _, _ in groups])
        expected = count / 30
        assert ((sizes - expected) ** 2 / expected).sum() < 14 + 5 * math.sqrt(28)
        places, magnitudes, signs = (np.concatenate([group[k] for group in groups]) for k in (1, 2, 3))
        assert len(set(places.tolist())) == len(places)
        theirs = np.minimum(10, np.random.default_rng(0).normal(9, 0.5, 100000))
        assert magnitudes.mean() == pytest.approx(theirs.mean(), abs=0.02)
        assert magnitudes.std() == pytest.approx(theirs.std(), abs=0.02)
        assert abs(signs.mean()) < 5 / math.sqrt(len(signs))


@pytest.mark.parametrize(
    ("spec", "layers", "probability", "greatest"),
    [("rand-m5-n3-p0.8", 3, 0.8, 5), ("rand-m7-mstd101", 2, 0.5, 7), ("rand-m20-mmax15", 2, 0.5, 15)],
)
def test_other_specifications(spec, layers, probability, greatest):
    """Layers, probability, uniform strengths (mstd above 100), another limit; names without inc."""
    augment = RandAugment(spec, 32, NORMALIZATION)
    assert augment.layers == layers
    groups = augment.draw(draws(20000))
    assert [name for name, *_ in groups] == reference._RAND_TRANSFORMS
    assert sum(len(group[1]) for group in groups) == pytest.approx(20000 * probability, rel=0.03)
    magnitudes = np.concatenate([group[2] for group in groups])
    assert magnitudes.max() == pytest.approx(greatest, abs=0.01)
    assert magnitudes.mean() == pytest.approx(greatest / 2 if "mstd101" in spec else greatest, rel=0.02)


def test_erased_rectangles_are_timms(monkeypatch):
    """How often, how large, of which shape and where: means and deviations over 20,000 images at four deviations."""
    seen = []
    monkeypatch.setattr(random_erasing, "_get_pixels", lambda *a, **k: 0.0)

    class Spy:
        def __setitem__(self, key, value):
            _, rows, columns = key
            seen.append([rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start])

    theirs, count = random_erasing.RandomErasing(0.25, mode="pixel", device="cpu"), 20000
    random.seed(0)
    for _ in range(count):
        theirs._erase(Spy(), 3, 32, 32, torch.float32)
    places, top, left, bottom, right = RandomErasing(0.25, 32, CPU).draw(draws(count), 32, 32)
    ours, theirs = np.stack([top, left, bottom - top, right - left], axis=1), np.array(seen)
    assert abs(len(ours) - len(theirs)) < 4 * math.sqrt(2 * count * 0.25 * 0.75)
    assert len(set(places.tolist())) == len(places)
    assert (bottom <= 32).all() and (right <= 32).all() and (ours >= 0).all()
    for power in (1, 2):
        a, b = ours.astype(float) ** power, theirs.astype(float) ** power
        error = np.sqrt(a.var(axis=0) / len(a) + b.var(axis=0) / len(b))
        assert (np.abs(a.mean(axis=0) - b.mean(axis=0)) < 4 * error).all()


def test_erasing_fills_its_rectangle_with_normal_noise_and_nothing_else():
    erase = RandomErasing(1.0, 32, CPU)
    before = torch.full((200, 32, 96), 7.0)
    after = erase(before.clone(), draws(200)).unflatten(2, (-1, 3))
    places, top, left, bottom, right = erase.draw(draws(200), 32, 32)
    noise = []
    for place, y, x, end_y, end_x in zip(places, top, left, bottom, right, strict=True):
        noise.append(after[place, y:end_y, x:end_x].flatten())
        after[place, y:end_y, x:end_x] = 7.0
    assert (after == 7.0).all()
    noise = torch.cat(noise)
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    assert noise.unique().numel() > 0.8 * noise.numel()


def test_resized_rectangles_are_torchvisions():
    """Position and size over 20,000 crops of a 48x32 image, at four deviations; what fits nowhere is the centre."""
    torch.manual_seed(0)
    image = torch.zeros(1, 32, 48)
    theirs = np.array([RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(20000)], float)
    ours = np.concatenate(draw_rectangles(draws(20000), 32, 48, 0.08), axis=1).astype(float)
    for power in (1, 2):
        error = np.sqrt((ours**power).var(axis=0) / 20000 + (theirs**power).var(axis=0) / 20000)
        assert (np.abs((ours**power).mean(axis=0) - (theirs**power).mean(axis=0)) < 4 * error).all()
    for shape in ((4, 100), (100, 4), (32, 32), (32, 30), (30, 32)):  # all of the area: hardly anything else fits
        expected = RandomResizedCrop.get_params(torch.zeros(1, *shape), (1.0, 1.0), (3 / 4, 4 / 3))
        corner, sides = draw_rectangles(draws(3), *shape, 1.0)
        found = [[*c, *s] for c, s in zip(corner.tolist(), sides.tolist(), strict=True)]
        assert list(expected) in found


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_resized_view_is_pillows_crop_of_its_rectangle(interpolation):
    """A portrait and a landscape format: rows are not columns; some views are mirrored."""
    for width, height in ((48, 64), (64, 40)):
        pictures = [photograph(seed, width, height) for seed in range(40)]
        options = Augmentation(crop="resized", crop_scale=0.3, interpolation=interpolation)
        augment = BatchAugmentation(32, NORMALIZATIONS["half"], options, seed=3, device=CPU)
        ours, _ = augment(pixels(pictures), np.ones(40, int), np.arange(40))
        numbers = CounterRNG(3, np.ones(40, int), np.arange(40))
        corner, sides = draw_rectangles(numbers, height, width, 0.3)
        flip = numbers.uniform(1)[:, 0] < 0.5
        assert 10 < flip.sum() < 30
        for view, picture, (y, x), (h, w), mirrored in zip(ours, pictures, corner, sides, flip, strict=True):
            crop = picture.crop((x, y, x + w, y + h)).resize((32, 32), Image.Resampling[interpolation.upper()])
            crop = crop.transpose(Image.FLIP_LEFT_RIGHT) if mirrored else crop
            expected = pixels([crop])[0, ..., :3].permute(2, 0, 1) / 127.5 - 1
            assert (view - expected).abs().mean() * 127.5 < 0.5


def test_views_of_large_images():
    """More noise than the usual table has; more pixels than are resized at once."""
    augment = BatchAugmentation(640, NORMALIZATION, Augmentation(erasing=1.0), seed=0, device=CPU)
    assert augment(pixels(PICTURES[:2]), np.zeros(2, int), np.arange(2))[0].shape == (2, 3, 640, 640)


def test_resizing_in_parts_is_resizing(monkeypatch):
    numbers = torch.arange(6, 18), torch.arange(12), torch.arange(8, 20), torch.arange(20, 8, -1)
    sizes = torch.zeros(1), torch.zeros(1), torch.full((1,), 32), torch.full((1,), 32)
    for rectangles in ((numbers[1], numbers[1], numbers[2], numbers[3]), sizes):
        whole = geometry.resample(pixels(PICTURES[:12]), *rectangles, 20)
        with monkeypatch.context() as patch:
            patch.setattr(geometry, "SOURCE", 5 * 32 * 32)
            assert torch.equal(geometry.resample(pixels(PICTURES[:12]), *rectangles, 20), whole)


def test_strong_posterizing_leaves_an_image_as_timm_does():
    bits = OPERATIONS["Posterize"][1](np.array([0.0, 9.0, 20.0, 30.0]), np.ones(4))
    assert bits.tolist() == [1, 3, 8, 8]
    assert torch.equal(color.posterize(pixels(PICTURES[:1]), torch.tensor([8])), pixels(PICTURES[:1]))


TASK = Classification(48, pipeline=None)


# ---------------------------------------------------------------------------------------------------------------- views
def memory_views(seed=5, augmentation=FULL):
    """Views of the pictures, in memory."""
    augment = BatchAugmentation(32, NORMALIZATION, augmentation, seed=seed, device=CPU)
    return MemoryViews(pixels(PICTURES), torch.arange(48), augment, size=32)


@pytest.mark.parametrize("repeats", [1, 3])
def test_views_depend_on_seed_epoch_and_index_only(repeats, monkeypatch):
    """Another batch size, other blocks, a fresh loader, one view alone: the same image at the same place."""

    def epoch(number, batch_size=8, seed=5, block=2**11):
        monkeypatch.setitem(BLOCK, "cpu", block)
        loader = train_loader(memory_views(seed), batch_size=batch_size, workers=0, seed=seed, repeats=repeats)
        loader.sampler.epoch = number
        batches = list(loader)
        assert len(batches) == len(loader) == 48 // batch_size
        assert {loaded.images.shape for loaded in batches} == {(batch_size, 3, 32, 32)}
        assert all(torch.equal(loaded.index, loaded.targets) for loaded in batches), "labels are positions here"
        return torch.cat([loaded.images for loaded in batches]), torch.cat([loaded.targets for loaded in batches])

    images, labels = epoch(1)
    for other in (epoch(1), epoch(1, batch_size=12), epoch(1, block=1), epoch(1, block=3 * 8)):
        assert torch.equal(images, other[0])
        assert torch.equal(labels, other[1])
    for other in (epoch(0), epoch(1, seed=6)):
        assert not torch.equal(labels, other[1])
    view = memory_views()[(1 * repeats, int(labels[0]))]
    assert torch.equal(view.images[0], images[0])
    both = MemoryViews.collate([view, memory_views()[(1 * repeats + 1 % repeats, int(labels[1]))]])
    assert torch.equal(both.images, images[:2]) and torch.equal(both.index, labels[:2])
    if repeats > 1:
        first = images[labels == labels[0]]
        assert len(first) == 3
        assert not torch.equal(first[0], first[1])


def test_blocks_hold_as_many_images_as_fit():
    """2,048 images on a CPU, fewer of more than 32 px, and at least a batch; eight times as many on CUDA."""
    for size, batch_size, block in (
        (8, 128, 16),
        (32, 128, 16),
        (32, 1024, 2),
        (64, 128, 4),
        (224, 128, 1),
        (32, 3000, 1),
    ):
        views = MemoryViews(torch.zeros(1, 8, 8, 4, dtype=torch.uint8), torch.zeros(1), None, size=size)
        assert views.loader([(0, 0)], batch_size=batch_size, workers=0).block == block
    views.pixels = SimpleNamespace(device=torch.device("cuda"))
    for size, batch_size, block in ((32, 128, 128), (32, 1024, 16), (64, 1024, 4), (224, 128, 2)):
        views.size = size
        assert views.loader([(0, 0)], batch_size=batch_size, workers=0).block == block


def test_a_block_takes_as_many_operations_whatever_its_size():
    """By which a larger one costs less for each image where operations are launched."""
    counts = []
    for images in (512, 4096):  # enough for every operation to be drawn
        views = memory_views()
        with NoReads() as seen:
            views.batch([(number // 48, number % 48) for number in range(images)])
        counts.append(seen.operations.total())
    assert counts[1] <= 1.02 * counts[0]


def test_addresses_come_at_once_as_one_by_one():
    sampler = EpochSampler(50, seed=1, batch_size=8, positions=[1, 2, 5], repeats=3)
    sampler.epoch = 2
    assert list(sampler) == [tuple(address) for address in sampler.addresses().tolist()]
    assert len(sampler.addresses()) == len(sampler) == 18
    assert set(sampler.addresses()[:, 0]) == {6, 7, 8}


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_the_host_draws_goes_to_a_device_from_pinned_memory(device, monkeypatch):
    """All of it; on a CPU nothing is copied."""
    pinned, numbers = [], np.arange(3)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    sent = send(numbers, torch.device(device))
    assert (sent.device.type, len(pinned)) == (device, int(device == "meta"))
    assert device == "meta" or sent.data_ptr() == numbers.ctypes.data
    send(np.arange(6).reshape(3, 2).T[0], torch.device(device))  # with gaps, which a device does not copy by itself
    assert all(tensor.is_contiguous() for tensor in pinned)
    sources = [path for path in (ROOT / "pycls_std" / "datasets" / "memory").glob("*.py")]
    assert len(sources) > 5 and not [path.name for path in sources if "from_numpy" in path.read_text()]


def test_a_pass_leaves_the_global_generators_alone():
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    list(train_loader(memory_views(), batch_size=8, workers=0, seed=0))
    drawn = torch.rand(1), np.random.rand(), random.random()
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    assert drawn == (torch.rand(1), np.random.rand(), random.random())


def test_images_in_memory_stay_as_they_were():
    views = memory_views()
    before = views.pixels.clone()
    list(train_loader(views, batch_size=8, workers=0, seed=0))
    assert torch.equal(views.pixels, before)


def test_a_view_is_what_pillow_makes_of_its_draws():
    """The whole chain, crop to normalisation, with the numbers drawn for each image given to Pillow's operations."""
    options = Augmentation(rand_augment="rand-m9-mstd0.5-inc1", color_jitter=0.3, three_augment=True)
    ours = memory_views(5, options).batch([(2, index) for index in range(48)]).images
    numbers = CounterRNG(5, np.full(48, 2), np.arange(48))
    corners, flips = numbers.below(np.full((48, 2), 9)) - 4, numbers.uniform(1)[:, 0] < 0.5
    chain = [p.crop((x, y, x + 32, y + 32)) for p, (y, x) in zip(PICTURES, corners, strict=True)]
    chain = [p.transpose(Image.FLIP_LEFT_RIGHT) if flip else p for p, flip in zip(chain, flips, strict=True)]
    augment = RandAugment("rand-m9-mstd0.5-inc1", 32, NORMALIZATION)
    assert augment.fill == tuple(round(255 * mean) for mean in NORMALIZATION.mean)
    for _ in range(2):
        for name, places, magnitudes, signs in augment.draw(numbers):
            for place, value in zip(places, OPERATIONS[name][1](magnitudes, signs).tolist(), strict=True):
                level = [value] if reference.LEVEL_TO_ARG[name] else []
                options = {"resample": Image.BICUBIC, "fillcolor": augment.fill}
                chain[place] = reference.NAME_TO_OP[name](chain[place], *level, **options)
    chosen = zip(chain, *(values.tolist() for values in draw(numbers)), strict=True)
    chain = [of_three(*each) for each in chosen]
    factors, order = numbers.between(0.7, 1.3, 3), numbers.uniform(3).argsort(axis=1)
    for place in range(48):
        for which in order[place]:
            change = (reference.brightness, reference.contrast, reference.color)[which]
            chain[place] = change(chain[place], factors[place, which])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in NORMALIZATION)
    theirs = torch.stack([(pixels([p])[0, ..., :3].permute(2, 0, 1) / 255 - mean) / std for p in chain])
    apart = (ours - theirs).abs() * std * 255
    assert (apart > 0.01).float().mean() < 0.01
    assert apart.flatten(1).quantile(0.999, dim=1).median() <= 1.01


def test_the_distribution_is_that_of_the_workers():
    """One picture, 3,000 views each way: the mean and the deviation of every pixel, at six deviations of the mean."""
    options = Augmentation(rand_augment="rand-m9-mstd0.5-inc1", erasing=0.25)
    ours = memory_views(0, options).batch([(view, 0) for view in range(3000)]).images
    transform = transforms.train_transform(32, NORMALIZATION, options)
    views = Views([(PICTURES[0], 0)], transform, seed=1, check=TASK.check, collate=TASK.collate)
    theirs = torch.stack([views[(view, 0)][0] for view in range(3000)])
    for a, b in ((ours, theirs), (ours**2, theirs**2)):
        error = ((a.var(dim=0) + b.var(dim=0)) / 3000).sqrt()
        assert ((a.mean(dim=0) - b.mean(dim=0)).abs() / error).max() < 6


def test_test_images_are_the_same_in_memory(load):
    both = [
        build_data(load("debug/base_debug", DATA__LOADER=way, DATA__CROP_RATIO=0.6)) for way in ("memory", "workers")
    ]
    for ours, theirs in zip(*(data.test for data in both), strict=True):
        torch.testing.assert_close(ours.images, theirs.images, rtol=0, atol=1e-6)
        assert torch.equal(ours.targets, theirs.targets) and torch.equal(ours.index, theirs.index)
        assert ours.images.is_contiguous(memory_format=torch.channels_last)


def test_plain_views_follow_the_indices():
    plain, _ = Plain(NORMALIZATIONS["half"], CPU)(pixels(PICTURES), np.zeros(2), np.array([7, 3]))
    expected = pixels([PICTURES[7], PICTURES[3]])[..., :3].permute(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(plain, expected)


# --------------------------------------------------------------------------------------------------------------- choice
def folder(path, sizes):
    """An image folder of two classes; sizes: of each image of a class."""
    counts = {"train": len(sizes), "val": len(sizes)}
    own = write_images(path, **counts, make=lambda number: photograph(number, *sizes[number]))
    return own | {"TRAIN__BATCH_SIZE": 4}


def chosen(load, caplog, **words):
    """The training loader's dataset, and what was logged of the choice."""
    caplog.clear()
    data = build_data(load("debug/base_debug", **words))
    return data.train.dataset, next(line for line in caplog.messages if line.startswith("training images"))


def test_small_images_are_kept_at_the_size_they_are_cropped_from(load, caplog, tmp_path):
    words = folder(tmp_path, [(20, 12), (30, 40), (9, 9)])
    views, line = chosen(load, caplog, **words)
    assert views.pixels.shape == (6, 8, 8, 4)
    assert line.startswith("training images: 6 in memory (0 MiB, read in ")
    assert line.endswith(" s), augmented in batches on cpu (DATA.LOADER)")
    expected = pixels([photograph(1, 30, 40).resize((8, 10), Image.BICUBIC).crop((0, 1, 8, 9))])
    assert torch.equal(views.pixels[1], expected[0])
    assert views.targets.tolist() == [0, 0, 0, 1, 1, 1]


def test_images_too_large_to_keep_resized_are_resized_in_each_view(load, caplog, tmp_path, monkeypatch):
    """CIFAR at 224 px: 32 px are kept. The views differ by rounding from those of images resized first."""
    words = folder(tmp_path, [(12, 12)] * 3) | {"DATA__IMAGE_SIZE": 16, "AUG__CROP": "none", "AUG__FLIP": 0}
    before, _ = chosen(load, caplog, **words)
    monkeypatch.setattr(store, "LIMIT", 4 * 12 * 12 * 6)
    views, line = chosen(load, caplog, **words)
    assert "in memory" in line
    assert (before.pixels.shape, views.pixels.shape) == ((6, 16, 16, 4), (6, 12, 12, 4))
    addresses = [(0, index) for index in range(6)]
    apart = (views.batch(addresses)[0] - before.batch(addresses)[0]).abs()
    std = torch.tensor(NORMALIZATIONS["imagenet"].std).view(3, 1, 1)
    assert (apart * std * 255).max() < 1.01


def test_random_resized_crops_are_cut_from_whole_images(load, caplog, tmp_path):
    words = folder(tmp_path, [(20, 14)] * 3) | {"AUG__CROP": "resized"}
    views, _ = chosen(load, caplog, **words)
    assert views.pixels.shape == (6, 14, 20, 4)
    assert views.batch([(0, 0), (1, 5)])[0].shape == (2, 3, 8, 8)


@pytest.mark.parametrize(
    ("sizes", "words", "limit", "reason"),
    [
        (
            [(20, 14), (20, 15), (9, 9)],
            {"AUG__CROP": "resized"},
            2**31,
            "image 0 of the dataset has 20x14 pixels, image 1 20x15",
        ),
        ([(20, 14)] * 3, {}, 1000, "6 images of 20x14 pixels take 0.0 GiB"),
    ],
)
def test_what_cannot_be_kept_is_left_to_workers(load, caplog, tmp_path, monkeypatch, sizes, words, limit, reason):
    words = folder(tmp_path, sizes) | words
    monkeypatch.setattr(store, "LIMIT", limit)
    views, line = chosen(load, caplog, **words)
    assert isinstance(views, Views)
    assert "one by one, in this process (DATA.LOADER)" in line and reason in line
    with pytest.raises(ValueError, match="DATA.LOADER is memory: .*" + reason):
        chosen(load, caplog, **words, DATA__LOADER="memory")
    views, line = chosen(load, caplog, **words, DATA__LOADER="workers")
    assert isinstance(views, Views) and reason not in line


def test_workers_read_what_one_process_reads(monkeypatch):
    """In their order, with their labels."""
    dataset = [(picture, number % 7) for number, picture in enumerate(PICTURES * 12)]
    alone = store.read(dataset, check=TASK.check, workers=0)
    monkeypatch.setattr(store, "FEW", 100)
    shared = store.read(dataset, check=TASK.check, workers=2)
    assert torch.equal(alone[0], shared[0]) and torch.equal(alone[0], pixels(PICTURES * 12))
    assert alone[1] == shared[1] == [label for _, label in dataset]


@pytest.mark.parametrize(("images", "side", "workers"), [(5000, 32, 0), (5001, 32, 2), (1000, 142, 0), (1000, 144, 2)])
def test_workers_read_where_there_is_much_to_read(monkeypatch, images, side, workers):
    started = []

    def loader(*_, num_workers, **__):
        started.append(num_workers)
        return [([np.zeros((1, 1, 3), np.uint8)], [0])]

    monkeypatch.setattr(store, "DataLoader", loader)
    store.read([(Image.new("RGB", (side, side)), 0)] * images, check=TASK.check, workers=2)
    assert started == [workers]


def test_labels_that_are_no_class():
    with pytest.raises(ValueError, match="image 1 of the dataset has the label 5, its classes are 0 to 3"):
        store.read([(PICTURES[0], 0), (PICTURES[1], 5)], check=Classification(4, pipeline=None).check, workers=0)


def test_room_is_counted_before_anything_is_read():
    huge = type("Huge", (), {"__len__": lambda self: 1281167})()
    with pytest.raises(NotInMemory, match="1281167 images of 224x224 pixels take 239.5 GiB, at most 2 are kept"):
        store.check_room(huge, (224, 224))


def test_counts_of_a_pass():
    """Every image once, whatever the blocks; the test split with its incomplete last batch."""
    loader = memory_views().loader([(0, index) for index in range(48)], batch_size=20, workers=0)
    batches = [loaded.index for loaded in loader]
    assert [len(index) for index in batches] == [20, 20, 8] and len(loader) == 3
    assert Counter(torch.cat(batches).tolist()) == Counter(range(48))
