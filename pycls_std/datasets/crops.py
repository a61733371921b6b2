"""Record the part of an image that a view shows, so that feature maps of the image can be cropped in the same way.

A crop is (top, left, height, width, mirrored): the first four as fractions of the whole image, beyond it where the view
is padded with zeros; the last is 1 for a horizontal flip, else 0.
"""

import torch
from torchvision.transforms import RandomCrop, RandomHorizontalFlip
from torchvision.transforms.functional import hflip

WHOLE = (0.0, 0.0, 1.0, 1.0)


class PaddedCrop(RandomCrop):
    """torchvision's random crop of a padded square, which records the crop in `seen`."""

    def __init__(self, size: int, padding: int):
        super().__init__(size, padding)
        self.seen = WHOLE

    def get_params(self, image, output_size):
        """Return top, left, height, width within the padded image."""
        top, left, height, width = RandomCrop.get_params(image, output_size)
        side = self.size[0]
        self.seen = ((top - self.padding) / side, (left - self.padding) / side, height / side, width / side)
        return top, left, height, width


class Flip(RandomHorizontalFlip):
    """torchvision's random horizontal flip, which records in `mirrored` whether it flipped."""

    mirrored = False

    def forward(self, image):
        """Return the image, flipped or not."""
        self.mirrored = bool(torch.rand(1) < self.p)
        return hflip(image) if self.mirrored else image


def recorded_crop(steps: list) -> tuple[float, ...]:
    """Return the crop that a transform's steps took of the last image."""
    seen = next((step.seen for step in steps if hasattr(step, "seen")), WHOLE)
    mirrored = next((step.mirrored for step in steps if isinstance(step, Flip)), False)
    return (*seen, float(mirrored))
