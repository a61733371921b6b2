"""3-Augment: grayscale, solarization or Gaussian blur of every image, with equal probability.

Source: Touvron et al., ECCV 2022 (DeiT III).
"""

import torch
from PIL import Image, ImageFilter, ImageOps

THRESHOLD = 128  # values from it on are inverted
SIGMA = (0.1, 2.0)  # range of the Gaussian's standard deviation, pixels


def grey(image: Image.Image, sigma: float) -> Image.Image:
    """Return the luma of an RGB image in all channels."""
    return image.convert("L").convert("RGB")


def solarized(image: Image.Image, sigma: float) -> Image.Image:
    """Return an image whose bright values are inverted."""
    return ImageOps.solarize(image, THRESHOLD)


def blurred(image: Image.Image, sigma: float) -> Image.Image:
    """Return an image blurred by Pillow's approximation of a Gaussian of this standard deviation, pixels."""
    return image.filter(ImageFilter.GaussianBlur(sigma))


CHANGES = (grey, solarized, blurred)


class ThreeAugment:
    """Apply one of CHANGES to an RGB image, drawn by torch."""

    def __call__(self, image: Image.Image) -> Image.Image:
        which, sigma = int(torch.randint(len(CHANGES), ())), float(torch.empty(()).uniform_(*SIGMA))
        return CHANGES[which](image, sigma)
