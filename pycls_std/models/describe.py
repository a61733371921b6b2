"""Descriptions of models without weights: the shapes of taps and heads, from which methods are built."""

from typing import Any

import torch

from pycls_std.core.registry import BACKBONES
from pycls_std.core.seeding import seeded
from pycls_std.models.contract import Backbone, named_heads
from pycls_std.models.create import create_backbone
from pycls_std.models.taps import POOLED, VECTORS, TapShape, query_taps, read, tap_names

# Cache of measured shapes, since a forward pass on the meta device takes as long as on a CPU.
FOUND: dict[tuple, Any] = {}


class Description:
    """A model that is not built yet; its shapes are determined on first use, once per process.

    name, num_classes, image_size, args: see `create_backbone`.
    """

    source = "MODEL.ARGS"  # the option that sets its arguments

    def __init__(self, name: str, *, num_classes: int, image_size: int, **args):
        self.name = name
        self.num_classes = num_classes
        self._image_size, self._args = image_size, args

    @property
    def image_size(self) -> int:
        """Side of its input, pixels."""
        return self._image_size

    @property
    def args(self) -> dict:
        """Keyword arguments of its constructor."""
        return self._args

    @property
    def taps(self) -> dict[str, TapShape]:
        """Shape of every tap, by name. Raises ValueError if the model has none, or does not accept the image size."""
        return self._sizes[0]

    @property
    def queries(self) -> frozenset[str]:
        """Names of the taps that are queries, not feature maps of the image."""
        return self._sizes[2]

    @property
    def pooled(self) -> int:
        """Channels of the pooled features, the classifier's input."""
        return self.vectors[POOLED]

    @property
    def vectors(self) -> dict[str, int]:
        """Channels of the features that are vectors, by name: `taps.VECTORS`."""
        return self._sizes[1]

    def shape(self, tap: str) -> tuple[int, ...]:
        """Return the shape, without the batch, of a tap, or of one of VECTORS."""
        return (self.vectors[tap],) if tap in VECTORS else tuple(self.taps[tap])

    @property
    def heads(self) -> dict[str, tuple[int, ...]]:
        """Shape of each head's output, without the batch, by name."""
        return self._once(_head_shapes)

    @property
    def _sizes(self):
        return self._once(_sizes_of)

    def _once(self, measure):
        made_by = BACKBONES.get(self.name) if self.name in BACKBONES else None  # a name may be registered anew
        key = measure, self.name, made_by, self.num_classes, self.image_size, repr(sorted(self.args.items()))
        if key not in FOUND:
            FOUND[key] = self._try(measure)
        return FOUND[key]

    @torch.no_grad()
    def _try(self, measure):
        """Return the measurement of the model on an image, on the meta device if possible, otherwise on the CPU."""
        size = self.image_size
        try:
            with torch.device("meta"):  # nothing is allocated, drawn or computed
                return measure(self.build().eval(), torch.zeros(1, 3, size, size))
        except (NotImplementedError, RuntimeError):  # an operation without meta support, or the image size
            with seeded(0):
                backbone = self.build().eval()
                try:
                    return measure(backbone, torch.zeros(1, 3, size, size))
                except RuntimeError as error:
                    name, reason = type(backbone).__name__, str(error).splitlines()[0]
                    raise ValueError(f"{name} takes no images of 3x{size}x{size}: {reason}") from error

    def build(self) -> Backbone:
        """Return the model with random weights, in training mode."""
        sizes = {"num_classes": self.num_classes, "image_size": self.image_size}
        return create_backbone(self.name, source=self.source, **sizes, **self.args)


def _head_shapes(backbone, image) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape[1:]) for name, value in named_heads(backbone(image)).items()}


def _sizes_of(backbone, image) -> tuple[dict[str, TapShape], dict[str, int], frozenset[str]]:
    taps = tap_names(backbone)
    _, features = read(backbone, image, (*taps, *VECTORS))
    vectors = {name: features[name].shape[1] for name in VECTORS}
    return {tap: TapShape(*features[tap].shape[1:]) for tap in taps}, vectors, query_taps(backbone)
