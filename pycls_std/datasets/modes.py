"""Convert images of any mode to RGB with 8 bits.

Pillow clips values above 255 when it converts a mode with more bits, so that most images would be white.
"""

from functools import cache

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

BITS, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # of TIFF: two tags, and a value of the second


def in_rgb(image: Image.Image) -> Image.Image:
    """Return a decoded image in RGB; alpha is dropped, without blending.

    Grey of up to 16 bits is scaled from its full range to 0..255, and rounded.
    Raises ValueError for pixels whose range is not known.
    """
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray(_scale(_highest(image))[np.asarray(image)]).convert("RGB")
    if image.mode in ("I", "F"):
        kind = "32-bit numbers" if image.mode == "I" else "floats"
        raise ValueError(f"its pixels are {kind}, whose black and white are not known: convert it to 8 or 16 bits")
    if isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # for a palette, as Pillow recommends
    return image.convert("RGB")


def _highest(image: Image.Image) -> int:
    """Return the highest value of grey with more than 8 bits, which is white."""
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:  # Pillow only inverts such images with 8 bits
        raise ValueError("its 0 is white, which is read of 8 bits only: convert it")
    return 2 ** tags.get(BITS, (16,))[0] - 1


@cache
def _scale(highest: int) -> np.ndarray:
    """Return the byte of each value from 0 to the highest."""
    return np.rint(np.arange(highest + 1) * (255 / highest)).astype(np.uint8)
