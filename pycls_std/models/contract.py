"""What a backbone offers: timm's contract.

Shapes: B batch, H height, W width, N channels, P patches, K classes.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn


class Backbone(Protocol):
    """A classifier whose features can be tapped, as timm's are and as this project's own are."""

    feature_info: list[dict]  # one entry for each tap

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the features that the head takes."""

    def forward_head(self, features: Tensor) -> Tensor:
        """Return (B, K) logits."""

    def get_classifier(self) -> nn.Module | tuple[nn.Module, ...]:
        """Return the layer that makes the logits, or one for each head."""

    def forward_intermediates(self, images: Tensor, *, indices=None, output_fmt: str = "NCHW"):
        """Return `forward_features(images)` and the outputs (B, N, H, W) of the taps at `indices`, in their order.

        indices: ascending positions in `feature_info`; None = all.
        """


class TapShape(NamedTuple):
    """Size of one tap's output."""

    channels: int
    patches: int


def tap_shapes(backbone: Backbone, image_size: int) -> list[TapShape]:
    """Return the size of every tap of a backbone, found by running one black image through it.

    Raises ValueError if the backbone has no taps, or takes no such image.
    """
    if not hasattr(backbone, "forward_intermediates"):
        raise ValueError(f"{type(backbone).__name__} offers no forward_intermediates, so nothing can be tapped")
    training = backbone.training
    device = next(backbone.parameters()).device
    backbone.eval()
    try:
        with torch.no_grad():
            image = torch.zeros(1, 3, image_size, image_size, device=device)
            _, maps = backbone.forward_intermediates(image, output_fmt="NCHW")
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{type(backbone).__name__} takes no images of 3x{image_size}x{image_size}: {reason}"
        ) from error
    backbone.train(training)
    return [TapShape(channels=m.shape[1], patches=m.shape[2] * m.shape[3]) for m in maps]


def classifier_names(backbone: Backbone) -> list[str]:
    """Return the name within a backbone of the layer that makes its logits, or of one for each head."""
    found = backbone.get_classifier()
    heads = found if isinstance(found, tuple) else (found,)
    return [name for name, module in backbone.named_modules() if any(module is head for head in heads)]


def to_patches(feature_map: Tensor) -> Tensor:
    """Turn a map (B, N, H, W) into patches (B, P, N), P = H W."""
    return feature_map.flatten(2).transpose(1, 2)
