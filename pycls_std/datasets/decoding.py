"""Decode images, JPEGs at reduced size if that suffices."""

import warnings
from contextlib import contextmanager

from PIL import Image
from torchvision.transforms import InterpolationMode, RandomResizedCrop

from pycls_std.core.regular import refuse_irregular
from pycls_std.core.text import printable
from pycls_std.datasets.crops import WHOLE
from pycls_std.datasets.modes import in_rgb

# An image of 1 x 100,000 pixels would not fit into memory with its shorter side resized to 256.
THINNEST = 1000


@contextmanager
def naming(path: str):
    """Convert any error of the block to an OSError of one line with the file's path."""
    try:
        yield
    except Exception as error:  # decoders may raise anything: SyntaxError, struct.error, DecompressionBombError
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise OSError(f"image {printable(path)} cannot be read: {printable(reason)}") from error


def open_image(path: str) -> Image.Image:
    """Return an image that is not decoded yet. Raises OSError that names the file if it is not an image."""
    with naming(str(path)):
        refuse_irregular(path)
        with warnings.catch_warnings():  # Pillow warns of large images, and refuses twice as large ones
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path)
        if max(image.size) > THINNEST * min(image.size):
            raise ValueError(f"it has {image.width} x {image.height} pixels, a side over {THINNEST} times the other")
        return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a decoded RGB image. Raises OSError that names its file if it cannot be read."""
    with naming(str(getattr(image, "filename", ""))):
        image.load()
        return in_rgb(image)


class DecodedRandomResizedCrop(RandomResizedCrop):
    """torchvision's random resized crop, drawn before an image is decoded.

    A JPEG is decoded at a half, a quarter or an eighth of its size if the crop still has at least the output's pixels
    on each side, which takes a fraction of the time; other images are decoded at full size. The crop is recorded in
    `seen`, see `crops`.
    """

    def __init__(
        self, size: int, scale: tuple[float, float], interpolation: InterpolationMode = InterpolationMode.BICUBIC
    ):
        super().__init__(size, scale=scale, interpolation=interpolation)
        self.filter = Image.Resampling[interpolation.name]
        self.seen = WHOLE

    def forward(self, image: Image.Image) -> Image.Image:
        """Return the crop, (size, size)."""
        top, left, height, width = self.get_params(image, self.scale, self.ratio)
        whole = image.size
        self.seen = (top / whole[1], left / whole[0], height / whole[1], width / whole[0])
        excess = min(height // self.size[0], width // self.size[1])
        if excess > 1:
            image.draft(None, (-(-whole[0] // excess), -(-whole[1] // excess)))  # decodes at this size or larger
        image = to_rgb(image)
        if image.size == whole:
            return image.crop((left, top, left + width, top + height)).resize(self.size, self.filter)
        across, down = (now / before for now, before in zip(image.size, whole, strict=True))
        box = (left * across, top * down, (left + width) * across, (top + height) * down)
        return image.resize(self.size, self.filter, box)
