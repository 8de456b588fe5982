"""MirrorDescent against a solver of its own definition, and its last iterate against the bound."""

import math

import numpy as np
import pytest
import scipy.optimize
import torch

from steepest.optim import MirrorDescent
from steepest.probes import last_iterate_bound

F64 = torch.float64


def stream(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("l1", [0.0, 0.7])
@pytest.mark.parametrize("l2", [0.0, 2.0])
def test_a_euclidean_step_is_the_minimizer_of_its_definition(l1, l2):
    start, g, lr = stream(40), stream(40, seed=1), 0.3
    p = torch.nn.Parameter(start.clone())
    p.grad = g
    MirrorDescent([p], lr=lr, l1=l1, l2=l2).step()
    for x, start_j, g_j in zip(p.detach().tolist(), start.tolist(), g.tolist(), strict=True):

        def objective(y, a=start_j, b=g_j):
            return l1 * abs(y) + l2 / 2 * y * y + b * y + (y - a) ** 2 / (2 * lr)

        best = scipy.optimize.minimize_scalar(
            objective, bounds=(-5, 5), method="bounded", options={"xatol": 1e-9}
        )
        assert x == pytest.approx(best.x, abs=1e-6)
        assert objective(x) <= best.fun + 1e-15
    assert ((p == 0).sum() > 0) == (l1 > 0)


def test_without_a_penalty_it_is_sgd():
    p, q = (torch.nn.Parameter(stream(5, 3)) for _ in range(2))
    ours, sgd = MirrorDescent([p], lr=0.1), torch.optim.SGD([q], lr=0.1)
    for g in stream(20, 5, 3, seed=1):
        p.grad, q.grad = g, g
        ours.step()
        sgd.step()
    assert torch.allclose(p, q, rtol=1e-13)


def test_a_step_on_the_simplex_is_the_minimizer_of_its_definition():
    start = torch.softmax(stream(6), 0)
    g, lr = stream(6, seed=1), 0.8
    p = torch.nn.Parameter(start.clone())
    p.grad = g
    MirrorDescent([p], lr=lr, geometry="simplex").step()

    def objective(x):
        return x @ g.numpy() + (x * np.log(x / start.numpy())).sum() / lr

    best = scipy.optimize.minimize(
        objective,
        start.numpy(),
        bounds=[(1e-12, 1)] * 6,
        constraints={"type": "eq", "fun": lambda x: x.sum() - 1},
        tol=1e-14,
    )
    assert np.allclose(p.detach().numpy(), best.x, atol=1e-6)
    assert objective(p.detach().numpy()) <= best.fun + 1e-12


@pytest.mark.parametrize("backend", ["torch", "cpu", "triton"])
def test_on_the_simplex_gradients_add_up_in_the_exponent(backend):
    """Each tensor by itself; a constant on all gradients changes nothing, however large."""
    shift = 10.0 if backend == "triton" else 1e4  # its interpreter warns of lanes that are masked
    params = [torch.nn.Parameter(torch.full((n,), 1 / n, dtype=F64)) for n in (7, 300)]
    opt = MirrorDescent(params, lr=0.5, geometry="simplex", backend=backend)
    total = [torch.zeros_like(p) for p in params]
    for step in range(10):
        for p, t in zip(params, total, strict=True):
            g = stream(p.numel(), seed=step)
            t += g
            p.grad = g + shift * (step - 5)
        opt.step()
    for p, t in zip(params, total, strict=True):
        assert torch.allclose(p, torch.softmax(-0.5 * t, 0), rtol=1e-9)


def test_a_long_step_on_the_simplex_ends_at_a_corner():
    p = torch.nn.Parameter(torch.full((4,), 0.25))
    p.grad = torch.tensor([3e4, -1e4, 0.0, 5e4])
    opt = MirrorDescent([p], lr=10.0, geometry="simplex", maximize=True)
    opt.step()
    assert torch.equal(p.detach(), torch.tensor([0.0, 0.0, 0.0, 1.0]))


def schedules(steps):
    """Rates of the same scale: constant, falling as a root, and linearly to zero."""
    scale = 1 / math.sqrt(steps)
    return {
        "constant": [scale] * steps,
        "root": [1 / math.sqrt(t) for t in range(1, steps + 1)],
        "linear": [scale * (steps - t + 1) / steps for t in range(1, steps + 1)],
    }


def last_gap(rates, runs=20, n=5, noise=0.5):
    """Mean gap of the last iterate on ||x||_1 / sqrt(n) from ones, subgradients of length 1."""
    x = torch.nn.Parameter(torch.ones(runs, n, dtype=F64))
    opt, rng = MirrorDescent([x], lr=1.0), torch.Generator().manual_seed(0)
    for rate in rates:
        z = torch.randn(x.shape, generator=rng, dtype=F64) * noise / math.sqrt(n)
        x.grad = x.detach().sign() / math.sqrt(n) + z
        opt.param_groups[0]["lr"] = rate
        opt.step()
    return (x.detach().abs().sum(1) / math.sqrt(n)).mean().item()


def test_last_iterates_are_below_their_bounds_and_linear_decay_is_far_ahead():
    for steps in (64, 256, 1024):
        gaps = {name: last_gap(rates) for name, rates in schedules(steps).items()}
        for name, rates in schedules(steps).items():
            # half the squared distance from ones is 2.5; the root of the noise's square is 0.5
            assert gaps[name] < last_iterate_bound(rates, 2.5, lipschitz=1.0, noise=0.5)
        assert gaps["linear"] < 0.2 * gaps["constant"]
        assert gaps["linear"] < 0.2 * gaps["root"]


@pytest.mark.parametrize("steps", [64, 1024])
def test_on_the_simplex_the_distance_is_the_logarithm_of_the_size(steps):
    """Linear loss over 1,000 corners with noise: below the bound, with D = log n."""
    n, rng = 1000, torch.Generator().manual_seed(0)
    cost = torch.linspace(0, 1, n, dtype=F64)
    rates = [r * math.sqrt(math.log(n)) for r in schedules(steps)["linear"]]
    gaps = []
    for _ in range(5):
        x = torch.nn.Parameter(torch.full((n,), 1 / n, dtype=F64))
        opt = MirrorDescent([x], lr=1.0, geometry="simplex")
        for rate in rates:
            x.grad = cost + 2 * torch.rand(n, generator=rng, dtype=F64) - 1
            opt.param_groups[0]["lr"] = rate
            opt.step()
        gaps.append((x.detach() @ cost).item())
    bound = last_iterate_bound(rates, math.log(n), lipschitz=1.0, noise=1.0)
    assert 0 < sum(gaps) / 5 < 0.2 * bound


def test_bad_arguments_and_points():
    p = torch.nn.Parameter(torch.ones(3))
    for bad in ({"lr": -1.0}, {"l1": -1.0}, {"l2": math.inf}, {"geometry": "sphere"}):
        with pytest.raises(ValueError, match=f"MirrorDescent: {next(iter(bad))}="):
            MirrorDescent([p], **bad)
    with pytest.raises(ValueError, match="no penalty"):
        MirrorDescent([p], l1=0.1, geometry="simplex")
    opt = MirrorDescent([p], geometry="simplex")
    p.grad = torch.ones(3)
    with pytest.raises(ValueError, match=r"not on the simplex: start from positive numbers"):
        opt.step()
    assert torch.equal(p, torch.ones(3)) and not opt.state
