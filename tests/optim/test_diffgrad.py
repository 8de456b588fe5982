"""diffGrad: Adam's step times a friction."""

import math

import pytest
import torch

from steepest.optim import Adam, DiffGrad


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


def both(gradients, **options):
    options = {"lr": 0.1, **options}
    return [feed(lambda ps, o=o: o(ps, **options), gradients) for o in (DiffGrad, Adam)]


def test_against_the_paper_in_plain_numbers():
    lr, b1, b2, eps, wd = 0.1, 0.8, 0.95, 1e-3, 0.2
    theta, m, v, last = 1.0, 0.0, 0.0, 0.0
    p = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    opt = DiffGrad([p], lr, (b1, b2), eps, wd)
    for t, raw in enumerate(random_gradients(50).tolist(), start=1):
        g = raw + wd * theta
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        xi = 1 / (1 + math.exp(-abs(last - g)))
        theta -= lr * xi * (m / (1 - b1**t)) / (math.sqrt(v / (1 - b2**t)) + eps)
        last = g
        p.grad = torch.full_like(p, raw)
        opt.step()
        assert abs(p.item() - theta) < 1e-13


@pytest.mark.parametrize("g", [1e-3, 1.0, 1e3])
def test_equal_gradients_make_half_of_adams_step(g):
    ours, adam = both(torch.full((20, 1), g, dtype=torch.float64))
    friction = (ours / adam)[:, 0]
    assert torch.allclose(friction[1:], torch.full((19,), 0.5, dtype=torch.float64), rtol=1e-12)
    assert math.isclose(friction[0].item(), 1 / (1 + math.exp(-g)), rel_tol=1e-12)  # from g = 0


def test_fast_changes_make_adams_step():
    gradients = 1e3 * random_gradients(100, 5)
    change = gradients.diff(dim=0, prepend=torch.zeros(1, 5, dtype=torch.float64)).abs()
    ours, adam = both(gradients)
    fast = change > 20
    assert fast.sum() > 400
    assert (ours / adam)[fast].min() > 0.999999


def test_friction_is_between_a_half_and_one_and_leaves_the_moments_alone():
    gradients = random_gradients(50, 5)
    ours, adam = both(gradients)
    friction = ours / adam
    assert (friction >= 0.5).all() and (friction < 1).all()
    change = gradients.diff(dim=0, prepend=torch.zeros(1, 5, dtype=torch.float64))
    assert torch.allclose(friction, change.abs().sigmoid(), rtol=1e-9)


def test_it_remembers_a_gradient_that_is_overwritten_in_place():
    """The authors' first code kept a reference: every difference was then zero."""
    gradients = random_gradients(10, 3)
    p = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    p.grad = torch.zeros_like(p)
    opt = DiffGrad([p], lr=0.1)
    for g in gradients:
        p.grad.copy_(g)
        opt.step()
    assert torch.allclose(p.detach(), both(gradients)[0].sum(0), rtol=1e-12)


def test_small_gradients_leave_adam_at_half_the_rate():
    """The friction has a unit: where gradients are far below 1 it is 1/2, whatever they do."""
    ours, adam = both(1e-6 * random_gradients(50, 5), eps=0.0)
    assert torch.allclose(ours, adam / 2, rtol=1e-5)


def test_it_overshoots_less_than_adam_in_the_papers_valley():
    """The paper's claim, on its first function, against Adam at the same learning rate."""

    def walk(make):
        p = torch.nn.Parameter(torch.tensor([-1.0], dtype=torch.float64))
        opt, path = make([p]), []
        for _ in range(300):
            x = p.item()
            p.grad = torch.full_like(p, 2 * (x + 0.3) if x <= 0 else 2 * (x - 0.2))
            opt.step()
            path.append(p.item())
        return torch.tensor(path)

    def value(x):
        return ((x + 0.3) ** 2 if x <= 0 else (x - 0.2) ** 2 + 0.05).item()

    options = {"lr": 0.1, "betas": (0.95, 0.999)}
    ours, adam = (walk(lambda ps, o=o: o(ps, **options)) for o in (DiffGrad, Adam))
    assert value(ours[-1]) <= value(adam[-1]) + 1e-3
    assert ours.max() + 0.3 < 0.9 * (adam.max() + 0.3)
