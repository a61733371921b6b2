"""The transforms from images to views, for tasks whose targets do not change with cropping, flipping or colour."""

from dataclasses import dataclass

import torch
from torchvision.transforms import Compose

from pycls_std.core.structures import Normalization
from pycls_std.datasets.memory.augment import BatchAugmentation, Plain
from pycls_std.datasets.transforms import (
    Augmentation,
    ImageTransform,
    square,
    test_pixels,
    test_transform,
    train_transform,
)


@dataclass(frozen=True)
class ImagePipeline:
    """The two ways to compute views: image by image in workers, and in batches of images held in memory.

    image_size: pixels. crop_ratio, interpolation: of test images, see `transforms.test_pixels`. seed: of the
    augmentation. fit: for images that are not square, see `transforms.square`.
    """

    image_size: int
    normalization: Normalization
    augmentation: Augmentation
    crop_ratio: float
    seed: int
    interpolation: str = "bicubic"
    fit: str = "crop"
    batched = True  # images in memory can be augmented in batches

    def train_transform(self) -> ImageTransform:
        """Return the transform of an image and its target to a training view."""
        return train_transform(self.image_size, self.normalization, self.augmentation, self.fit)

    def test_transform(self) -> ImageTransform:
        """Return the transform of an image and its target to the test view."""
        return test_transform(self.image_size, self.normalization, self.crop_ratio, self.interpolation, self.fit)

    def whole(self, image_size: int) -> ImageTransform:
        """Return the transform to a test view, image_size pixels wide and high, of all that training views cover."""
        return test_transform(image_size, self.normalization, interpolation=self.interpolation, fit=self.whole_fit)

    @property
    def whole_fit(self) -> str:
        """How the part of an image that training views are cropped from is made square: see DATA.FIT."""
        return "squash" if self.augmentation.crop == "resized" else self.fit

    def resized(self):
        """Return the resizing of training images to be held in memory; None if crops need their original size."""
        own = self.augmentation
        return None if own.crop == "resized" else Compose(square(self.image_size, own.interpolation, self.fit))

    def takes(self, width: int, height: int) -> bool:
        """Return whether `batch_augmentation` accepts images of this size without prior resizing; it squashes."""
        return self.augmentation.crop == "resized" or self.fit == "squash" or width == height

    def test_pixels(self) -> Compose:
        """Return the transform of test images to be held in memory."""
        return test_pixels(self.image_size, self.crop_ratio, self.interpolation, self.fit)

    def batch_augmentation(self, device: torch.device, *, crops: bool) -> BatchAugmentation:
        """Return the augmentation of images in memory; crops: whether to record the crop of each view."""
        return BatchAugmentation(
            self.image_size, self.normalization, self.augmentation, seed=self.seed, device=device, crops=crops
        )

    def plain(self, device: torch.device) -> Plain:
        """Return the transform of images in memory to test views."""
        return Plain(self.normalization, device)
