"""Grams: the gradient's sign, Adam's magnitude."""

import math

import pytest
import torch

from steepest.optim import Adam, Grams


def feed(make, gradients):
    """Steps of one parameter, made from these gradients."""
    p = torch.nn.Parameter(torch.zeros(gradients[0].shape, dtype=torch.float64))
    opt = make([p])
    path = [p.detach().clone()]
    for g in gradients:
        p.grad = g.clone()
        opt.step()
        path.append(p.detach().clone())
    return torch.stack(path).diff(dim=0)


@pytest.fixture
def gradients():
    """Noise around a slow drift, with silences: momentum is right sometimes, and sometimes not."""
    rng = torch.Generator().manual_seed(1)
    noise = torch.randn(200, 30, generator=rng, dtype=torch.float64)
    drift = torch.sin(torch.arange(200, dtype=torch.float64) / 20)[:, None]
    silent = torch.rand(200, 30, generator=rng) < 0.1
    return (noise + drift).masked_fill(silent, 0.0)


def test_against_the_paper_in_plain_numbers(gradients):
    lr, b1, b2, eps, wd = 0.1, 0.8, 0.95, 1e-3, 0.2
    theta, m, v = 1.0, 0.0, 0.0
    p = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    opt = Grams([p], lr, (b1, b2), eps, wd)
    for t, g in enumerate(gradients[:50, 0].tolist(), start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        magnitude = abs(m / (1 - b1**t)) / (math.sqrt(v / (1 - b2**t)) + eps)
        sign = (g > 0) - (g < 0)
        theta = theta - lr * wd * theta - lr * sign * magnitude
        p.grad = torch.full_like(p, g)
        opt.step()
        assert abs(p.item() - theta) < 1e-13


def test_a_step_is_the_gradients_sign_times_adams_magnitude(gradients):
    ours = feed(lambda ps: Grams(ps, lr=0.1), gradients)
    adam = feed(lambda ps: Adam(ps, lr=0.1, eps=1e-6), gradients)
    expected = -gradients.sign() * adam.abs()
    assert torch.allclose(ours, expected, rtol=1e-9, atol=1e-12)
    against = (gradients * -adam) < 0
    assert 0.1 < against.double().mean() < 0.5  # there is something to turn around


def test_each_step_descends_at_least_as_much_as_adams_and_as_a_cautious_one(gradients):
    """The paper's claim, to first order and for one history of gradients."""
    ours = feed(lambda ps: Grams(ps, lr=0.1), gradients)
    adam = feed(lambda ps: Adam(ps, lr=0.1, eps=1e-6), gradients)
    masked = adam * (adam * gradients < 0)
    drop = {
        name: -(gradients * step).sum(1)
        for name, step in {"grams": ours, "adam": adam, "cautious": masked}.items()
    }
    assert (drop["grams"] >= drop["cautious"] - 1e-12).all()
    assert (drop["cautious"] >= drop["adam"] - 1e-12).all()
    assert (drop["adam"] < 0).any() and (drop["grams"] >= 0).all()
    assert drop["grams"].sum() > 1.1 * drop["cautious"].sum() > 1.2 * drop["adam"].sum()


def test_a_silent_coordinate_stands_still(gradients):
    ours = feed(lambda ps: Grams(ps, lr=0.1), gradients)
    assert (ours[gradients == 0] == 0).all() and (ours[gradients != 0] != 0).all()


def test_without_momentum_it_is_adam(gradients):
    options = {"lr": 0.1, "betas": (0.0, 0.999), "eps": 1e-6}
    ours, adam = (feed(lambda ps, o=o: o(ps, **options), gradients) for o in (Grams, Adam))
    assert torch.allclose(ours, adam, rtol=1e-9, atol=1e-12)


def test_along_a_gradient_that_keeps_its_sign_it_is_adam(gradients):
    options = {"lr": 0.1, "eps": 1e-6}
    pair = (feed(lambda ps, o=o: o(ps, **options), gradients.abs() + 0.1) for o in (Grams, Adam))
    ours, adam = pair
    assert torch.allclose(ours, adam, rtol=1e-9, atol=1e-12)


def test_under_noise_adam_averages_the_direction_and_grams_does_not():
    """When not to use it: a mean gradient far below the noise moves Adam, and hardly Grams."""
    rng = torch.Generator().manual_seed(2)
    noisy = 0.1 + torch.randn(300, 500, generator=rng, dtype=torch.float64)
    ours = feed(lambda ps: Grams(ps, lr=0.1), noisy).mean()
    adam = feed(lambda ps: Adam(ps, lr=0.1, eps=1e-6), noisy).mean()
    assert adam < 0 and ours < 0
    assert abs(ours) < 0.5 * abs(adam)
