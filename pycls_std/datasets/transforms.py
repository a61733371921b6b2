"""Transforms of single images: crop, flip, colour augmentation, erasing for training; resize and crop for testing."""

import math
from dataclasses import dataclass
from functools import partial

from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torchvision.transforms import (
    CenterCrop,
    ColorJitter,
    Compose,
    InterpolationMode,
    Normalize,
    Resize,
    ToTensor,
)

from pycls_std.core.structures import Normalization
from pycls_std.datasets.crops import Flip, PaddedCrop
from pycls_std.datasets.decoding import DecodedRandomResizedCrop, to_rgb
from pycls_std.datasets.three_augment import ThreeAugment

INTERPOLATIONS = {"bicubic": InterpolationMode.BICUBIC, "bilinear": InterpolationMode.BILINEAR}


@dataclass(frozen=True)
class Augmentation:
    """Training augmentation of single images; see section AUG of the options for the meaning of each value."""

    crop: str = "pad"
    crop_padding: int = 4
    crop_scale: float = 0.08
    flip: float = 0.5
    rand_augment: str = ""
    color_jitter: float = 0.0
    erasing: float = 0.0
    interpolation: str = "bicubic"
    three_augment: bool = False


class ImageTransform(Compose):
    """Steps that transform an image, without changing its target."""

    def __call__(self, image, target):
        """Return the transformed image and the target."""
        return super().__call__(image), target


def train_transform(
    image_size: int, normalization: Normalization, augmentation: Augmentation, fit: str = "crop"
) -> ImageTransform:
    """Return the training transform: PIL image -> (3, image_size, image_size) normalised tensor.

    fit: see `square`, for all but the random resized crop.
    Source: the DeiT recipe; at 32 px STD replaces its random resized crop by a padded one.
    """
    mode = INTERPOLATIONS[augmentation.interpolation]
    all_of_it = square(image_size, augmentation.interpolation, fit)
    crops = {
        "pad": [to_rgb, *all_of_it, PaddedCrop(image_size, augmentation.crop_padding)],
        "resized": [DecodedRandomResizedCrop(image_size, (augmentation.crop_scale, 1.0), mode)],
        "none": [to_rgb, *all_of_it],
    }
    steps = crops[augmentation.crop]
    if augmentation.flip:
        steps.append(Flip(augmentation.flip))
    if augmentation.rand_augment:
        steps.append(rand_augment(augmentation.rand_augment, image_size, normalization))
    if augmentation.three_augment:
        steps.append(ThreeAugment())
    if augmentation.color_jitter:
        steps.append(ColorJitter(*[augmentation.color_jitter] * 3))
    steps += [ToTensor(), Normalize(*normalization)]
    if augmentation.erasing:
        steps.append(RandomErasing(augmentation.erasing, mode="pixel", device="cpu"))
    return ImageTransform(steps)


def test_transform(
    image_size: int,
    normalization: Normalization,
    crop_ratio: float = 1.0,
    interpolation: str = "bicubic",
    fit: str = "crop",
) -> ImageTransform:
    """Return the test transform: that of `test_pixels`, normalised."""
    pixels = test_pixels(image_size, crop_ratio, interpolation, fit).transforms
    return ImageTransform([*pixels, ToTensor(), Normalize(*normalization)])


def resized_side(image_size: int, crop_ratio: float) -> int:
    """Return the pixels that a side of a test image is resized to before the centre crop."""
    return math.floor(image_size / crop_ratio)


def test_pixels(image_size: int, crop_ratio: float = 1.0, interpolation: str = "bicubic", fit: str = "crop") -> Compose:
    """Return the test transform of pixels: resize the shorter side to image_size / crop_ratio, centre crop.

    0.875 at 224 px resizes it to 256; the size is rounded down, as in timm. fit: `squash` resizes both sides to that.
    With crop_ratio 1 a square image is only resized, for others see `square`.
    """
    if crop_ratio < 1:
        side = resized_side(image_size, crop_ratio)
        resize = Resize((side, side) if fit == "squash" else side, INTERPOLATIONS[interpolation])
        return Compose([to_rgb, resize, CenterCrop(image_size)])
    return Compose([to_rgb, *square(image_size, interpolation, fit)])


def square(image_size: int, interpolation: str, fit: str) -> list:
    """Return the steps that make an image image_size pixels wide and high.

    fit: `crop` resizes the shorter side and crops the centre, `squash` resizes both sides, which is the same for square
    images.
    """
    mode = INTERPOLATIONS[interpolation]
    ways = {
        "crop": [Resize(image_size, mode), CenterCrop(image_size)],
        "squash": [Resize((image_size, image_size), mode)],
    }
    return ways[fit]


def rand_augment(spec: str, image_size: int, normalization: Normalization):
    """Return timm's RandAugment, with the mean colour as fill.

    timm's strongest posterize keeps 0 bits, which Pillow 13 refuses; here it keeps at least 1.
    """
    options = {
        "translate_const": int(0.45 * image_size),
        "img_mean": tuple(min(255, round(255 * channel)) for channel in normalization.mean),
        "interpolation": 3,  # PIL's bicubic
    }
    augment = rand_augment_transform(spec, options)
    for operation in augment.ops:
        if operation.name.startswith("Posterize"):
            operation.level_fn = partial(_at_least_one_bit, operation.level_fn)
    return augment


def _at_least_one_bit(level_fn, level, hparams):
    return (max(1, level_fn(level, hparams)[0]),)
