"""Feature distillation."""

from pycls_std.core.registry import TRAINERS
from pycls_std.trainers.base import Preset


@TRAINERS.register("feature")
class Feature(Preset):
    """Labels, and features of one teacher by the loss FEATURE.LOSS, see `terms/feature.py`; weighted as published.

    Weights as in HobbitLong/RepDistiller and megvii-research/mdistiller for CIFAR-100; there, reviewkd's depends on the
    pair of models: 0.6 for ResNet-56 to ResNet-20, 5 for 32x4 to 8x4.
    """

    DEFAULTS = {"FEATURE.WEIGHT": 1.0}
    PRESETS = {
        "FEATURE.LOSS=fitnet": {"FEATURE.WEIGHT": 100.0},
        "FEATURE.LOSS=at": {"FEATURE.WEIGHT": 1000.0},
        "FEATURE.LOSS=sp": {"FEATURE.WEIGHT": 3000.0},
        "FEATURE.LOSS=pkt": {"FEATURE.WEIGHT": 30000.0},
        "FEATURE.LOSS=rkd": {"FEATURE.WEIGHT": 1.0},
        "FEATURE.LOSS=nst": {"FEATURE.WEIGHT": 50.0},
        "FEATURE.LOSS=vid": {"FEATURE.WEIGHT": 1.0},
        "FEATURE.LOSS=crd": {"FEATURE.WEIGHT": 0.8},
        "FEATURE.LOSS=reviewkd": {"FEATURE.WEIGHT": 1.0, "FEATURE.WARMUP_EPOCHS": 20},
        "FEATURE.LOSS=rsd": {"FEATURE.WEIGHT": 0.1},
    }
