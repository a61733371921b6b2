"""A detector's detections in an image, in pixels of the original.

Shapes: B batch, D detections of an image.
"""

from typing import NamedTuple

import numpy as np
import torch


class FoundBoxes(NamedTuple):
    """The detections of an image, by descending score."""

    image_id: int
    boxes: np.ndarray  # (D, 4) left, top, width, height, pixels; float32
    labels: np.ndarray  # (D,) int64
    scores: np.ndarray  # (D,) in [0, 1]; float32

    @property
    def finite(self) -> bool:
        """Whether all boxes and scores are finite."""
        return bool(np.isfinite(self.boxes).all() and np.isfinite(self.scores).all())


def found_boxes(prediction: dict, targets: list[dict]) -> list[FoundBoxes]:
    """Return the detections in each image of a batch, copied from the device at once.

    prediction: `scores` and `labels` (B, D), by descending score; `boxes` (B, D, 4) left, top, right, bottom as
    fractions of the image. targets: `image_id` and `size` (2,) of each, height and width in pixels.
    """
    sides = torch.stack([target["size"] for target in targets]).flip(1).repeat(1, 2)  # width, height, width, height
    corners = prediction["boxes"].float() * sides[:, None]
    parts = [corners[..., :2], corners[..., 2:] - corners[..., :2]]
    parts += [prediction[key].float()[..., None] for key in ("labels", "scores")]
    rows = torch.cat(parts, dim=2).cpu().numpy()
    pairs = zip(rows, targets, strict=True)
    return [FoundBoxes(t["image_id"], own[:, :4], own[:, 4].astype(np.int64), own[:, 5]) for own, t in pairs]
