"""Swin with reconfigured attention (RAM): detection tokens pass through all stages together with the patches.

Source: Song et al., ICLR 2022 (ViDT), code; names of the layers as there. Windows, merging, MLP: timm's Swin.
Shapes: B batch, H height, W width, C channels, P patches, Q detection tokens, D channels of their positions.
"""

from typing import NamedTuple

import torch
from timm.layers import PatchEmbed
from timm.models.swin_transformer import PatchMerging
from torch import Tensor, nn
from torch.nn.init import trunc_normal_

from pycls_std.core.structures import Padded
from pycls_std.layers.padding import mask_at, nearest_mask, zeroed
from pycls_std.layers.positions import sine_positions
from pycls_std.layers.reconfigured_attention import ReconfiguredBlock, View
from pycls_std.layers.shifted_windows import shifted_mask

PATCH = 4


class BodySizes(NamedTuple):
    """Sizes of a Swin with RAM."""

    embed_dim: int = 96  # channels of the first stage; they double with each stage
    depths: tuple[int, ...] = (2, 2, 6, 2)  # blocks of the stages; every second block shifts its windows
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    queries: int = 100  # detection tokens
    mask_padding: bool = True  # False = windows attend to the padding between images of different sizes, as in the
    # published code, whose nearest-neighbour masks may also include a row or column of padding if a side is not a
    # multiple of 32 pixels


class Maps(NamedTuple):
    """The backbone's output for a batch."""

    maps: list[Tensor]  # (B, C, H, W) each: those of the stages, and one downsampled from the last
    masks: list[Tensor | None]  # (B, H, W) of each, true where there is image; None = everywhere
    det: Tensor  # (B, Q, C) detection tokens of the last computed stage


