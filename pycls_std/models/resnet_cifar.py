"""ResNets for 32 px images, with the parameter names of the published CIFAR weights.

Source: He et al., CVPR 2016, section 4.2, with 1x1 convolution shortcuts; parameter names as in
chenyaofo/pytorch-cifar-models, so its files can be loaded.
Shapes: B batch, C channels, H height, W width, K classes.
"""

from functools import partial

from torch import Tensor, nn
from torch.nn.functional import relu

from pycls_std.models.entry_points import register
from pycls_std.models.staged import Staged, initialize_convolutions, refuse_drop_path

TAPS = ("after_relu", "before_relu")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution if the shape changes."""

    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.downsample = None
        if stride != 1 or channels_in != channels_out:
            shortcut = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        return relu(self.before_relu(x), inplace=True)

    def before_relu(self, x: Tensor) -> Tensor:
        """Return the sum of both branches, before the activation. x: (B, C, H, W)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.bn2(self.conv2(x))
        x += shortcut  # in place, as the activations: on a CPU, allocation costs more than the sum
        return x


class CifarResNet(Staged):
    """ResNet of depth 6 n + 2: three stages of n blocks.

    widths: channels of the stem and of the three stages. taps: whether features of a stage are those after or before
    the last ReLU; the logits are the same.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        blocks: int,
        widths: tuple[int, ...] = (16, 16, 32, 64),
        taps: str = TAPS[0],
    ):
        super().__init__()
        if taps not in TAPS:
            raise ValueError(f"taps is {taps!r}, expected {' or '.join(TAPS)}")
        self.before_relu = taps == "before_relu"
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _stage(widths[0], widths[1], blocks, stride=1)
        self.layer2 = _stage(widths[1], widths[2], blocks, stride=2)
        self.layer3 = _stage(widths[2], widths[3], blocks, stride=2)
        self.fc = nn.Linear(widths[3], num_classes)
        self.num_classes = num_classes
        self.feature_info = [{"module": f"layer{i + 1}", "num_chs": widths[i + 1], "reduction": 2**i} for i in range(3)]
        initialize_convolutions(self)

    def stem(self, images: Tensor) -> Tensor:
        """images: (B, 3, H, W)."""
        return relu(self.bn1(self.conv1(images)), inplace=True)

    def stages(self):
        """Return the three stages; with taps before the ReLU, the next stage applies it."""
        layers = self.layer1, self.layer2, self.layer3
        return tuple(partial(_before_relu, layer) for layer in layers) if self.before_relu else layers

    def after_stages(self, features: Tensor) -> Tensor:
        """features: (B, C, H, W), which are not modified."""
        return relu(features) if self.before_relu else features

    def get_classifier(self) -> nn.Linear:
        """Return the layer that outputs the logits."""
        return self.fc


def _stage(channels_in, channels_out, blocks, stride):
    first = BasicBlock(channels_in, channels_out, stride)
    return nn.Sequential(first, *(BasicBlock(channels_out, channels_out, 1) for _ in range(blocks - 1)))


def _before_relu(stage: nn.Sequential, x: Tensor) -> Tensor:
    """Return a stage's output before its last ReLU.

    x: output of the previous stage, before its ReLU; not modified, since it may be a tap. After the stem, which has a
    ReLU, another one changes nothing.
    """
    *blocks, last = stage
    assert isinstance(last, BasicBlock), "stages are made of them"
    x = relu(x)
    for block in blocks:
        x = block(x)
    return last.before_relu(x)


def resnet(depth, /, *, num_classes, image_size, drop_path=0.0, **args) -> CifarResNet:
    """Build a CIFAR ResNet; it takes any image size and has no stochastic depth. args: `widths` and `taps`."""
    refuse_drop_path(drop_path, "CIFAR ResNet")
    return CifarResNet(num_classes=num_classes, blocks=(depth - 2) // 6, **args)


for _depth in (8, 14, 20, 32, 44, 56, 110):
    register(f"resnet{_depth}", partial(resnet, _depth))
for _depth in (8, 32):  # four times as wide, the stem twice; names as in megvii-research/mdistiller
    register(f"resnet{_depth}x4", partial(resnet, _depth, widths=(32, 64, 128, 256)))

# Published weights: name -> (file, published top-1 in percent). The file name ends with the start of its SHA-256.
PUBLISHED_URL = "https://github.com/chenyaofo/pytorch-cifar-models/releases/download/resnet/"
PUBLISHED = {
    "cifar10_resnet20": ("cifar10_resnet20-4118986f.pt", 92.60),
    "cifar10_resnet32": ("cifar10_resnet32-ef93fc4d.pt", 93.53),
    "cifar10_resnet44": ("cifar10_resnet44-2a3cabcb.pt", 94.01),
    "cifar10_resnet56": ("cifar10_resnet56-187c023a.pt", 94.37),
    "cifar100_resnet20": ("cifar100_resnet20-23dac2f1.pt", 68.83),
    "cifar100_resnet32": ("cifar100_resnet32-84213ce6.pt", 70.16),
    "cifar100_resnet44": ("cifar100_resnet44-ffe32858.pt", 71.63),
    "cifar100_resnet56": ("cifar100_resnet56-f2eff4c8.pt", 72.63),
}
