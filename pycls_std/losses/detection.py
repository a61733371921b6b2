"""The detection losses, of the classes and the boxes of matched queries.

Shapes: B batch, L levels, Q queries, K classes, N slots for the boxes of an image.
"""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.ops import box_iou, generalized_box_iou, sigmoid_focal_loss

from pycls_std.core.precision import full_precision
from pycls_std.losses.matching import ALPHA, GAMMA, NONE, Truth, Weights, corners, match


def detection_losses(
    logits: Tensor,
    boxes: Tensor,
    truth: Truth,
    *,
    weights: Weights,
    num_boxes: Tensor,
    ious: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the weighted losses `class`, `l1` and `giou`, (L,) each: one per level, each matched separately; fp32.

    With `ious`, logits (B, L, Q) of the boxes' IoU, `iou` as well.
    logits: (B, L, Q, K). boxes: (B, L, Q, 4) centre x, centre y, width, height, as fractions of the image, as in truth.
    num_boxes: number that the sums over the batch are divided by.
    Source: Carion et al., ECCV 2020; with the focal loss, Zhu et al., ICLR 2021.
    """
    with full_precision(logits.device):
        logits, boxes = logits.float(), boxes.float()
        matches = match(logits, boxes, truth, weights=weights)
        l1, giou = box_losses(boxes, truth, matches)
        losses = {"class": weights.classes * class_losses(logits, truth, matches)}
        losses |= {"l1": weights.l1 * l1, "giou": weights.giou * giou}
        if ious is not None:
            losses["iou"] = weights.iou * overlap_losses(ious.float(), boxes, truth, matches)
        return {name: value / num_boxes for name, value in losses.items()}


def class_losses(logits: Tensor, truth: Truth, matches: Tensor) -> Tensor:
    """Return the focal loss of each level (L,), summed over images, queries and classes.

    Unmatched queries have no class. matches: (B, L, Q) box of each query, or NONE. Source: Lin et al., ICCV 2017.
    """
    labels = truth.labels.gather(1, matches.clamp(min=0).flatten(1)).view_as(matches)
    labels = torch.where(matches == NONE, NONE, labels)
    found = labels[..., None] == torch.arange(logits.shape[3], device=logits.device)
    losses = sigmoid_focal_loss(logits, found.float(), alpha=ALPHA, gamma=GAMMA, reduction="none")
    return losses.sum(dim=(0, 2, 3))


def box_losses(boxes: Tensor, truth: Truth, matches: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums over the matches of each level (L,): L1 distance of the four coordinates, and 1 - GIoU.

    Source of the latter: Rezatofighi et al., CVPR 2019. torchvision's `generalized_box_iou_loss` indexes by a boolean
    mask, which synchronizes with the GPU and breaks compiled graphs.
    """
    own, others = _pairs(boxes, truth, matches)
    overlap = generalized_box_iou(corners(own)[..., None, :], corners(others)[..., None, :])[..., 0, 0]
    return (own - others).abs().sum(dim=(0, 2, 3)), (1 - overlap).sum(dim=(0, 2))


def overlap_losses(ious: Tensor, boxes: Tensor, truth: Truth, matches: Tensor) -> Tensor:
    """Return the sums over the matches of each level (L,): cross-entropy of logits `ious` (B, L, Q) with the IoU.

    The IoU is a target, without gradient; in the public code it has one, which increases the IoU where the logit is
    above 0. Source: ViDT+ (Song et al., arXiv 2204.07962).
    """
    own, others = _pairs(boxes.detach(), truth, matches)
    overlap = box_iou(corners(own)[..., None, :], corners(others)[..., None, :])[..., 0, 0]
    unmatched = matches == NONE
    said = ious.masked_fill(unmatched, 0)
    losses = binary_cross_entropy_with_logits(said, overlap, reduction="none").masked_fill(unmatched, 0)
    return losses.sum(dim=(0, 2))


def _pairs(boxes: Tensor, truth: Truth, matches: Tensor) -> tuple[Tensor, Tensor]:
    """Return boxes (B, L, Q, 4) and the ground truth boxes that they are matched with.

    For unmatched queries both are the same constant box: no distance, and no gradient.
    """
    places = matches.clamp(min=0).flatten(1)[..., None].expand(-1, -1, 4)
    unmatched = (matches == NONE)[..., None]
    return boxes.masked_fill(unmatched, 0.5), truth.boxes.gather(1, places).view_as(boxes).masked_fill(unmatched, 0.5)
