"""The projection off directions in which iterates hardly move, by the paper's definition."""

import math

import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from steepest.estimators import SPSA, ForwardGradient, SubspaceGradient, partial_uniform
from steepest.estimators._subspace_gradient import idle_directions
from steepest.optim import Adam, Estimated
from steepest.oracles import Objective


def path(points=12, d=30, seed=0):
    """Iterates that differ much along three directions and a little along others."""
    rng = torch.Generator().manual_seed(seed)
    main = (
        torch.randn(points, 3, generator=rng).double() @ torch.randn(3, d, generator=rng).double()
    )
    return main + 1e-3 * torch.randn(points, d, generator=rng).double()


@pytest.mark.parametrize("nu", [1e-1, 1e-2, 1e-7])
def test_directions_are_the_late_components_of_another_implementation(nu):
    points = path()
    pca = PCA().fit(StandardScaler().fit_transform(points.numpy()))
    share = pca.explained_variance_ratio_.cumsum()
    first = next(i for i, s in enumerate(share) if s > 1 - nu) + 1
    expected = torch.from_numpy(pca.components_[first:-1])  # the last has no variance
    ours = idle_directions(points, nu)
    assert ours.shape == expected.shape
    assert torch.allclose(ours.T @ ours, expected.T @ expected, atol=1e-6)
    assert torch.allclose(ours @ ours.T, torch.eye(len(ours)).double(), atol=1e-9)


def test_it_keeps_what_varies_and_what_was_never_visited():
    points = path()
    basis = idle_directions(points, 1e-2)
    standard = (points - points.mean(0)) / points.std(0, correction=0)
    main = torch.linalg.svd(standard, full_matrices=False).Vh[:2]
    assert (main @ basis.T).abs().max() < 1e-9
    assert len(basis) <= 12 - 1 - 2 < 30  # of 30 dimensions, 11 were visited


def test_a_path_that_stands_still_has_no_idle_directions():
    assert len(idle_directions(torch.ones(5, 3), 1e-3)) == 0


def cloud(d=20):
    """A quadratic over two tensors."""
    parts = [torch.nn.Parameter(torch.ones(n, dtype=torch.float64)) for n in (5, d - 5)]
    h = torch.logspace(0, -6, d, dtype=torch.float64)
    return parts, lambda: 0.5 * (h * torch.cat(list(parts)).square()).sum()


def run(steps, tau=8, seed=0):
    parts, loss = cloud()
    estimator = SubspaceGradient(SPSA(samples=2, one_sided=True), tau=tau)
    opt = Estimated(Adam(parts, lr=1e-2, eps=1e-3), estimator, seed=seed)
    bases, iterates = [], []
    for _ in range(steps):
        opt.step(loss)
        bases.append(estimator.basis)
        iterates.append(torch.cat([p.detach().flatten() for p in parts]))
    return estimator, bases, iterates, parts, loss


def test_it_looks_back_every_tau_steps_at_the_last_tau_iterates():
    _, bases, iterates, *_ = run(20)
    assert all(basis is None for basis in bases[:8])
    for t in (8, 16):  # found when the step after is asked for
        expected = idle_directions(torch.stack(iterates[t - 8 : t]), 1e-3)
        assert torch.allclose(bases[t], expected)
        assert bases[t + 1] is bases[t]
    assert len(bases[16])


def test_until_then_it_is_the_estimator_itself_and_then_its_projection():
    estimator, _, _, parts, loss = run(20)
    f = Objective(loss, parts)
    plain = torch.cat(SPSA(samples=2, one_sided=True)(f, 5).gradient)
    ours = torch.cat(estimator(f, 5).gradient)
    basis = estimator.basis
    assert torch.allclose(basis @ ours, torch.zeros(len(basis)).double(), atol=1e-9)
    assert torch.allclose(ours, plain - basis.T @ (basis @ plain))
    fresh = SubspaceGradient(SPSA(samples=2, one_sided=True))
    assert torch.equal(torch.cat(fresh(f, 5).gradient), plain)
    assert f.counts["forward"] == 9 and estimator.forward == 3 and f.counts["backward"] == 0


def test_mean_and_variance_of_a_projected_estimate():
    """Unbiased for the projected gradient; k of d dimensions less of noise, to the letter."""
    d, k = 30, 12
    p = torch.nn.Parameter(torch.zeros(d, dtype=torch.float64))
    slope = torch.randn(d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    f = Objective(lambda: slope @ p, [p])
    rows = torch.linalg.qr(path(d, d).T).Q.T[:k]
    slope = slope - rows.T @ (rows @ slope)  # nothing of the gradient lies there
    estimator = SubspaceGradient(ForwardGradient(), tau=10_000)
    estimator.basis = rows
    draws = torch.stack([estimator(f, seed).gradient[0] for seed in range(800)])
    assert ((draws.mean(0) - slope).abs() < 5 * draws.std(0) / math.sqrt(800) + 1e-9).all()
    squares = (draws - slope).square().sum(1)
    law = (d - k + 1) * slope.square().sum()
    assert abs(squares.mean() - law) < 5 * squares.std() / math.sqrt(800)
    assert law < 0.65 * (d + 1) * slope.square().sum()


def test_errors():
    with pytest.raises(TypeError, match="pass SPSA"):
        SubspaceGradient("spsa")
    for bad in ({"tau": 2}, {"tau": 3.5}, {"nu": 1.0}, {"nu": -0.1}):
        with pytest.raises(ValueError, match="is not valid"):
            SubspaceGradient(SPSA(), **bad)
    estimator = SubspaceGradient(SPSA())
    for n in (3, 3):
        p = torch.nn.Parameter(torch.ones(n))
        estimator(Objective(lambda p=p: p.sum(), [p]), 0)
    other = torch.nn.Parameter(torch.ones(4))
    with pytest.raises(ValueError, match="for each model"):
        estimator(Objective(lambda: other.sum(), [other]), 0)


def test_partial_uniform_draws_each_level_of_the_window_equally_often():
    rng = torch.Generator().manual_seed(0)
    t = partial_uniform(40_000, (0.5, 0.9), 1000, rng)
    assert t.min() == 500 and t.max() == 899
    counts = torch.bincount(t)[500:].double()
    chi = ((counts - 100).square() / 100).sum().item()
    assert abs(chi - 399) < 5 * math.sqrt(2 * 399)
    assert partial_uniform(5, (0.0, 1.0), 7).max() < 7
    for bad in ((0.9, 0.5), (0.5, 0.5), (-0.1, 0.5), (0.5, 1.1)):
        with pytest.raises(ValueError, match="at least one"):
            partial_uniform(1, bad)
