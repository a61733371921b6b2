"""What a task offers: everything that depends on what a label is.

Shapes: B batch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from pycls_std.core.structures import Batch, DatasetInfo, ImageSet, Loaded, Output, Progress, Sample, World
from pycls_std.tasks.evaluator import Evaluator


class Pipeline(Protocol):
    """How views are made, for one normalisation.

    With `batched`, images of one size can be held in memory, and it offers `resized`, `test_pixels`,
    `batch_augmentation`, `plain` and `whole`, too, see `datasets.pipeline`.
    """

    batched: bool

    def train_transform(self) -> Callable:
        """Return what makes a training view of an image and its target, both at once.

        It draws from random, numpy or torch, each of which is seeded before a view.
        """

    def test_transform(self) -> Callable:
        """Return what makes the test view of an image and its target."""


class KeptFile(NamedTuple):
    """A file of predictions."""

    content: bytes
    images: int
    text: str  # what is in it, in words


class Keeper(Protocol):
    """Takes what a student, and its teachers, say of the test images, batch by batch, and makes a file of it."""

    asks_teachers: bool  # whether what teachers say is kept, too

    def update(self, output: Output, teachers: dict[str, Output], loaded: Loaded) -> None:
        """Take what is said of a batch. teachers: by `<position>_<model>`, {} if they are not asked."""

    def packed(self, world: World, describe: Callable[[], tuple[list[str], dict]]) -> KeptFile | None:
        """Return the file, of the images of all processes, which must all call this; None in all but the first.

        describe() returns where each image of the test split lies, and what ran, as `measure/predictions.py` says.
        """


class ShownBox(NamedTuple):
    """A box to be drawn on an image."""

    corners: list[float]  # left, top, right, bottom, pixels
    label: int  # boxes of one class have one colour
    text: str


class Shown(NamedTuple):
    """What is predicted of one image."""

    lines: list[str]  # for people
    rows: list[dict]  # for programs: everything, in what JSON can hold
    boxes: list[ShownBox] | None = None  # the most certain first; None of a task that has nothing to draw


class Task(Protocol):
    """What a label is, from the loader to the table; registered in TASKS, its metrics in METRICS under its name.

    It may have OPTIONS of its own, and says in READS which options of the page other tasks are refused. In TARGETS it
    says what it learns of an image, "classes" unless it does: datasets that are registered with other TARGETS are
    refused.
    """

    RESULT: str  # the score that says which epoch is the best, and what a teacher is worth
    HEADS: tuple[str, ...]  # of the student, that its losses train
    READS: tuple[str, ...]
    RESIZES: bool  # whether a teacher is shown images at a size of its own, DISTILLATION.TEACHER_SIZES
    PADS: bool  # whether the images of a batch may be padded to one size
    GRAPHS: bool  # whether CUDA graphs can hold its losses, TRAIN.COMPILE graphs; not if they ask the CPU for numbers
    KEEPS: str  # how the name of the file ends that TEST.PREDICTIONS is; "" = there is none
    classes: int
    scores: dict[str, dict]  # see `evaluator.scores_of`
    pipeline: Callable[..., Pipeline]  # (normalization=...)

    @classmethod
    def from_cfg(cls, cfg, *, classes: int, seed: int) -> "Task":
        """Build from options. seed: of augmentation and mixing."""

    def check(self, index: int, target):
        """Return the target of an image of the dataset. Raises ValueError if it is none."""

    def collate(self, samples: list[Sample]) -> Loaded:
        """Return a batch of samples."""

    def stack(self, targets: list) -> Tensor:
        """Return the targets of all images as one tensor; of a task whose pipeline is batched."""

    def check_images(self, dataset: ImageSet, which: str) -> None:
        """Raise ValueError if nothing can be learned from these images, or no score be computed of them.

        It is found without reading the images. which: in words, for the error.
        """

    def training_set(self, dataset: ImageSet) -> ImageSet:
        """Return the training images with all that the losses need of them. Raises ValueError if it is not there."""

    def groups(self, dataset: ImageSet) -> np.ndarray | None:
        """Return a number for each training image, by which batches hold images of a kind; None = as they come.

        It is found without reading the images. Raises ValueError if it cannot be.
        """

    def check_share(self, share: int, batch_size: int, processes: int) -> None:
        """Raise ValueError if a process cannot train on its share of a batch."""

    def batch(self, loaded: Loaded, progress: Progress) -> Batch:
        """Return the batch that is trained on."""

    def check_heads(self, heads: tuple[str, ...]) -> None:
        """Raise ValueError if options ask for another head of the student than it has."""

    def losses(self, output: Output, batch: Batch, world: World) -> dict[str, Tensor]:
        """Return the losses of the labels, scalars by name; they are multiplied by TASK.WEIGHT and added.

        world: the processes that share the batch; their gradients are averaged.
        """

    def monitors(self, output: Output, batch: Batch, prediction: str) -> dict[str, Tensor]:
        """Return what is logged of a training batch, a scalar each or (B,), and not optimised; {} for nothing.

        prediction: the one that counts. What has the name of one of `scores` is shown beside it on the console.
        """

    def prediction_heads(self, heads: tuple[str, ...]) -> dict[str, set[str]]:
        """Return the heads that each prediction needs, by the name of the prediction; the first is the default."""

    def predictions(self, output: Output) -> dict[str, Any]:
        """Return what the metrics take, by the name of the prediction."""

    def evaluator(self) -> Evaluator:
        """Return what takes predictions and targets batch by batch, and computes all scores."""

    def keeper(self, info: DatasetInfo) -> Keeper:
        """Return what makes the file of predictions, of a task that KEEPS one. info: of the test split."""

    def unlabelled(self, image_id: int, size: tuple[int, int]):
        """Return the target of an image that belongs to no dataset. size: height and width, pixels."""

    def shown(self, prediction, target, info: DatasetInfo, *, least: float) -> Shown:
        """Return what there is to show of an image.

        prediction: one of `predictions`, of a batch of this image alone. target: as `unlabelled` made it. info: of what
        the student was trained on. least: score of what is drawn, from 0 to 1.
        """

    def agreement(self, first: Output, second: Output) -> Tensor:
        """Return for which images (B,) two outputs of a teacher say the same."""

    def floor(self, least: float) -> float:
        """Return the least result of a teacher that is trained. least: DISTILLATION.TEACHER_MIN_ACC, -1 = your own."""

    def floor_error(self, floor: float, images: int) -> float:
        """Return the standard error of a result on so many images, at the floor."""
