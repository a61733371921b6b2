"""Which query of a detector answers for which box of an image: one to one, at the least cost (Hungarian algorithm).

Shapes: B batch, L levels, Q queries, K classes, N boxes of the image that has the most, M matches of a level.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus
from torchvision.ops import box_convert, generalized_box_iou

ALPHA, GAMMA = 0.25, 2.0  # of the focal loss: weight of what is there, exponent of what is not yet learned
WORST = 1e9  # in place of a cost that is not finite


class Truth(NamedTuple):
    """The boxes of a batch, padded with zeros to as many as the image with the most of them has."""

    boxes: Tensor  # (B, N, 4) centre x, centre y, width, height, as shares of the image; float32
    labels: Tensor  # (B, N)
    counts: list[int]  # of each image


class Weights(NamedTuple):
    """Of the three parts of a match, in its cost and in the loss. Defaults: Zhu et al., ICLR 2021; ViDT, ICLR 2022."""

    classes: float = 2.0
    l1: float = 5.0
    giou: float = 2.0


class Matches(NamedTuple):
    """Who answers for what: entry (l, m) is a match at level l; each level has the same images and boxes in it."""

    images: Tensor  # (L, M)
    queries: Tensor  # (L, M)
    boxes: Tensor  # (L, M) position among the boxes of the image


def gathered_truth(targets: list[dict]) -> Truth:
    """Return the boxes and labels of a batch of targets, see `tasks/detection.py`."""
    boxes, labels = ([target[key] for target in targets] for key in ("boxes", "labels"))
    padded = torch.nn.utils.rnn.pad_sequence
    return Truth(padded(boxes, batch_first=True).float(), padded(labels, batch_first=True), list(map(len, labels)))


def corners(boxes: Tensor) -> Tensor:
    """Return left, top, right and bottom of boxes (..., 4) of centre x, centre y, width and height."""
    return box_convert(boxes, in_fmt="cxcywh", out_fmt="xyxy")


def matching_costs(logits: Tensor, boxes: Tensor, truth: Truth, *, weights: Weights) -> Tensor:
    """Return the cost (B, L, Q, N) of each query for each box of its image; that for the padding says nothing.

    logits: (B, L, Q, K) float32. boxes: (B, L, Q, 4) float32, in the form of the truth.
    The class costs what the focal loss would change by if the box were the query's.
    """
    levels, queries = logits.shape[1:3]
    own = logits.gather(3, truth.labels[:, None, None].expand(-1, levels, queries, -1))
    probability = own.sigmoid()
    there = ALPHA * (1 - probability) ** GAMMA * softplus(-own)
    absent = (1 - ALPHA) * probability**GAMMA * softplus(own)
    flat = boxes.flatten(1, 2)
    distance = torch.cdist(flat, truth.boxes, p=1).unflatten(1, (levels, queries))
    overlap = generalized_box_iou(corners(flat), corners(truth.boxes)).unflatten(1, (levels, queries))
    return weights.classes * (there - absent) + weights.l1 * distance - weights.giou * overlap


@torch.no_grad()
def match(logits: Tensor, boxes: Tensor, truth: Truth, *, weights: Weights) -> Matches:
    """Return the matches of least cost, of each level by itself; of an image with more boxes than queries, Q of them.

    The costs of all levels come to the host in one copy. A cost that is not a number is the first to be matched, so
    that the loss is none either, and the loop tells.
    """
    levels, queries = logits.shape[1:3]
    if not any(truth.counts):
        return Matches(*torch.zeros(3, levels, 0, dtype=torch.long, device=logits.device))
    costs = matching_costs(logits, boxes, truth, weights=weights)
    costs = costs.nan_to_num(nan=-WORST, posinf=WORST, neginf=-WORST).cpu().numpy()
    found = [[assigned(costs[i, level, :, :n], i) for i, n in enumerate(truth.counts)] for level in range(levels)]
    together = np.stack([np.concatenate(own, axis=1) for own in found], axis=1)  # (3, L, M)
    return Matches(*torch.from_numpy(together).to(logits.device))


def assigned(costs: np.ndarray, image: int) -> np.ndarray:
    """Return (3, matches): the image, the queries and the boxes of the least sum of costs (Q, boxes of the image)."""
    from scipy.optimize import linear_sum_assignment  # here, since it takes a second to import

    queries, boxes = linear_sum_assignment(costs)
    return np.stack([np.full_like(queries, image), queries, boxes])
