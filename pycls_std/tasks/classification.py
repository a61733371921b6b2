"""Image classification: a label is one class of an image, a target the probability of each class.

Shapes: B batch, K classes.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

import pycls_std.metrics  # noqa: F401  (registers the metrics)
from pycls_std.core.registry import TASKS
from pycls_std.core.structures import Batch, DatasetInfo, ImageSet, Loaded, Output, Progress, Sample, World
from pycls_std.datasets.pipeline import ImagePipeline
from pycls_std.datasets.transforms import Augmentation
from pycls_std.losses.classification import soft_target_cross_entropy
from pycls_std.tasks.contract import Shown
from pycls_std.tasks.evaluator import Evaluator, scores_of
from pycls_std.tasks.kept_logits import KeptLogits
from pycls_std.tasks.mixing import Mixing
from pycls_std.tasks.showing import shown_classes


@TASKS.register("classification")
class Classification:
    """The class head is named `cls`; whatever other heads a student has are its distillation heads."""

    RESULT = "top1"  # the score that selects the best epoch and rates a teacher
    HEADS = ("cls",)  # trained by the labels
    READS = (
        "AUG.CROP",
        "AUG.INTERPOLATION",
        "AUG.FLIP",
        "AUG.RAND_AUGMENT",
        "AUG.THREE_AUGMENT",
        "AUG.COLOR_JITTER",
        "AUG.ERASING",
        "AUG.MIX",
        "AUG.CUTMIX",
        "AUG.LABEL_SMOOTHING",
        "DATA.CROP_RATIO",
        "DATA.FIT",
        "DATA.INTERPOLATION",
        "DATA.PER_CLASS",
    )
    RESIZES = True
    PADS = False
    GRAPHS = True
    KEEPS = ".npz"

    def __init__(self, classes: int, *, pipeline: Callable[..., ImagePipeline], mixing: Mixing | None = None):
        self.classes = classes
        self.pipeline = pipeline  # (normalization=...) -> what makes views
        self.mixing = mixing or Mixing(classes)
        self.mixed = self.mixing.mixup is not None
        self.scores = scores_of("classification")

    @classmethod
    def from_cfg(cls, cfg, *, classes: int, seed: int):
        """Build from sections DATA and AUG. seed: of augmentation and mixing."""
        aug = cfg.AUG
        augmentation = Augmentation(
            crop=aug.CROP,
            crop_padding=aug.CROP_PADDING,
            crop_scale=aug.CROP_SCALE,
            flip=aug.FLIP,
            rand_augment=aug.RAND_AUGMENT,
            color_jitter=aug.COLOR_JITTER,
            erasing=aug.ERASING,
            interpolation=aug.INTERPOLATION,
            three_augment=aug.THREE_AUGMENT,
        )
        pipeline = partial(
            ImagePipeline,
            image_size=cfg.DATA.IMAGE_SIZE,
            augmentation=augmentation,
            crop_ratio=cfg.DATA.CROP_RATIO,
            seed=seed,
            interpolation=cfg.DATA.INTERPOLATION,
            fit=cfg.DATA.FIT,
        )
        mixing = Mixing(
            classes,
            seed=seed,
            mixup=aug.MIXUP,
            cutmix=aug.CUTMIX,
            probability=aug.MIX_PROB,
            switch=aug.MIX_SWITCH,
            smoothing=aug.LABEL_SMOOTHING,
        )
        return cls(classes, pipeline=pipeline, mixing=mixing)

    # ------------------------------------------------------------------------------------------------------------ data
    def check(self, index: int, label: int) -> int:
        """Return the label of an image. Raises ValueError if it is not one of the classes."""
        if not 0 <= label < self.classes:
            raise ValueError(
                f"image {index} of the dataset has the label {label}, its classes are 0 to {self.classes - 1}"
            )
        return label

    def stack(self, labels: list[int]) -> Tensor:
        """Return the targets of many images as one tensor."""
        return torch.tensor(labels)

    def collate(self, samples: list[Sample]) -> Loaded:
        """Return a batch of samples."""
        pixels, labels, indices, crops = zip(*samples, strict=True)
        crop = None if crops[0] is None else torch.tensor(crops)
        places = None if crop is None else np.array(indices)
        return Loaded(torch.stack(pixels), self.stack(list(labels)), torch.tensor(indices), crop, places)

    def check_images(self, dataset: ImageSet, which: str) -> None:
        """Do nothing: every image has a class."""

    def training_set(self, dataset: ImageSet) -> ImageSet:
        """Return the dataset as it is: the labels are all that the losses need."""
        return dataset

    def groups(self, dataset: ImageSet) -> None:
        """Return None: batches are not grouped."""

    def check_share(self, share: int, batch_size: int, processes: int) -> None:
        """Raise ValueError if a process cannot mix its share of a batch."""
        if self.mixing.mixup and share % 2:
            raise ValueError(
                f"TRAIN.BATCH_SIZE is {batch_size}, {share} for each of {processes} processes: "
                "AUG.MIXUP and AUG.CUTMIX, which mix images in pairs, need an even number"
            )

    def batch(self, loaded: Loaded, progress: Progress) -> Batch:
        """Return the training batch: mixed, with probabilities (B, K) as targets."""
        return self.mixing(loaded, progress)

    # ------------------------------------------------------------------------------------------------------- objective
    def check_heads(self, heads: tuple[str, ...]) -> None:
        """Do nothing: no option requires a head."""

    def losses(self, output: Output, batch: Batch, world: World) -> dict[str, Tensor]:
        """Return the cross-entropy with the labels, by name."""
        return {"ce": soft_target_cross_entropy(output.heads["cls"], batch.targets)}

    def monitors(self, output: Output, batch: Batch, prediction: str) -> dict[str, Tensor]:
        """Return the top-1 accuracy of each training view (B,), 0 or 100; nothing if labels are mixed."""
        if self.mixed:
            return {}
        right: Tensor = self.predictions(output)[prediction].argmax(dim=1) == batch.loaded.targets
        return {"top1": 100.0 * right}

    # ------------------------------------------------------------------------------------------------------ evaluation
    def prediction_heads(self, heads: tuple[str, ...]) -> dict[str, set[str]]:
        """Return the heads that each prediction needs, by the name of the prediction; the first is the default.

        `cls` is the class head's, `dist` the mean of the distillation heads', `avg` the average of the two.
        """
        others = set(heads) - {"cls"}
        return {"avg": set(heads), "cls": {"cls"}, "dist": others} if others else {"cls": {"cls"}}

    def predictions(self, output: Output) -> dict[str, Tensor]:
        """Return (B, K) logits by the name of the prediction, see `prediction_heads`; fp32."""
        logits = output.heads["cls"].float()
        others = [value.float() for name, value in output.heads.items() if name != "cls"]
        if not others:
            return {"cls": logits}
        distillation = torch.stack(others).mean(dim=0)
        return {"avg": (logits + distillation) / 2, "cls": logits, "dist": distillation}

    def evaluator(self) -> Evaluator:
        """Return an evaluator of predictions and labels (B,) by all scores."""
        return Evaluator("classification")

    def keeper(self, info: DatasetInfo) -> KeptLogits:
        """Return the writer of the file of all logits."""
        return KeptLogits(self.predictions)

    def unlabelled(self, image_id: int, size: tuple[int, int]) -> int:
        """Return a placeholder label, which nothing reads."""
        return 0

    def shown(self, prediction: Tensor, target: int, info: DatasetInfo, *, least: float) -> Shown:
        """Return the five most likely classes with their probabilities, the most likely first."""
        return shown_classes(prediction[0], info)

    # -------------------------------------------------------------------------------------------------------- teachers
    def agreement(self, first: Output, second: Output) -> Tensor:
        """Return for which images (B,) two outputs predict the same class."""
        return first.heads["cls"].argmax(dim=1) == second.heads["cls"].argmax(dim=1)

    def floor(self, least: float) -> float:
        """Return the lowest plausible result of a trained teacher, percent.

        least: -1 = a quarter of the way from chance to 100.
        """
        chance = 100 / self.classes
        return chance + (100 - chance) / 4 if least < 0 else least

    def floor_error(self, floor: float, images: int) -> float:
        """Return the standard error of a teacher's result on so many images, at the floor, percent."""
        return (floor * (100 - floor) / images) ** 0.5
