"""INNA and INNAprop: inertia with Hessian-driven damping, from gradients alone."""

import itertools

import pytest
import torch

from steepest.optim import INNA, INNAprop

DOUBLE = {"dtype": torch.float64}


def feed(make, gradients, start):
    """Path of a point that is given these gradients."""
    p = torch.nn.Parameter(start.clone())
    opt, path = make([p]), [p.detach().clone()]
    for g in gradients:
        p.grad = g.clone()
        opt.step()
        path.append(p.detach().clone())
    return torch.stack(path)


def paper(gradients, start, lr, alpha, beta, sigma, eps, wd, scaled=True):
    """The published algorithm, with its auxiliary variable psi, one number at a time."""
    path = [start.tolist()]
    psi = [(1 - alpha * beta) * x for x in path[0]]
    v = [0.0] * len(psi)
    for k, row in enumerate(gradients.tolist(), start=1):
        new = []
        for i, g in enumerate(row):
            x = path[-1][i] * (1 - lr * wd)
            v[i] = sigma * v[i] + (1 - sigma) * g**2
            scale = (v[i] / (1 - sigma**k)) ** 0.5 + eps if scaled else 1.0
            psi[i] = (1 - lr / beta) * psi[i] + lr * (1 / beta - alpha) * x
            push = (1 + lr * (1 - alpha * beta) / (beta - lr)) * x - lr / (beta - lr) * psi[i]
            new.append(push - lr * beta * g / scale)
        path.append(new)
    return torch.tensor(path, **DOUBLE)


@pytest.fixture
def stream():
    return torch.randn(100, 4, **DOUBLE), torch.randn(4, **DOUBLE)


@pytest.mark.parametrize("damping", [(0.1, 0.9), (2.0, 2.0), (0.0, 0.5)])
@pytest.mark.parametrize("backend", ["torch", "cpu", "triton"])
def test_the_papers_algorithm(stream, damping, backend):
    """With psi = (1 - alpha beta) phi the published step, which divides by beta - lr, is this."""
    alpha, beta = damping
    ours = feed(
        lambda ps: INNAprop(ps, 0.05, alpha, beta, 0.9, 1e-3, 0.3, backend=backend), *stream
    )
    assert torch.allclose(ours, paper(*stream, 0.05, alpha, beta, 0.9, 1e-3, 0.3), rtol=1e-10)
    ours = feed(lambda ps: INNA(ps, 0.05, alpha, beta, 0.3, backend=backend), *stream)
    plain = paper(*stream, 0.05, alpha, beta, 0.9, 1e-3, 0.3, scaled=False)
    assert torch.allclose(ours, plain, rtol=1e-10)


def test_the_first_step_has_no_push(stream):
    """psi starts at (1 - alpha beta) theta: at rest, a point moves by its gradient alone."""
    gradients, start = stream
    path = feed(lambda ps: INNAprop(ps, 0.05, eps=0.0, weight_decay=0.0), gradients[:1], start)
    assert torch.allclose(path[1] - start, -0.05 * 0.9 * gradients[0].sign(), rtol=1e-12)
    silence = feed(lambda ps: INNAprop(ps, 0.05, weight_decay=0.0), 0 * gradients, start)
    assert torch.equal(silence[-1], start)


def test_without_friction_to_spare_it_is_rmsprop(stream):
    """alpha = 1 / beta: no momentum is left, and the step is RMSprop's with decoupled decay."""
    gradients, start = stream
    lr, beta, sigma, eps, wd = 0.05, 0.4, 0.99, 1e-8, 0.3
    ours = feed(lambda ps: INNAprop(ps, lr, 1 / beta, beta, sigma, eps, wd), gradients, start)
    p, v = start.clone(), torch.zeros(4, **DOUBLE)
    for k, g in enumerate(gradients, start=1):
        v = sigma * v + (1 - sigma) * g**2
        p = (1 - lr * wd) * p - lr * beta * g / ((v / (1 - sigma**k)).sqrt() + eps)
        assert (ours[k] - p).abs().max() < 1e-6
    descent = feed(lambda ps: torch.optim.SGD(ps, lr * beta), gradients, start)
    assert torch.allclose(feed(lambda ps: INNA(ps, lr, 1 / beta, beta), *stream), descent)


@pytest.mark.parametrize("cls", [INNA, INNAprop])
def test_a_time_step_as_long_as_the_damping_is_refused(cls):
    p = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=r"lr=0.5 is not below damping=0.5: lower lr"):
        cls([p], lr=0.5, damping=0.5)
    opt = cls([p], lr=0.1, damping=0.5)
    p.grad = torch.ones(2)
    opt.step()
    opt.param_groups[0]["lr"] = 0.6  # a schedule
    before, state = p.detach().clone(), {k: v for k, v in opt.state[p].items()}
    with pytest.raises(ValueError, match="is not below"):
        opt.step()
    assert torch.equal(p, before) and opt.state[p] == state


def test_it_follows_its_differential_equation():
    """At small steps: x'' + alpha x' + beta h x' + h x = 0, whose solution is known."""
    h, alpha, beta, time = 4.0, 0.5, 0.3, 3.0
    root = torch.sqrt(torch.tensor((alpha + beta * h) ** 2 / 4 - h, dtype=torch.complex128))
    one, two = -(alpha + beta * h) / 2 + root, -(alpha + beta * h) / 2 - root
    # INNA starts at x = 1 with the velocity of its gradient term, x' = -beta h.
    c = (-beta * h - two) / (one - two)
    exact = (c * torch.exp(one * time) + (1 - c) * torch.exp(two * time)).real
    errors = []
    for n in (300, 600):
        p = torch.nn.Parameter(torch.ones(1, **DOUBLE))
        opt = INNA([p], time / n, alpha, beta)
        for _ in range(n):
            p.grad = h * p.detach()
            opt.step()
        errors.append((p.detach() - exact).abs().item())
    assert errors[0] < 0.02 and 0.4 < errors[1] / errors[0] < 0.6  # of first order


def test_damping_stops_the_oscillation():
    """The paper's claim: the stiff coordinate of a ravine swings less than a heavy ball's."""
    curvature, lr, friction = torch.tensor([1e-2, 10.0], **DOUBLE), 0.05, 0.1

    def swings(damping):
        p = torch.nn.Parameter(torch.ones(2, **DOUBLE))
        if damping:
            opt = INNA([p], lr, friction, damping)
        else:  # the same equation without the term: a heavy ball of the same friction and time
            opt = torch.optim.SGD([p], lr**2, momentum=1 - friction * lr)
        signs = []
        for _ in range(500):
            p.grad = curvature * p.detach()
            opt.step()
            signs.append(p[1].item() > 0)
        return sum(a != b for a, b in itertools.pairwise(signs))

    assert swings(None) >= 20  # 25 units of time at about 3.2 radians each
    assert swings(0.9) <= 0.1 * swings(None)
