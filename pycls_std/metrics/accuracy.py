"""Top-1 and top-5 accuracy.

Shapes: B images, K classes.
"""

from torch import Tensor

from pycls_std.core.registry import METRICS
from pycls_std.metrics.mean import MeanMetric


@METRICS.register("accuracy")
class Accuracy(MeanMetric):
    """Percentage of images whose class is the most likely one, or among the five most likely.

    With fewer than 5 classes, top-5 counts all of them.
    """

    TASK = "classification"
    SCORES = {
        "top1": {"label": "top-1", "unit": "%", "better": "higher"},
        "top5": {"label": "top-5", "unit": "%", "better": "higher"},
    }

    def each(self, prediction: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """prediction: (B, K) logits. targets: (B,) classes. Returns (B,) each, 0 or 100."""
        found = prediction.topk(min(5, prediction.shape[1]), dim=1).indices == targets.unsqueeze(1)
        return {"top1": 100.0 * found[:, 0], "top5": 100.0 * found.any(dim=1)}
