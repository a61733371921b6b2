"""Match a detector's queries with the boxes of an image: one to one, at the lowest cost (Hungarian algorithm).

Shapes: B batch, L levels, Q queries, K classes, N slots for the boxes of an image.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad, softplus
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import box_convert, generalized_box_iou

ALPHA, GAMMA = 0.25, 2.0  # of the focal loss: weight of positives, focusing exponent
NONE = -1  # the label of an empty slot, and the box of an unmatched query
ROOM = 16  # the number of slots is a multiple of it, so that a compiled step sees few different shapes
WORST = 1e9  # replaces a cost that is not finite


class Truth(NamedTuple):
    """The ground truth boxes of a batch; the slots after an image's boxes are empty."""

    boxes: Tensor  # (B, N, 4) centre x, centre y, width, height, as fractions of the image; float32
    labels: Tensor  # (B, N), NONE where there is no box
    segments: Tensor | None = None  # (B, H, W) 1 + the class of each pixel, 0 for none; None if not needed


class Weights(NamedTuple):
    """Weights of class, L1 and GIoU in the matching cost and in the loss; and of the head `ious`, in the loss only.

    Defaults: Zhu et al., ICLR 2021; ViDT, ICLR 2022.
    """

    classes: float = 2.0
    l1: float = 5.0
    giou: float = 2.0
    iou: float = 0.0


def gathered_truth(targets: list[dict]) -> Truth:
    """Return the `boxes` (n, 4) and `labels` (n,) of a batch of targets, on their device."""
    boxes = pad_sequence([target["boxes"].float() for target in targets], batch_first=True)
    labels = pad_sequence([target["labels"] for target in targets], batch_first=True, padding_value=NONE)
    room = -labels.shape[1] % ROOM if labels.shape[1] else ROOM
    return Truth(pad(boxes, (0, 0, 0, room)), pad(labels, (0, room), value=NONE))


def corners(boxes: Tensor) -> Tensor:
    """Return left, top, right and bottom of boxes (..., 4) of centre x, centre y, width and height."""
    return box_convert(boxes, in_fmt="cxcywh", out_fmt="xyxy")


def matching_costs(logits: Tensor, boxes: Tensor, truth: Truth, *, weights: Weights) -> Tensor:
    """Return the cost (B, L, Q, N) of each query for each box of its image.

    logits: (B, L, Q, K) float32. boxes: (B, L, Q, 4) float32, in the form of the truth.
    The class cost is the change of the focal loss if the query were matched with the box. A NaN cost becomes far lower
    than all others, so it is matched, the loss is NaN as well, and the training loop reports it. Empty slots cost
    infinity.
    """
    levels, queries = logits.shape[1:3]
    own = logits.gather(3, truth.labels.clamp(min=0)[:, None, None].expand(-1, levels, queries, -1))
    probability = own.sigmoid()
    there = ALPHA * (1 - probability) ** GAMMA * softplus(-own)
    absent = (1 - ALPHA) * probability**GAMMA * softplus(own)
    flat = boxes.flatten(1, 2)
    distance = torch.cdist(flat, truth.boxes, p=1).unflatten(1, (levels, queries))
    overlap = generalized_box_iou(corners(flat), corners(truth.boxes)).unflatten(1, (levels, queries))
    costs = weights.classes * (there - absent) + weights.l1 * distance - weights.giou * overlap
    costs = costs.nan_to_num(nan=-WORST, posinf=WORST, neginf=-WORST)
    return costs.masked_fill((truth.labels == NONE)[:, None, None], torch.inf)


@torch.no_grad()
def match(logits: Tensor, boxes: Tensor, truth: Truth, *, weights: Weights) -> Tensor:
    """Return the box that each query is matched with, (B, L, Q), or NONE; each level is matched separately.

    If an image has more boxes than queries, only Q of its boxes are matched.
    """
    return least_cost(matching_costs(logits, boxes, truth, weights=weights))


@torch.library.custom_op("pycls_std::least_cost", mutates_args=())
def least_cost(costs: Tensor) -> Tensor:
    """Return the matches (B, L, Q) of lowest total cost, of costs (B, L, Q, N), which are infinite in empty slots.

    The costs are copied to the CPU at once. To the compiler this is a single opaque operation.
    """
    from scipy.optimize import linear_sum_assignment  # here, since it takes a second to import

    own = costs.cpu().numpy()
    found = np.full(own.shape[:3], NONE)
    for image, level in np.ndindex(*own.shape[:2]):
        there = np.isfinite(own[image, level, 0])
        queries, boxes = linear_sum_assignment(own[image, level][:, there])
        found[image, level, queries] = boxes
    return torch.from_numpy(found).to(costs.device)


@least_cost.register_fake
def _(costs: Tensor) -> Tensor:
    return costs.new_empty(costs.shape[:3], dtype=torch.long)
