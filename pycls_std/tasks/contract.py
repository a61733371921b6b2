"""The interface of a task: everything that depends on what a label is.

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

    If `batched`, images of one size can be held in memory, and it also has `resized`, `test_pixels`,
    `batch_augmentation`, `plain` and `whole`, see `datasets.pipeline`.
    """

    batched: bool

    def train_transform(self) -> Callable:
        """Return the joint transform of an image and its target to a training view.

        It draws from random, numpy or torch, which are all seeded before each view.
        """

    def test_transform(self) -> Callable:
        """Return the transform of an image and its target to the test view."""


class KeptFile(NamedTuple):
    """A file of predictions."""

    content: bytes
    images: int
    text: str  # description of the content


class Keeper(Protocol):
    """Collects the outputs of a student and its teachers for the test images, batch by batch, into a file."""

    asks_teachers: bool  # whether teacher outputs are saved, too

    def update(self, output: Output, teachers: dict[str, Output], loaded: Loaded) -> None:
        """Add the outputs for a batch. teachers: by `<position>_<model>`, {} without `asks_teachers`."""

    def packed(self, world: World, describe: Callable[[], tuple[list[str], dict]]) -> KeptFile | None:
        """Return the file for the images of all processes, which must all call this; None in all but the first.

        describe() returns the path of each test image, and the metadata of the run, see `measure/predictions.py`.
        """


class ShownBox(NamedTuple):
    """A box to be drawn on an image."""

    corners: list[float]  # left, top, right, bottom, pixels
    label: int  # determines the colour
    text: str


class Shown(NamedTuple):
    """The prediction for one image, ready to be shown."""

    lines: list[str]  # for people
    rows: list[dict]  # for programs: everything, as JSON types
    boxes: list[ShownBox] | None = None  # by descending score; None if the task has nothing to draw


class Task(Protocol):
    """All that depends on the kind of label; registered in TASKS, its metrics in METRICS under the task's name.

    It may have OPTIONS of its own. READS: the shared options it uses, of those that are refused with other tasks.
    TARGETS: the kind of targets it learns, "classes" by default; datasets registered with other TARGETS are refused.
    """

    RESULT: str  # the score that selects the best epoch and rates a teacher
    HEADS: tuple[str, ...]  # of the student, trained by its losses
    READS: tuple[str, ...]
    RESIZES: bool  # whether teachers may get images at a size of their own, DISTILLATION.TEACHER_SIZES
    PADS: bool  # whether the images of a batch may be padded to one size
    GRAPHS: bool  # whether CUDA graphs can capture its losses (TRAIN.COMPILE graphs), which must not run on the CPU
    KEEPS: str  # file extension of TEST.PREDICTIONS; "" = not supported
    classes: int
    scores: dict[str, dict]  # see `evaluator.scores_of`
    pipeline: Callable[..., Pipeline]  # (normalization=...)

    @classmethod
    def from_cfg(cls, cfg, *, classes: int, seed: int) -> "Task":
        """Build from options. seed: of augmentation and mixing."""

    def check(self, index: int, target):
        """Return the target of an image of the dataset. Raises ValueError if it is not valid."""

    def collate(self, samples: list[Sample]) -> Loaded:
        """Return a batch of samples."""

    def stack(self, targets: list) -> Tensor:
        """Return the targets of all images as one tensor; for a task whose pipeline is batched."""

    def check_images(self, dataset: ImageSet, which: str) -> None:
        """Raise ValueError if these images cannot be trained on or scored.

        Must not read the images. which: name of the images for the error message.
        """

    def training_set(self, dataset: ImageSet) -> ImageSet:
        """Return the training images with all that the losses need. Raises ValueError if the dataset lacks it."""

    def groups(self, dataset: ImageSet) -> np.ndarray | None:
        """Return a group number for each training image, each batch being of one group; None = no groups.

        Must not read the images. Raises ValueError if the groups cannot be determined.
        """

    def check_share(self, share: int, batch_size: int, processes: int) -> None:
        """Raise ValueError if a process cannot train on its share of a batch."""

    def batch(self, loaded: Loaded, progress: Progress) -> Batch:
        """Return the training batch."""

    def check_heads(self, heads: tuple[str, ...]) -> None:
        """Raise ValueError if the student's heads are not those that the options require."""

    def losses(self, output: Output, batch: Batch, world: World) -> dict[str, Tensor]:
        """Return the losses with the labels, scalars by name; they are multiplied by TASK.WEIGHT and added.

        world: the processes that share the batch; their gradients are averaged.
        """

    def monitors(self, output: Output, batch: Batch, prediction: str) -> dict[str, Tensor]:
        """Return the values to log for a training batch, not optimised: scalars, or one value per image (B,).

        prediction: name of the one to log. A value with the name of one of `scores` is shown next to it on the console.
        """

    def prediction_heads(self, heads: tuple[str, ...]) -> dict[str, set[str]]:
        """Return the heads that each prediction needs, by the name of the prediction; the first is the default."""

    def predictions(self, output: Output) -> dict[str, Any]:
        """Return the input of the metrics, by the name of the prediction."""

    def evaluator(self) -> Evaluator:
        """Return an evaluator, which takes predictions and targets batch by batch and computes all scores."""

    def keeper(self, info: DatasetInfo) -> Keeper:
        """Return the writer of the predictions file, for a task that KEEPS one. info: of the test split."""

    def unlabelled(self, image_id: int, size: tuple[int, int]):
        """Return the target of an image that belongs to no dataset. size: height and width, pixels."""

    def shown(self, prediction, target, info: DatasetInfo, *, least: float) -> Shown:
        """Return the prediction for an image, ready to be shown.

        prediction: one of `predictions`, for a batch of this image alone. target: from `unlabelled`. info: of the
        dataset that the student was trained on. least: minimum score of the boxes to draw, from 0 to 1.
        """

    def agreement(self, first: Output, second: Output) -> Tensor:
        """Return for which images (B,) two outputs of a teacher agree."""

    def floor(self, least: float) -> float:
        """Return the lowest plausible result of a trained teacher.

        least: DISTILLATION.TEACHER_MIN_ACC, -1 = the task's default.
        """

    def floor_error(self, floor: float, images: int) -> float:
        """Return the standard error of a result on so many images, at the floor."""
