"""Object detection: a label is the boxes of an image and their classes, a prediction a set of boxes.

Shapes: B batch, L levels, Q queries, K classes, D detections of an image, n boxes of it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

import pycls_std.metrics  # noqa: F401  (registers the metrics)
from pycls_std.core.option import Option
from pycls_std.core.registry import TASKS
from pycls_std.core.structures import (
    Batch,
    DatasetInfo,
    ImageSet,
    Loaded,
    Output,
    Padded,
    Progress,
    Sample,
    World,
    added,
)
from pycls_std.datasets.aspect import aspect_groups, known_sizes
from pycls_std.datasets.box_targets import box_target
from pycls_std.datasets.detection_views import DetectionPipeline, pad_to_batch
from pycls_std.datasets.segments import BACKGROUND, Segmented
from pycls_std.datasets.subsets import known
from pycls_std.losses.detection import detection_losses
from pycls_std.losses.matching import NONE, Weights, corners, gathered_truth
from pycls_std.losses.token_labels import token_losses
from pycls_std.metrics.found_boxes import found_boxes
from pycls_std.tasks.contract import Shown
from pycls_std.tasks.evaluator import Evaluator, scores_of
from pycls_std.tasks.kept_boxes import KeptBoxes
from pycls_std.tasks.showing import shown_boxes

DETECTIONS = 100  # per image, as COCO scores
FLOOR = 5.0  # default lowest plausible AP of a trained teacher, percent
# Head: the option that trains it, the argument of a ViDT that adds it.
EXTRA_HEADS = {"ious": ("IOU_WEIGHT", "iou_aware"), "tokens": ("TOKEN_WEIGHT", "token_label")}
SAME = 0.75  # IoU above which two boxes agree


@TASKS.register("detection")
class Detection:
    """A student returns `classes` (B, L, Q, K), logits of independent classes, and `boxes` (B, L, Q, 4).

    Boxes are centre x, centre y, width and height, as fractions of the image without its padding. All L levels are
    trained, the last one predicts. If their weights are above 0, `ious` (B, L, Q), logits of the boxes' IoU, and
    `tokens`, see `losses/token_labels.py`, are trained, too. A target is a dictionary, see `datasets/box_targets.py`:
    `boxes` (n, 4) in that form, of the view; `labels` (n,); `image_id`; `size` (2,), height and width of the original;
    `truth`, the ground truth for AP, at test; `segments` (H, W), if they are learned, see `datasets/segments.py`.
    weights: of the parts of the loss and of the matching cost. auxiliary: weight of the losses of the levels before the
    last. aspect_groups: number of groups by aspect ratio that batches are drawn from; below 2 = none. tokens: weight of
    the losses of head `tokens`.
    """

    TARGETS = "boxes"
    RESULT = "ap"
    HEADS: tuple[str, ...] = ("classes", "boxes")
    READS = ("AUG.FLIP", "DATA.IMAGES")
    RESIZES = False  # the boxes of padded images are relative to the unpadded image
    PADS = True
    GRAPHS = False  # boxes are matched on the CPU, see `losses/matching.py`
    KEEPS = ".json"
    OPTIONS = {
        # Weight of the focal loss of the classes, and of the class in the cost by which queries are matched with boxes.
        "CLASS_WEIGHT": Option(2.0, least=0),
        # Weight of the L1 distance of the boxes' centres and sides, in the loss and in the cost.
        "L1_WEIGHT": Option(5.0, least=0),
        # Weight of the generalized IoU (GIoU) of the boxes, in the loss and in the cost.
        "GIOU_WEIGHT": Option(2.0, least=0),
        # Weight of the cross-entropy of the head `ious` with the IoU of the boxes; MODEL.ARGS iou_aware of a ViDT adds
        # this head; ViDT+ has 2; 0 = off.
        "IOU_WEIGHT": Option(0.0, least=0),
        # Weight of two losses, focal and dice, of the classes at each position of the feature maps, with the objects'
        # outlines (COCO's `segmentation`) as targets; MODEL.ARGS token_label of a ViDT adds their head; ViDT+ has 2;
        # 0 = off.
        "TOKEN_WEIGHT": Option(0.0, least=0),
        # Weight of the losses of every level of prediction before the last one; 0 = only the last one is trained.
        "AUX_WEIGHT": Option(1.0, least=0),
        # Multi-scale training: the shortest side is drawn from 0.6 to 1 times DATA.IMAGE_SIZE; False = it is
        # DATA.IMAGE_SIZE.
        "MULTI_SCALE": True,
        # Half of the training views are random crops.
        "CROP": True,
        # Number of groups of images by aspect ratio, each batch being of one group, for less padding; 2 = wide and
        # tall; 0 = not grouped.
        "ASPECT_GROUPS": Option(0, least=0, greatest=16),
    }

    def __init__(
        self,
        classes: int,
        *,
        pipeline: Callable[..., DetectionPipeline],
        weights: Weights,
        auxiliary: float = 1.0,
        aspect_groups: int = 0,
        tokens: float = 0.0,
    ):
        self.classes = classes
        self.pipeline = pipeline  # (normalization=...) -> what makes views
        self.weights = weights
        self.tokens = tokens
        learns = {"ious": weights.iou, "tokens": tokens}
        self.HEADS = (*type(self).HEADS, *(name for name, weight in learns.items() if weight))
        self.auxiliary = auxiliary
        self.aspect_groups = aspect_groups
        self.scores = scores_of("detection")

    @classmethod
    def from_cfg(cls, cfg, *, classes: int, seed: int):
        """Build from sections DATA, AUG and DETECTION. Raises ValueError if all weights of a box are 0."""
        own = cfg.DETECTION
        weights = Weights(own.CLASS_WEIGHT, own.L1_WEIGHT, own.GIOU_WEIGHT, own.IOU_WEIGHT)
        if not any(weights[:3]):
            raise ValueError("DETECTION.CLASS_WEIGHT, L1_WEIGHT and GIOU_WEIGHT are 0: there is nothing to learn from")
        pipeline = partial(
            DetectionPipeline,
            image_size=cfg.DATA.IMAGE_SIZE,
            flip=cfg.AUG.FLIP,
            multi_scale=own.MULTI_SCALE,
            crop=own.CROP,
        )
        return cls(
            classes,
            pipeline=pipeline,
            weights=weights,
            auxiliary=own.AUX_WEIGHT,
            aspect_groups=own.ASPECT_GROUPS,
            tokens=own.TOKEN_WEIGHT,
        )

    # ------------------------------------------------------------------------------------------------------------ data
    def check(self, index: int, target: dict) -> dict:
        """Return the target of an image.

        Raises ValueError if a label is not one of the classes, if boxes and labels differ in number, or if a box is not
        finite.
        """
        where = f"image {index} of the dataset (id {target['image_id']})"
        for part in (target, target["truth"]):
            boxes, labels = part["boxes"], part["labels"]
            if boxes.shape != (len(labels), 4):
                raise ValueError(f"{where} has boxes {tuple(boxes.shape)} for {len(labels)} labels")
            odd = labels[(labels < 0) | (labels >= self.classes)].tolist()
            if odd:
                raise ValueError(f"{where} has the label {odd[0]}, its classes are 0 to {self.classes - 1}")
            if not boxes.isfinite().all():
                raise ValueError(f"{where} has a box that is not finite")
        return target

    def collate(self, samples: list[Sample]) -> Loaded:
        """Return a batch of samples, padded to the largest of them."""
        return pad_to_batch(samples)

    def check_images(self, dataset: ImageSet, which: str) -> None:
        """Raise ValueError if no image has an object that is not a crowd, as far as the dataset knows."""
        objects = known(dataset, "objects")
        if objects is not None and not objects.any():
            raise ValueError(f"none of the {len(objects)} {which} has an object that is no crowd")

    def training_set(self, dataset: ImageSet) -> ImageSet:
        """Return the images, with their segmentation if it is learned."""
        if not self.tokens:
            return dataset
        try:
            return Segmented(dataset)
        except ValueError as error:
            raise ValueError(f"DETECTION.TOKEN_WEIGHT is {self.tokens}: {error}") from error

    def groups(self, dataset: ImageSet) -> np.ndarray | None:
        """Return the group of each image by its aspect ratio, None with `aspect_groups` below 2."""
        if self.aspect_groups < 2:
            return None
        try:
            return aspect_groups(known_sizes(dataset), self.aspect_groups)
        except ValueError as error:
            raise ValueError(f"DETECTION.ASPECT_GROUPS is {self.aspect_groups}: {error}") from error

    def check_share(self, share: int, batch_size: int, processes: int) -> None:
        """Do nothing: any share of a batch can be trained on."""

    def batch(self, loaded: Loaded, progress: Progress) -> Batch:
        """Return the training batch: the images unchanged, and their boxes as a `Truth`."""
        truth = gathered_truth(loaded.targets)
        if self.tokens:
            assert isinstance(loaded.images, Padded), "see `collate`"
            truth = truth._replace(segments=_padded([each["segments"] for each in loaded.targets], loaded.images.mask))
        return Batch(loaded.images, truth, loaded)

    # ------------------------------------------------------------------------------------------------------- objective
    def check_heads(self, heads: tuple[str, ...]) -> None:
        """Raise ValueError for a head that an option trains but the student lacks, or that no option trains."""
        for head, (key, argument) in EXTRA_HEADS.items():
            if head in self.HEADS and head not in heads:
                raise ValueError(f"DETECTION.{key} is above 0, the student has no head {head} (MODEL.ARGS {argument})")
            if head in heads and head not in self.HEADS:
                raise ValueError(f"DETECTION.{key} is 0, the student has a head {head} (MODEL.ARGS {argument})")

    def losses(self, output: Output, batch: Batch, world: World) -> dict[str, Tensor]:
        """Return the weighted losses: `class`, `l1` and `giou` of the last level, `aux`, the sum of earlier levels'.

        Also `iou`, `token_focal` and `token_dice`, if they have a weight.
        They are sums over the batch, divided by its number of boxes, at least 1 in the global batch. So averaging
        gradients over processes and over the parts of a batch gives those of one process with the whole batch.
        """
        logits, boxes = output.heads["classes"], output.heads["boxes"]
        ious = output.heads["ious"] if self.weights.iou else None
        whole = (batch.whole or batch).targets.labels
        shares = world.size * len(whole) / len(batch.targets.labels)
        num_boxes = world.sum((whole != NONE).sum()).clamp(min=1) / shares
        levels = detection_losses(logits, boxes, batch.targets, weights=self.weights, num_boxes=num_boxes, ious=ious)
        losses = {name: values[-1] for name, values in levels.items()}
        if self.auxiliary and logits.shape[1] > 1:
            losses["aux"] = self.auxiliary * added(values[:-1].sum() for values in levels.values())
        if self.tokens:
            assert isinstance(batch.images, Padded), "see `collate`"
            maps: Any = output.heads["tokens"]  # this head returns a list, one tensor per map
            found = token_losses(maps, batch.targets.segments, batch.images.mask, num_boxes=num_boxes)
            losses |= {name: self.tokens * value for name, value in found.items()}
        return losses

    def monitors(self, output: Output, batch: Batch, prediction: str) -> dict[str, Tensor]:
        """Return nothing: AP is not a mean over batches."""
        return {}

    # ------------------------------------------------------------------------------------------------------ evaluation
    def prediction_heads(self, heads: tuple[str, ...]) -> dict[str, set[str]]:
        """Return the heads that `boxes`, the only prediction, needs."""
        return {"boxes": set(type(self).HEADS)}

    def predictions(self, output: Output) -> dict[str, dict[str, Tensor]]:
        """Return the 100 most likely pairs of query and class of the last level, by descending score.

        `scores` (B, D) in [0, 1]; `labels` (B, D); `boxes` (B, D, 4) left, top, right, bottom, fractions of the image.
        """
        logits, boxes = last_level(output)
        values, places = logits.flatten(1).topk(min(DETECTIONS, logits[0].numel()), dim=1)
        queries = (places // logits.shape[2])[..., None].expand(-1, -1, 4)
        found = {"scores": values.sigmoid(), "labels": places % logits.shape[2]}
        return {"boxes": found | {"boxes": corners(boxes).gather(1, queries)}}

    def evaluator(self) -> Evaluator:
        """Return an evaluator of predictions and targets by all scores."""
        return Evaluator("detection")

    def keeper(self, info: DatasetInfo) -> KeptBoxes:
        """Return the writer of the file of all detections."""
        return KeptBoxes(self.predictions, info)

    def unlabelled(self, image_id: int, size: tuple[int, int]) -> dict:
        """Return the target of an image without boxes."""
        truth = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "area": torch.zeros(0)}
        return box_target(truth | {"crowd": torch.zeros(0, dtype=torch.bool)}, image_id=image_id, size=size)

    def shown(self, prediction: dict, target: dict, info: DatasetInfo, *, least: float) -> Shown:
        """Return all detections as rows, as in the predictions file, and those with a score from `least` as boxes."""
        return shown_boxes(found_boxes(prediction, [target])[0], info, least=least)

    # -------------------------------------------------------------------------------------------------------- teachers
    def agreement(self, first: Output, second: Output) -> Tensor:
        """Return for which images (B,) the second output's most confident query agrees with that query in the first.

        They agree if the class is the same and the boxes' IoU is above 0.75.
        """
        (logits, boxes), (other, others) = last_level(first), last_level(second)
        best = other.amax(dim=2).argmax(dim=1)
        images = torch.arange(len(best), device=best.device)
        overlap = box_iou(corners(boxes[images, best])[:, None], corners(others[images, best])[:, None])[:, 0, 0]
        return (logits[images, best].argmax(dim=1) == other[images, best].argmax(dim=1)) & (overlap > SAME)

    def floor(self, least: float) -> float:
        """Return the lowest plausible AP of a trained teacher, percent; least: -1 = 5."""
        return FLOOR if least < 0 else least

    def floor_error(self, floor: float, images: int) -> float:
        """Return the standard error of the AP on so many images, at the floor, as if each image's AP were 0 or 100."""
        return (floor * (100 - floor) / images) ** 0.5


def last_level(output: Output) -> tuple[Tensor, Tensor]:
    """Return the logits (B, Q, K) and the boxes (B, Q, 4) of the last level; fp32."""
    return output.heads["classes"][:, -1].float(), output.heads["boxes"][:, -1].float()


def _padded(segments: list[Tensor], mask: Tensor) -> Tensor:
    """Return segmentations (H, W) of several sizes, padded to one size as the images are, (B, H, W)."""
    found = torch.full(mask.shape, BACKGROUND, dtype=segments[0].dtype, device=mask.device)
    for place, own in enumerate(segments):
        found[place, : own.shape[0], : own.shape[1]] = own
    return found
