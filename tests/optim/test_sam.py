"""SAM against algebra on quadratics, a transcription, and its limits."""

import copy

import pytest
import torch

from steepest.estimators import SPSA
from steepest.optim import SAM, SGDW, AdamW, Estimated, Grokfast, MeZO
from steepest.oracles import Objective

F64 = torch.float64


def quadratic(dimension=6, seed=0):
    rng = torch.Generator().manual_seed(seed)
    root = torch.randn(dimension, dimension, generator=rng, dtype=F64)
    start = torch.randn(dimension, generator=rng, dtype=F64)
    return root @ root.T, start


def test_on_a_quadratic_the_gradient_gains_curvature_times_its_direction():
    """One norm over all parameters, and no second-order term."""
    h, start = quadratic()
    params = [torch.nn.Parameter(part.clone()) for part in start.split([2, 1, 3])]
    opt = SAM(torch.optim.SGD(params, lr=1.0), rho=0.3)

    def loss():
        x = torch.cat(list(params))
        return 0.5 * x @ h @ x

    value = opt.step(loss)
    g = h @ start
    expected = g + 0.3 * (h @ g) / g.norm()
    moved = start - torch.cat([p.detach() for p in params])
    assert (moved - expected).norm() < 1e-9 * expected.norm()
    assert torch.allclose(value, 0.5 * start @ g)


@pytest.mark.parametrize("inner", [SGDW, AdamW])
def test_without_a_radius_it_is_its_optimizer(inner):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
    twin = copy.deepcopy(model)
    x, y = torch.randn(10, 32, 4), torch.randn(10, 32, 1)
    opt, plain = SAM(inner(model.parameters(), lr=0.1), rho=0.0), inner(twin.parameters(), lr=0.1)
    for a, b in zip(x, y, strict=True):
        opt.step(lambda a=a, b=b: torch.nn.functional.mse_loss(model(a), b))
        plain.zero_grad()
        torch.nn.functional.mse_loss(twin(a), b).backward()
        plain.step()
    assert all(map(torch.equal, model.parameters(), twin.parameters()))


def test_decay_acts_at_the_point_and_not_on_the_way_up():
    """With a constant slope the ascent changes nothing: only decay and slope are left."""
    p = torch.nn.Parameter(torch.tensor([2.0], dtype=F64))
    SAM(SGDW([p], lr=0.1, momentum=0.0, weight_decay=0.5), rho=1.0).step(lambda: 3 * p.sum())
    assert p.item() == pytest.approx(2 * (1 - 0.05) - 0.3, abs=1e-12)


def test_the_point_comes_back_bit_for_bit():
    h, start = quadratic()
    p = torch.nn.Parameter(start.float())
    opt = SAM(torch.optim.SGD([p], lr=0.0), rho=7.3)
    opt.step(lambda: 0.5 * p @ h.float() @ p)
    assert torch.equal(p, start.float())


def test_around_a_minimum_it_bounces_at_the_distance_that_algebra_gives():
    """p = -p' in p' = p - lr h (p + rho sign p), so |p| = lr h rho / (2 - lr h)."""
    p = torch.nn.Parameter(torch.tensor([1.0], dtype=F64))
    opt = SAM(torch.optim.SGD([p], lr=0.1), rho=0.5)
    path = []
    for _ in range(200):
        opt.step(lambda: 2 * (p**2).sum())
        path.append(p.item())
    assert path[-1] == pytest.approx(-path[-2]) and abs(path[-1]) == pytest.approx(0.125)


def test_it_drifts_to_the_flat_end_of_a_valley():
    """All points with x = 0 are minima, of curvature 1 + y^2: SGD stays where it arrives."""
    ends = {}
    for name, rho in (("SGD", 0.0), ("SAM", 0.3)):
        p = torch.nn.Parameter(torch.tensor([0.5, 1.0], dtype=F64))
        opt = SAM(torch.optim.SGD([p], lr=0.3), rho=rho)
        for _ in range(1000):
            opt.step(lambda p=p: 0.5 * (1 + p[1] ** 2) * p[0] ** 2)
        ends[name] = abs(p[1].item())
    assert ends["SGD"] > 0.8 and ends["SAM"] < 0.1


def test_the_radius_is_in_the_checkpoint():
    p = torch.nn.Parameter(torch.ones(3))
    opt = SAM(SGDW([p], lr=0.1), rho=0.3)
    opt.step(lambda: (p**2).sum())
    other = SAM(SGDW([p], lr=0.2), rho=0.9)
    other.load_state_dict(opt.state_dict())
    assert (other.rho, other.steps, other.param_groups[0]["lr"]) == (0.3, 1, 0.1)


def test_bad_arguments():
    p = torch.nn.Parameter(torch.ones(1))
    for rho in (-0.1, float("inf"), "big"):
        with pytest.raises(ValueError, match="SAM: rho="):
            SAM(SGDW([p]), rho=rho)
    with pytest.raises(TypeError, match="wraps an optimizer, not a list"):
        SAM([p])
    for asking in (MeZO([p]), Estimated(SGDW([p]), SPSA())):
        with pytest.raises(TypeError, match=r"asks for its own: use one of the two$"):
            SAM(asking)
    with pytest.raises(TypeError, match=r"put it inside, SAM\(Grokfast\(...\)\)"):
        Grokfast(SAM(SGDW([p])))


def test_it_takes_any_objective():
    """An objective over more than its parameters: the norm is over all of them."""
    a, b = (torch.nn.Parameter(torch.ones(1, dtype=F64)) for _ in range(2))
    objective = Objective(lambda: (3 * a + 4 * b**2 / 2).sum(), [a, b])
    SAM(torch.optim.SGD([a, b], lr=0.0), rho=0.5).step(objective)
    assert objective.counts["gradient"] == 2
