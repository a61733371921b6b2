"""Task: find the largest rectangle. Images of several sizes, targets that are dictionaries, several heads.

Shapes: B batch, H height, W width, K classes, n boxes of an image.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch.nn.functional import cross_entropy, l1_loss, pad
from torchvision.transforms.functional import hflip, normalize, to_tensor

import pycls_std.metrics  # noqa: F401
from pycls_std.core.option import Option
from pycls_std.core.registry import TASKS
from pycls_std.core.structures import Batch, Loaded, Padded
from pycls_std.tasks.contract import Shown, ShownBox
from pycls_std.tasks.evaluator import Evaluator, scores_of


class Joint:
    """Transforms image and boxes together."""

    def __init__(self, normalization, flip):
        self.normalization = normalization
        self.flip = flip

    def __call__(self, image, target):
        if self.flip and torch.rand(1) < 0.5:
            left, top, right, bottom = target["boxes"].unbind(1)
            image, target = hflip(image), target | {"boxes": torch.stack([1 - right, top, 1 - left, bottom], dim=1)}
        return normalize(to_tensor(image), *self.normalization), target


@dataclass
class Pipeline:
    """Image by image only."""

    normalization: object
    flip: bool
    batched = False

    def train_transform(self):
        return Joint(self.normalization, self.flip)

    def test_transform(self):
        return Joint(self.normalization, False)


@TASKS.register("boxes")
class Boxes:
    """One box and its class for each image."""

    TARGETS = "rectangles"
    RESULT = "recall"
    HEADS = ("classes", "boxes")
    READS = ("AUG.FLIP",)
    RESIZES = False
    PADS = False
    GRAPHS = True
    KEEPS = ""
    OPTIONS = {
        # Weight of the distance of the boxes.
        "L1_WEIGHT": Option(5.0, least=0),
    }

    def __init__(self, classes, weight, pipeline):
        self.classes = classes
        self.weight = weight
        self.pipeline = pipeline
        self.scores = scores_of("boxes")

    @classmethod
    def from_cfg(cls, cfg, *, classes, seed):
        return cls(classes, cfg.BOXES.L1_WEIGHT, partial(Pipeline, flip=cfg.AUG.FLIP > 0))

    def check(self, index, target):
        if not len(target["boxes"]) or int(target["labels"].max()) >= self.classes:
            raise ValueError(f"image {index} of the dataset has no box, or one of no class")
        return target

    def collate(self, samples):
        pixels, targets, indices, _ = zip(*samples, strict=True)
        height, width = (max(each.shape[side] for each in pixels) for side in (1, 2))
        room = [(0, width - each.shape[2], 0, height - each.shape[1]) for each in pixels]
        masks = [pad(torch.ones(each.shape[1:]), more) for each, more in zip(pixels, room, strict=True)]
        images = [pad(each, more) for each, more in zip(pixels, room, strict=True)]
        return Loaded(Padded(torch.stack(images), torch.stack(masks)), list(targets), torch.tensor(indices))

    def check_images(self, dataset, which):
        pass

    def training_set(self, dataset):
        return dataset

    def groups(self, dataset):
        return None

    def check_share(self, share, batch_size, processes):
        pass

    def batch(self, loaded, progress):
        return Batch(loaded.images, loaded.targets, loaded)

    def check_heads(self, heads):
        pass

    def losses(self, output, batch, world):
        labels, boxes = largest(batch.targets)
        return {
            "class": cross_entropy(output.heads["classes"].float(), labels),
            "l1": self.weight * l1_loss(output.heads["boxes"].float(), boxes),
        }

    def monitors(self, output, batch, prediction):
        return {}

    def prediction_heads(self, heads):
        return {"boxes": set(self.HEADS)}

    def predictions(self, output):
        return {"boxes": output.heads}

    def evaluator(self):
        return Evaluator("boxes")

    def unlabelled(self, image_id, size):
        return {"boxes": torch.zeros(0, 4), "size": size}

    def shown(self, prediction, target, info, *, least):
        score, label = prediction["classes"][0].softmax(dim=0).max(dim=0)
        height, width = target["size"]
        across, down = (sorted(float(each) for each in prediction["boxes"][0][side::2]) for side in (0, 1))
        corners = [across[0] * width, down[0] * height, across[1] * width, down[1] * height]
        name = info.classes[label]
        boxes = [ShownBox(corners, int(label), name)] if score >= least else []
        return Shown([name], [{"category": name, "corners": corners, "score": float(score)}], boxes)

    def agreement(self, first, second):
        return first.heads["classes"].argmax(1) == second.heads["classes"].argmax(1)

    def floor(self, least):
        return max(least, 0.0)

    def floor_error(self, floor, images):
        return (floor * (100 - floor) / images) ** 0.5


def largest(targets):
    """Labels (B,) and boxes (B, 4) of the largest rectangles."""
    places = [int(((t["boxes"][:, 2:] - t["boxes"][:, :2]).prod(dim=1)).argmax()) for t in targets]
    pairs = list(zip(targets, places, strict=True))
    return torch.stack([t["labels"][p] for t, p in pairs]), torch.stack([t["boxes"][p] for t, p in pairs])
