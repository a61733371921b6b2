"""From a student's features to as many channels as a teacher's have."""

from torch import nn

from pycls_std.layers.orthogonal import OrthogonalLinear


def _orthogonal(inputs: int, outputs: int, **options) -> nn.Module:
    return OrthogonalLinear(inputs, outputs, **options)


def _linear(inputs: int, outputs: int, **options) -> nn.Module:
    return nn.Linear(inputs, outputs, bias=False)


def _mlp(inputs: int, outputs: int, **options) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, inputs), nn.ReLU(), nn.Linear(inputs, outputs))


def _none(inputs: int, outputs: int, **options) -> nn.Module:
    if inputs != outputs:
        raise ValueError(f"features of {inputs} channels cannot be compared with features of {outputs} as they are")
    return nn.Identity()


PROJECTIONS = {"orthogonal": _orthogonal, "linear": _linear, "mlp": _mlp, "none": _none}


def make_projection(form: str, inputs: int, outputs: int, *, kind: str = "auto", trivialize: bool = False) -> nn.Module:
    """Return what takes features (..., inputs) to (..., outputs).

    form: `orthogonal`, a linear layer that keeps inner products (kind, trivialize: see `OrthogonalLinear`); `linear`,
    one without constraint and bias; `mlp`, two layers with ReLU between, the first as wide as the features; `none`.
    Raises ValueError for `none` between unequal numbers of channels.
    """
    return PROJECTIONS[form](inputs, outputs, kind=kind, trivialize=trivialize)
