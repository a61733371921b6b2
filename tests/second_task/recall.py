"""Metric that needs all images at once: it gathers what every process has seen."""

import torch
from torchvision.ops import box_iou

from pycls_std.core.registry import METRICS


@METRICS.register("recall")
class Recall:
    """Share of the boxes that overlap a target by half, and the median overlap over all images."""

    TASK = "boxes"
    SCORES = {
        "recall": {"label": "recall", "unit": "%", "better": "higher"},
        "median_miss": {"label": "median miss", "unit": "IoU", "better": "lower"},
    }

    def __init__(self):
        self.overlaps = []

    def update(self, prediction, targets):
        for box, target in zip(prediction["boxes"].float().cpu(), targets, strict=True):
            self.overlaps.append(float(box_iou(box[None], target["boxes"].cpu()).max()))

    def compute(self, world):
        overlaps = torch.tensor([each for own in world.gather(self.overlaps) for each in own])
        return {"recall": float(100 * (overlaps > 0.5).float().mean()), "median_miss": 1 - float(overlaps.median())}
