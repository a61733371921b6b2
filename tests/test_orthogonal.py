"""Orthogonal projections: each map against torch's or a plain computation, what they keep, and what training leaves."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from pycls_std.layers import orthogonal
from pycls_std.layers.orthogonal import AUTO, MAPS, OrthogonalLinear
from pycls_std.layers.projection import make_projection

SHAPES = [(30, 6), (20, 6), (20, 14), (9, 9), (6, 20)]  # outputs, inputs; maps tell 4k < n, 2k < n and others apart
KINDS = ["auto", *MAPS]


def projection(outputs, inputs, **options):
    torch.manual_seed(0)
    return OrthogonalLinear(inputs, outputs, **options)


def deviation(weight):
    """Largest entry of |P^T P - I|, of P P^T for a wide weight."""
    tall = weight.T if weight.shape[0] < weight.shape[1] else weight
    return float((tall.T @ tall - torch.eye(tall.shape[1], dtype=tall.dtype)).detach().abs().max())


def adamw(module):
    """The optimizer of VkD's recipe."""
    return torch.optim.AdamW(module.parameters(), lr=5e-4, weight_decay=0.05)


def train(module, inputs, outputs, steps):
    """Learn random targets."""
    generator = torch.Generator().manual_seed(1)
    features, targets = (torch.randn(16, width, generator=generator) for width in (inputs, outputs))
    optimizer = adamw(module)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.smooth_l1_loss(module(features), targets).backward()
        optimizer.step()


# ---------------------------------------------------------------------------------------------------------- what it is
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_the_weight_is_orthonormal(kind, outputs, inputs):
    layer = projection(outputs, inputs, kind=kind)
    assert layer.weight().shape == (outputs, inputs)
    assert deviation(layer.weight()) < 5e-6
    assert sum(p.numel() for p in layer.parameters()) == outputs * inputs
    assert list(layer.state_dict()) == ["free"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("outputs", "inputs"), [(20, 6), (9, 9)])
def test_inner_products_of_the_student_are_kept(kind, outputs, inputs):
    """The Gram matrix of a batch, entry by entry."""
    layer, features = projection(outputs, inputs, kind=kind), torch.randn(5, inputs)
    projected = layer(features)
    for i in range(5):
        for j in range(5):
            torch.testing.assert_close(
                projected[i] @ projected[j], features[i] @ features[j], rtol=1e-4, atol=1e-4, msg=f"{i}, {j}"
            )


def test_a_plain_layer_keeps_no_inner_products():
    layer, features = make_projection("linear", 6, 20), torch.randn(5, 6)
    projected = layer(features)
    assert not torch.allclose(projected @ projected.T, features @ features.T, rtol=0.1)


@pytest.mark.parametrize("kind", ["householder", "cayley", "matrix_exp"])
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_maps_are_torchs(kind, outputs, inputs):
    """The parametrizations of torch without trivialization, of the same free matrix; its diagonal is 1 there."""
    layer = projection(outputs, inputs, kind=kind).double()
    with torch.no_grad():
        layer.free.diagonal().fill_(1)
    reference = nn.Linear(inputs, outputs, bias=False).double()
    parametrizations.orthogonal(reference, orthogonal_map=kind, use_trivialization=False)
    free = layer.free.T if outputs < inputs else layer.free
    reference.parametrizations.weight.original = nn.Parameter(free.detach().clone())
    torch.testing.assert_close(layer.weight(), reference.weight)
    ours, theirs = (
        torch.autograd.grad((w * torch.arange(w.numel()).view(w.shape)).sum(), p)
        for w, p in ((layer.weight(), layer.free), (reference.weight, reference.parametrizations.weight.original))
    )
    torch.testing.assert_close(ours[0], theirs[0].T if outputs < inputs else theirs[0])


@pytest.mark.parametrize("kind", ["qr", "cholesky_qr"])
def test_qr_is_gram_schmidt(kind):
    """Column by column: what is left of it beside those before, at length 1."""
    free = torch.randn(12, 5, dtype=torch.double)
    columns = []
    for column in free.T:
        left = column - sum((column @ other) * other for other in columns) if columns else column
        columns.append(left / left.norm())
    torch.testing.assert_close(MAPS[kind](free), torch.stack(columns, dim=1))


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize("shape", [(7, 1), (7, 3), (7, 5), (4, 4)])
def test_gradients_of_maps_are_those_of_differences(kind, shape):
    free = torch.randn(shape, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(MAPS[kind], (free,), atol=1e-6)


def test_qr_is_continuous():
    """Where an entry that a factorisation takes its sign from goes through 0."""
    free = torch.randn(6, 3)
    free[0, 0] = 1e-4
    before = MAPS["qr"](free)
    free[0, 0] = -1e-4
    torch.testing.assert_close(MAPS["qr"](free), before, rtol=1e-2, atol=1e-3)


def test_two_factorisations_are_as_exact_as_one_of_qr():
    """Columns of condition number 1000: one factorisation alone is off by 1000^2 times the rounding."""
    torch.manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(side, 10))[0] for side in (40, 10))
    free = left * torch.logspace(0, -3, 10) @ right
    assert deviation(MAPS["cholesky_qr"](free)) < 5e-6
    factor = torch.linalg.cholesky(free.T @ free)
    assert deviation(torch.linalg.solve_triangular(factor.T, free, upper=True, left=False)) > 1e-3


