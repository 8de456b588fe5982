"""What MeZO's paper says of it, beyond the rule: effective rank, accuracy, adapters, no drift."""

import math
import statistics

import torch
from torch import nn
from torch.nn import functional as F

from steepest.estimators import SPSA
from steepest.lightning import DigitsData
from steepest.optim import MeZO
from steepest.oracles import Objective


def falls(curvature, seed, share=0.1):
    """Steps to a share of the loss, at the learning rate 1 / (tr H + 2 |H|)."""
    h = torch.as_tensor(curvature)
    p = nn.Parameter(h.clamp_min(1e-9).rsqrt() * (h > 0))  # all terms of the loss are equal
    opt = MeZO([p], lr=1 / (h.sum() + 2 * h.max()).item(), seed=seed)
    first = opt.step(lambda: 0.5 * (h * p.square()).sum()).item()
    for t in range(2, 50_000):
        if opt.step(lambda: 0.5 * (h * p.square()).sum()) < share * first:
            return t
    raise AssertionError("it did not get there")


def test_the_rate_is_that_of_the_rank_and_not_of_the_dimension():
    """Projectors of rank 5 in 200 and in 20,000 dimensions, and the identity in 200."""
    small, large = torch.zeros(200), torch.zeros(20_000)
    small[:5] = large[:5] = 1
    low, high, full = (
        statistics.median(falls(h, seed) for seed in range(3))
        for h in (small, large, torch.ones(200))
    )
    assert high / low < 2
    assert full / low > 8


def test_one_step_on_a_spectrum_falls_as_the_effective_rank_says():
    """E f(theta+) <= (1 - 1/(r + 2)) f for a quadratic with all of theta in its top direction.

    With lr = 1/(tr H + 2 |H|), from E[z z'Hz z'] = tr H + 2H, in 2,000 dimensions that all curve.
    """
    h = 1.0 / torch.arange(1, 2001, dtype=torch.float64) ** 2
    r = (h.sum() / h.max()).item()
    assert r < 1.7  # of 2,000
    start = torch.zeros(2000, dtype=torch.float64)
    start[0] = 1
    ends = []
    for seed in range(400):
        p = nn.Parameter(start.clone())
        MeZO([p], lr=1 / (r + 2), seed=seed).step(lambda p=p: 0.5 * (h * p.square()).sum())
        ends.append(0.5 * (h * p.detach().square()).sum().item())
    law = 0.5 * (1 - 2 / (r + 2) + (r + 2) / (r + 2) ** 2)
    error = statistics.stdev(ends) / math.sqrt(len(ends))
    assert abs(statistics.mean(ends) - law) < 5 * error
    assert statistics.mean(ends) < 0.5 * 0.85


def test_the_second_moment_grows_with_the_dimension():
    """E |g|^2 = (d + 2) |grad|^2 for one Gaussian direction, (d + n + 1) / n for n."""
    p = nn.Parameter(torch.ones(30, dtype=torch.float64))
    f = Objective(lambda: p.sum(), [p])
    for n, law in ((1, 32.0), (5, 36 / 5)):
        squares = torch.tensor(
            [SPSA(samples=n)(f, s).gradient[0].square().sum() for s in range(200)]
        )
        assert abs(squares.mean() / 30 - law) < 5 * squares.std() / 30 / math.sqrt(200)


def digits(rows=400):
    data = DigitsData()
    data.setup()
    return data.splits["train"].inputs[:rows], data.splits["train"].targets[:rows]


def test_accuracy_rises_from_a_half_trained_start_without_a_graph():
    x, y = digits()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 16, bias=False), nn.Tanh(), nn.Linear(16, 10, bias=False))

    def accuracy():
        out = net(x)
        assert out.grad_fn is None
        return (out.argmax(1) == y).float().mean()

    sgd = torch.optim.SGD(net.parameters(), lr=0.3)
    while (net(x).argmax(1) == y).float().mean() < 0.5:
        sgd.zero_grad()
        F.cross_entropy(net(x), y).backward()
        sgd.step()
    with torch.no_grad():
        begun = accuracy().item()
    opt = MeZO(net.named_parameters(), lr=0.04, eps=0.03, samples=8, maximize=True)
    before = [p.detach().clone() for p in net.parameters()]
    opt.query(opt.objective(accuracy))
    for p, q in zip(net.parameters(), before, strict=True):
        assert (p - q).abs().max() < 1e-5
    for _ in range(80):
        opt.step(accuracy)
    with torch.no_grad():
        assert accuracy() > begun + 0.2


def test_ten_thousand_probes_leave_bfloat16_weights_bit_for_bit():
    p = nn.Parameter(torch.linspace(-2, 2, 16).to(torch.bfloat16))
    before = p.detach().clone()
    f, estimator = Objective(lambda: p.float().square().sum(), [p]), SPSA(in_place=True)
    for seed in range(10_000):
        estimator.project(f, seed)
    assert torch.equal(p, before)


def test_an_adapter_is_trained_alone_and_bears_a_longer_step():
    """lr = 1/(tr H + 2 |H|) of an adapter's Hessian: right for it, far too long for all weights.

    E f falls by lr |g|^2 and rises by lr^2 (tr H |g|^2 / 2 + g'Hg).
    """
    x, y = digits(200)
    target = F.one_hot(y, 10).float()
    torch.manual_seed(0)
    frozen = nn.Linear(64, 10, bias=False)
    before = frozen.weight.detach().clone()
    down = F.normalize(torch.randn(1, 64))
    curvature = ((x @ down.T).square().sum() / len(x)).item()  # of each of ten outputs
    lr = 1 / (10 * curvature + 2 * curvature)

    def mean_after(named):
        ends = []
        starts = [p.detach().clone() for _, p in named]
        for seed in range(100):
            MeZO(named, lr=lr, seed=seed).step(loss)
            with torch.no_grad():
                ends.append(loss().item())
                for (_, p), start in zip(named, starts, strict=True):
                    p.copy_(start)
        return statistics.mean(ends), statistics.stdev(ends) / 10

    def loss():
        return 0.5 * (frozen(x) + x @ down.T @ up.T - target).square().sum(1).mean()

    up = nn.Parameter(torch.zeros(10, 1))
    gradient = Objective(loss, [up]).gradient()
    g = gradient.gradient[0].square().sum().item()
    adapter, error = mean_after([("up", up)])
    law = gradient.value.item() - lr * g + lr**2 * (10 * curvature * g / 2 + curvature * g)
    assert abs(adapter - law) < 5 * error
    assert adapter < gradient.value
    assert torch.equal(frozen.weight, before)
    everything, error = mean_after(list(frozen.named_parameters()))
    assert everything - 5 * error > gradient.value
