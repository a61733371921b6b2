"""Deformable attention: each query attends to a few learned sampling points in feature maps of several sizes.

Source: Zhu et al., ICLR 2021 (Deformable DETR); layer names and initialization as in its code. The maps are sampled by
grid_sample: of the implementations in logs/benchmarks/deformable_amd-epyc.txt, none is faster on a CPU. `transformers`
5.24 gives bitwise identical results; its kernel is for CUDA only and is downloaded from a hub at run time, so it is not
used.
Shapes: B batch, Q queries, C channels, H height, W width, L maps, S positions of all maps together, M heads, P points.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample


def sample_maps(values: Tensor, sizes: list[tuple[int, int]], places: Tensor, weights: Tensor) -> Tensor:
    """Return weighted sums (B, Q, C) of feature maps at sampling locations, with bilinear interpolation.

    values: (B, S, M, C / M), the flattened maps, concatenated. sizes: height and width of each.
    places: (B, Q, M, L, P, 2) x and y as fractions of a map, 0 and 1 being its outer borders; zero padding outside.
    weights: (B, Q, M, L, P), for the sum over maps and points.
    """
    batch, queries, heads, _, points, _ = places.shape
    if places.device.type == "meta":  # only the shape is needed, which takes grid_sample seconds
        return values.new_empty(batch, queries, values.shape[2:].numel())
    grids = (2 * places - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)  # L, B M, Q, P, 2
    read = []
    for (height, width), grid, value in zip(
        sizes, grids.unbind(0), values.split([height * width for height, width in sizes], dim=1), strict=True
    ):
        value = value.flatten(2).transpose(1, 2).reshape(batch * heads, -1, height, width)
        read.append(grid_sample(value, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    weights = weights.transpose(1, 2).reshape(batch * heads, 1, queries, -1)
    total = (torch.cat(read, dim=-1) * weights).sum(dim=-1)  # B M, C / M, Q
    return total.view(batch, -1, queries).transpose(1, 2)


class DeformableAttention(nn.Module):
    """In each head, each query samples `points` locations around its reference point in each map.

    Raises ValueError if the number of channels is not divisible by the number of heads.
    """

    def __init__(self, channels: int, *, maps: int = 4, heads: int = 8, points: int = 4):
        super().__init__()
        if channels % heads:
            raise ValueError(f"{heads} heads do not divide {channels} channels")
        self.maps, self.heads, self.points = maps, heads, points
        self.sampling_offsets = nn.Linear(channels, heads * maps * points * 2)
        self.attention_weights = nn.Linear(channels, heads * maps * points)
        self.value_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize the sampling points of each head at 1, 2, ... steps in its own direction, with equal weights."""
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
        for layer in (self.attention_weights, self.value_proj, self.output_proj):
            nn.init.zeros_(layer.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
        angles = torch.arange(self.heads, dtype=torch.float32) * (2 * math.pi / self.heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=1)
        directions = directions / directions.abs().amax(dim=1, keepdim=True)  # onto the border of a square
        steps = torch.arange(1, self.points + 1)
        offsets = directions[:, None, None] * steps[:, None]  # M, 1, P, 2
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.maps, -1, -1).flatten())

    def forward(
        self,
        queries: Tensor,
        references: Tensor,
        memory: Tensor,
        *,
        sizes: list[tuple[int, int]],
        image: Tensor | None = None,
    ) -> Tensor:
        """Return (B, Q, C).

        queries: (B, Q, C). references: (B, Q, L, 2), x and y as fractions of each map, with offsets in pixels of the
        map; or (B, Q, L, 4), with width and height, and offsets that are scaled by half of these and divided by the
        number of points. memory: (B, S, C), the flattened maps, concatenated. sizes: height and width of each. image:
        (B, S), false for padding, whose values are set to zero; None = no padding.
        """
        values = self.value_proj(memory)
        if image is not None:
            values = values.masked_fill(~image[..., None], 0)
        values = values.unflatten(2, (self.heads, -1)).float()
        layout = (self.heads, self.maps, self.points)
        weights = self.attention_weights(queries).unflatten(2, (self.heads, -1)).float().softmax(dim=-1)
        offsets = self.sampling_offsets(queries).unflatten(2, (*layout, 2)).float()  # locations need full precision
        centres = references[:, :, None, :, None, :2].float()
        if references.shape[-1] == 2:
            places = centres + _as_shares(offsets, sizes)
        else:
            places = centres + offsets / self.points * references[:, :, None, :, None, 2:].float() * 0.5
        read = sample_maps(values, sizes, places, weights.unflatten(3, layout[1:]))
        return self.output_proj(read.to(queries.dtype))


def _as_shares(offsets: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
    """Return offsets (B, Q, M, L, P, 2), x and y in pixels of each map, as fractions of its size.

    The sizes are Python numbers: a tensor of them would be copied to the device in every layer.
    """
    pairs = zip(offsets.unbind(3), sizes, strict=True)
    shares = [torch.stack([own[..., 0] / width, own[..., 1] / height], dim=-1) for own, (height, width) in pairs]
    return torch.stack(shares, dim=3)