class RamStage(nn.Module):
    """The blocks of a stage, followed by patch merging (2 x 2).

    index: of the stage. In the last one the detection tokens also attend to the patches, and the merging outputs D
    channels, `positions`; otherwise twice those of the stage. drop_path: rate of each block.
    """

    def __init__(self, sizes: BodySizes, index: int, *, positions: int, drop_path: list[float]):
        super().__init__()
        channels, heads = sizes.embed_dim * 2**index, sizes.num_heads[index]
        if channels % heads:
            raise ValueError(f"num_heads has {heads}, which does not divide the {channels} channels of stage {index}")
        self.cross = index == len(sizes.depths) - 1
        self.mask_padding = sizes.mask_padding
        self.window, self.shift = sizes.window_size, sizes.window_size // 2
        options = {"heads": heads, "window": self.window, "positions": positions}
        self.blocks = nn.ModuleList(
            ReconfiguredBlock(channels, shift=self.shift if block % 2 else 0, drop_path=rate, **options)
            for block, rate in enumerate(drop_path)
        )
        self.downsample = PatchMerging(channels, positions if self.cross else 2 * channels)

    def forward(self, x: Tensor, det: Tensor, det_positions: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """x: (B, H, W, C). det: (B, Q, C). det_positions: (1, Q, D). mask: (B, H, W); None = all is image."""
        view = self._view(x, mask)
        tokens = torch.cat([x.flatten(1, 2), det], dim=1)
        for block in self.blocks:
            tokens = block(tokens, det_positions, view)
        x, det = tokens.split([x.shape[1] * x.shape[2], det.shape[1]], dim=1)
        return x.unflatten(1, view.size), det

    def _view(self, x: Tensor, mask: Tensor | None) -> View:
        size = x.shape[1], x.shape[2]
        own = mask if self.mask_padding else None
        shifted = shifted_mask(size, window=self.window, shift=self.shift, mask=own, like=x)
        if not self.cross:
            return View(size, own, shifted, None, None)
        image = x.new_ones((1, *size), dtype=torch.bool) if mask is None else mask
        positions = sine_positions(image, x.shape[3]).flatten(1, 2).to(x.dtype)
        return View(size, own, shifted, positions, None if mask is None else mask.flatten(1))

    def merge(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return the map (B, H, W, C) with half the height and width, rounded up. mask: (B, H, W)."""
        return self.downsample(zeroed(x, mask if self.mask_padding else None))

    def widen(self, det: Tensor) -> Tensor:
        """Project detection tokens (B, Q, C) to the next stage's channels, by the weights of the patch merging."""
        return self.downsample.reduction(self.downsample.norm(det.repeat(1, 1, 4)))


class SwinRam(nn.Module):
    """Patches of 4 x 4 pixels and learned detection tokens, with learned positions (1, Q, D), through all stages.

    drop_path: rate of the last block, rising linearly from 0. Linear layers are initialized as in Swin, std 0.02.
    Raises ValueError for lists of different lengths or of one entry, and for heads that do not divide the channels.
    """

    def __init__(self, sizes: BodySizes, *, positions: int, drop_path: float = 0.0):
        super().__init__()
        depths = sizes.depths
        if len(depths) != len(sizes.num_heads):
            raise ValueError(f"depths has {len(depths)} entries, num_heads {len(sizes.num_heads)}")
        if len(depths) < 2:
            raise ValueError(f"depths has {len(depths)} entries, expected at least 2")
        self.patch_embed = PatchEmbed(
            None,
            PATCH,
            embed_dim=sizes.embed_dim,
            norm_layer=nn.LayerNorm,
            flatten=False,
            output_fmt="NHWC",
            dynamic_img_pad=True,
        )
        self.det_token = nn.Parameter(torch.zeros(1, sizes.queries, sizes.embed_dim))
        self.det_pos_embed = nn.Parameter(torch.zeros(1, sizes.queries, positions))
        rates = torch.linspace(0, drop_path, sum(depths), device="cpu").split(list(depths))
        self.stages = nn.ModuleList(
            RamStage(sizes, index, positions=positions, drop_path=rate.tolist()) for index, rate in enumerate(rates)
        )
        self.mask_padding = sizes.mask_padding
        self.channels = [sizes.embed_dim * 2**index for index in range(len(depths))]
        self._initialize()

    def _initialize(self) -> None:
        for parameter in (self.det_token, self.det_pos_embed):
            trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _mask(self, mask: Tensor | None, size: tuple[int, int]) -> Tensor | None:
        """Return the mask of a map of a size; mask: (B, H, W) of the images."""
        return None if mask is None else mask_at(mask, size) if self.mask_padding else nearest_mask(mask, size)

    def _attended(self, mask: Tensor | None, size: tuple[int, int]) -> Tensor | None:
        """Return the mask of the last stage that detection tokens use.

        The published code resizes a mask of as many whole patches of that stage as fit into the images.
        """
        if mask is None or self.mask_padding:
            return self._mask(mask, size)
        whole = [max(-(-side // PATCH) >> len(self.stages) - 1, 1) for side in mask.shape[1:]]
        return nearest_mask(nearest_mask(mask, (whole[0], whole[1])), size)

    def forward(self, images: Tensor | Padded, *, stages: int | None = None) -> Maps:
        """images: (B, 3, H, W), or padded ones. stages: number to compute; None = all, and the last merged map."""
        pixels, mask = images if isinstance(images, Padded) else (images, None)
        x = self.patch_embed(pixels if mask is None else pixels.masked_fill(~mask[:, None], 0))
        det = self.det_token.expand(len(x), -1, -1)
        maps: list[Tensor] = []
        masks: list[Tensor | None] = []
        before = None
        for stage in self.stages[:stages]:
            assert isinstance(stage, RamStage), "made so above"
            if before is not None:
                x, det = before.merge(x, masks[-1]), before.widen(det)
            size = x.shape[1], x.shape[2]
            masks.append(self._mask(mask, size))
            x, det = stage(x, det, self.det_pos_embed, self._attended(mask, size) if stage.cross else masks[-1])
            maps.append(x.permute(0, 3, 1, 2))
            before = stage
        if before is not None and len(maps) == len(self.stages):
            x = before.merge(x, masks[-1])
            maps.append(x.permute(0, 3, 1, 2))
            masks.append(self._mask(mask, (x.shape[1], x.shape[2])))
        return Maps(maps, masks, det)
