"""The target of an image with boxes: the boxes to train on, and the image's ground truth.

Shapes: n boxes to train on, m annotations of the image.
"""

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image
from torchvision.tv_tensors import BoundingBoxes


def box_target(truth: dict[str, Tensor], *, image_id: int, size: tuple[int, int]) -> dict:
    """Return boxes (n, 4) and labels (n,) to train on, with the truth (m annotations), image_id and size.

    truth: boxes (m, 4), left, top, right, bottom in pixels; labels (m,); area (m,); crowd (m,) bool. size: height and
    width of the image. The boxes to train on are clipped to the image; crowds and boxes that become empty are dropped,
    as in DETR (Carion et al., ECCV 2020).
    """
    clipped = clip_boxes_to_image(truth["boxes"], size)
    kept = trained_on(truth, size)
    return {
        "boxes": BoundingBoxes(clipped[kept], format="XYXY", canvas_size=size),
        "labels": truth["labels"][kept],
        "image_id": image_id,
        "size": torch.tensor(size),
        "truth": truth,
    }


def trained_on(truth: dict[str, Tensor], size: tuple[int, int] | np.ndarray) -> Tensor:
    """Return which annotations (m,) are trained on, see `box_target`. size: of the image, or of each one's (m, 2)."""
    limits = torch.as_tensor(size).flip(-1).tile(2)
    return has_extent(truth["boxes"].clamp(min=0).minimum(limits)) & ~truth["crowd"]


def has_extent(boxes: Tensor) -> Tensor:
    """Return which of the boxes (n, 4), left, top, right, bottom, have a width and a height."""
    return (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
