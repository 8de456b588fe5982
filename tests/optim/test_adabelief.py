"""AdaBelief: the scale is the deviation from the mean gradient."""

import math

import pytest
import torch

from steepest.optim import AdaBelief, Adam


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


def random_gradients(steps, *shape):
    rng = torch.Generator().manual_seed(1)
    return torch.randn(steps, *shape, generator=rng, dtype=torch.float64)


def test_against_the_paper_in_plain_numbers():
    lr, b1, b2, eps, wd = 0.1, 0.8, 0.95, 1e-3, 0.2
    theta, m, s = 1.0, 0.0, 0.0
    p = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    opt = AdaBelief([p], lr, (b1, b2), eps, wd)
    for t, g in enumerate(random_gradients(50).tolist(), start=1):
        theta -= lr * wd * theta
        m = b1 * m + (1 - b1) * g
        s = b2 * s + (1 - b2) * (g - m) ** 2 + eps
        theta -= lr * (m / (1 - b1**t)) / (math.sqrt(s / (1 - b2**t)) + eps)
        p.grad = torch.full_like(p, g)
        opt.step()
        assert abs(p.item() - theta) < 1e-13


@pytest.mark.parametrize("eps", [0.0, 1e-16, 1e-8, 1e-3])
@pytest.mark.parametrize("g", [1e-3, 1.0, -50.0])
def test_a_constant_gradients_step_is_adams_times_a_known_factor(g, eps):
    """With m = (1 - b1^t) g the deviation is b1^t g, and s is a geometric sum."""
    b1, b2 = 0.9, 0.999
    gradients = torch.full((300, 1), g, dtype=torch.float64)
    belief = feed(lambda ps: AdaBelief(ps, lr=0.1, betas=(b1, b2), eps=eps), gradients)
    adam = feed(lambda ps: Adam(ps, lr=0.1, betas=(b1, b2), eps=eps), gradients)
    t = torch.arange(1, 301, dtype=torch.float64)
    deviations = g * g * (1 - b2) * b1**2 * (b2**t - b1 ** (2 * t)) / (b2 - b1**2)
    scale = (deviations / (1 - b2**t) + eps / (1 - b2)).sqrt()  # eps has added up
    factor = (abs(g) + eps) / (scale + eps)
    assert torch.allclose((belief / adam)[:, 0], factor, rtol=1e-6)


def test_the_first_step_is_adams_over_beta1():
    gradients = torch.tensor([[1e4], [1e-4]], dtype=torch.float64)
    for g in gradients:
        step = feed(lambda ps: AdaBelief(ps, lr=0.1, betas=(0.8, 0.9), eps=0.0), [g])
        assert abs(step.item() + 0.125) < 1e-12


def test_epsilon_adds_up_inside_the_scale():
    """Without gradients s is eps (1 + b2 + b2^2 + ...), which a corrected mean would not have."""
    p = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    opt = AdaBelief([p], betas=(0.9, 0.5), eps=1e-6)
    for _ in range(60):
        p.grad = torch.zeros_like(p)
        opt.step()
    assert abs(opt.state[p]["exp_avg_var"].item() / 2e-6 - 1) < 1e-12


def test_without_momentum_nothing_surprises_and_it_is_sgd():
    # beta1 = 0: the mean is the gradient, so eps alone is the scale: eps / (1 - beta2).
    eps, b2, gradients = 1e-4, 0.99, random_gradients(50, 3)
    steps = feed(lambda ps: AdaBelief(ps, lr=0.1, betas=(0.0, b2), eps=eps), gradients)
    rate = 0.1 / (math.sqrt(eps / (1 - b2)) + eps)
    sgd = feed(lambda ps: torch.optim.SGD(ps, lr=rate), gradients)
    assert torch.allclose(steps, sgd, rtol=1e-9)


def test_a_mean_that_hardly_moves_makes_it_adam():
    # beta1 -> 1: the mean predicts nothing, and the deviation is the gradient.
    gradients, betas = random_gradients(50, 3), (1 - 1e-7, 0.99)
    steps = feed(lambda ps: AdaBelief(ps, lr=0.1, betas=betas, eps=0.0), gradients)
    adam = feed(lambda ps: Adam(ps, lr=0.1, betas=betas, eps=0.0), gradients)
    assert torch.allclose(steps, adam, rtol=1e-4)


def test_steps_are_long_where_gradients_agree_and_short_where_they_do_not():
    """The paper's claim: against Adam, the factor is about |g| / |g - m|."""

    def factor(gradients):
        pair = [feed(lambda ps, o=o: o(ps, lr=0.1), gradients) for o in (AdaBelief, Adam)]
        return (pair[0] / pair[1]).abs()[-1].item()

    agree = torch.ones(400, 1, dtype=torch.float64)
    alternate = agree.clone()
    alternate[1::2] = -1
    noisy = agree + random_gradients(400, 1)  # |g| / |g - m| is about sqrt(2) here
    assert factor(agree) > 10
    assert 0.9 < factor(alternate) < 1.1
    assert 1.2 < factor(noisy) < 1.7


def test_it_needs_fewer_steps_along_a_shallow_valley():
    """The paper's example |x| / 10 + |y|: x's gradient is small, and agrees with itself."""

    def steps(make):
        p = torch.nn.Parameter(torch.tensor([1.0, 1.0], dtype=torch.float64))
        opt = make([p])
        for t in range(2000):
            if p[0].abs() / 10 + p[1].abs() <= 0.01:
                return t
            p.grad = p.detach().sign() * torch.tensor([0.1, 1.0], dtype=torch.float64)
            opt.step()
        return 2000

    assert steps(lambda ps: AdaBelief(ps, lr=1e-3)) <= 0.7 * steps(lambda ps: Adam(ps, lr=1e-3))
