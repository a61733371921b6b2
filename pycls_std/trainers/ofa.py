"""Distillation between any two families by exit heads (OFA-KD)."""

from pycls_std.core.registry import TRAINERS
from pycls_std.trainers.base import Preset


@TRAINERS.register("ofa")
class OFA(Preset):
    """Labels, teachers' logits on the class head, and on exit heads at four taps, see `terms/exits.py`; all weigh 1.

    The form is `ofa`, with OFA_EPS 1 as for CIFAR-100; 1.5 is that for ImageNet. Two controls that the publication has
    not: EXITS.WEIGHT 0, which is distillation at temperature 1, and EXITS.TAUGHT_BY labels.
    Source: Hao et al., NeurIPS 2023.
    """

    DEFAULTS = {"TASK.WEIGHT": 1.0, "KD.WEIGHT": 1.0, "EXITS.WEIGHT": 1.0, "DISTILLATION.TYPE": "ofa"}
