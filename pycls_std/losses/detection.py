"""What a detector learns from the boxes of an image: their classes, their places, their extents.

Shapes: B batch, L levels, Q queries, K classes, M matches of a level.
"""

import torch
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from pycls_std.core.precision import full_precision
from pycls_std.losses.matching import ALPHA, GAMMA, Matches, Truth, Weights, corners, gathered_truth, match

TINY = 1e-12  # far below the area of any box, as a share of the image: no division by 0


def detection_losses(
    logits: Tensor, boxes: Tensor, targets: list[dict], *, weights: Weights, num_boxes: Tensor
) -> dict[str, Tensor]:
    """Return the weighted losses `class`, `l1` and `giou`, (L,) each: of every level, matched by itself; fp32.

    logits: (B, L, Q, K). boxes: (B, L, Q, 4) centre x, centre y, width, height, as shares of the image, as in targets.
    num_boxes: what the sums over the batch are divided by.
    Source: Carion et al., ECCV 2020; with the focal loss, Zhu et al., ICLR 2021.
    """
    with full_precision(logits.device):
        logits, boxes, truth = logits.float(), boxes.float(), gathered_truth(targets)
        matches = match(logits, boxes, truth, weights=weights)
        l1, giou = box_losses(boxes, truth, matches)
        losses = {"class": weights.classes * class_losses(logits, truth, matches)}
        losses |= {"l1": weights.l1 * l1, "giou": weights.giou * giou}
        return {name: value / num_boxes for name, value in losses.items()}


def class_losses(logits: Tensor, truth: Truth, matches: Matches) -> Tensor:
    """Return the focal loss of each level (L,), summed over images, queries and classes; unmatched queries have none.

    Source: Lin et al., ICCV 2017.
    """
    found = torch.zeros_like(logits)
    labels = truth.labels[matches.images, matches.boxes]
    found[matches.images, level_numbers(matches), matches.queries, labels] = 1
    losses = sigmoid_focal_loss(logits, found, alpha=ALPHA, gamma=GAMMA, reduction="none")
    return losses.sum(dim=(0, 2, 3))


def box_losses(boxes: Tensor, truth: Truth, matches: Matches) -> tuple[Tensor, Tensor]:
    """Return the sums over the matches of each level (L,): distance of the four numbers (L1), and 1 - GIoU.

    Source of the latter: Rezatofighi et al., CVPR 2019.
    """
    own = boxes[matches.images, level_numbers(matches), matches.queries]
    other = truth.boxes[matches.images, matches.boxes]
    apart = generalized_box_iou_loss(corners(own), corners(other), reduction="none", eps=TINY)
    return (own - other).abs().sum(dim=(1, 2)), apart.sum(dim=1)


def level_numbers(matches: Matches) -> Tensor:
    """Return (L, 1): the level of each match."""
    return torch.arange(len(matches.queries), device=matches.queries.device)[:, None]
