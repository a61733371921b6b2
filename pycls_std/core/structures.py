"""What passes between the floors: a batch, the output of a model, the progress, the processes.

Shapes: B batch, H height, W width, C channels, K classes.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Sample(NamedTuple):
    """One view of an image."""

    pixels: Tensor  # (3, H, W), normalised
    target: object  # as the dataset has it
    index: int  # of the image in its dataset
    crop: tuple[float, ...] | None = None  # see `datasets.crops`; None if not recorded


class Loaded(NamedTuple):
    """Images as a loader gives them, before they are mixed."""

    images: Tensor  # (B, 3, H, W), normalised; or what else the models of a task take
    targets: Tensor  # (B,) class of each image; or what else a label is in the task
    index: Tensor  # (B,) position of each image in its dataset
    crop: Tensor | None = None  # (B, 5) the part of the image that is seen, see `datasets.crops`; None if not recorded


class Batch(NamedTuple):
    """One training batch on the device."""

    images: Tensor  # (B, 3, H, W), mixed if mixup or cutmix is on
    targets: Tensor  # (B, K) probabilities, after mixing and label smoothing; or what else the task's loss takes
    loaded: Loaded  # the same images before mixing, with their labels and positions


class Output(NamedTuple):
    """What a model says of a batch: a student in training and at test, a teacher without gradient."""

    heads: dict[str, Tensor]  # by the name of the head; logits (B, K) in classification
    features: dict[str, Tensor]  # by the name of the tap, (B, C, H, W); and what else the model names


class Normalization(NamedTuple):
    """Channel mean and deviation of an input, in units of pixels from 0 to 1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class DatasetInfo:
    """What a dataset says of itself."""

    name: str
    classes: tuple[str, ...]
    normalization: Normalization


@dataclass(frozen=True)
class Progress:
    """Where a run stands: iteration `iteration` of `iterations` in epoch `epoch` of `epochs`, counted from 0."""

    epoch: int
    iteration: int
    iterations: int
    epochs: int

    @property
    def step(self) -> int:
        """Iterations done since the start of the run."""
        return self.epoch * self.iterations + self.iteration

    @property
    def fraction(self) -> float:
        """Share of the run that is done, in [0, 1)."""
        return self.step / (self.epochs * self.iterations)


class World:
    """The processes that train one student together, as tasks and methods see them; here this one alone.

    The engine gives a trainer its own (`engine/distributed.py`).
    """

    rank = 0  # of this process, counted from 0
    size = 1  # processes

    def positions(self, batch_size: int) -> list[int]:
        """Return the places of this process's images in a batch of all processes, ascending."""
        return list(range(batch_size))

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of the tensors of all processes, without gradient."""
        return tensor

    def gather(self, value) -> list:
        """Return the values of all processes, in the order of their ranks; a value is anything that pickles."""
        return [value]
