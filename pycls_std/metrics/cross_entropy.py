"""Cross-entropy of the predictions with the labels, without smoothing and mixing.

Shapes: B images, K classes.
"""

from torch import Tensor
from torch.nn.functional import cross_entropy

from pycls_std.core.registry import METRICS
from pycls_std.metrics.mean import MeanMetric


@METRICS.register("cross_entropy")
class CrossEntropy(MeanMetric):
    """Mean over images, in nats."""

    TASK = "classification"
    SCORES = {"loss": {"label": "loss", "unit": "nats", "better": "lower", "shown": False}}

    def each(self, prediction: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """prediction: (B, K) logits. targets: (B,) classes."""
        return {"loss": cross_entropy(prediction, targets, reduction="none")}
