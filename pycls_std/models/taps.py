"""Named taps of a backbone, the points where features are read: their names, their selection, and reading them.

Shapes: B batch, C channels, H height, W width, K classes.
"""

from fractions import Fraction
from typing import Any, NamedTuple

from torch import Tensor, nn

from pycls_std.core.structures import Padded
from pycls_std.models.contract import Backbone

# Feature vectors (B, C) of every backbone in addition to its taps: the classifier's input; and the spatial mean of the
# head's input, without class and distillation tokens, after a final norm if that precedes the pooling.
POOLED, PATCHES = "pooled", "patches"
VECTORS = (POOLED, PATCHES)


class TapShape(NamedTuple):
    """Size of the feature map of a tap."""

    channels: int
    height: int
    width: int

    @property
    def patches(self) -> int:
        """Number of positions of the map."""
        return self.height * self.width


def tap_names(backbone: Backbone) -> list[str]:
    """Return the names of a backbone's taps, in their order: the modules whose outputs they are.

    Raises ValueError if the backbone has none.
    """
    if not hasattr(backbone, "forward_intermediates"):
        raise ValueError(f"{type(backbone).__name__} offers no forward_intermediates, so nothing can be tapped")
    return [info["module"] for info in backbone.feature_info]


def query_taps(backbone: Backbone) -> frozenset[str]:
    """Return the names of the backbone's taps that are queries, not feature maps of the image."""
    return frozenset(info["module"] for info in backbone.feature_info if info.get("queries"))


def choose_taps(key: str, choices: list[str], names: list[str], *, also: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the names of the chosen taps.

    key: the option, for the error message. choices: a name such as blocks.5 or layer3, `last`, a position such as 5 or
    -1, or a share of the depth: 2/3 means int(len(names) * 2 / 3), counted from 0. names: of all taps. also: other
    values of the option, for the error message.
    Raises ValueError for a tap that does not exist or is chosen twice, and if the order is not ascending.
    """
    if not choices:
        raise ValueError(f"{key} is empty, expected at least one tap of {', '.join(names)}")
    count, positions = len(names), []
    for choice in choices:
        if choice in names:
            positions.append(names.index(choice))
            continue
        try:
            position = (
                count - 1 if choice == "last" else int(count * Fraction(choice)) if "/" in choice else int(choice)
            )
        except (ValueError, ZeroDivisionError):
            raise ValueError(
                f"{key} has {choice!r}, expected {''.join(f'{each}, ' for each in also)}last, a position, a share such "
                f"as 2/3, or one of {', '.join(names)}"
            ) from None
        position += count if position < 0 else 0
        if not 0 <= position < count:
            raise ValueError(f"{key} has {choice!r}, the backbone has the taps 0 to {count - 1}: {', '.join(names)}")
        positions.append(position)
    if positions != sorted(set(positions)):
        raise ValueError(f"{key} {choices} are the taps {positions}, expected ascending ones, each once")
    return tuple(names[position] for position in positions)


def choose_features(key: str, choice: str, names: list[str]) -> str:
    """Return the name of the chosen features: one of VECTORS, or a tap, see `choose_taps`."""
    return choice if choice in VECTORS else choose_taps(key, [choice], names, also=VECTORS)[0]


def read(
    backbone: Backbone, images: Tensor | Padded, taps: tuple[str, ...], *, head: bool = True
) -> tuple[Any, dict[str, Tensor]]:
    """Return the input of the backbone's head, which may be None without `head`, and the features of the taps.

    images: (B, 3, H, W). taps: names, in any order; those of VECTORS are (B, C), all others are maps (B, C, H, W),
    without class and distillation tokens.
    """
    names = tap_names(backbone) if set(taps) - {POOLED} else []
    last = {len(names) - 1} if PATCHES in taps else set()
    positions = sorted(last | {names.index(tap) for tap in taps if tap not in VECTORS})
    if not positions:
        features, maps = backbone.forward_features(images), []
    elif head or set(taps) & set(VECTORS):
        features, maps = backbone.forward_intermediates(images, indices=positions, output_fmt="NCHW")
    else:
        features = None
        maps = backbone.forward_intermediates(
            images, indices=positions, stop_early=True, output_fmt="NCHW", intermediates_only=True
        )
    found = {names[position]: each for position, each in zip(positions, maps, strict=True) if names[position] in taps}
    if PATCHES in taps:
        found[PATCHES] = _mean_of_patches(features, maps[-1], prefix_tokens(backbone))
    if POOLED in taps:
        pooled = backbone.forward_head(features, pre_logits=True)
        found[POOLED] = sum(pooled) / len(pooled) if isinstance(pooled, tuple) else pooled  # one for each of two heads
    return features, found


def prefix_tokens(backbone: nn.Module) -> int:
    """Return the number of class, distillation and other tokens before the patches in the input of the head."""
    token = getattr(backbone, "cls_token", None)
    return getattr(backbone, "num_prefix_tokens", 0 if token is None else token.shape[1])


def _mean_of_patches(features, last: Tensor, prefix: int) -> Tensor:
    """Return the spatial mean (B, C) of a head's input.

    features: tokens (B, N, C), prefix tokens first, or a map, channels first or last. last: the last tap's map
    (B, C, H, W), which gives the spatial size, and is averaged itself if the features have no patches (PiT passes only
    its prefix tokens to the head). prefix: number of tokens that are not patches.
    """
    channels, height, width = last.shape[1:]
    shape = tuple(features.shape[1:]) if isinstance(features, Tensor) else ()
    if shape == (channels, height, width):
        return features.mean(dim=(2, 3))
    if shape == (height, width, channels):
        return features.mean(dim=(1, 2))
    if shape == (prefix + height * width, channels):
        return features[:, prefix:].mean(dim=1)
    return last.mean(dim=(2, 3))
