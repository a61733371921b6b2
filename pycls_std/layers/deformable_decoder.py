"""The deformable DETR decoder: queries read maps by deformable attention and refine their boxes layer by layer.

Source: Zhu et al., ICLR 2021 (Deformable DETR), code; names and initialization of the layers as there.
Shapes: B batch, Q queries, C channels, S positions of all maps together, N maps, L prediction levels.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad, relu, scaled_dot_product_attention

from pycls_std.core.precision import full_precision
from pycls_std.layers.deformable_attention import DeformableAttention


class DecoderSizes(NamedTuple):
    """Sizes of a decoder."""

    hidden: int = 256  # channels
    decoder_layers: int = 6
    decoder_heads: int = 8
    points: int = 4  # sampling points per head and map
    ffn: int = 1024  # hidden units of the MLP
    dropout: float = 0.1
    refine: bool = True  # each layer refines the previous layer's boxes; False = all start from the same points


class Memory(NamedTuple):
    """Flattened and concatenated maps, as the decoder reads them."""

    places: Tensor  # (B, S, C), row by row
    sizes: list[tuple[int, int]]  # height and width of each map
    image: Tensor | None  # (B, S) true where there is image; None = everywhere
    ratios: Tensor | None  # (B, N, 2) unpadded fractions of the width and height of each map; None = all


class Decoded(NamedTuple):
    """The decoder's output at each prediction level: of the initial queries, and after each layer."""

    queries: Tensor  # (B, L, Q, C)
    boxes: Tensor  # (B, L, Q, 4) centre x, centre y, width, height, as fractions of the image
    tokens: list[Tensor] | None = None  # (B, H, W, K + 1) of each map; a ViDT's token labeling logits, in training


def memory_of(maps: list[Tensor], masks: list[Tensor | None]) -> Memory:
    """Return the memory of maps (B, C, H, W), with masks (B, H, W) that are true where there is image."""
    places = torch.cat([each.flatten(2) for each in maps], dim=2).transpose(1, 2)
    sizes = [(each.shape[2], each.shape[3]) for each in maps]
    known = [each for each in masks if each is not None]  # all of them or none
    if not known:
        return Memory(places, sizes, None, None)
    ratios = [torch.stack([each[:, 0].float().mean(dim=1), each[:, :, 0].float().mean(dim=1)], dim=1) for each in known]
    return Memory(places, sizes, torch.cat([each.flatten(1) for each in known], dim=1), torch.stack(ratios, dim=1))


class DecoderLayer(nn.Module):
    """Self-attention of the queries, deformable cross-attention to the maps, and an MLP; a norm after each."""

    def __init__(self, sizes: DecoderSizes, *, maps: int):
        super().__init__()
        channels, heads = sizes.hidden, sizes.decoder_heads
        self.self_attn = nn.MultiheadAttention(channels, heads, dropout=sizes.dropout, batch_first=True)
        self.cross_attn = DeformableAttention(channels, maps=maps, heads=heads, points=sizes.points)
        self.linear1 = nn.Linear(channels, sizes.ffn)
        self.linear2 = nn.Linear(sizes.ffn, channels)
        for layer in (self.self_attn.out_proj, self.linear1, self.linear2):
            nn.init.xavier_uniform_(layer.weight)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, queries: Tensor, positions: Tensor, references: Tensor, memory: Memory) -> Tensor:
        """queries, positions: (B, Q, C). references: (B, Q, N, 2 or 4), see `DeformableAttention`."""
        placed = queries + positions
        queries = self.norm2(queries + self.dropout(self._among(placed, queries)))
        seen = self.cross_attn(queries + positions, references, memory.places, sizes=memory.sizes, image=memory.image)
        queries = self.norm1(queries + self.dropout(seen))
        seen = self.linear2(self.dropout(relu(self.linear1(queries))))
        return self.norm3(queries + self.dropout(seen))

    def _among(self, placed: Tensor, values: Tensor) -> Tensor:
        """Return the result of torch's MultiheadAttention, but by a function that `WideAttention` can intercept."""
        own = self.self_attn
        both = 2 * own.embed_dim
        query, key = linear(placed, own.in_proj_weight[:both], own.in_proj_bias[:both]).chunk(2, dim=2)
        value = linear(values, own.in_proj_weight[both:], own.in_proj_bias[both:])
        query, key, value = (each.unflatten(2, (own.num_heads, -1)).transpose(1, 2) for each in (query, key, value))
        seen = scaled_dot_product_attention(query, key, value, dropout_p=own.dropout if self.training else 0.0)
        return own.out_proj(seen.transpose(1, 2).flatten(2))


