"""Logit distillation (KD) for any student and any number of teachers."""

from pycls_std.core.registry import TRAINERS
from pycls_std.trainers.base import Preset


@TRAINERS.register("kd")
class KD(Preset):
    """Labels and teachers' logits, see `terms/kd.py`; weighted as mdistiller does at temperature 4."""

    DEFAULTS = {"TASK.WEIGHT": 0.1, "KD.WEIGHT": 0.9}
