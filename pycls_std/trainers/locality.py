"""Locality guidance."""

from pycls_std.core.registry import TRAINERS
from pycls_std.trainers.base import Preset


@TRAINERS.register("locality")
class Locality(Preset):
    """Labels, and feature maps of a convolutional teacher, see `terms/locality.py`; weighted as published.

    The paper has no logit distillation; KD.WEIGHT above 0 adds it.
    """

    DEFAULTS = {"LOCALITY.WEIGHT": 2.5}
