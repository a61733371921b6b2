"""What passes between the floors: a batch, the output of a model, the progress, the processes.

Shapes: B batch, H height, W width, C channels, K classes.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor


class Padded(NamedTuple):
    """Images of several sizes, padded with zeros to one; what a task with such images has in place of a tensor."""

    pixels: Tensor  # (B, 3, H, W), normalised
    mask: Tensor  # (B, H, W) true where there is image


class Sample(NamedTuple):
    """One view of an image."""

    pixels: Tensor  # (3, H, W), normalised; of its own height and width, if the task pads
    target: Any  # as the dataset has it
    index: int  # type: ignore[assignment]  # of the image in its dataset; hides tuple.index
    crop: tuple[float, ...] | None = None  # see `datasets.crops`; None if not recorded


class Loaded(NamedTuple):
    """Images as a loader gives them, before they are mixed."""

    images: Tensor | Padded  # (B, 3, H, W), normalised
    targets: Any  # (B,) class of each image; or what else a label is in the task, such as a list of B dictionaries
    index: Tensor  # type: ignore[assignment]  # (B,) position of each image in its dataset; hides tuple.index
    crop: Tensor | None = None  # (B, 5) the part of the image that is seen, see `datasets.crops`; None if not recorded
    places: np.ndarray | None = None  # (B,) the index where it can be read without a wait; recorded with the crop


class Batch(NamedTuple):
    """One training batch on the device."""

    images: Tensor | Padded  # (B, 3, H, W), mixed if mixup or cutmix is on
    targets: Any  # (B, K) probabilities, after mixing and label smoothing; or what else the task's loss takes
    loaded: Loaded  # the same images before mixing, with their labels and positions
    whole: "Batch | None" = None  # what it is one of equal parts of, by TRAIN.ACCUMULATE; None = it is whole


class ImageSet(Protocol):
    """A dataset: images, each with its target. torch's `Dataset` need not know how many it has."""

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, index: int, /) -> tuple[Any, Any]:
        """Return an image and its target."""


class Loader(Protocol):
    """A pass of batches, as a `DataLoader` and a loader of images in memory give it."""

    @property
    def dataset(self) -> Any:
        """What the batches are made of."""

    @property
    def sampler(self) -> Any:
        """The addresses of a pass; of training images it has an `epoch`, which is set before each."""

    @property
    def batch_size(self) -> Any:
        """Images of a batch of this process: a number, where a `DataLoader` may also have None."""

    def __len__(self) -> int:
        """Return the number of batches."""

    def __iter__(self) -> Iterator[Loaded]:
        """Return the batches of a pass."""


class Output(NamedTuple):
    """What a model says of a batch: a student in training and at test, a teacher without gradient."""

    heads: dict[str, Tensor]  # by the name of the head; logits (B, K) in classification
    features: dict[str, Tensor]  # by the name of the tap, (B, C, H, W); and what else the model names


class Normalization(NamedTuple):
    """Channel mean and standard deviation of an input, in units of pixels from 0 to 1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class DatasetInfo:
    """What a dataset says of itself."""

    name: str
    classes: tuple[str, ...]
    normalization: Normalization
    left_out: str = ""  # in a line, what lies with its files and is not read, or is missing
    ids: tuple[int, ...] = ()  # of the classes in the dataset's own files, where these number them
    origin: str = ""  # in a line, which folder is read, of a dataset that has a choice


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

    def warmed(self, epochs: int) -> float:
        """Return the share of a warm-up by a step an epoch, of so many epochs, that this epoch has; 1 without one."""
        return min(1.0, (self.epoch + 1) / epochs) if epochs else 1.0


def added(values: Iterable[Tensor]) -> Tensor:
    """Return the sum of one or more tensors; of none, `sum` returns a number."""
    total = sum(values)
    assert isinstance(total, Tensor), "there is no tensor to add"
    return total


def mapped(nest, change: Callable[[Tensor], object]):
    """Return a nest of tuples, lists and dictionaries with every tensor changed; what is no tensor in it stays."""
    if isinstance(nest, Tensor):
        return change(nest)
    if isinstance(nest, dict):
        return {key: mapped(part, change) for key, part in nest.items()}
    if not isinstance(nest, (tuple, list)):
        return nest
    parts = [mapped(part, change) for part in nest]
    return type(nest)(*parts) if hasattr(nest, "_fields") else type(nest)(parts)


def take(batch, places: list[int] | slice):
    """Return some images of a batch: these rows of every tensor and list in a nest of tuples and dictionaries."""
    if isinstance(batch, dict):
        return {key: take(part, places) for key, part in batch.items()}
    if isinstance(batch, list):
        return batch[places] if isinstance(places, slice) else [batch[place] for place in places]
    if isinstance(batch, tuple):
        parts = [take(part, places) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)
    return batch if batch is None else batch[places]


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

    def concatenated(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all processes, of one shape (B, ...), in the order of their ranks, without gradient."""
        return tensor.detach()
