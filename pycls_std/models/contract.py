"""The interface of a backbone: timm's, plus names of its heads if it is not a classifier.

Shapes: B batch, H height, W width, C channels, K classes.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor, nn

from pycls_std.core.structures import Padded


class Adopted(NamedTuple):
    """A state dict converted from another architecture: its weights, by the names of this model."""

    state: dict[str, Tensor]  # of the whole model
    new: list[str]  # names of weights that the other model lacks, which keep their values
    unused: list[str]  # names of weights of the other model that this one does not have
    args: Mapping[str, Any] = MappingProxyType({})  # constructor arguments needed to compute as the other model


class Backbone(nn.Module):
    """A model whose intermediate features can be read: timm's classifiers, and this project's models.

    It only describes their common interface: no model derives from it, and there are no isinstance checks.
    A model with other heads, such as a detector, has their names in `head_names`, and returns a dictionary of outputs
    instead of logits. A model for padded images also takes a plain batch (B, 3, H, W). One that can be initialized from
    another architecture has a method `adopted(state)`, which returns `Adopted`, or None for weights that are not of
    such a model.
    """

    # One entry for each tap; `module` is its name. `queries` is true if the tap is queries (B, C, L, Q) of L levels,
    # not a feature map of the image.
    feature_info: list[dict]
    set_distilled_training: Callable[[bool], None]  # timm's; only of models with a distillation head

    def forward_features(self, images: Tensor | Padded) -> Any:
        """Return the input of the head, for most models a tensor."""
        raise NotImplementedError

    def forward_head(self, features: Any, pre_logits: bool = False) -> Any:
        """Return (B, K) logits; the classifier's input, (B, C), if pre_logits."""
        raise NotImplementedError

    def get_classifier(self) -> nn.Module | tuple[nn.Module, ...]:
        """Return the layer that outputs the logits, or one for each head."""
        raise NotImplementedError

    def forward_intermediates(
        self, images: Tensor | Padded, indices=None, *, stop_early=False, output_fmt="NCHW", intermediates_only=False
    ) -> Any:
        """Return `forward_features(images)` and the outputs (B, C, H, W) of the taps at `indices`, in their order.

        indices: ascending positions in `feature_info`; None = all. stop_early: compute nothing after the last of them.
        intermediates_only: return the outputs of the taps alone.
        """
        raise NotImplementedError


def classifier_names(backbone: Backbone) -> list[str]:
    """Return the names of the layers of a backbone that output logits, one for each head."""
    found = backbone.get_classifier()
    heads = found if isinstance(found, tuple) else (found,)
    return [name for name, module in backbone.named_modules() if any(module is head for head in heads)]


def head_names(backbone: Backbone) -> tuple[str, ...]:
    """Return the names of a backbone's heads: its own, or `cls` of a classifier."""
    return getattr(backbone, "head_names", ("cls",))


def named_heads(output: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a backbone's output as a dictionary by head name."""
    return output if isinstance(output, dict) else {"cls": output}


def adopted(backbone: Backbone, state: dict[str, Tensor]) -> Adopted | None:
    """Return another architecture's weights converted to this model's names; None if that is not possible."""
    adopt = getattr(backbone, "adopted", None)
    return adopt(state) if adopt else None
