"""ResNets for 32 px images, with the parameter names of the published CIFAR weights.

Source: He et al., CVPR 2016, section 4.2, with 1x1 convolution shortcuts; names, and so the files that load, as in
chenyaofo/pytorch-cifar-models.
Shapes: B batch, C channels, H height, W width, K classes.
"""

from functools import partial

from torch import Tensor, nn
from torch.nn.functional import relu

from pycls_std.core.registry import BACKBONES


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the size changes."""

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
        shortcut = x if self.downsample is None else self.downsample(x)
        x = relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.bn2(self.conv2(x))
        x += shortcut  # in place, as the activations: on a CPU, fresh memory of this size costs more than the sum
        return relu(x, inplace=True)


class CifarResNet(nn.Module):
    """ResNet of depth 6 n + 2: three stages of n blocks with 16, 32 and 64 channels. Its taps are the three stages."""

    def __init__(self, *, num_classes: int, blocks: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.fc = nn.Linear(64, num_classes)
        self.num_classes = num_classes
        self.feature_info = [{"module": f"layer{i + 1}", "num_chs": 16 * 2**i, "reduction": 2**i} for i in range(3)]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward_intermediates(
        self, images: Tensor, indices=None, *, stop_early=False, output_fmt="NCHW", intermediates_only=False
    ):
        """Return the last stage's output and the outputs of the stages at `indices`; see `models/contract.py`."""
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt is {output_fmt!r}, a ResNet has only NCHW")
        stages = (self.layer1, self.layer2, self.layer3)
        taps = range(3) if indices is None else [index % 3 for index in indices]
        x = relu(self.bn1(self.conv1(images)), inplace=True)
        maps = []
        for index, stage in enumerate(stages[: max(taps, default=2) + 1] if stop_early else stages):
            x = stage(x)
            if index in taps:
                maps.append(x)
        return maps if intermediates_only else (x, maps)

    def forward_features(self, images: Tensor) -> Tensor:
        """images: (B, 3, H, W). Returns (B, 64, H / 4, W / 4)."""
        return self.forward_intermediates(images, indices=[])[0]

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """features: (B, 64, H, W). Returns (B, K) logits; their input, (B, 64), if pre_logits."""
        pooled = features.mean(dim=(2, 3))
        return pooled if pre_logits else self.fc(pooled)

    def get_classifier(self) -> nn.Linear:
        """Return the layer that makes the logits."""
        return self.fc

    def forward(self, images: Tensor) -> Tensor:
        """images: (B, 3, H, W). Returns (B, K) logits."""
        return self.forward_head(self.forward_features(images))


def _stage(channels_in, channels_out, blocks, stride):
    first = BasicBlock(channels_in, channels_out, stride)
    return nn.Sequential(first, *(BasicBlock(channels_out, channels_out, 1) for _ in range(blocks - 1)))


def resnet(depth, /, *, num_classes, image_size, drop_path=0.0) -> CifarResNet:
    """Build a CIFAR ResNet; it takes any image size and has no stochastic depth."""
    if drop_path:
        raise ValueError(f"MODEL.DROP_PATH is {drop_path}, a CIFAR ResNet has no stochastic depth")
    return CifarResNet(num_classes=num_classes, blocks=(depth - 2) // 6)


for _depth in (8, 14, 20, 32, 44, 56, 110):
    BACKBONES.register(f"resnet{_depth}")(partial(resnet, _depth))

# Published weights: name -> (file, published top-1 in percent). The file's name ends with the start of its SHA-256.
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
