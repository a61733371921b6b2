"""What a detector learns from the boxes of an image: their classes, their places, their extents.

Shapes: B batch, L levels, Q queries, K classes, N places for the boxes of an image.
"""

import torch
from torch import Tensor
from torchvision.ops import generalized_box_iou, sigmoid_focal_loss

from pycls_std.core.precision import full_precision
from pycls_std.losses.matching import ALPHA, GAMMA, NONE, Truth, Weights, corners, match


def detection_losses(
    logits: Tensor, boxes: Tensor, truth: Truth, *, weights: Weights, num_boxes: Tensor
) -> dict[str, Tensor]:
    """Return the weighted losses `class`, `l1` and `giou`, (L,) each: of every level, matched by itself; fp32.

    logits: (B, L, Q, K). boxes: (B, L, Q, 4) centre x, centre y, width, height, as shares of the image, as in truth.
    num_boxes: what the sums over the batch are divided by.
    Source: Carion et al., ECCV 2020; with the focal loss, Zhu et al., ICLR 2021.
    """
    with full_precision(logits.device):
        logits, boxes = logits.float(), boxes.float()
        matches = match(logits, boxes, truth, weights=weights)
        l1, giou = box_losses(boxes, truth, matches)
        losses = {"class": weights.classes * class_losses(logits, truth, matches)}
        losses |= {"l1": weights.l1 * l1, "giou": weights.giou * giou}
        return {name: value / num_boxes for name, value in losses.items()}


def class_losses(logits: Tensor, truth: Truth, matches: Tensor) -> Tensor:
    """Return the focal loss of each level (L,), summed over images, queries and classes; unmatched queries have none.

    matches: (B, L, Q) box of each query, or NONE. Source: Lin et al., ICCV 2017.
    """
    labels = truth.labels.gather(1, matches.clamp(min=0).flatten(1)).view_as(matches)
    labels = torch.where(matches == NONE, NONE, labels)
    found = labels[..., None] == torch.arange(logits.shape[3], device=logits.device)
    losses = sigmoid_focal_loss(logits, found.float(), alpha=ALPHA, gamma=GAMMA, reduction="none")
    return losses.sum(dim=(0, 2, 3))


def box_losses(boxes: Tensor, truth: Truth, matches: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums over the matches of each level (L,): distance of the four numbers (L1), and 1 - GIoU.

    Source of the latter: Rezatofighi et al., CVPR 2019. That of single pairs in torchvision picks boxes by a mask, for
    which a GPU waits and a compiler stops.
    """
    places = matches.clamp(min=0).flatten(1)[..., None].expand(-1, -1, 4)
    unmatched = (matches == NONE)[..., None]
    others = truth.boxes.gather(1, places).view_as(boxes).masked_fill(unmatched, 0.5)
    own = boxes.masked_fill(unmatched, 0.5)  # the same box: no distance, and no gradient
    overlap = generalized_box_iou(corners(own)[..., None, :], corners(others)[..., None, :])[..., 0, 0]
    return (own - others).abs().sum(dim=(0, 2, 3)), (1 - overlap).sum(dim=(0, 2))