class Decoder(nn.Module):
    """The layers, the queries' initial reference points, and the box heads, one per level or one for all.

    Raises ValueError for less than one layer, and for heads that do not divide the channels.
    """

    def __init__(self, sizes: DecoderSizes, *, maps: int):
        super().__init__()
        if sizes.decoder_layers < 1:
            raise ValueError(f"decoder_layers is {sizes.decoder_layers}, expected at least 1")
        self.refine = sizes.refine
        self.layers = nn.ModuleList(DecoderLayer(sizes, maps=maps) for _ in range(sizes.decoder_layers))
        self.reference_points = nn.Linear(sizes.hidden, 2)
        nn.init.xavier_uniform_(self.reference_points.weight)
        levels = range(len(self.layers) + 1 if self.refine else 1)
        # Initial boxes have about an eighth of the image's width and height.
        self.boxes = nn.ModuleList(_box_head(sizes.hidden, extent=0.0 if level else -2.0) for level in levels)

    def forward(self, queries: Tensor, positions: Tensor, memory: Memory) -> Decoded:
        """queries: (B, Q, C). positions: (B, Q, C), or (1, Q, C)."""
        positions = positions.expand_as(queries)
        with full_precision(queries.device):  # in half precision, steps are several pixels
            references = self.reference_points(positions.to(self.reference_points.weight.dtype)).float().sigmoid()
        found, boxes = [queries], [self._boxes(0, queries, references)]
        for level, layer in enumerate(self.layers, start=1):
            references = boxes[-1].detach() if self.refine else references
            queries = layer(queries, positions, _on_maps(references, memory), memory)
            found.append(queries)
            boxes.append(self._boxes(level, queries, references))
        return Decoded(torch.stack(found, dim=1), torch.stack(boxes, dim=1))

    def _boxes(self, level: int, queries: Tensor, references: Tensor) -> Tensor:
        head = self.boxes[level % len(self.boxes)]
        with full_precision(queries.device):
            changes = head(queries.to(next(head.parameters()).dtype)).float()
            known = inverse_sigmoid(references)
            return (changes + pad(known, (0, 4 - known.shape[-1]))).sigmoid()


def inverse_sigmoid(x: Tensor, epsilon: float = 1e-5) -> Tensor:
    """Return log(x / (1 - x)) of numbers from 0 to 1, with x and 1 - x clamped to at least epsilon."""
    return (x.clamp(min=epsilon) / (1 - x).clamp(min=epsilon)).log()


def _on_maps(references: Tensor, memory: Memory) -> Tensor:
    """Convert fractions of the image (B, Q, 2 or 4) to fractions of each padded map, (B, Q, N, 2 or 4)."""
    each = references[:, :, None]
    if memory.ratios is None:
        return each.expand(-1, -1, len(memory.sizes), -1)
    return each * memory.ratios.repeat(1, 1, references.shape[-1] // 2)[:, None]


def three_layers(channels: int, values: int) -> nn.Sequential:
    """Return an MLP of three linear layers from channels to values."""
    first, second, last = (nn.Linear(channels, width) for width in (channels, channels, values))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)


def _box_head(channels: int, *, extent: float) -> nn.Sequential:
    """Return an MLP to 4 values; its last layer is initialized to zero, the biases of width and height to `extent`."""
    head = three_layers(channels, 4)
    last = head[-1]
    assert isinstance(last, nn.Linear), "made so above"
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    nn.init.constant_(last.bias[2:], extent)
    return head
