"""AdaGradNorm: by hand, and one step size for noise and for none."""

import math

import numpy as np
import pytest
import torch

from steepest.optim import AdaGradNorm

F64 = torch.float64


def test_two_steps_by_hand_with_the_present_gradient_in_the_sum():
    p, q = (torch.nn.Parameter(torch.zeros(1, dtype=F64)) for _ in range(2))
    opt = AdaGradNorm([p, q], lr=2.0, gamma=1.0)
    p.grad, q.grad = torch.full_like(p, 2.0), torch.full_like(q, 2.0)
    opt.step()
    assert p.item() == pytest.approx(-2 * 2 / 3, rel=1e-12)  # 1 + 4 + 4 = 9
    p.grad, q.grad = torch.full_like(p, 4.0), torch.zeros_like(q)
    opt.step()
    assert p.item() == pytest.approx(-4 / 3 - 2 * 4 / 5, rel=1e-12)  # 9 + 16 = 25
    assert q.item() == pytest.approx(-4 / 3, rel=1e-12)


def test_without_any_gradient_there_is_no_step():
    p = torch.nn.Parameter(torch.ones(2))
    opt = AdaGradNorm([p], gamma=0.0)
    p.grad = torch.zeros(2)
    opt.step()
    assert torch.equal(p, torch.ones(2))


def test_it_finds_the_rate_where_a_fixed_one_diverges():
    """Curvature 100 and no smoothness constant given: any length works, SGD at 2.5 / L does not."""
    curvature = torch.tensor([100.0, 1.0], dtype=F64)

    def end(make, steps):
        p = torch.nn.Parameter(torch.ones(2, dtype=F64))
        opt = make([p])
        for _ in range(steps):
            p.grad = curvature * p.detach()
            opt.step()
        return (0.5 * curvature * p.detach() ** 2).sum().item()

    for lr in (0.1, 1.0, 10.0, 100.0):
        assert end(lambda ps, lr=lr: AdaGradNorm(ps, lr=lr), 20_000 if lr == 0.1 else 3000) < 0.05
    assert end(lambda ps: torch.optim.SGD(ps, lr=2.5 / 100), 300) > 1e6


def mean_squares(sigma0, sigma1, lengths, gamma, runs=6, n=20):
    """Mean square of the gradient over a run of each length, on a smooth non-convex loss.

    Each of the runs is a group, and so has a sum of its own.
    """
    rng = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.ones(n, dtype=F64)) for _ in range(runs)]
    opt = AdaGradNorm([{"params": [p]} for p in params], lr=1.0, gamma=gamma, backend="torch")
    seen, squares = [], []
    for _ in range(max(lengths)):
        x = torch.stack([p.detach() for p in params])
        slope = 2 * x / (1 + x * x) ** 2
        seen.append(slope.square().sum(1).mean().item())
        one = 1 + sigma1 * torch.randn(runs, 1, generator=rng, dtype=F64)
        two = sigma0 * torch.randn(runs, n, generator=rng, dtype=F64)
        for p, g in zip(params, slope * one + two, strict=True):
            p.grad = g
        opt.step()
    squares = np.cumsum(seen)
    return [squares[length - 1] / length for length in lengths]


@pytest.mark.parametrize(
    ("sigma0", "sigma1", "low", "high"), [(0.0, 1.0, -1.2, -0.85), (1.0, 0.0, -0.65, -0.35)]
)
def test_both_rates_with_the_same_numbers(sigma0, sigma1, low, high):
    """Noise that vanishes with the gradient: 1 / T; noise that stays: 1 / sqrt(T)."""
    first = 9 if sigma0 else 6  # with noise, where the way from the start no longer counts
    lengths = [2**k for k in range(first, first + 5)]
    means = mean_squares(sigma0, sigma1, lengths, gamma=1e-3)
    slope = np.polyfit(np.log(lengths), np.log(means), 1)[0]
    assert low < slope < high


def test_bad_arguments():
    p = torch.nn.Parameter(torch.ones(3))
    for bad in ({"gamma": -1.0}, {"lr": math.inf}):
        with pytest.raises(ValueError, match=f"AdaGradNorm: {next(iter(bad))}="):
            AdaGradNorm([p], **bad)
