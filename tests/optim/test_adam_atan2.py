"""Adam-atan2: no epsilon, exact scale invariance."""

import math

import torch

from steepest.optim import Adam, AdamAtan2


def descend(make, scale, steps=200):
    """Minimize a quadratic whose loss is multiplied by ``scale``."""
    curvature = torch.tensor([1.0, 10.0, 0.1], dtype=torch.float64)
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))
    opt = make([p])
    for _ in range(steps):
        p.grad = scale * curvature * p.detach()
        opt.step()
    return p.detach()


def test_in_plain_numbers():
    lr, b1, b2, wd, a, b = 0.1, 0.9, 0.99, 0.2, 1.3, 0.7
    theta, m, v = 1.0, 0.0, 0.0
    gradients = [2.0, -0.5, 0.0, 4.0]
    for t, g in enumerate(gradients, start=1):
        theta *= 1 - lr * wd
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
        theta -= lr * a * math.atan2(m_hat, b * math.sqrt(v_hat))
    p = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    opt = AdamAtan2([p], lr, (b1, b2), wd, a=a, b=b)
    for g in gradients:
        p.grad = torch.full_like(p, g)
        opt.step()
    assert abs(p.item() - theta) < 1e-14


def test_the_loss_scale_does_not_matter_where_adams_epsilon_does():
    """The paper's claim: gradients that underflow epsilon stop Adam, not Adam-atan2."""
    exact = descend(lambda ps: AdamAtan2(ps, lr=0.05), 1.0)
    tiny = descend(lambda ps: AdamAtan2(ps, lr=0.05), 1e-12)
    assert torch.allclose(tiny, exact, rtol=1e-9, atol=0)
    adam, starved = (descend(lambda ps: Adam(ps, lr=0.05), s) for s in (1.0, 1e-12))
    assert ((starved - adam).abs() / adam.abs() > 0.5).all()


def test_a_large_scale_factor_is_adam_without_epsilon():
    # b atan2(m, b s) -> m / s as b grows.
    limit = descend(lambda ps: AdamAtan2(ps, lr=0.05, a=1e6, b=1e6), 1.0)
    adam = descend(lambda ps: Adam(ps, lr=0.05, eps=0.0), 1.0)
    assert torch.allclose(limit, adam, rtol=1e-6)


def test_zero_gradients_move_nothing():
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.zeros(3)
    AdamAtan2([p]).step()
    assert torch.equal(p.data, torch.ones(3))
