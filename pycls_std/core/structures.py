"""Data structures that the parts of the package share: a batch, a model's output, the progress, the processes.

Shapes: B batch, H height, W width, C channels, K classes.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor


class Padded(NamedTuple):
    """Images of several sizes, zero-padded to one; tasks with such images use it in place of a tensor."""

    pixels: Tensor  # (B, 3, H, W), normalised
    mask: Tensor  # (B, H, W) true on pixels of the images


class Sample(NamedTuple):
    """One view of an image."""

    pixels: Tensor  # (3, H, W), normalised; of its own height and width, if the task pads
    target: Any  # as the dataset has it
    index: int  # type: ignore[assignment]  # of the image in its dataset; hides tuple.index
    crop: tuple[float, ...] | None = None  # see `datasets.crops`; None if not recorded


class Loaded(NamedTuple):
    """A batch as a loader yields it, before mixing."""

    images: Tensor | Padded  # (B, 3, H, W), normalised
    targets: Any  # (B,) class of each image; or other labels of the task, such as a list of B dictionaries
    index: Tensor  # type: ignore[assignment]  # (B,) position of each image in its dataset; hides tuple.index
    crop: Tensor | None = None  # (B, 5) the part of the image that is seen, see `datasets.crops`; None if not recorded
    places: np.ndarray | None = None  # (B,) the index on the host, read without synchronization; recorded with crop


class Batch(NamedTuple):
    """One training batch on the device."""

    images: Tensor | Padded  # (B, 3, H, W), mixed if mixup or cutmix is on
    targets: Any  # (B, K) probabilities, after mixing and label smoothing; or other targets of the task's loss
    loaded: Loaded  # the same images before mixing, with their labels and positions
    whole: "Batch | None" = None  # the batch of which this is a part, with TRAIN.ACCUMULATE; None = not split


class ImageSet(Protocol):
    """A dataset of known length: images, each with its target. torch's `Dataset` need not have a length."""

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, index: int, /) -> tuple[Any, Any]:
        """Return an image and its target."""


class Loader(Protocol):
    """An iterable of batches: a `DataLoader`, or a loader of images in memory."""

    @property
    def dataset(self) -> Any:
        """The dataset that the batches are from."""

    @property
    def sampler(self) -> Any:
        """The sampler; that of training images has an `epoch`, which is set before each epoch."""

    @property
    def batch_size(self) -> Any:
        """Batch size of this process: a number, while a `DataLoader` may also have None."""

    def __len__(self) -> int:
        """Return the number of batches."""

    def __iter__(self) -> Iterator[Loaded]:
        """Return an iterator over the batches of an epoch."""


class Output(NamedTuple):
    """The outputs of a model for a batch; those of a teacher are without gradient."""

    heads: dict[str, Tensor]  # by the name of the head; logits (B, K) in classification
    features: dict[str, Tensor]  # by the name of the tap, (B, C, H, W); and other outputs that the model names


class Normalization(NamedTuple):
    """Channel mean and standard deviation of an input, in units of pixels from 0 to 1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class DatasetInfo:
    """Metadata of a dataset."""

    name: str
    classes: tuple[str, ...]
    normalization: Normalization
    left_out: str = ""  # a line on files in its folder that are not read, or are missing
    ids: tuple[int, ...] = ()  # of the classes in the dataset's own files, where these number them
    origin: str = ""  # a line on which folder is read, if there are several to choose from


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
        """Return the factor of a linear warm-up over so many epochs, constant within an epoch; 1 without one."""
        return min(1.0, (self.epoch + 1) / epochs) if epochs else 1.0


def added(values: Iterable[Tensor]) -> Tensor:
    """Return the sum of one or more tensors; for none, `sum` would return a number."""
    total = sum(values)
    assert isinstance(total, Tensor), "there is no tensor to add"
    return total


def mapped(nest, change: Callable[[Tensor], object]):
    """Apply a function to every tensor in nested tuples, lists and dictionaries; other values stay as they are."""
    if isinstance(nest, Tensor):
        return change(nest)
    if isinstance(nest, dict):
        return {key: mapped(part, change) for key, part in nest.items()}
    if not isinstance(nest, (tuple, list)):
        return nest
    parts = [mapped(part, change) for part in nest]
    return type(nest)(*parts) if hasattr(nest, "_fields") else type(nest)(parts)


def take(batch, places: list[int] | slice):
    """Return some images of a batch: these rows of every tensor and list in nested tuples and dictionaries."""
    if isinstance(batch, dict):
        return {key: take(part, places) for key, part in batch.items()}
    if isinstance(batch, list):
        return batch[places] if isinstance(places, slice) else [batch[place] for place in places]
    if isinstance(batch, tuple):
        parts = [take(part, places) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)
    return batch if batch is None else batch[places]


class World:
    """The processes that train one student together, as tasks and methods see them; here, a single one.

    The engine gives a trainer its own subclass (`engine/distributed.py`).
    """

    rank = 0  # of this process, counted from 0
    size = 1  # processes

    def positions(self, batch_size: int) -> list[int]:
        """Return the positions of this process's images in the batch of all processes, ascending."""
        return list(range(batch_size))

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of the tensors of all processes, without gradient."""
        return tensor

    def gather(self, value) -> list:
        """Return the values of all processes, in the order of their ranks; a value can be any picklable object."""
        return [value]

    def concatenated(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all processes, of one shape (B, ...), in the order of their ranks, without gradient."""
        return tensor.detach()
