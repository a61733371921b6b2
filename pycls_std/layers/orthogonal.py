"""A linear layer whose weight has orthonormal columns, or rows if it is wider than high.

Shapes: n the larger and k the smaller of its two sides.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pycls_std.core.precision import full_precision


def householder(free: Tensor) -> Tensor:
    """Return the product of k Householder reflections, (n, k), by the columns of the matrix below its diagonal.

    torch's `orthogonal` parametrization multiplies by the diagonal truncated to integers, so the first step of weight
    decay, from 1 to 0.99..., sets the weight to 0 permanently. Here the diagonal is not used.
    """
    below = free.tril(diagonal=-1)
    return torch.linalg.householder_product(below, 2 / (1 + below.square().sum(dim=0)))


def cayley(free: Tensor) -> Tensor:
    """Return the first k columns of (I - A/2)^-1 (I + A/2), A = F E^T - E F^T.

    E: the first k columns of I. F: the lower triangle of the free matrix. A = U V^T is of rank 2k: if that is less than
    n, a system of 2k equations is solved instead of n.
    Source: Wen and Yin, Mathematical Programming 2013, lemma 4.
    """
    n, k = free.shape
    first, left, right = _skew(free)
    if n <= 2 * k:
        half = left @ right.T / 2
        return _solved(_one(n, free) - half, first + half @ first)
    return first + left @ _solved(_one(2 * k, free) - right.T @ left / 2, right.T @ first)


def _solved(system: Tensor, right: Tensor) -> Tensor:
    """Return the solution, NaN if there is none; `solve` would synchronize with the device to raise an error."""
    solution, failed = torch.linalg.solve_ex(system, right)
    return torch.where(failed > 0, math.nan, solution)


def matrix_exp(free: Tensor) -> Tensor:
    """Return the first k columns of exp(A), A = U V^T as in `cayley`.

    If 4k is less than n, they are E + U f(V^T U) V^T E with f(x) = (exp(x) - 1) / x, which is a block of the
    exponential of a matrix of 4k rows: much faster and more accurate.
    Source: Higham, Functions of Matrices, SIAM 2008, theorem 1.35 and section 10.7.4.
    """
    n, k = free.shape
    first, left, right = _skew(free)
    if n <= 4 * k:
        return torch.matrix_exp(left @ right.T)[:, :k]
    rows = torch.cat([right.T @ left, _one(2 * k, free)], dim=1)
    block = torch.matrix_exp(torch.cat([rows, torch.zeros_like(rows)]))[: 2 * k, 2 * k :]
    return first + left @ (block @ (right.T @ first))


def _skew(free: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return E, U and V."""
    lower, first = free.tril(), torch.eye(*free.shape, dtype=free.dtype, device=free.device)
    return first, torch.cat([lower, -first], dim=1), torch.cat([first, lower], dim=1)


def _one(size: int, like: Tensor) -> Tensor:
    return torch.eye(size, dtype=like.dtype, device=like.device)


def qr(free: Tensor) -> Tensor:
    """Return Q of the QR factorisation whose R has a positive diagonal, which makes Q continuous."""
    q, r = torch.linalg.qr(free)
    return q * torch.where(r.diagonal() < 0, -1.0, 1.0).to(q.dtype)


def cholesky_qr(free: Tensor) -> Tensor:
    """Return what `qr` returns, by two Cholesky factorisations of k x k matrices; NaN if the columns are dependent.

    After the first, the error grows with the condition number squared; after the second, it is that of rounding.
    Source: Yamamoto et al., ETNA 2015 (CholeskyQR2).
    """
    for _ in range(2):
        factor, failed = torch.linalg.cholesky_ex(free.T @ free)  # unlike cholesky, does not synchronize
        factor = torch.where(failed > 0, math.nan, factor)
        free = torch.linalg.solve_triangular(factor.T, free, upper=True, left=False)
    return free


# Maps from an unconstrained matrix (n, k), n >= k, to one with orthonormal columns.
MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "householder": householder,
    "cayley": cayley,
    "matrix_exp": matrix_exp,
    "qr": qr,
    "cholesky_qr": cholesky_qr,
}


# The map of `auto`: the fastest, and among the most accurate, at the sizes of tools/benchmarks/orthogonal.py.
AUTO = "qr"


class OrthogonalLinear(nn.Module):
    """Multiply by a weight that preserves inner products: P^T P = I, or P P^T = I for fewer outputs than inputs.

    Weight and product are computed in the precision of the parameter, even within autocast; for fp32 on CUDA in TF32 if
    CUDA.TF32 allows it. The weight is computed once for all features of a call.
    kind: a name of MAPS, or `auto`. trivialize: the weight is a fixed random orthogonal n x n matrix times the map,
    which starts at the identity; the matrix is a buffer, and so in checkpoints.
    Source: Lezcano-Casado, NeurIPS 2019 (trivializations), as torch.nn.utils.parametrizations.orthogonal has them.
    """

    base: Tensor | None

    def __init__(self, inputs: int, outputs: int, *, kind: str = "auto", trivialize: bool = False):
        super().__init__()
        n, k = max(inputs, outputs), min(inputs, outputs)
        self.wide = outputs < inputs
        self.kind = AUTO if kind == "auto" else kind
        # What a CUDA graph cannot capture, for the error message: this map reads a norm from the device.
        self.no_graph = "the MAP matrix_exp of a projection" if self.kind == "matrix_exp" else ""
        factored = self.kind in ("qr", "cholesky_qr")
        self.register_buffer("base", nn.init.orthogonal_(torch.empty(n, n)) if trivialize else None)
        if trivialize:
            start = torch.eye(n, k) if factored else torch.zeros(n, k)
        elif factored:
            start = nn.init.orthogonal_(torch.empty(n, k))
        else:  # as torch initializes a linear layer
            start = nn.init.uniform_(torch.empty(n, k), -(k**-0.5), k**-0.5)
        self.free = nn.Parameter(start)

    def weight(self) -> Tensor:
        """Compute the weight, (outputs, inputs)."""
        with full_precision(self.free.device):
            weight = MAPS[self.kind](self.free)
            weight = weight if self.base is None else self.base @ weight
        return weight.T if self.wide else weight

    def forward(self, *features: Tensor) -> Tensor | tuple[Tensor, ...]:
        """features: (..., inputs), one or several. Returns (..., outputs) of each, a tuple of several."""
        weight = self.weight()
        with full_precision(weight.device):
            projected = tuple(each.to(weight.dtype) @ weight.T for each in features)
        return projected if len(features) > 1 else projected[0]
