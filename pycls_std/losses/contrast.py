"""Noise-contrastive estimation: distinguish pairs of features of the same image from pairs of different images.

Shapes: B batch, K negatives.
"""

from torch import Tensor

SMALL = 1e-7  # added to denominators


def contrastive_loss(positive: Tensor, negatives: Tensor, *, images: int) -> Tensor:
    """Return the binary cross-entropy of classifying one positive and K negative pairs of features per image.

    positive: (B,) score of the positive pair, an unnormalised density over `images`. negatives: (B, K) the same.
    Returns the mean over the batch, in nats, of the sum over the 1 + K pairs, fp32.
    Source: Tian et al., ICLR 2020 (CRD), equation 18; the noise distribution is uniform, 1 / images each.
    """
    noise = negatives.shape[1] / images
    own = (positive / (positive + noise + SMALL)).log()
    others = (noise / (negatives + noise + SMALL)).log().sum(dim=1)
    return -(own + others).mean().float()
