"""DeiT with a convolutional stem and a distillation token computed from the image, of any size, patch and resolution.

Shapes: B batch, P patches, C channels.
"""

from functools import partial

import torch
from timm.layers import PatchEmbed
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn

from pycls_std.models.entry_points import register

# name: embed_dim, num_heads; 12 blocks, patches of 16. Sources: Ren et al., CVPR 2022 (the stem); Miles et al., CVPR
# 2024 (VkD's students are the first two).
DEITS = {"deit_ti_conv": (192, 3), "deit_s_conv": (384, 6), "deit_b_conv": (768, 12)}
STEM_WIDTH = 64


class ConvStem(PatchEmbed):
    """Embed patches by four convolutions: 7x7 of stride 2, two of 3x3, and the patch projection.

    The first three have batch norm, ReLU and no bias; all are initialized by Kaiming normal.
    Raises ValueError for an odd patch size, since the first convolution halves the image.
    """

    def __init__(self, *, patch_size: int, in_chans: int = 3, **options):
        super().__init__(patch_size=patch_size, in_chans=in_chans, **options)
        if patch_size % 2:
            raise ValueError(f"patch_size is {patch_size}, the stem halves the image first and needs an even one")
        width, cut = STEM_WIDTH, self.proj
        stem = nn.Sequential(
            *_convolution(in_chans, width, 7, stride=2),
            *_convolution(width, width, 3),
            *_convolution(width, width, 3),
            nn.Conv2d(width, cut.out_channels, patch_size // 2, patch_size // 2, bias=cut.bias is not None),
        )
        self.proj = stem  # type: ignore[assignment]  # timm has one convolution there, and only calls it
        for module in stem:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)


def _convolution(channels_in: int, channels_out: int, side: int, *, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(channels_in, channels_out, side, stride, padding=side // 2, bias=False)
    return [convolution, nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True)]


class ImageTokenDeiT(VisionTransformerDistilled):
    """timm's DeiT with two heads, whose distillation token is the mean of the image's patch embeddings.

    Only its position embedding is learned.
    Source: Miles et al., CVPR 2024, code.
    """

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.drop_learned_token()

    def drop_learned_token(self) -> None:
        """Remove the token's parameter. Raises ValueError for dynamic_img_size, whose embeddings are maps."""
        if self.dynamic_img_size:
            raise ValueError("dynamic_img_size is True, the image's token needs images of one size")
        self.register_parameter("dist_token", None)

    def _pos_embed(self, x: Tensor) -> Tensor:
        """x: (B, P, C). Returns class token, distillation token and patches (B, 2 + P, C), plus position embeddings."""
        assert self.cls_token is not None and self.pos_embed is not None, "a DeiT has both"
        tokens = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x.mean(dim=1, keepdim=True), x], dim=1)
        return self.pos_drop(tokens + self.pos_embed)


def use_image_token(backbone: nn.Module) -> None:
    """Turn a DeiT of timm's into an `ImageTokenDeiT`. Raises ValueError for any other model."""
    if type(backbone) is not VisionTransformerDistilled:
        raise ValueError(f"image_token needs a DeiT with two heads, this is a {type(backbone).__name__}")
    backbone.__class__ = ImageTokenDeiT  # timm's entry point built it, with its sizes
    assert isinstance(backbone, ImageTokenDeiT)
    backbone.drop_learned_token()


def deit(size, /, *, num_classes, image_size, drop_path=0.0, image_token=True, **args) -> VisionTransformerDistilled:
    """Build a DeiT of a size of DEITS with two heads; `args` override and are passed to timm's class.

    image_token: False = a learned distillation token, as in DeiT.
    """
    embed_dim, num_heads = size
    options = {"patch_size": 16, "embed_dim": embed_dim, "depth": 12, "num_heads": num_heads, "embed_layer": ConvStem}
    kind = ImageTokenDeiT if image_token else VisionTransformerDistilled
    return kind(num_classes=num_classes, img_size=image_size, drop_path_rate=drop_path, **(options | args))


for _name, _size in DEITS.items():
    register(_name, partial(deit, _size))
