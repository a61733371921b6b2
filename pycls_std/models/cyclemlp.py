"""CycleMLP, for images of any size.

Shapes: B batch, C channels, H height, W width.
"""

from functools import partial

import torch
from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from pycls_std.models.entry_points import register
from pycls_std.models.pyramid import Pyramid, split_rates

# name: blocks, channels, and hidden units of the channel MLPs as multiples of these, of each stage.
# Source: Chen et al., ICLR 2022, and its code.
CYCLEMLPS = {
    "cyclemlp_b1": ((2, 2, 4, 2), (64, 128, 320, 512), (4, 4, 4, 4)),
    "cyclemlp_b2": ((2, 3, 10, 3), (64, 128, 320, 512), (4, 4, 4, 4)),
    "cyclemlp_b3": ((3, 4, 18, 3), (64, 128, 320, 512), (8, 8, 4, 4)),
    "cyclemlp_b4": ((3, 8, 27, 3), (64, 128, 320, 512), (8, 8, 4, 4)),
    "cyclemlp_b5": ((3, 4, 24, 3), (96, 192, 384, 768), (4, 4, 4, 4)),
}
HEIGHT, WIDTH = 1, 2  # axes of (B, H, W, C)


def cycled(x: Tensor, axis: int) -> Tensor:
    """Shift channel c of maps by d positions along an axis, d = 0, 1, -1, 0, 1, -1, ..., with zero padding.

    x: (B, H, W, C). axis: HEIGHT or WIDTH.
    Equivalent to torchvision's deform_conv2d with constant offsets, and 5 to 9 times as fast on a CPU
    (tools/benchmarks/cycle.py).
    """
    size, moved = x.shape[axis], torch.zeros_like(x)
    moved[..., 0::3] = x[..., 0::3]
    moved.narrow(axis, 0, size - 1)[..., 1::3] = x.narrow(axis, 1, size - 1)[..., 1::3]
    moved.narrow(axis, 1, size - 1)[..., 2::3] = x.narrow(axis, 0, size - 1)[..., 2::3]
    return moved


class CycleLinear(nn.Linear):
    """A linear layer over channels that are alternately read at a position and its two neighbours along an axis."""

    def __init__(self, channels: int, axis: int):
        super().__init__(channels, channels)
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, H, W, C)."""
        return super().forward(cycled(x, self.axis))


class CycleMixer(nn.Module):
    """Three linear layers, along the width, along the height and at the position, weighted per image and channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.sfc_h = CycleLinear(channels, WIDTH)  # named as published, where h is a kernel of height 1
        self.sfc_w = CycleLinear(channels, HEIGHT)
        self.mlp_c = nn.Linear(channels, channels, bias=False)
        self.reweight = Mlp(channels, channels // 4, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, H, W, C)."""
        ways = self.sfc_h(x), self.sfc_w(x), self.mlp_c(x)
        shares = self.reweight(sum(ways).mean(dim=(1, 2))).unflatten(1, (-1, 3)).softmax(dim=2)
        return self.proj(sum(way * share[:, None, None] for way, share in zip(ways, shares.unbind(2), strict=True)))


class CycleBlock(nn.Module):
    """Pre-norm residual mixer and channel MLP."""

    def __init__(self, channels: int, mlp_ratio: float, *, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = CycleMixer(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, int(mlp_ratio * channels))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, H, W, C)."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Downsampling(nn.Conv2d):
    """A convolution whose output is channels-last, as the blocks need it."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W). Returns (B, H, W, C)."""
        return super().forward(x).permute(0, 2, 3, 1).contiguous()


class CycleMLP(Pyramid):
    """Four stages and global average pooling."""

    def __init__(self, depths, channels, mlp_ratios, *, num_classes: int, drop_path: float = 0.0):
        embeddings = [Downsampling(3, channels[0], 7, stride=4, padding=2)]
        for before, after in zip(channels[:-1], channels[1:], strict=True):
            embeddings.append(Downsampling(before, after, 3, stride=2, padding=1))
        sizes = zip(channels, mlp_ratios, split_rates(drop_path, depths), strict=True)
        stages = [[CycleBlock(*size, drop_path=rate) for rate in rates] for *size, rates in sizes]
        norm = nn.LayerNorm(channels[-1])
        super().__init__(embeddings, stages, channels=channels, norm=norm, num_classes=num_classes)

    def map_of(self, output: Tensor) -> Tensor:
        """output: (B, H, W, C). Returns (B, C, H, W)."""
        return output.permute(0, 3, 1, 2)

    def after_stages(self, output: Tensor) -> Tensor:
        """Return the normalised map (B, H, W, C)."""
        return self.norm(output)

    def pooled(self, features: Tensor) -> Tensor:
        """features: (B, H, W, C). Returns their mean (B, C)."""
        return features.mean(dim=(1, 2))


def cyclemlp(size, /, *, num_classes, image_size, drop_path=0.0, **args) -> CycleMLP:
    """Build a CycleMLP of a size of CYCLEMLPS, for images of any size; `args` change its sizes."""
    options = dict(zip(("depths", "channels", "mlp_ratios"), size, strict=True))
    return CycleMLP(**(options | args), num_classes=num_classes, drop_path=drop_path)


for _name, _size in CYCLEMLPS.items():
    register(_name, partial(cyclemlp, _size))
