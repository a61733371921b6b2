"""The token labeling losses of a detector's feature maps: each position predicts how much of it is of each class.

Shapes: B batch, H height, W width of the images, h height, w width of a map, K classes.
Source: ViDT+ (Song et al., arXiv 2204.07962), code.
"""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad
from torchvision.ops import sigmoid_focal_loss

from pycls_std.core.precision import full_precision
from pycls_std.core.structures import added
from pycls_std.losses.matching import ALPHA, GAMMA

CHUNK = 16  # number of classes whose full-size masks are in memory at once


def token_losses(maps: list[Tensor], segments: Tensor, image: Tensor, *, num_boxes: Tensor) -> dict[str, Tensor]:
    """Return `token_focal` and `token_dice`, scalars: sums over images and maps, divided by num_boxes; fp32.

    maps: logits (B, h, w, K + 1), of any object at a position (objectness), and of each class. segments: (B, H, W)
    1 + the class of each pixel, 0 for none. image: (B, H, W) true where there is image; positions are weighted by the
    share of them that is. The focal loss is the mean over positions, summed over classes; dice is over all positions
    and classes of an image. In the public code padding counts as background, and objectness takes the channel of class
    0, which no object of COCO has.
    """
    focals, dices = [], []
    with full_precision(segments.device):
        taught = shares(segments, [(each.shape[1], each.shape[2]) for each in maps], classes=maps[0].shape[3] - 1)
        for logits, target in zip(maps, taught, strict=True):
            logits = logits.float().permute(0, 3, 1, 2)
            weights = _pooled(image[:, None].float(), (logits.shape[2], logits.shape[3]))  # B, 1, h, w
            focal = weights * sigmoid_focal_loss(logits, target, alpha=ALPHA, gamma=GAMMA, reduction="none")
            means = focal.sum(dim=(1, 2, 3)) / weights.sum(dim=(1, 2, 3)).clamp(min=1e-6)
            focals.append(means.sum() / num_boxes)
            dices.append(_dice(weights * logits.sigmoid(), target).sum() / num_boxes)
        return {"token_focal": added(focals), "token_dice": added(dices)}


def shares(segments: Tensor, sizes: list[tuple[int, int]], *, classes: int) -> list[Tensor]:
    """Return the share of any object, and of each class, at each position: (B, K + 1, h, w) per size, in [0, 1]."""
    labels = torch.arange(1, classes + 1, device=segments.device)[:, None, None].split(CHUNK)
    found = [[_pooled((segments > 0)[:, None].float(), size)] for size in sizes]
    for some in labels:
        own = (segments[:, None] == some).float()
        for pooled, size in zip(found, sizes, strict=True):
            pooled.append(_pooled(own, size))
    return [torch.cat(pooled, dim=1) for pooled in found]


def _pooled(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Return pixels (B, C, H, W) averaged over each position of a map of this size, (B, C, h, w).

    Positions are squares of a power of two, from the top left. The last ones may reach beyond the images, where pixels
    count as 0.
    """
    lengths = pixels.shape[2:]
    side = max(1 << (-(-length // own) - 1).bit_length() for length, own in zip(lengths, size, strict=True))
    height, width = (own * side - length for length, own in zip(lengths, size, strict=True))
    return avg_pool2d(pad(pixels, (0, width, 0, height)), side)


def _dice(said: Tensor, target: Tensor) -> Tensor:
    """Return the dice loss 1 - (2 |both| + 1) / (|said| + |target| + 1) of each image (B,), in [0, 1]."""
    said, target = said.flatten(1), target.flatten(1)
    return 1 - (2 * (said * target).sum(dim=1) + 1) / (said.sum(dim=1) + target.sum(dim=1) + 1)
