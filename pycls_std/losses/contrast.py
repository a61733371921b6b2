"""Noise-contrastive estimation: telling the features of one image from those of others.

Shapes: B batch, K negatives.
"""

from torch import Tensor

SMALL = 1e-7  # beside what is divided by


def contrastive_loss(positive: Tensor, negatives: Tensor, *, images: int) -> Tensor:
    """Return the cross-entropy of telling a pair of features of one image from K pairs of features of two.

    positive: (B,) how likely the pair is one of one image, unnormalised densities over `images`. negatives: (B, K).
    Returns the mean over the batch, in nats, of the sum over the 1 + K pairs, fp32.
    Source: Tian et al., ICLR 2020 (CRD), equation 18; the noise is even over the images, 1 / images each.
    """
    noise = negatives.shape[1] / images
    own = (positive / (positive + noise + SMALL)).log()
    others = (noise / (negatives + noise + SMALL)).log().sum(dim=1)
    return -(own + others).mean().float()
