"""Projections from a student's number of channels to a teacher's."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pycls_std.layers.orthogonal import OrthogonalLinear


def _linear(inputs: int, outputs: int, **options) -> nn.Module:
    return nn.Linear(inputs, outputs, bias=False)


def _mlp(inputs: int, outputs: int, **options) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, inputs), nn.ReLU(), nn.Linear(inputs, outputs))


def _none(inputs: int, outputs: int, **options) -> nn.Module:
    if inputs != outputs:
        raise ValueError(f"features of {inputs} channels cannot be compared with features of {outputs} as they are")
    return nn.Identity()


PROJECTIONS: dict[str, Callable[..., nn.Module]] = {
    "orthogonal": OrthogonalLinear,
    "linear": _linear,
    "mlp": _mlp,
    "none": _none,
}


def make_projection(form: str, inputs: int, outputs: int, *, kind: str = "auto", trivialize: bool = False) -> nn.Module:
    """Return a module from features (..., inputs) to (..., outputs).

    form: `orthogonal`, a linear layer that preserves inner products (kind, trivialize: see `OrthogonalLinear`);
    `linear`, an unconstrained one without bias; `mlp`, two layers with ReLU between, the hidden width being `inputs`;
    or `none`. Raises ValueError for `none` between different numbers of channels.
    """
    return PROJECTIONS[form](inputs, outputs, kind=kind, trivialize=trivialize)


class ChannelScale(nn.Module):
    """Learned scale and shift of each channel, initialized to 1 and 0."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, features: Tensor) -> Tensor:
        """features: (..., channels). Returns the same shape."""
        return features * self.weight + self.bias
