"""Exit heads: classifiers at taps of a student, each with blocks that stand for its later stages; not deployed.

Shapes: B batch, C channels, H height, W width, N patches, K classes.
"""

import math
from itertools import pairwise

from timm.layers import trunc_normal_
from timm.models.vision_transformer import Block
from torch import Tensor, nn

GRID = 7  # least number of patches per side after merging


class SeparableDownsampling(nn.Module):
    """Two depthwise separable 3x3 convolutions with batch norm and ReLU, the first of stride 2."""

    def __init__(self, channels: int, target: int):
        super().__init__()
        layers = []
        for stride, width in ((2, channels), (1, target)):
            depthwise = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)
            layers += [depthwise, nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (B, C, H, W). Returns half the height and width, rounded up."""
        return self.layers(maps)


class PatchMerging(nn.Module):
    """Merge 2x2 patches into one with the same channels, then GELU, which the source omits in the last of several."""

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(4 * channels), nn.Linear(4 * channels, channels, bias=False), nn.GELU()
        )

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (B, H, W, C), H and W even. Returns (B, H / 2, W / 2, C)."""
        batch, height, width, channels = maps.shape
        pairs = maps.view(batch, height // 2, 2, width // 2, 2, channels).transpose(2, 3)
        return self.layers(pairs.reshape(batch, height // 2, width // 2, 4 * channels))


class MapExit(nn.Module):
    """Convolutional blocks, if any, and a classifier on the globally averaged map.

    blocks: the convolutions. width: their output channels.
    """

    def __init__(self, blocks: list[nn.Module], *, width: int, num_classes: int):
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(width, num_classes)
        self.apply(_initialize)

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (B, C, H, W). Returns (B, K) logits."""
        return self.classifier(self.blocks(maps).mean(dim=(2, 3)))


class AttentionExit(nn.Module):
    """Patch merging to a grid of about 7x7, transformer blocks, and a classifier on the mean over patches.

    shape: (C, H, W) of the tap. later: number of taps after it, and of blocks, which are at least one.
    """

    def __init__(self, shape: tuple[int, int, int], *, later: int, num_classes: int):
        super().__init__()
        channels, *sides = shape
        count = max(int(math.log2(min(sides) / GRID)), 0) if min(sides) >= GRID else 0
        count = min([count, *(_halvings(side) for side in sides)])
        self.merge = nn.Sequential(*(PatchMerging(channels) for _ in range(count)))
        heads = next(heads for heads in (4, 3, 2, 1) if channels % heads == 0)
        self.blocks = nn.Sequential(*(Block(channels, heads) for _ in range(max(later, 1))))
        self.classifier = nn.Linear(channels, num_classes)
        self.apply(_initialize)

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (B, C, H, W). Returns (B, K) logits."""
        patches = self.merge(maps.permute(0, 2, 3, 1)).flatten(1, 2)
        return self.classifier(self.blocks(patches).mean(dim=1))


def exit_heads(shapes: list[tuple[int, int, int]], *, kind: str, width: int, num_classes: int) -> list[nn.Module]:
    """Return a classifier for each tap of a student.

    shapes: (C, H, W) of the taps, in their order. kind: `blocks`, convolutions if the maps differ in size, attention if
    they do not; or `linear`. width: channels of the classifier's input after convolutions.
    Source: Hao et al., NeurIPS 2023 (OFA-KD), and its code, whose attention heads read the class token if there is one.
    """
    if kind == "linear":
        return [MapExit([], width=shape[0], num_classes=num_classes) for shape in shapes]
    pairs = [(shape, len(shapes) - 1 - number) for number, shape in enumerate(shapes)]
    if len({shape[1:] for shape in shapes}) > 1:
        return [MapExit(_downsampling(s[0], width, n), width=width, num_classes=num_classes) for s, n in pairs]
    return [AttentionExit(shape, later=count, num_classes=num_classes) for shape, count in pairs]


def _downsampling(channels: int, width: int, later: int) -> list[nn.Module]:
    """Return a downsampling block per later tap, from channels to width; a 1x1 convolution for the last tap."""
    if not later:
        return [nn.Conv2d(channels, width, 1)]
    widths = [channels * 2**number for number in range(later)] + [width]
    return [SeparableDownsampling(before, after) for before, after in pairwise(widths)]


def _halvings(side: int) -> int:
    """Return how often a number is divisible by 2."""
    return (side & -side).bit_length() - 1


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
