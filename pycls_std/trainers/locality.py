"""Locality guidance."""

from pycls_std.core.registry import TRAINERS
from pycls_std.trainers.base import Preset


@TRAINERS.register("locality")
class Locality(Preset):
    """Labels, and feature maps of a convolutional teacher, see `terms/locality.py`; weighted as published.

    Its publication trains no logits by the teacher; with KD.WEIGHT above 0 they are trained as well.
    """

    DEFAULTS = {"LOCALITY.WEIGHT": 2.5}
