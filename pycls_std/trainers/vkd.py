"""VkD."""

from pycls_std.core.registry import TRAINERS
from pycls_std.trainers.base import Preset


@TRAINERS.register("vkd")
class VkD(Preset):
    """Labels, a teacher's features by an orthogonal projection (`terms/vkd.py`), and its logits; weighted as published.

    Logits are compared by KL at temperature 1, on the distillation head if the student has one; all three weights are
    1. Any of them may be 0; if the labels' or the logits' is, a student's two heads are trained as one, their average.
    For a detector, tokens of the teacher replace features and logits (`terms/tokens.py`), at weight 4.
    Source: Miles et al., CVPR 2024.
    """

    DEFAULTS = {"VKD.WEIGHT": 1.0, "KD.WEIGHT": 1.0, "DISTILLATION.TYPE": "soft"}
    PRESETS = {"TASK.NAME=detection": {"VKD.WEIGHT": 0.0, "KD.WEIGHT": 0.0, "TOKENS.WEIGHT": 4.0}}
