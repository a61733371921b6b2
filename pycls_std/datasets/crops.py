"""The part of an image that a view shows: recorded, so that what is known of the image can be cut in the same way.

A crop is (top, left, height, width, mirrored): the first four as shares of the whole image, beyond it where the view is
padded with zeros; the last 1 where left and right are exchanged, else 0.
"""

import torch
from torchvision.transforms import RandomCrop, RandomHorizontalFlip
from torchvision.transforms.functional import hflip

WHOLE = (0.0, 0.0, 1.0, 1.0)


class PaddedCrop(RandomCrop):
    """torchvision's random crop of a padded square, whose place is kept in `seen`."""

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
    """torchvision's random flip, which keeps in `mirrored` whether it did."""

    mirrored = False

    def forward(self, image):
        """Return the image, or its mirror image."""
        self.mirrored = bool(torch.rand(1) < self.p)
        return hflip(image) if self.mirrored else image


def recorded_crop(steps: list) -> tuple[float, ...]:
    """Return the crop that the steps of a transform took of the last image."""
    seen = next((step.seen for step in steps if hasattr(step, "seen")), WHOLE)
    mirrored = next((step.mirrored for step in steps if isinstance(step, Flip)), False)
    return (*seen, float(mirrored))
