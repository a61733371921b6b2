"""A student of several heads as a teacher: it says what it predicts, and not what its class head alone does.

Shapes: B batch, C channels, H height, W width, K classes.
"""

from collections.abc import Callable

from torch import Tensor, nn

from pycls_std.core.structures import Output, Padded
from pycls_std.models.student import Student
from pycls_std.models.taps import prefix_tokens


class PredictingStudent(nn.Module):
    """Stands in a backbone's place: its output is a prediction of the student, its taps are those of its backbone.

    predictions(output) returns (B, K) logits by the name of each prediction; prediction: the one that it teaches by.
    """

    def __init__(self, student: Student, predictions: Callable[[Output], dict[str, Tensor]], prediction: str):
        super().__init__()
        self.student = student
        self.predictions = predictions
        self.prediction = prediction

    def forward(self, images: Tensor | Padded) -> Tensor:
        """Return (B, K) logits of images (B, 3, H, W)."""
        return self.answer(images, ())[0]

    def answer(self, images: Tensor | Padded, taps: tuple[str, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return (B, K) logits, and the features of the taps."""
        output = self.student(images, taps)
        return self.predictions(output)[self.prediction], {tap: output.features[tap] for tap in taps}

    def extra_repr(self) -> str:
        """Return the prediction, which belongs to what a teacher is."""
        return self.prediction

    # The rest of a backbone's contract: what is read at taps, and what a term calls of a teacher.
    feature_info = property(lambda self: self.student.backbone.feature_info)
    forward_features = property(lambda self: self.student.backbone.forward_features)
    forward_head = property(lambda self: self.student.backbone.forward_head)
    forward_intermediates = property(lambda self: self.student.backbone.forward_intermediates)
    num_prefix_tokens = property(lambda self: prefix_tokens(self.student.backbone))
    get_classifier = property(lambda self: self.student.backbone.get_classifier)
