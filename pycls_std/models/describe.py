"""What can be said of a model without its weights: the sizes of its taps, for methods that are built by them."""

from functools import cached_property

import torch
from torch import nn

from pycls_std.core.seeding import seeded
from pycls_std.models.create import create_backbone
from pycls_std.models.taps import POOLED, TapShape, read, tap_names


class Description:
    """A model that is named, not built; its sizes are found when they are first asked for.

    name, num_classes, image_size, args: see `create_backbone`.
    """

    def __init__(self, name: str, *, num_classes: int, image_size: int, **args):
        self.name = name
        self.num_classes = num_classes
        self.image_size = image_size
        self.args = args

    @property
    def taps(self) -> dict[str, TapShape]:
        """Size of every tap, by its name. Raises ValueError if the model has none, or takes no images of its size."""
        return self._sizes[0]

    @property
    def pooled(self) -> int:
        """Channels of what the classifier reads."""
        return self._sizes[1]

    @cached_property
    def _sizes(self):
        with torch.device("meta"):  # where nothing is allocated, drawn or computed
            backbone = self.build().eval()
            image = torch.zeros(1, 3, self.image_size, self.image_size)
        try:
            return _measure(backbone, image)
        except NotImplementedError:  # an operation that only works on numbers
            with seeded(0):
                return _measure(self.build().eval(), torch.zeros(1, 3, self.image_size, self.image_size))

    def build(self) -> nn.Module:
        """Return the model with random weights, in training mode."""
        return create_backbone(self.name, num_classes=self.num_classes, image_size=self.image_size, **self.args)


@torch.no_grad()
def _measure(backbone, image) -> tuple[dict[str, TapShape], int]:
    taps = (*tap_names(backbone), POOLED)
    try:
        _, features = read(backbone, image, taps)
    except RuntimeError as error:
        if isinstance(error, NotImplementedError):
            raise
        size, reason = image.shape[-1], str(error).splitlines()[0]
        raise ValueError(f"{type(backbone).__name__} takes no images of 3x{size}x{size}: {reason}") from error
    pooled = features.pop(POOLED).shape[1]
    return {tap: TapShape(*features[tap].shape[1:]) for tap in taps[:-1]}, pooled
