"""Sparse MeZO's mask: what it keeps, when, and what that does to an estimate."""

import math

import pytest
import torch

from steepest.estimators import SPSA, SmallWeights
from steepest.optim import MeZO
from steepest.oracles import Objective


def weights(*sizes, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return [
        torch.nn.Parameter(torch.randn(n, generator=rng, dtype=torch.float64) * 10**i)
        for i, n in enumerate(sizes)
    ]


def test_the_smallest_of_each_tensor_and_not_of_all():
    small, large = weights(40, 80)
    masks = SmallWeights(keep=0.25)([small, large])
    for p, mask in zip((small, large), masks, strict=True):
        assert mask.sum() == p.numel() // 4
        assert p[mask].abs().max() < p[~mask].abs().min()


def test_two_steps_by_hand():
    """Thresholds of the start, masks of each step, and the same mask for both probes."""
    start = torch.tensor([0.1, -0.2, 0.3, -4.0], dtype=torch.float64)
    h, slopes = 0.2, torch.tensor([1.0, -7.0, 2.0, 3.0], dtype=torch.float64)
    p = torch.nn.Parameter(start.clone())
    opt = MeZO([p], lr=0.06, kind="rademacher", mask=SmallWeights(keep=0.5))
    ours, left = start.clone(), []
    for _ in range(2):
        f = opt.objective(lambda: (p * slopes).sum())
        plain = SPSA(kind="rademacher").combine(f, opt.draw(), {0: 1.0})[0]  # the signs z
        z = plain * (ours.abs() <= h)
        left.append(int(z.abs().sum()))
        opt.step(f)
        ours = ours - 0.06 * (slopes @ z) * z
        assert torch.allclose(p, ours, atol=1e-9)
    assert torch.equal(p[2:], start[2:])
    assert left == [2, 0]  # both have outgrown the threshold, and the second step moves nothing


def test_keeping_all_is_mezo():
    a, b = weights(30)[0], weights(30)[0]
    for p, options in ((a, {}), (b, {"mask": SmallWeights(keep=1.0)})):
        opt = MeZO([p], lr=1e-3, **options)
        for _ in range(5):
            opt.step(lambda p=p: p.square().sum())
    assert torch.allclose(a, b, rtol=0, atol=1e-12)
    assert not torch.equal(a, weights(30)[0])


def test_the_second_moment_is_that_of_the_kept_elements():
    """E |g|^2 = (|m|_0 + 2) |m grad|^2, a quarter of MeZO's factor d + 2."""
    (p,) = weights(80)
    slope = torch.linspace(-1, 1, 80, dtype=torch.float64)
    f = Objective(lambda: (slope * p).sum(), [p])
    mask = SmallWeights(keep=0.25)
    kept = mask([p.detach()])[0]
    norm = slope[kept].square().sum()
    ratios = torch.stack(
        [SPSA(mask=mask)(f, seed).gradient[0].square().sum() / norm for seed in range(600)]
    )
    assert abs(ratios.mean() - 22) < 5 * ratios.std() / math.sqrt(len(ratios))
    assert ratios.mean() < 82 / 3


def test_errors():
    for bad in (0.0, 1.5, -1.0):
        with pytest.raises(ValueError, match=r"number in \(0, 1\]"):
            SmallWeights(bad)
    mask = SmallWeights()
    mask([torch.ones(3)])
    with pytest.raises(ValueError, match="for each model"):
        mask([torch.ones(3), torch.ones(2)])
    p = torch.nn.Parameter(torch.tensor([1.0, float("nan")]))
    with pytest.raises(ValueError, match="NaN"):
        MeZO([p], mask=SmallWeights(0.9)).step(lambda: p.sum())
    assert p[0] == 1
