"""Plain supervised training."""

from pycls_std.core.registry import TRAINERS
from pycls_std.trainers.base import Preset


@TRAINERS.register("baseline")
class Baseline(Preset):
    """The task's own loss: in classification, cross-entropy with the (mixed, smoothed) labels."""
