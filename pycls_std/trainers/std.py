"""Spatial-channel token distillation (STD)."""

from pycls_std.core.registry import TRAINERS
from pycls_std.trainers.base import Preset


@TRAINERS.register("std")
class STD(Preset):
    """Labels on the class head, teachers on heads that read tokens, see `terms/std.py`; alpha = 0.5 as published."""

    DEFAULTS = {"TASK.WEIGHT": 0.5, "STD.WEIGHT": 0.5}
