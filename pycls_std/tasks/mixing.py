"""Mixup, cutmix and label smoothing of a batch.

Shapes: B batch, H height, W width, K classes.
"""

from timm.data.mixup import Mixup, mixup_target
from torch import Tensor

from pycls_std.core.seeding import seeded
from pycls_std.core.structures import Batch, Loaded, Progress


class Mixing:
    """Turn images and labels into a Batch whose targets are probabilities.

    The mixing of a batch depends on (seed, epoch, iteration) only, not on other random draws.
    mixup, cutmix: alpha of the beta distribution, 0 = off. probability: of mixing a batch at all. switch: probability
    of cutmix if both are on. smoothing: label smoothing, the share spread over all classes.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        seed: int = 0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        probability: float = 1.0,
        switch: float = 0.5,
        smoothing: float = 0.0,
    ):
        self.num_classes = num_classes
        self.seed = seed
        self.smoothing = smoothing
        self.mixup = None
        if mixup > 0 or cutmix > 0:
            self.mixup = Mixup(
                mixup, cutmix, prob=probability, switch_prob=switch, label_smoothing=smoothing, num_classes=num_classes
            )

    def __call__(self, loaded: Loaded, progress: Progress) -> Batch:
        """loaded: images (B, 3, H, W), with an even B if mixing is on, and their classes (B,)."""
        images, labels = loaded.images, loaded.targets
        if self.mixup is None:
            return Batch(images, mixup_target(labels, self.num_classes, 1.0, self.smoothing), loaded)
        with seeded(self.seed, progress.epoch, progress.iteration, 0):  # four numbers; the seed of a view has three
            assert isinstance(images, Tensor), "images of several sizes have no classes to mix"
            mixed, targets = self.mixup(images.clone(), labels)  # timm mixes in place
        return Batch(mixed, targets, loaded)
