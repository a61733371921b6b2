"""Transforms of images with boxes to views of several sizes, and padding of these to batches.

Shapes: B batch, H height, W width, n boxes of an image.
Source: the augmentation of DETR (Carion et al., ECCV 2020), with the sizes of ViDT (Song et al., ICLR 2022).
"""

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_convert
from torchvision.transforms.v2 import functional
from torchvision.tv_tensors import wrap

from pycls_std.core.structures import Loaded, Normalization, Padded, Sample, mapped
from pycls_std.datasets.box_targets import has_extent
from pycls_std.datasets.decoding import to_rgb

# Sizes in pixels, published for a shortest side of 800 at test, and scaled with the actual one.
PUBLISHED = 800
LONGEST = 1333
SHORTEST = range(480, 801, 16)  # of a training view
BEFORE_CROP = (400, 500, 600)  # shortest side
LONGEST_BEFORE_CROP = 6000  # ours, for aspect ratios above 10; the published recipe has no limit
CROP = (384, 600)  # minimum and maximum side
JOINT = ("boxes", "segments")  # parts of a target that are transformed with the image, if present
MULTIPLE = 16  # both sides of a view are rounded down to a multiple of it


@dataclass(frozen=True)
class DetectionPipeline:
    """How views are made; a target is a dictionary with `boxes` (n, 4), see `box_targets`, optionally `segments`, too.

    image_size: shortest side at test, pixels; every size of the recipe scales with it. flip: probability.
    multi_scale: whether the shortest side of a training view is random, otherwise it is image_size. crop: whether half
    of the training views are random crops.
    """

    image_size: int
    normalization: Normalization
    flip: float = 0.5
    multi_scale: bool = True
    crop: bool = True
    batched = False  # images are of several sizes

    def train_transform(self) -> Callable:
        """Return the transform of an image and its target to a training view, without the `truth`."""
        return self._training_view

    def test_transform(self) -> Callable:
        """Return the transform of an image and its target to the test view: resized, up to 1333/800 image_size."""
        return self._test_view

    def _training_view(self, image: Image.Image, target: dict) -> tuple[Tensor, dict]:
        image = to_rgb(image)
        if torch.rand(()) < self.flip:
            image, target = _both(functional.horizontal_flip, image, target)
        if self.crop and torch.rand(()) < 0.5:
            image, target = self._resized(image, target, self._drawn(BEFORE_CROP), self._scaled(LONGEST_BEFORE_CROP))
            image, target = self._cropped(image, target)
        size = self._drawn(SHORTEST) if self.multi_scale else self.image_size
        pixels, target = self._finished(*self._resized(image, target, size, self._longest))
        return pixels, {name: value for name, value in target.items() if name != "truth"}  # only needed for scores

    def _test_view(self, image: Image.Image, target: dict) -> tuple[Tensor, dict]:
        return self._finished(*self._resized(to_rgb(image), target, self.image_size, self._longest))

    @property
    def _longest(self) -> int:
        return self.image_size * LONGEST // PUBLISHED

    @property
    def _multiple(self) -> int:
        """Return MULTIPLE, scaled, rounded down to a power of two, which divides usual sizes."""
        return 1 << max(0, (MULTIPLE * self.image_size // PUBLISHED).bit_length() - 1)

    def _scaled(self, size: int) -> int:
        return round(size * self.image_size / PUBLISHED)

    def _drawn(self, sizes: Sequence[int]) -> int:
        return self._scaled(sizes[_whole(0, len(sizes) - 1)])

    def _resized(self, image, target: dict, shortest: int, longest: int) -> tuple[Image.Image, dict]:
        size = view_size((image.height, image.width), shortest, longest, multiple=self._multiple)
        return _both(partial(functional.resize, size=list(size)), image, target)

    def _cropped(self, image, target: dict) -> tuple[Image.Image, dict]:
        """Return a crop of random size and position; boxes outside are dropped, with their labels."""
        least, most = map(self._scaled, CROP)
        width, height = (_whole(min(least, side), min(most, side)) for side in image.size)
        top, left = _whole(0, image.height - height), _whole(0, image.width - width)
        crop = partial(functional.crop, top=top, left=left, height=height, width=width)
        image, target = _both(crop, image, target)
        boxes = target["boxes"]
        kept = has_extent(boxes)
        return image, target | {"boxes": wrap(boxes[kept], like=boxes), "labels": target["labels"][kept]}

    def _finished(self, image: Image.Image, target: dict) -> tuple[Tensor, dict]:
        """Return a normalised tensor (3, H, W), and boxes as centre x and y, width, height, fractions of the view."""
        pixels = functional.to_dtype(functional.pil_to_tensor(image), torch.float32, scale=True)
        sides = torch.tensor([image.width, image.height] * 2, dtype=torch.float32)
        boxes = box_convert(target["boxes"].as_subclass(Tensor), "xyxy", "cxcywh") / sides
        target = target | {"boxes": boxes}
        if "segments" in target:
            target["segments"] = target["segments"].as_subclass(Tensor)[0]
        return functional.normalize(pixels, *self.normalization, inplace=True), target


def view_size(size: tuple[int, int], shortest: int, longest: int | None, *, multiple: int) -> tuple[int, int]:
    """Return height and width of an image (height, width) that is resized to a shortest side, pixels.

    The shortest side is reduced if the longest would exceed its limit; then both are rounded down to a multiple, at
    least to one `multiple`.
    """
    least, most = min(size), max(size)
    if longest is not None and most / least * shortest > longest:
        shortest = max(1, round(longest * least / most))
    sides = (int(shortest * side / least) for side in size)
    height, width = (min(side, longest or side) // multiple * multiple for side in sides)
    return max(height, multiple), max(width, multiple)


class Targets(list):
    """The targets of a batch, which a worker sends as bytes; they arrive as a plain list.

    Tensors in shared memory would each hold a file open in both processes, whose limit may be 1,024.
    """

    def __reduce__(self):
        return pickle.loads, (pickle.dumps(mapped(list(self), _Bytes)),)


class _Bytes(NamedTuple):
    """A tensor that is pickled by value."""

    tensor: Tensor

    def __reduce__(self):
        return torch.from_numpy, (self.tensor.numpy(),)


def pad_to_batch(samples: list[Sample]) -> Loaded:
    """Return a batch of views, padded with zeros at the right and the bottom, with a list of targets."""
    height, width = (max(sample.pixels.shape[side] for sample in samples) for side in (1, 2))
    pixels = torch.zeros(len(samples), 3, height, width)
    mask = torch.zeros(len(samples), height, width, dtype=torch.bool)
    for place, sample in enumerate(samples):
        own = (place, ..., slice(sample.pixels.shape[1]), slice(sample.pixels.shape[2]))
        pixels[own], mask[own] = sample.pixels, True
    index = torch.tensor([sample.index for sample in samples])
    return Loaded(Padded(pixels, mask), Targets(sample.target for sample in samples), index)


def _both(change: Callable, image: Image.Image, target: dict) -> tuple[Image.Image, dict]:
    return change(image), target | {name: change(target[name]) for name in JOINT if name in target}


def _whole(least: int, most: int) -> int:
    """Return an integer drawn by torch, both ends included."""
    return int(torch.randint(least, most + 1, ()))
