"""Batched RandAugment, with separate operations and magnitudes for each image.

Operations, magnitudes and probabilities are timm's, read from timm's own transform; see `transforms.rand_augment`.
Source: Cubuk et al., NeurIPS 2020; magnitudes as in timm.data.auto_augment.
Shapes: B images, n images that get one operation.
"""

import numpy as np
from torch import Tensor

from pycls_std.core.sending import send
from pycls_std.core.structures import Normalization
from pycls_std.datasets.memory import color, geometry
from pycls_std.datasets.memory.counter_rng import CounterRNG
from pycls_std.datasets.memory.pixels import change
from pycls_std.datasets.transforms import rand_augment


def _enhance(m, sign):
    return 0.18 * m + 0.1


def _enhance_increasing(m, sign):
    return np.maximum(0.1, 1 + sign * 0.09 * m)


def _bits(m, sign):
    return (m / 10 * 4).astype(np.int64).clip(1, 8)  # Pillow 13 refuses 0 bits, and the maximum is 8


def _bits_increasing(m, sign):
    return (4 - (m / 10 * 4).astype(np.int64)).clip(1, 8)


def _threshold(m, sign):
    return np.minimum(256, (m / 10 * 256).astype(np.int64))


def _of_width(move):
    return lambda images, amount, fill: move(images, amount * images.shape[2], fill)


def _unfilled(recolor):
    return lambda images, amount, fill: recolor(images, amount)


def _alone(recolor):
    return lambda images, amount, fill: recolor(images)


# Name in timm -> (operation(images, amounts, fill), amounts(magnitudes, signs)), both of n images.
OPERATIONS = {
    "AutoContrast": (_alone(color.auto_contrast), lambda m, sign: m),
    "Equalize": (_alone(color.equalize), lambda m, sign: m),
    "Invert": (_alone(color.invert), lambda m, sign: m),
    "Rotate": (geometry.rotate, lambda m, sign: sign * (m / 10 * 30)),
    "Posterize": (_unfilled(color.posterize), _bits),
    "PosterizeIncreasing": (_unfilled(color.posterize), _bits_increasing),
    "Solarize": (_unfilled(color.solarize), _threshold),
    "SolarizeIncreasing": (_unfilled(color.solarize), lambda m, sign: 256 - _threshold(m, sign)),
    "SolarizeAdd": (_unfilled(color.solarize_add), lambda m, sign: np.minimum(128, (m / 10 * 110).astype(np.int64))),
    "ShearX": (geometry.shear_x, lambda m, sign: sign * (m / 10 * 0.3)),
    "ShearY": (geometry.shear_y, lambda m, sign: sign * (m / 10 * 0.3)),
    "TranslateXRel": (_of_width(geometry.translate_x), lambda m, sign: sign * (m / 10 * 0.45)),
    "TranslateYRel": (_of_width(geometry.translate_y), lambda m, sign: sign * (m / 10 * 0.45)),
}
for _name, _recolor in {
    "Color": color.saturation,
    "Contrast": color.contrast,
    "Brightness": color.brightness,
    "Sharpness": color.sharpness,
}.items():
    OPERATIONS[_name] = (_unfilled(_recolor), _enhance)
    OPERATIONS[f"{_name}Increasing"] = (_unfilled(_recolor), _enhance_increasing)


class RandAugment:
    """timm's RandAugment, for a specification such as rand-m9-mstd0.5-inc1."""

    def __init__(self, spec: str, image_size: int, normalization: Normalization):
        reference = rand_augment(spec, image_size, normalization)
        self.names = [operation.name for operation in reference.ops]
        first = reference.ops[0]
        self.layers = reference.num_layers
        self.probability = first.prob
        self.magnitude, self.deviation = first.magnitude, first.magnitude_std
        self.greatest = first.magnitude_max or 10.0
        self.fill = first.kwargs["fillcolor"]

    def __call__(self, images: Tensor, draws: CounterRNG) -> Tensor:
        """Change images (B, S, S, 4) uint8 in place; return them."""
        for _ in range(self.layers):
            for name, places, magnitudes, signs in self.draw(draws):
                operation, amounts = OPERATIONS[name]
                where = send(places, images.device)
                amount = send(amounts(magnitudes, signs), images.device)
                change(images, where, operation, amount, self.fill)
        return images

    def draw(self, draws: CounterRNG) -> list[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
        """Return for one layer (operation, (n,) positions of the images that get it, (n,) magnitudes, (n,) signs)."""
        choice, applies, sign = draws.uniform(3).T
        noise = draws.uniform(1) if np.isinf(self.deviation) else draws.normal(1)
        scaled = self.magnitude * noise if np.isinf(self.deviation) else self.magnitude + self.deviation * noise
        magnitudes = scaled[:, 0].clip(0, self.greatest)
        signs = np.where(sign < 0.5, -1.0, 1.0)
        chosen = np.where(applies < self.probability, (choice * len(self.names)).astype(np.int64), -1)
        order = np.argsort(chosen, kind="stable")
        bounds = np.searchsorted(chosen[order], np.arange(len(self.names) + 1))
        groups = [order[start:end] for start, end in zip(bounds, bounds[1:], strict=False)]
        pairs = zip(self.names, groups, strict=True)
        return [(name, places, magnitudes[places], signs[places]) for name, places in pairs if len(places)]
