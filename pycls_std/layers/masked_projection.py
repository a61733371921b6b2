"""A 1x1 convolution and a group norm whose statistics exclude padding.

Shapes: B batch, C channels, H height, W width.
"""

import torch
from torch import Tensor, nn

from pycls_std.core.precision import full_precision


class MaskedProjection(nn.Sequential):
    """Project to other channels, then apply a group norm of 32 groups with statistics over unpadded positions only.

    Otherwise an image's result would depend on how far its batch is padded. Without a mask it is a plain group norm.
    Raises ValueError if 32 does not divide the output channels.
    """

    def __init__(self, channels_in: int, channels_out: int, *, groups: int = 32):
        convolution = nn.Conv2d(channels_in, channels_out, 1)
        super().__init__(convolution, nn.GroupNorm(groups, channels_out))
        nn.init.xavier_uniform_(convolution.weight)
        assert convolution.bias is not None, "a convolution has one unless told otherwise"
        nn.init.zeros_(convolution.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x: (B, C, H, W). mask: (B, H, W) true where there is image; None = everywhere."""
        convolution, norm = self
        assert isinstance(norm, nn.GroupNorm), "made so above"
        x = convolution(x)
        if mask is None:  # not `norm(x)`, which refuses groups of one value; their result is the bias
            return torch.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
        return _masked_group_norm(x, mask, norm)


def _masked_group_norm(x: Tensor, mask: Tensor, norm: nn.GroupNorm) -> Tensor:
    with full_precision(x.device):
        places = mask[:, None, None].float()
        groups = x.float().unflatten(1, (norm.num_groups, -1))  # B, groups, C of one, H, W
        count = places.sum(dim=(2, 3, 4), keepdim=True) * groups.shape[2]
        centred = groups - (groups * places).sum(dim=(2, 3, 4), keepdim=True) / count
        variance = (centred.square() * places).sum(dim=(2, 3, 4), keepdim=True) / count
        normed = (centred * (variance + norm.eps).rsqrt()).flatten(1, 2)
        return (normed * norm.weight[:, None, None] + norm.bias[:, None, None]).to(norm.weight.dtype)
