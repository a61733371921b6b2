"""Mixup, cutmix and label smoothing of a batch.

Shapes: B batch, H height, W width, K classes.
"""

from timm.data.mixup import Mixup, mixup_target
from torch import Tensor

from pycls_std.core.seeding import seeded
from pycls_std.core.structures import Batch, Loaded, Progress


class Mixing:
    """Turn images and labels into a Batch whose targets are probabilities.

    How a batch is mixed is a function of (seed, epoch, iteration), so nothing else that draws changes it.
    mixup, cutmix: beta parameters, 0 = off. probability: of mixing a batch at all. switch: of cutmix where both are on.
    smoothing: share of the target spread over all classes.
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
        """loaded: images (B, 3, H, W), B even if mixing is on, and their classes (B,)."""
        images, labels = loaded.images, loaded.targets
        if self.mixup is None:
            return Batch(images, mixup_target(labels, self.num_classes, 1.0, self.smoothing), loaded)
        with seeded(self.seed, progress.epoch, progress.iteration, 0):  # four words, for the key of a view has three
            assert isinstance(images, Tensor), "images of several sizes have no classes to mix"
            mixed, targets = self.mixup(images.clone(), labels)  # timm mixes in place
        return Batch(mixed, targets, loaded)
