"""zo_grasp against GraSP from exact Hessian products."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from steepest.estimators import SPSA, zo_grasp
from steepest.kernels import noise, split_seed
from steepest.oracles import Objective

F64 = torch.float64


def exact(f, keep):
    """Ratios by the definition, with the gradient and the Hessian product of autograd."""
    g = f.gradient().gradient
    product = f.hvp(g).product
    index = [i for i, p in enumerate(f.params) if p.dim() >= 2]
    scores = [(-f.params[i] * product[i]).detach().flatten() for i in index]
    threshold = torch.cat(scores).sort().values[round(keep * sum(map(len, scores))) - 1]
    ratios = [1.0] * len(f.params)
    for i, s in zip(index, scores, strict=True):
        ratios[i] = (s <= threshold).double().mean().item()
    return ratios


def network():
    """Two layers of weights; the second is larger, and matters more."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 4, bias=False)).double()
    with torch.no_grad():
        net[2].weight *= 3
    x, y = torch.randn(50, 6, dtype=F64), torch.randint(4, (50,))
    return net, Objective(lambda: F.cross_entropy(net(x), y), net)


def test_many_directions_give_the_ratios_of_exact_products():
    net, f = network()
    before = [p.detach().clone() for p in net.parameters()]
    ours, target = zo_grasp(f, 0.4, samples=300, eps=1e-4), exact(f, 0.4)
    for one, other, p in zip(ours, target, net.parameters(), strict=True):
        assert abs(one - other) * p.numel() < 2.5  # weights
    assert target[2] - target[0] > 0.5 and ours[2] - ours[0] > 0.25  # not uniform
    assert ours[1] == 1.0  # a bias
    assert all(map(torch.equal, net.parameters(), before))


def test_on_a_quadratic_it_is_the_equation_with_the_directions_written_out():
    """With S = mean z z', the difference of estimates is eps S H S g: the score exactly."""
    rng = torch.Generator().manual_seed(2)
    root = torch.randn(30, 30, generator=rng, dtype=F64)
    start = torch.randn(30, generator=rng, dtype=F64)
    parts = [nn.Parameter(part.view(2, -1)) for part in start.split([12, 18])]
    H = root @ root.T

    def loss():
        theta = torch.cat([p.flatten() for p in parts])
        return 0.5 * theta @ H @ theta

    for seed in range(5):
        zs = [noise(split_seed(seed, i), 0, 30).double() for i in range(6)]
        S = sum(torch.outer(z, z) for z in zs) / 6
        bias = sum(0.5e-3 * (z @ H @ z) * z for z in zs) / 6  # of a one-sided difference
        score = -start * (S @ H @ (S @ H @ start + bias))
        kept = score <= score.sort().values[11]
        law = [kept[:12].double().mean().item(), kept[12:].double().mean().item()]
        assert zo_grasp(Objective(loss, parts), 0.4, samples=6, eps=1e-3, seed=seed) == law


def test_the_share_is_kept_and_paid_for():
    net, f = network()
    for keep in (0.1, 0.5, 1.0):
        f.counts.clear()
        ratios = zo_grasp(f, keep, samples=30)
        kept = sum(r * p.numel() for r, p in zip(ratios, net.parameters(), strict=True) if r < 1)
        kept += sum(
            p.numel()
            for r, p in zip(ratios, net.parameters(), strict=True)
            if r == 1 and p.dim() >= 2
        )
        assert round(kept) == round(keep * (18 + 12))
        assert f.counts["forward"] == 2 * 31


def test_equal_directions_cancel():
    """The difference of two estimates has the noise of the curvature, not that of the gradient."""
    p = nn.Parameter(torch.randn(30, 1, dtype=F64, generator=torch.Generator().manual_seed(0)))
    f = Objective(lambda: 1e4 * p.sum() + 0.5 * p.square().sum(), [p])
    estimator, eps = SPSA(1e-3, 400, one_sided=True), 1e-3
    here = estimator(f, 0).gradient[0]
    with torch.no_grad():
        p += eps * here
    same, other = (estimator(f, s).gradient[0] for s in (0, 1))
    product = here  # the Hessian is the identity
    errors = [((there - here) / eps - product).norm() / product.norm() for there in (same, other)]
    assert errors[0] < 0.5 and errors[1] > 10


def test_it_is_a_function_of_the_seed_and_restores_what_it_moved():
    net, f = network()
    torch.manual_seed(1)
    one = zo_grasp(f, 0.3, samples=5, seed=4)
    torch.manual_seed(2)
    assert one == zo_grasp(f, 0.3, samples=5, seed=4) != zo_grasp(f, 0.3, samples=5, seed=5)
    before, calls = [p.detach().clone() for p in net.parameters()], iter(range(20))

    def fails():
        if next(calls) == 12:
            raise KeyError("within the second estimate")
        return sum(p.square().sum() for p in net.parameters())

    with pytest.raises(KeyError, match="second"):
        zo_grasp(Objective(fails, net), 0.5, samples=9)
    assert all(map(torch.equal, net.parameters(), before))


def test_bad_arguments():
    _, f = network()
    for keep in (0.0, 1.5):
        with pytest.raises(ValueError, match=r"share in \(0, 1\]"):
            zo_grasp(f, keep)
    p = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="nothing to rank"):
        zo_grasp(Objective(lambda: p.sum(), [p]), 0.5)
    q = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(RuntimeError, match="NaN or infinite"):
        zo_grasp(Objective(lambda: q.sum() * torch.nan, [q]), 0.5, samples=2)
    assert (q == 1).all()
