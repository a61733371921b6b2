"""Distillation between any two families by exit heads (OFA-KD)."""

from pycls_std.core.registry import TRAINERS
from pycls_std.trainers.base import Preset


@TRAINERS.register("ofa")
class OFA(Preset):
    """Labels, and teachers' logits on the class head and on exit heads at four taps (`terms/exits.py`); all weights 1.

    The form is `ofa`, with OFA_EPS 1 as for CIFAR-100; it is 1.5 for ImageNet. Two ablations that the paper does not
    have: EXITS.WEIGHT 0, which is distillation at temperature 1, and EXITS.TAUGHT_BY labels.
    Source: Hao et al., NeurIPS 2023.
    """

    DEFAULTS = {"TASK.WEIGHT": 1.0, "KD.WEIGHT": 1.0, "EXITS.WEIGHT": 1.0, "DISTILLATION.TYPE": "ofa"}
