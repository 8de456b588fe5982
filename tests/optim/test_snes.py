"""SNES against a transcription, its invariances, its mask, and what its widths learn."""

import math

import pytest
import torch

from steepest.kernels import noise, split_seed
from steepest.optim import SNES, rank_utilities

F64 = torch.float64
CURVATURE = torch.tensor([0.1, 1.0, 10.0, 100.0, 1000.0], dtype=F64)


def quadratic(x):
    return 0.5 * (CURVATURE * (x - 1) ** 2).sum()


def walk(loss, steps=10, start=None, **options):
    p = torch.nn.Parameter(torch.zeros(5, dtype=F64) if start is None else start.clone())
    opt = SNES([p], **options)
    path = []
    for _ in range(steps):
        opt.step(lambda: loss(p))
        path.append(torch.cat([p.detach(), opt.state[p]["sigma"]]))
    return torch.stack(path)


@pytest.mark.parametrize(("lr", "rate"), [(1.0, None), (0.3, 0.7)])
def test_against_a_transcription(lr, rate):
    n, seed, d = 7, 4, 5
    m, sigma = torch.zeros(d, dtype=F64), torch.full((d,), 0.2, dtype=F64)
    path = walk(quadratic, 5, lr=lr, sigma0=0.2, sigma_lr=rate, population=n, seed=seed)
    eta = (3 + math.log(d)) / (5 * math.sqrt(d)) if rate is None else rate
    for t in range(5):
        zs = [noise(split_seed(split_seed(seed, t), i), 0, d).double() for i in range(n)]
        ranked = sorted(range(n), key=lambda i: quadratic(m + sigma * zs[i]).item())
        raw = [max(0.0, math.log(n / 2 + 1) - math.log(r + 1)) for r in range(n)]
        u = [w / sum(raw) - 1 / n for w in raw]
        first = sum(u[r] * zs[i] for r, i in enumerate(ranked))
        second = sum(u[r] * (zs[i] ** 2 - 1) for r, i in enumerate(ranked))
        m = m + lr * sigma * first
        sigma = sigma * torch.exp(0.5 * eta * second)
        assert torch.allclose(path[t], torch.cat([m, sigma]), rtol=1e-9, atol=1e-12)


def test_only_the_order_of_losses_counts():
    plain = walk(quadratic)
    assert torch.equal(plain, walk(lambda x: (quadratic(x) / 600).exp() - 7))
    assert not torch.equal(plain, walk(lambda x: -quadratic(x)))


def test_scaling_the_problem_scales_the_path():
    """The update has the distribution's units: no step is in those of the loss or parameters."""
    plain = walk(quadratic)
    large = walk(lambda x: quadratic(x / 8), sigma0=0.8)
    assert torch.allclose(large, 8 * plain, rtol=1e-9)


def test_masked_elements_are_not_searched():
    """The rest takes the path that it would take alone."""
    mask = torch.tensor([True, True, True, False, False])
    start = torch.arange(5, dtype=F64)
    seen = []

    def loss(x):
        seen.append(x.detach()[3:].clone())
        return (CURVATURE[:3] * x[:3] ** 2).sum()

    masked = walk(loss, start=start, mask=lambda params: [mask])
    alone = walk(lambda x: (CURVATURE[:3] * x**2).sum(), start=start[:3])
    assert all(torch.equal(s, start[3:]) for s in seen)
    assert torch.equal(masked[:, 3:5], start[3:].expand(10, 2))
    assert torch.equal(masked[:, [0, 1, 2, 5, 6, 7]], alone)
    assert torch.equal(masked[:, 8:], torch.full((10, 2), 0.1, dtype=F64))


def test_utilities():
    u = rank_utilities(torch.tensor([5.0, math.nan, -1.0, 2.0, math.inf, 0.0], dtype=F64))
    assert abs(u.sum()) < 1e-12
    assert u.argmax() == 2 and u[0] == u[1] == u[4] == u.min() == -1 / 6
    assert u[5] > u[3] > u[0]


def test_a_lost_candidate_is_the_worst_and_all_lost_moves_nothing():
    p = torch.nn.Parameter(torch.zeros(2, dtype=F64))
    opt = SNES([p])
    value = opt.step(lambda: torch.where(p[0] > 0, math.nan, p[1]))
    assert value.isfinite() and p[0] < 0
    before = p.detach().clone()
    with pytest.raises(FloatingPointError, match="nothing has moved"):
        opt.step(lambda: p.sum() * math.nan)
    assert torch.equal(p, before) and opt.steps == 1


def test_widths_learn_the_curvature():
    """log sigma against log h has the slope -1/2."""
    path = walk(quadratic, 100, sigma0=1.0)[-50:, 5:].log().mean(0)
    x, y = CURVATURE.log(), path
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    assert -0.65 < slope < -0.35


def test_bad_arguments():
    p = torch.nn.Parameter(torch.zeros(2))
    for bad in ({"sigma0": 0.0}, {"sigma_lr": -1.0}, {"population": 1}, {"lr": -1.0}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))}="):
            SNES([p], **bad)
    opt = SNES([p], mask=lambda params: [torch.ones(3, dtype=torch.bool)])
    with pytest.raises(ValueError, match="mask"):
        opt.step(lambda: p.sum())
    assert torch.equal(p, torch.zeros(2))
