"""From images to views, for tasks whose targets stay what they are when an image is cropped, turned or recoloured."""

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
    """The two ways to make a view, image by image in workers, and in batches of images held in memory.

    image_size: pixels. crop_ratio, interpolation: of test images, see `transforms.test_pixels`. seed: of the
    augmentation. fit: of images that are not square, see `transforms.square`.
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
        """Return what makes a training view of an image and its target."""
        return train_transform(self.image_size, self.normalization, self.augmentation, self.fit)

    def test_transform(self) -> ImageTransform:
        """Return what makes the test view of an image and its target."""
        return test_transform(self.image_size, self.normalization, self.crop_ratio, self.interpolation, self.fit)

    def whole(self, image_size: int) -> ImageTransform:
        """Return what makes a test view, image_size pixels wide and high, of all that training views are cut from."""
        return test_transform(image_size, self.normalization, interpolation=self.interpolation, fit=self.whole_fit)

    @property
    def whole_fit(self) -> str:
        """How all that training views are cut from is made square: see DATA.FIT."""
        return "squash" if self.augmentation.crop == "resized" else self.fit

    def resized(self):
        """Return what resizes a training image to be held in memory; None if its crop needs it at its own size."""
        own = self.augmentation
        return None if own.crop == "resized" else Compose(square(self.image_size, own.interpolation, self.fit))

    def takes(self, width: int, height: int) -> bool:
        """Return whether `batch_augmentation` takes images that are not resized before; it squashes."""
        return self.augmentation.crop == "resized" or self.fit == "squash" or width == height

    def test_pixels(self) -> Compose:
        """Return what makes of a test image the one to be held in memory."""
        return test_pixels(self.image_size, self.crop_ratio, self.interpolation, self.fit)

    def batch_augmentation(self, device: torch.device, *, crops: bool) -> BatchAugmentation:
        """Return what makes training views of images in memory; crops: whether to record what they show."""
        return BatchAugmentation(
            self.image_size, self.normalization, self.augmentation, seed=self.seed, device=device, crops=crops
        )

    def plain(self, device: torch.device) -> Plain:
        """Return what makes test views of images in memory."""
        return Plain(self.normalization, device)
