"""A student as it is deployed: images in, the logits of one prediction out, and nothing that training alone needs.

Shapes: B batch, H height, W width, K classes.
"""

import io

import torch
from safetensors.torch import save
from torch import Tensor, nn

from pycls_std.models.student import Student

BATCHES = (1, 2, 5)  # batch sizes that a program is tried with; it is traced with two images
CLOSE = 1e-4  # tolerance for rounding, relative to the largest logit, or to 1


class Deployed(nn.Module):
    """The deployed model: (B, 3, H, W) normalised images to (B, K) logits.

    Branches without a head in the prediction are removed. The classifier of the backbone stays in the weights, where
    other programs expect it, even if it is not in the prediction.
    prediction: its name, see `tasks/contract.py`.
    """

    def __init__(self, student: Student, task, prediction: str):
        super().__init__()
        self.student = student.deployed(task.prediction_heads(student.heads)[prediction])
        self.eval()
        self._predictions = task.predictions
        self.prediction = prediction

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of the prediction."""
        return self._predictions(self.student(images))[self.prediction]

    def weights(self) -> dict[str, Tensor]:
        """Return copies of the weights: the backbone's by its own names, or with branches all of the student's."""
        part = self.student if self.student.branches else self.student.backbone
        return {name: value.detach().clone() for name, value in part.state_dict().items()}


def some_images(batch: int, image_size: int) -> Tensor:
    """Return random images (B, 3, H, W), the same ones each time."""
    return torch.randn(batch, 3, image_size, image_size, generator=torch.Generator().manual_seed(batch))


@torch.no_grad()
def difference(ours: nn.Module, theirs, image_size: int) -> float:
    """Return the largest difference between the logits of two models, over batches of several sizes.

    It is relative to the largest logit of the first, or to 1 if that is less.
    """
    worst = 0.0
    for batch in BATCHES:
        images = some_images(batch, image_size)
        expected, found = ours(images), theirs(images)
        if found.shape != expected.shape:
            return float("inf")
        worst = max(worst, float((found - expected).abs().max() / expected.abs().max().clamp(min=1)))
    return worst


def refuse_difference(what: str, apart: float) -> None:
    """Raise ValueError if the logits of an exported file are not those of the student."""
    if not apart <= CLOSE:
        raise ValueError(f"{what} differs from the student by {apart:.1e} of its largest logit, expected {CLOSE:.0e}")


@torch.no_grad()
def exported(model: nn.Module, image_size: int) -> torch.export.ExportedProgram:
    """Return the exported program of a model of (B, 3, H, W) images, for any B. Raises ValueError if tracing fails."""
    sizes = ({0: torch.export.Dim("batch", min=1)},)
    try:
        return torch.export.export(model, (some_images(2, image_size),), dynamic_shapes=sizes)
    except Exception as error:  # torch.export raises whatever the model's operations lead to
        reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"torch.export cannot trace it: {reason}") from error


def program_file(program: torch.export.ExportedProgram, model: nn.Module, image_size: int) -> tuple[bytes, float]:
    """Return a file of torch.export, and by how much the program in it, read back, differs from the model."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    apart = difference(model, torch.export.load(buffer).module(), image_size)
    refuse_difference("the program of torch.export", apart)
    return buffer.getvalue(), apart


def weights_file(program, model: Deployed, image_size: int) -> tuple[bytes, float]:
    """Return a file of safetensors, and 0: the weights are stored exactly. program, image_size: not used."""
    return save(model.weights(), {"format": "pt"}), 0.0
