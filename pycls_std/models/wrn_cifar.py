"""Wide ResNets for 32 px images, with the parameter names of the published CIFAR-100 teachers.

Source: Zagoruyko and Komodakis, BMVC 2016; parameter names as in HobbitLong/RepDistiller and
megvii-research/mdistiller, so their files can be loaded.
Shapes: B batch, C channels, H height, W width, K classes.
"""

from functools import partial

from torch import Tensor, nn
from torch.nn.functional import relu

from pycls_std.models.entry_points import register
from pycls_std.models.staged import Staged, initialize_convolutions, refuse_drop_path


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each after batch norm and ReLU, and a shortcut.

    If the number of channels changes, the shortcut is a 1x1 convolution of the activated input.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.convShortcut = None
        if channels_in != channels_out:
            self.convShortcut = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W), before an activation."""
        active = relu(self.bn1(x), inplace=True)
        shortcut = x if self.convShortcut is None else self.convShortcut(active)
        return self.conv2(relu(self.bn2(self.conv1(active)), inplace=True)) + shortcut


class Blocks(nn.Module):
    """The blocks of a stage, with their names in the published files."""

    def __init__(self, channels_in: int, channels_out: int, blocks: int, stride: int):
        super().__init__()
        first = PreActBlock(channels_in, channels_out, stride)
        self.layer = nn.Sequential(first, *(PreActBlock(channels_out, channels_out, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        return self.layer(x)


class CifarWideResNet(Staged):
    """Wide ResNet of depth 6 n + 4: three stages of n blocks with 16, 32 and 64 channels times the width.

    The taps are the stages' outputs, before the batch norm and ReLU that follow.
    """

    def __init__(self, *, num_classes: int, blocks: int, width: int):
        super().__init__()
        channels = [16, *(16 * width * 2**i for i in range(3))]
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = Blocks(channels[0], channels[1], blocks, stride=1)
        self.block2 = Blocks(channels[1], channels[2], blocks, stride=2)
        self.block3 = Blocks(channels[2], channels[3], blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(channels[3])
        self.fc = nn.Linear(channels[3], num_classes)
        self.num_classes = num_classes
        self.feature_info = [
            {"module": f"block{i + 1}", "num_chs": channels[i + 1], "reduction": 2**i} for i in range(3)
        ]
        initialize_convolutions(self)
        nn.init.zeros_(self.fc.bias)

    def stem(self, images: Tensor) -> Tensor:
        """images: (B, 3, H, W)."""
        return self.conv1(images)

    def stages(self):
        """Return the three stages."""
        return self.block1, self.block2, self.block3

    def after_stages(self, features: Tensor) -> Tensor:
        """features: (B, C, H, W), which are not modified."""
        return relu(self.bn1(features), inplace=True)

    def get_classifier(self) -> nn.Linear:
        """Return the layer that outputs the logits."""
        return self.fc


def wide_resnet(depth, width, /, *, num_classes, image_size, drop_path=0.0) -> CifarWideResNet:
    """Build a CIFAR Wide ResNet without dropout; it takes any image size and has no stochastic depth."""
    refuse_drop_path(drop_path, "CIFAR Wide ResNet")
    return CifarWideResNet(num_classes=num_classes, blocks=(depth - 4) // 6, width=width)


for _depth, _width in ((16, 2), (40, 1), (40, 2)):
    register(f"wrn_{_depth}_{_width}", partial(wide_resnet, _depth, _width))
