"""Cross-entropy against a distribution."""

from torch import Tensor
from torch.nn.functional import log_softmax


def soft_target_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of targets and predictions, averaged over the batch.

    logits: (B, K) raw scores. targets: (B, K) probabilities, after mixing and label smoothing.
    """
    return -(targets * log_softmax(logits.float(), dim=-1)).sum(dim=-1).mean()
