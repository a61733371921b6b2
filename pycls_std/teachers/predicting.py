"""A student with several heads as a teacher: its output is its prediction, not its class head alone.

Shapes: B batch, C channels, H height, W width, K classes.
"""

from collections.abc import Callable

from torch import Tensor, nn

from pycls_std.core.structures import Output, Padded
from pycls_std.models.student import Student
from pycls_std.models.taps import prefix_tokens


class PredictingStudent(nn.Module):
    """Wraps a student as a backbone: its output is a prediction of the student, its taps are the backbone's.

    predictions(output) returns (B, K) logits by the name of each prediction; prediction: name of the one it outputs.
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
        """Return the name of the prediction, so that it is part of the teacher's `repr`."""
        return self.prediction

    # The rest of the backbone interface, for reading taps and for terms that call a teacher's submodules.
    feature_info = property(lambda self: self.student.backbone.feature_info)
    forward_features = property(lambda self: self.student.backbone.forward_features)
    forward_head = property(lambda self: self.student.backbone.forward_head)
    forward_intermediates = property(lambda self: self.student.backbone.forward_intermediates)
    num_prefix_tokens = property(lambda self: prefix_tokens(self.student.backbone))
    get_classifier = property(lambda self: self.student.backbone.get_classifier)
