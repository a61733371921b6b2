"""Review of ReviewKD: the student's deeper stages are fused into its earlier ones, from the last to the first.

Shapes: B batch, C channels, H height, W width.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

GREATEST = 512  # maximum channels of fused maps


class Fusion(nn.Module):
    """Fuse one stage of the student with the fused map of the next stage, by weights at every position.

    channels: of the stage. fused: of the fused map. target: of the teacher's map. last: whether there is no next stage.
    Source: Chen et al., CVPR 2021 (ReviewKD), attention-based fusion.
    """

    def __init__(self, channels: int, fused: int, target: int, *, last: bool):
        super().__init__()
        first = nn.Conv2d(channels, fused, 1, bias=False)
        second = nn.Conv2d(fused, target, 3, padding=1, bias=False)
        self.enter = nn.Sequential(first, nn.BatchNorm2d(fused))
        self.leave = nn.Sequential(second, nn.BatchNorm2d(target))
        self.weights = None if last else nn.Sequential(nn.Conv2d(2 * fused, 2, 1), nn.Sigmoid())
        for layer in (first, second):
            nn.init.kaiming_uniform_(layer.weight, a=1)

    def forward(self, features: Tensor, later: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """features: (B, C, H, W). later: the fused map of the next stage. size: of the teacher's map.

        Returns the map to compare with the teacher's, and the fused map, both of that size.
        """
        x = self.enter(features)
        if self.weights is not None:
            assert later is not None, "the last stage alone has nothing after it, and no weights"
            later = interpolate(later, x.shape[2:], mode="nearest")
            weights = self.weights(torch.cat([x, later], dim=1))
            x = x * weights[:, :1] + later * weights[:, 1:]
        if x.shape[2:] != size:
            x = interpolate(x, size, mode="nearest")
        return self.leave(x), x


class Review(nn.Module):
    """Fusions of all stages of a student, as many as the teacher has.

    student, teacher: (C, H, W) of each stage, in their order, the pooled features last, as 1x1 maps.
    """

    def __init__(self, student: list[tuple[int, int, int]], teacher: list[tuple[int, int, int]]):
        super().__init__()
        fused = min(GREATEST, student[-1][0])
        self.sizes = [tuple(shape[1:]) for shape in teacher]
        self.stages = nn.ModuleList(
            Fusion(own[0], fused, other[0], last=number == len(student) - 1)
            for number, (own, other) in enumerate(zip(student, teacher, strict=True))
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """maps: (B, C, H, W) of each stage. Returns a map of each, of the teacher's shape."""
        results: list[Tensor] = []
        later = None
        for number in reversed(range(len(maps))):
            result, later = self.stages[number](maps[number], later, self.sizes[number])
            results.insert(0, result)
        return results
