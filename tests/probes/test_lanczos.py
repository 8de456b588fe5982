import math

import pytest
import torch

from steepest.oracles import Objective
from steepest.probes import lanczos

F64 = torch.float64


def symmetric(size, seed=0):
    rng = torch.Generator().manual_seed(seed)
    a = torch.randn(size, size, generator=rng, dtype=F64)
    return (a + a.T) / 2


def quadratic(matrix, cuts=()):
    """A loss with this Hessian, over one parameter or several."""
    sizes = [*cuts, len(matrix) - sum(cuts)]
    params = [torch.randn(n, dtype=F64).requires_grad_() for n in sizes]

    def loss():
        p = torch.cat(params)
        return 0.5 * p @ matrix @ p

    return Objective(loss, params)


@pytest.mark.parametrize("size", [1, 2, 7, 30])
def test_after_n_steps_the_spectrum_is_exact(size):
    matrix = symmetric(size)
    found = lanczos(quadratic(matrix), steps=size)
    torch.testing.assert_close(found.values, torch.linalg.eigvalsh(matrix), rtol=1e-9, atol=1e-9)


def test_scaled_and_cut_into_tensors():
    matrix, scale = symmetric(12), torch.linspace(0.1, 3.0, 12, dtype=F64)
    found = lanczos(quadratic(matrix, cuts=(5, 4)), 12, scale=list(scale.split([5, 4, 3])))
    exact = torch.linalg.eigvalsh(scale[:, None] * matrix * scale)
    torch.testing.assert_close(found.values, exact, rtol=1e-9, atol=1e-9)


def test_another_product():
    matrix = symmetric(9, seed=1)
    found = lanczos(quadratic(symmetric(9)), 9, product=lambda q: [matrix @ q[0]])
    torch.testing.assert_close(found.values, torch.linalg.eigvalsh(matrix), rtol=1e-9, atol=1e-9)
    both = lanczos(
        quadratic(symmetric(9)),
        9,
        product=lambda q: [matrix @ q[0]],
        scale=[torch.full((9,), 2.0, dtype=F64)],
    )
    torch.testing.assert_close(both.values, 4 * found.values, rtol=1e-9, atol=1e-9)


def test_a_repeated_eigenvalue_ends_it_early():
    found = lanczos(quadratic(torch.diag(torch.tensor([2.0] * 5 + [-1.0] * 3, dtype=F64))), 8)
    torch.testing.assert_close(found.values, torch.tensor([-1.0, 2.0], dtype=F64))


def test_a_large_negative_eigenvalue_is_not_the_top_one():
    values = torch.linspace(-1, 1, 40, dtype=F64)
    values[0], values[-1] = -10.0, 4.0
    found = lanczos(quadratic(torch.diag(values)), 15).values
    assert found[-1].item() == pytest.approx(4.0, rel=1e-6)
    assert found[0].item() == pytest.approx(-10.0, rel=1e-6)
    # Ritz values approach from inside.
    assert found[-1] <= 4 + 1e-9 and found[0] >= -10 - 1e-9


def test_weights_are_a_quadrature_of_the_spectral_density():
    matrix = symmetric(15, seed=2)
    objective, seeds, steps = quadratic(matrix), 400, 4
    moments = torch.zeros(seeds, 4, dtype=F64)
    for seed in range(seeds):
        values, weights = lanczos(objective, steps, seed)
        assert weights.sum().item() == pytest.approx(1, abs=1e-12) and (weights >= 0).all()
        moments[seed] = torch.stack([(weights * values**k).sum() for k in range(1, 5)])
    for k in range(1, 5):
        exact = torch.linalg.matrix_power(matrix, k).trace() / 15
        m = moments[:, k - 1]
        assert abs(m.mean() - exact) < 5 * m.std() / math.sqrt(seeds)
        assert m.std() > 0


def test_one_starts_moments_are_those_of_its_krylov_space():
    # Gauss' rule with n nodes is exact for polynomials of degree 2 n - 1.
    matrix = symmetric(20, seed=4)
    objective = quadratic(matrix)
    few, all_ = (lanczos(objective, steps, seed=5) for steps in (3, 20))
    for k in range(6):
        a, b = ((s.weights * s.values**k).sum().item() for s in (few, all_))
        assert a == pytest.approx(b, rel=1e-8)
    assert (few.weights * few.values**6).sum() != pytest.approx(
        (all_.weights * all_.values**6).sum().item(), rel=1e-3
    )


def test_the_top_of_a_float32_networks_hessian():
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    x, y = torch.randn(32, 4), torch.randint(3, (32,))
    params = list(model.parameters())
    before = [p.detach().clone() for p in params]

    def loss():
        return torch.nn.functional.cross_entropy(model(x), y)

    grads = torch.autograd.grad(loss(), params, create_graph=True)
    rows = [
        torch.cat([h.flatten() for h in torch.autograd.grad(g, params, retain_graph=True)])
        for g in torch.cat([g.flatten() for g in grads])
    ]
    exact = torch.linalg.eigvalsh(torch.stack(rows).double())
    found = lanczos(Objective(loss, model), 20)
    assert found.values.dtype == F64
    assert found.values[-1].item() == pytest.approx(exact[-1].item(), rel=1e-4)
    assert found.values[0].item() == pytest.approx(exact[0].item(), abs=1e-3 * exact[-1].item())
    assert all(torch.equal(p, q) and p.grad is None for p, q in zip(params, before, strict=True))


def test_an_answer_is_a_function_of_the_seed_alone():
    objective = quadratic(symmetric(10))
    torch.manual_seed(1)
    first = lanczos(objective, 3, seed=7)
    torch.manual_seed(2)
    same, other = lanczos(objective, 3, seed=7), lanczos(objective, 3, seed=8)
    assert torch.equal(first.values, same.values) and torch.equal(first.weights, same.weights)
    assert not torch.equal(first.values, other.values)


def test_what_cannot_be_measured_is_refused():
    objective = quadratic(symmetric(4))
    with pytest.raises(ValueError, match="steps=0"):
        lanczos(objective, 0)
    with pytest.raises(ValueError, match="does not fit"):
        lanczos(objective, 2, scale=[torch.ones(3, dtype=F64)])
    with pytest.raises(FloatingPointError, match="NaN"):
        lanczos(objective, 2, product=lambda q: [q[0] * math.nan])
    z = torch.zeros(2, dtype=torch.complex128, requires_grad=True)
    with pytest.raises(TypeError, match="complex"):
        lanczos(Objective(lambda: z.abs().square().sum(), [z]), 2)
