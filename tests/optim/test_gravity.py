"""Gravity: a response with a peak, and momentum from a random start."""

import math

import pytest
import torch

from steepest.kernels import noise
from steepest.optim import Gravity


def parameter(*shape):
    return torch.nn.Parameter(torch.zeros(*shape, dtype=torch.float64))


def response(g):
    """What Gravity makes of a gradient, read off a first step from rest."""
    p = parameter(*g.shape)
    opt = Gravity([p], lr=1.0, alpha=0.0, beta=0.0)
    p.grad = g.clone()
    opt.step()
    return -p.detach() / (1 - 1 / 3)  # the first decay rate is (0 * 1 + 1) / (1 + 2)


def test_against_the_paper_in_plain_numbers():
    """Two tensors, each with its own maximum, from the stated initial velocities."""
    lr, alpha, beta, seed = 0.3, 0.05, 0.8, 7
    rng = torch.Generator().manual_seed(1)
    start = (alpha / lr * noise(seed, 0, 5).double()).tolist()
    params = [parameter(3), parameter(2)]
    opt = Gravity(params, lr, alpha, beta, seed)
    theta, velocity = [[0.0] * 3, [0.0] * 2], [start[:3], start[3:]]
    for t in range(1, 51):
        for k, p in enumerate(params):
            p.grad = 3 * torch.randn(p.shape, generator=rng, dtype=torch.float64)
            gradient = p.grad.tolist()
            m = 1 / max(map(abs, gradient))
            decay = (beta * t + 1) / (t + 2)
            for i, g in enumerate(gradient):
                zeta = g / (1 + (g / m) ** 2)
                velocity[k][i] = decay * velocity[k][i] + (1 - decay) * zeta
                theta[k][i] -= lr * velocity[k][i]
        opt.step()
        for p, expected in zip(params, theta, strict=True):
            assert torch.allclose(p.detach(), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("largest", [1e-2, 1.0, 30.0])
def test_response_is_bounded_has_slope_one_at_zero_and_its_peak_at_m(largest):
    g = torch.linspace(-largest, largest, 2001, dtype=torch.float64)
    zeta = response(g)
    assert zeta.abs().max() <= 1 / (2 * largest) * (1 + 1e-12)
    small = torch.tensor([largest, 1e-6 / largest], dtype=torch.float64)
    assert math.isclose(response(small)[1].item() * largest / 1e-6, 1.0, rel_tol=1e-9)
    if largest >= 1:  # then the peak 1 / largest is among the gradients
        exact = torch.tensor([largest, 1 / largest, -1 / largest], dtype=torch.float64)
        assert torch.allclose(response(exact)[1:], exact[1:] / 2)
        assert abs(g[zeta.argmax()] - 1 / largest) <= g[1] - g[0]


def test_the_maximum_is_each_tensors_own():
    quiet, loud = torch.tensor([0.1, 0.2]), torch.tensor([0.1, 20.0])
    params = [parameter(2), parameter(2)]
    opt = Gravity(params, lr=1.0, alpha=0.0, beta=0.0)
    for p, g in zip(params, (quiet, loud), strict=True):
        p.grad = g.double()
    opt.step()
    assert torch.allclose(-1.5 * params[0].detach(), response(quiet.double()))
    assert params[1][0].abs() < 0.3 * params[0][0].abs()  # damped by its neighbor's 20


def test_decay_rate_rises_from_a_third_of_one_plus_beta_to_beta():
    """Without gradients a step multiplies the velocity by beta-hat."""
    p, beta = parameter(4), 0.9
    opt = Gravity([p], lr=0.1, alpha=0.01, beta=beta, seed=3)
    before, rates = 0.1 * noise(3, 0, 4).double(), []
    for _ in range(300):
        p.grad = torch.zeros_like(p)
        opt.step()
        v = opt.state[p]["velocity"].clone()
        rates.append((v / before).mean().item())
        before = v
    t = torch.arange(1, 301, dtype=torch.float64)
    assert torch.allclose(torch.tensor(rates).double(), (beta * t + 1) / (t + 2), rtol=1e-6)
    assert math.isclose(rates[0], (1 + beta) / 3, rel_tol=1e-9) and abs(rates[-1] - beta) < 3e-3


@pytest.mark.parametrize("lr", [1e-3, 10.0])
def test_first_displacement_has_the_stated_scale_whatever_the_learning_rate(lr):
    p = parameter(100, 100)
    opt = Gravity([p], lr=lr, alpha=0.02, beta=0.9)
    p.grad = torch.zeros_like(p)
    opt.step()
    moved, scale = p.detach().flatten() / (0.02 * 1.9 / 3), 10_000**-0.5
    assert abs(moved.mean()) < 5 * scale
    assert abs(moved.square().mean() - 1) < 5 * 2**0.5 * scale
    assert abs(moved.pow(4).mean() - 3) < 5 * 96**0.5 * scale  # it is a Gaussian


def test_a_schedule_that_starts_low_does_not_blow_the_velocity_up():
    """The scale is that of the learning rate at the start, of which a schedule is a fraction."""
    for factor in (0.0, 1e-3):
        p = parameter(10)
        opt = Gravity([p], lr=0.1, alpha=0.01, seed=2)
        opt.param_groups[0]["lr"] = 0.1 * factor  # a warm-up's first step
        p.grad = torch.zeros_like(p)
        opt.step()
        v = 0.1 * 1.9 / 3 * noise(2, 0, 10).double()
        assert torch.allclose(opt.state[p]["velocity"], v, rtol=1e-6)
        assert torch.allclose(p.detach(), -0.1 * factor * v, rtol=1e-6)
    with pytest.raises(ValueError, match="needs an lr above 0"):
        Gravity([parameter(1)], lr=0.0)
    Gravity([parameter(1)], lr=0.0, alpha=0.0)


def velocities(params, **options):
    opt = Gravity(params, **options)
    for p in opt.param_groups[0]["params"]:
        p.grad = torch.zeros_like(p)
    opt.step()
    return [opt.state[p]["velocity"] for p in opt.param_groups[0]["params"]]


def test_initial_velocity_is_a_function_of_seed_and_element():
    torch.manual_seed(0)
    whole = velocities([parameter(12)], seed=5)[0]
    before = torch.rand(1)
    torch.manual_seed(99)
    again = torch.cat([v.flatten() for v in velocities([parameter(5), parameter(7)], seed=5)])
    assert torch.equal(whole, again)  # neither torch's generator nor the cut matters
    assert not torch.equal(whole, velocities([parameter(12)], seed=6)[0])
    torch.manual_seed(0)
    assert torch.equal(before, torch.rand(1))  # and nothing was drawn from it
    named = [("a", parameter(5)), ("b", parameter(7))]
    a, b = velocities(named)
    other_b, other_a = velocities(named[::-1])
    assert torch.equal(a, other_a) and torch.equal(b, other_b)


def test_one_exploding_batch_moves_less_than_a_usual_one():
    """The paper's claim: larger gradients, shorter steps."""
    rng = torch.Generator().manual_seed(4)
    g = torch.randn(1000, generator=rng, dtype=torch.float64)
    usual, exploded = response(g), response(1e3 * g)
    assert exploded.norm() < 0.01 * usual.norm()
    assert (exploded * g >= 0).all()  # and still downhill