def test_dependent_columns_show():
    """The loss is then not finite, which ends a run; nothing goes on with a weight that is not orthonormal."""
    assert MAPS["cholesky_qr"](torch.ones(8, 3)).isnan().any()


# ------------------------------------------------------------------------------------------------------- how it is used
@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_weight_and_product_are_fp32_within_autocast(kind, precision):
    layer, features = projection(20, 6, kind=kind), torch.randn(5, 6).to(precision)
    expected = layer(features.float())
    with torch.autocast("cpu", precision):
        found = layer(features)
        found.square().mean().backward()
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert layer.free.grad.isfinite().all()


def test_the_weight_is_computed_once_for_all_features_of_a_step(monkeypatch):
    layer, calls = projection(20, 6), []
    made = MAPS[AUTO]
    monkeypatch.setitem(orthogonal.MAPS, AUTO, lambda free: calls.append(1) or made(free))
    tokens, pooled = torch.randn(2, 7, 6), torch.randn(2, 6)
    first, second = layer(tokens, pooled)
    assert len(calls) == 1
    torch.testing.assert_close(first, torch.einsum("oi,bti->bto", layer.weight(), tokens))
    torch.testing.assert_close(second, layer(pooled))


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize(("outputs", "inputs"), [(40, 12), (12, 12), (12, 40)])
def test_training_with_weight_decay_leaves_it_orthonormal(kind, outputs, inputs):
    layer = projection(outputs, inputs, kind=kind)
    before = layer.weight().detach()
    train(layer, inputs, outputs, 100)
    assert deviation(layer.weight()) < 5e-6
    assert float((layer.weight() - before).detach().abs().max()) > 1e-3, "it does not learn"


@pytest.mark.parametrize("trivialize", [True, False])
def test_torchs_own_default_is_zero_after_a_step_of_weight_decay(trivialize):
    """Which is why the map is not torch's: if it is mended there, the docstring of `householder` is out of date."""
    reference = nn.Linear(12, 40, bias=False)
    parametrizations.orthogonal(reference, use_trivialization=trivialize)
    assert deviation(reference.weight) < 1e-5
    train(reference, 12, 40, 1)
    with parametrize.cached():
        assert not reference.weight.any()


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize(("outputs", "inputs"), [(20, 6), (9, 9), (6, 20)])
def test_trivialization_starts_at_its_base(kind, outputs, inputs):
    """At the first columns of a random orthonormal matrix, up to the sign of all; the matrix is in checkpoints."""
    layer = projection(outputs, inputs, kind=kind, trivialize=True)
    n = max(outputs, inputs)
    assert {name: value.shape for name, value in layer.state_dict().items()} == {
        "free": (n, min(outputs, inputs)),
        "base": (n, n),
    }
    tall = layer.weight().T if outputs < inputs else layer.weight()
    torch.testing.assert_close(tall.abs(), layer.base[:, : tall.shape[1]].abs(), rtol=1e-4, atol=1e-5)
    train(layer, inputs, outputs, 20)
    assert deviation(layer.weight()) < 5e-6
    other = OrthogonalLinear(inputs, outputs, kind=kind, trivialize=True)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.weight(), layer.weight())


# ----------------------------------------------------------------------------------------------------------- baselines
def test_what_an_ablation_compares():
    parameters = {
        form: sum(p.numel() for p in make_projection(form, 6, 20).parameters())
        for form in ("orthogonal", "linear", "mlp")
    }
    assert parameters == {"orthogonal": 120, "linear": 120, "mlp": 6 * 7 + 7 * 20}
    features = torch.randn(3, 6)
    mlp = make_projection("mlp", 6, 20)
    expected = mlp[2].weight @ (mlp[0].weight @ features[1] + mlp[0].bias).clamp(min=0) + mlp[2].bias
    torch.testing.assert_close(mlp(features)[1], expected)
    assert torch.equal(make_projection("none", 6, 6)(features), features)
    with pytest.raises(ValueError, match="features of 6 channels cannot be compared with features of 20 as they are"):
        make_projection("none", 6, 20)
