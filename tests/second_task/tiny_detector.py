"""Model: one box and its class for each image.

Shapes: B batch, H height, W width, K classes.
"""

from torch import nn

from pycls_std.core.registry import BACKBONES
from pycls_std.core.structures import Padded


class TinyDetector(nn.Module):
    """Taps: first, second. It takes padded images, or a plain batch of which every pixel is one of an image."""

    head_names = ("classes", "boxes")
    feature_info = [{"module": "first", "num_chs": 8}, {"module": "second", "num_chs": 16}]

    def __init__(self, num_classes, width):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.classes = nn.Linear(width, num_classes)
        self.boxes = nn.Linear(width, 4)

    def forward_features(self, images):
        return self.forward_intermediates(images, [])[0]

    def forward_intermediates(self, images, indices=None, *, stop_early=False, output_fmt="", intermediates_only=False):
        pixels, mask = images if isinstance(images, Padded) else (images, images.new_ones(images[:, 0].shape))
        first = self.first(pixels * mask.unsqueeze(1))
        maps = [first, self.second(first)]
        chosen = [maps[index] for index in (range(2) if indices is None else indices)]
        return chosen if intermediates_only else (maps[1], chosen)

    def forward_head(self, features, pre_logits=False):
        pooled = features.mean(dim=(2, 3))
        return pooled if pre_logits else {"classes": self.classes(pooled), "boxes": self.boxes(pooled).sigmoid()}

    def get_classifier(self):
        return self.classes

    def forward(self, images):
        return self.forward_head(self.forward_features(images))


@BACKBONES.register("tiny_detector")
def tiny_detector(*, num_classes, image_size, drop_path=0.0, width=16):
    """Build it, for images of any size."""
    return TinyDetector(num_classes, width)
