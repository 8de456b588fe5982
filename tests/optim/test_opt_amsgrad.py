"""Optimistic AMSGrad."""

import math

import pytest
import torch

from steepest.estimators import extrapolate
from steepest.optim import Adam, OptAMSGrad


def descend(make, lr, steps=500):
    """Loss after descending a 50-dimensional quadratic of condition number 1000."""
    curvature = torch.logspace(-3, 0, 50, dtype=torch.float64)
    p = torch.nn.Parameter(torch.ones(50, dtype=torch.float64))
    opt = make([p], lr)
    for _ in range(steps):
        p.grad = curvature * p.detach()
        opt.step()
    return (0.5 * curvature * p.detach() ** 2).sum().item()


def test_in_plain_numbers():
    lr, b1, b2, eps = 0.1, 0.9, 0.99, 1e-3
    gradients = [2.0, 1.5, -0.5, -0.4]
    theta = w = 1.0
    m = v = vmax = hint = 0.0
    for g in gradients:
        old = m
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * (g - hint) ** 2
        vmax = max(vmax, v)
        w -= lr * m / (math.sqrt(vmax) + eps)
        hint = g
        theta = w - lr * (b1 * old + (1 - b1) * hint) / (math.sqrt(vmax) + eps)
    p = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    opt = OptAMSGrad([p], lr, (b1, b2), eps)
    for g in gradients:
        p.grad = torch.full_like(p, g)
        opt.step()
    assert abs(p.item() - theta) < 1e-14


@pytest.mark.parametrize("lr", [1e-3, 3e-3])
def test_predictable_gradients_are_followed_faster(lr):
    """The paper's claim: fewer iterations than AMSGrad at the same learning rate."""
    optimistic = descend(lambda ps, lr: OptAMSGrad(ps, lr), lr)
    # AMSGrad as the paper compares with, without bias correction: c1 = c2 = 1 from the start is
    # Adam's amsgrad after its warm-up, which only helps Adam here.
    plain = descend(lambda ps, lr: Adam(ps, lr, amsgrad=True), lr)
    assert optimistic <= 0.1 * plain


def test_guesses_do_not_accumulate():
    # With a gradient that vanishes after one step, w keeps only what real gradients asked for.
    p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    opt = OptAMSGrad([p], lr=0.1, betas=(0.0, 0.5), eps=0.0)
    for g in (1.0, 0.0):
        p.grad = torch.full_like(p, g)
        opt.step()
    step = 0.1 / math.sqrt(0.5)
    assert math.isclose(opt.state[p]["iterate"].item(), -step)
    # the surprise of the vanished gradient raised v to 0.5 * 0.5 + 0.5 * 1
    assert math.isclose(opt.state[p]["surprise_sq"].item(), 0.75)
    assert math.isclose(p.item(), -step)


def test_a_window_extrapolates_over_all_tensors_of_a_group():
    rng = torch.Generator().manual_seed(5)
    stream = torch.randn(6, 5, generator=rng, dtype=torch.float64)
    whole = torch.nn.Parameter(torch.zeros(5, dtype=torch.float64))
    parts = [torch.nn.Parameter(torch.zeros(n, dtype=torch.float64)) for n in (2, 3)]
    one, two = (OptAMSGrad(ps, lr=0.1, window=4) for ps in ([whole], parts))
    for g in stream:
        whole.grad = g.clone()
        parts[0].grad, parts[1].grad = g[:2].clone(), g[2:].clone()
        one.step()
        two.step()
    assert torch.allclose(whole, torch.cat(list(parts)), rtol=1e-10)
    guess = extrapolate([[g] for g in stream[-4:]])[0]
    assert torch.allclose(one.state[whole]["guess"], guess)
    assert one.state[whole]["history"].shape == (4, 5)
