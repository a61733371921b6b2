"""Backbones of blocks in stages, each starting with an embedding that may downsample; every block is a tap.

Shapes: B batch, C channels, H height, W width, P = H W patches, T class tokens, N = T + P, K classes.
"""

from functools import partial
from itertools import accumulate
from typing import NamedTuple

from timm.layers import trunc_normal_
from torch import Tensor, nn

from pycls_std.models.staged import Staged


class Tokens(NamedTuple):
    """Patches of an image, row by row, after the class tokens."""

    values: Tensor  # (B, N, C)
    height: int
    width: int

    def map(self) -> Tensor:
        """Return the patches as a map, (B, C, H, W)."""
        patches = self.values[:, self.values.shape[1] - self.height * self.width :]
        return patches.transpose(1, 2).unflatten(2, (self.height, self.width))

    def prefix(self) -> Tensor:
        """Return the class tokens, (B, T, C)."""
        return self.values[:, : self.values.shape[1] - self.height * self.width]


def tokens_of(maps: Tensor) -> Tokens:
    """Return the patches of maps (B, C, H, W), without class tokens."""
    return Tokens(maps.flatten(2).transpose(1, 2), *maps.shape[2:])


class Pyramid(Staged):
    """Taps are blocks.0, blocks.1, ... of all stages.

    embeddings: one for each stage, from (B, C, H, W) to the blocks' input and output type: Tokens, or another one that
    a subclass's `map_of` takes; the first reduces the image by `reduction`, the others by 2. stages: blocks of each.
    channels: of each. norm: after the last block.
    """

    def __init__(self, embeddings, stages, *, channels, norm: nn.Module, num_classes: int, reduction: int = 4):
        super().__init__()
        self.embeddings = nn.ModuleList(embeddings)
        self.blocks = nn.ModuleList(block for blocks in stages for block in blocks)
        self.norm = norm
        self.head = nn.Linear(channels[-1], num_classes)
        self.num_classes = num_classes
        depths = [len(blocks) for blocks in stages]
        self.openings = dict(zip(accumulate(depths[:-1]), range(1, len(depths)), strict=True))  # block -> stage
        stage_of = [stage for stage, depth in enumerate(depths) for _ in range(depth)]
        self.feature_info = [
            {"module": f"blocks.{index}", "num_chs": channels[stage], "reduction": reduction * 2**stage}
            for index, stage in enumerate(stage_of)
        ]
        _initialize_linear(self)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters without weight decay: position embeddings and class tokens."""
        return {name for name, _ in self.named_parameters() if name.endswith(("pos_embed", "cls_token"))}

    def stem(self, images: Tensor):
        """images: (B, 3, H, W)."""
        return self.embeddings[0](images)

    def stages(self):
        """Return all blocks, the first of each stage preceded by the stage's embedding."""
        return tuple(partial(self._step, index) for index in range(len(self.blocks)))

    def _step(self, index: int, x):
        if index in self.openings:
            x = self.embeddings[self.openings[index]](self.map_of(x))
        return self.blocks[index](x)

    def map_of(self, output) -> Tensor:
        """Return the map (B, C, H, W) of a block's output, which is Tokens unless a subclass overrides this."""
        return output.map()

    def after_stages(self, output) -> Tensor:
        """Return all tokens (B, N, C), normalised."""
        return self.norm(output.values)

    def pooled(self, features: Tensor) -> Tensor:
        """features: (B, N, C). Returns the class token (B, C)."""
        return features[:, 0]

    def get_classifier(self) -> nn.Linear:
        """Return the layer that outputs the logits."""
        return self.head


def split_rates(drop_path: float, depths: tuple[int, ...]) -> list[list[float]]:
    """Return the stochastic depth rates of the blocks of every stage, rising linearly from 0 to drop_path."""
    rates = [drop_path * index / max(sum(depths) - 1, 1) for index in range(sum(depths))]
    return [rates[end - depth : end] for depth, end in zip(depths, accumulate(depths), strict=True)]


def _initialize_linear(backbone: nn.Module) -> None:
    """Initialize linear layers: weights truncated normal with standard deviation 0.02, biases 0."""
    for module in backbone.modules():
        if isinstance(module, nn.Linear):
            trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
