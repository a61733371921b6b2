"""Base of backbones with a stem, stages and a linear classifier, with timm's interface.

Shapes: B batch, C channels, H height, W width, K classes.
"""

from collections.abc import Callable

from torch import Tensor, nn


class Staged(nn.Module):
    """The taps are the outputs of the stages. A subclass has `feature_info`, one entry each, and the methods below."""

    def stem(self, images: Tensor) -> Tensor:
        """Return the first stage's input, from images (B, 3, H, W)."""
        raise NotImplementedError

    def stages(self) -> tuple[Callable[[Tensor], Tensor], ...]:
        """Return the stages, in their order."""
        raise NotImplementedError

    def map_of(self, output) -> Tensor:
        """Return the map (B, C, H, W) of a stage's output, which may be of another type."""
        return output

    def after_stages(self, output):
        """Return the head's input, (B, C, H, W) or another type, from the last stage's output."""
        return output

    def pooled(self, features) -> Tensor:
        """Return the classifier's input, (B, C), from the output of `after_stages`."""
        return features.mean(dim=(2, 3))

    def get_classifier(self) -> nn.Linear:
        """Return the layer that outputs the logits."""
        raise NotImplementedError

    def forward_intermediates(
        self, images: Tensor, indices=None, *, stop_early=False, output_fmt="NCHW", intermediates_only=False
    ):
        """Return `forward_features(images)` and the outputs of the stages at `indices`; see `models/contract.py`."""
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt is {output_fmt!r}, a {type(self).__name__} has only NCHW")
        stages = self.stages()
        taps = range(len(stages)) if indices is None else [index % len(stages) for index in indices]
        x = self.stem(images)
        maps = []
        for index, stage in enumerate(stages[: max(taps, default=len(stages) - 1) + 1] if stop_early else stages):
            x = stage(x)
            if index in taps:
                maps.append(self.map_of(x))
        return maps if intermediates_only else (self.after_stages(x), maps)

    def forward_features(self, images: Tensor) -> Tensor:
        """images: (B, 3, H, W). Returns the head's input, see `after_stages`."""
        return self.forward_intermediates(images, indices=[])[0]

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """features: see `after_stages`. Returns (B, K) logits; their input, (B, C), if pre_logits."""
        pooled = self.pooled(features)
        return pooled if pre_logits else self.get_classifier()(pooled)

    def forward(self, images: Tensor) -> Tensor:
        """images: (B, 3, H, W). Returns (B, K) logits."""
        return self.forward_head(self.forward_features(images))


def initialize_convolutions(backbone: nn.Module) -> None:
    """Initialize convolutions by Kaiming normal for ReLUs, fan-out; biases 0. Source: He et al., ICCV 2015."""
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def refuse_drop_path(drop_path: float, kind: str) -> None:
    """Raise ValueError for a rate above 0, for models without stochastic depth."""
    if drop_path:
        raise ValueError(f"MODEL.DROP_PATH is {drop_path}, a {kind} has no stochastic depth")
