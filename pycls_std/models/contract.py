"""What a backbone offers: timm's contract, and names for its heads where they are not those of a classifier.

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
    new: list[str]  # names in it of those that the other has not, which stay as they are
    unused: list[str]  # names of those of the other that this one has no place for
    args: Mapping[str, Any] = MappingProxyType({})  # that this one would have to be built with to compute as the other


class Backbone(nn.Module):
    """A model whose features can be tapped, as timm's classifiers are and as this project's own are.

    It is a name for what they have alike: none of them derives from it, and nothing is asked whether it does.
    One with heads of its own, such as a detector, has their names in `head_names`, and returns a dictionary of them
    where a classifier returns logits. A model of padded images takes a plain batch (B, 3, H, W) as well. One that can
    start from another model has a method `adopted(state)`, which returns `Adopted`, or None for weights that are none
    of such a model.
    """

    # One entry for each tap; `module` is its name. `queries` is true of one whose places are queries (B, C, L, Q), of L
    # levels, and no map of the image.
    feature_info: list[dict]
    set_distilled_training: Callable[[bool], None]  # of one with a distillation head alone; as timm has it

    def forward_features(self, images: Tensor | Padded) -> Any:
        """Return the features that the head takes, of most models a tensor."""
        raise NotImplementedError

    def forward_head(self, features: Any, pre_logits: bool = False) -> Any:
        """Return (B, K) logits; what the classifier reads, (B, C), if pre_logits."""
        raise NotImplementedError

    def get_classifier(self) -> nn.Module | tuple[nn.Module, ...]:
        """Return the layer that makes the logits, or one for each head."""
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
    """Return the name within a backbone of the layer that makes its logits, or of one for each head."""
    found = backbone.get_classifier()
    heads = found if isinstance(found, tuple) else (found,)
    return [name for name, module in backbone.named_modules() if any(module is head for head in heads)]


def head_names(backbone: Backbone) -> tuple[str, ...]:
    """Return the names of a backbone's heads: its own, or `cls` of a classifier."""
    return getattr(backbone, "head_names", ("cls",))


def named_heads(output: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what a backbone's head returned, by the names of the heads."""
    return output if isinstance(output, dict) else {"cls": output}


def adopted(backbone: Backbone, state: dict[str, Tensor]) -> Adopted | None:
    """Return the weights of another model by the names of this one; None if they are no such weights."""
    adopt = getattr(backbone, "adopted", None)
    return adopt(state) if adopt else None
