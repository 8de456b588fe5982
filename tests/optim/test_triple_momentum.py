"""TripleMomentum: a heavy ball, Nesterov's method and triple momentum, and their dynamics."""

import copy
import math

import pytest
import torch

from steepest.optim import TripleMomentum, tuned_momenta

DOUBLE = {"dtype": torch.float64}
METHODS = ("triple", "nesterov", "heavy-ball")


def descend(make, gradient, start, steps, answer=False):
    """Path of the parameters, or with ``answer`` of the points to evaluate at."""
    p = torch.nn.Parameter(torch.as_tensor(start, **DOUBLE))
    opt, path = make([p]), []
    for _ in range(steps):
        p.grad = gradient(p.detach())
        opt.step()
        if answer:
            opt.eval()
            path.append(p.detach().clone())
            opt.train()
        else:
            path.append(p.detach().clone())
    return torch.stack(path)


def tuned(method, smoothness=100.0, convexity=1.0):
    return lambda ps: TripleMomentum(ps, **tuned_momenta(smoothness, convexity, method))


def test_the_papers_three_sequences():
    """xi, y and x of the triple momentum method, from two past points as published."""
    rho, smoothness = 0.8, 25.0
    alpha, beta = (1 + rho) / smoothness, rho**2 / (2 - rho)
    gamma, delta = rho**2 / ((1 + rho) * (2 - rho)), rho**2 / (1 - rho**2)
    curvature = torch.tensor([1.0, 7.0, 25.0], **DOUBLE)
    gradient = lambda y: curvature * y - y.cos()  # noqa: E731
    last = now = torch.tensor([1.0, -2.0, 3.0], **DOUBLE)
    asked, answers = [], []
    for _ in range(50):
        y = (1 + gamma) * now - gamma * last
        last, now = now, (1 + beta) * now - beta * last - alpha * gradient(y)
        asked.append((1 + gamma) * now - gamma * last)
        answers.append((1 + delta) * now - delta * last)
    make, start = tuned("triple", smoothness), [1.0, -2.0, 3.0]
    assert torch.allclose(descend(make, gradient, start, 50), torch.stack(asked), rtol=1e-12)
    ours = descend(make, gradient, start, 50, answer=True)
    assert torch.allclose(ours, torch.stack(answers), rtol=1e-11)


@pytest.mark.parametrize("nesterov", [False, True])
def test_it_generalizes_the_momentum_of_torch(nesterov):
    gradients = torch.randn(100, 5, **DOUBLE)
    paths = []
    for make in (
        lambda ps: TripleMomentum(ps, 0.1, (0.9, 0.9 if nesterov else 0.0, 0.0)),
        lambda ps: torch.optim.SGD(ps, 0.1, momentum=0.9, nesterov=nesterov),
    ):
        stream = iter(gradients)
        paths.append(descend(make, lambda p, s=stream: next(s), torch.ones(5), 100))
    assert torch.allclose(*paths, rtol=1e-12)


def step_matrix(method, curvature, smoothness=100.0, convexity=1.0):
    """One step on a parabola as a matrix over (theta, m), read off the optimizer."""
    columns = []
    for p0, m0 in ((1.0, 0.0), (0.0, 1.0)):
        p = torch.nn.Parameter(torch.tensor([p0], **DOUBLE))
        opt = tuned(method, smoothness, convexity)([p])
        p.grad = torch.zeros_like(p)
        opt.step()
        opt.state[p]["last_step"].fill_(m0)
        p.grad = curvature * p.detach()
        opt.step()
        columns.append(torch.stack([p.detach()[0], opt.state[p]["last_step"][0]]))
    return torch.stack(columns, 1)


@pytest.mark.parametrize("kappa", [4.0, 100.0, 1e4])
def test_rates_on_quadratics_are_the_formulas(kappa):
    rho = 1 - 1 / math.sqrt(kappa)
    expected = {"triple": rho, "nesterov": rho, "heavy-ball": rho / (2 - rho)}
    for method in METHODS:
        radii = [
            torch.linalg.eigvals(step_matrix(method, h, kappa, 1.0)).abs().max().item()
            for h in torch.logspace(0, math.log10(kappa), 30, **DOUBLE).tolist()
        ]
        assert math.isclose(max(radii), expected[method], rel_tol=1e-4)


def test_measured_rates_agree_and_triple_momentum_stays_ahead():
    """Nesterov's slowest mode is a double root: its error is rho^k times k, and falls behind."""
    curvature = torch.logspace(0, 2, 20, **DOUBLE)
    error = {
        method: descend(tuned(method), lambda p: curvature * p, torch.ones(20), 300).norm(dim=1)
        for method in ("triple", "nesterov")
    }
    rate = {name: (e[-1] / e[-101]).item() ** 0.01 for name, e in error.items()}
    assert abs(rate["triple"] - 0.9) < 1e-3
    assert rate["triple"] < rate["nesterov"] < 0.91
    ahead = error["nesterov"] / error["triple"]
    assert ahead[299] > 1.8 * ahead[149] > 1.8 * 1.8 * ahead[74]


def bent(x):
    """The gradient of Lessard, Recht and Packard: slopes 25, 1 and 25 again."""
    return torch.where(x < 1, 25 * x, torch.where(x < 2, x + 24, 25 * x - 24))


def test_a_heavy_ball_goes_in_circles_where_the_others_converge():
    end = {m: descend(tuned(m, 25.0), bent, [3.3], 500).abs().squeeze() for m in METHODS}
    assert end["nesterov"][-1] < 1e-6 and end["triple"][-1] < 1e-6
    tail = descend(tuned("heavy-ball", 25.0), bent, [3.3], 500)[-6:]
    assert tail.abs().min() > 0.1
    assert torch.allclose(tail[3:], tail[:3]) and not torch.allclose(tail[1:4], tail[:3])


def test_the_guarantee_holds_where_the_curvature_changes_with_the_side():
    """Parabolas with another curvature on each side: the bound is for all such losses."""
    for left in (1.0, 10.0, 100.0):
        for right in (1.0, 30.0, 100.0):
            slope = lambda p, a=left, b=right: torch.where(p < 0, a, b) * p  # noqa: E731
            path = descend(tuned("triple"), slope, [1.0], 200, answer=True).abs().squeeze()
            assert (path <= 30 * 0.9 ** torch.arange(200)).all(), (left, right)


def test_the_off_manifold_coordinate_decays_like_friction():
    """x'' + g x' + k H x' + g k grad = 0 factors: phi = x' + k grad obeys phi' = -g phi."""
    rng = torch.Generator().manual_seed(0)
    rows, signs = torch.randn(30, 3, generator=rng, **DOUBLE), torch.randn(30, generator=rng).sign()

    rows = signs[:, None] * rows  # of a logistic loss, softplus(-rows @ x), with a penalty

    def gradient(x):
        return -(torch.sigmoid(-rows @ x) @ rows) / 30 + 0.1 * x

    def hessian(x):
        wrong = torch.sigmoid(-rows @ x)
        return rows.T @ ((wrong * (1 - wrong))[:, None] * rows) / 30 + 0.1 * torch.eye(3, **DOUBLE)

    friction, k, dt = 1.5, 2.0, 0.01

    def field(x, u, braked):
        brake = k * hessian(x) @ u if braked else 0.0
        return u, -friction * u - brake - friction * k * gradient(x)

    def coordinate(braked):
        x, u = torch.ones(3, **DOUBLE), torch.tensor([2.0, -1.0, 0.5], **DOUBLE)
        sizes = []
        for _ in range(400):
            sizes.append((u + k * gradient(x)).norm().item())
            stages = [field(x, u, braked)]
            for part in (0.5, 0.5, 1.0):
                dx, du = stages[-1]
                stages.append(field(x + part * dt * dx, u + part * dt * du, braked))
            mean = [(a + 2 * b + 2 * c + d) / 6 for a, b, c, d in zip(*stages, strict=True)]
            x, u = x + dt * mean[0], u + dt * mean[1]
        return torch.tensor(sizes, **DOUBLE).log()

    slopes = coordinate(True).diff() / dt
    assert (slopes / -friction - 1).abs().max() < 0.02
    assert ((coordinate(False).diff() / dt) / -friction - 1).abs().max() > 0.2  # a heavy ball


def test_looking_to_where_friction_ends_is_that_equation():
    """With look-ahead 1 / (1 - inertia), phi = m / dt + k grad decays by inertia a step."""
    friction, k, dt = 1.5, 2.0, 1e-3
    inertia = 1 - friction * dt
    lookahead = 1 / (1 - inertia)
    curvature = torch.tensor([0.5, 1.0, 2.0], **DOUBLE)
    p = torch.nn.Parameter(torch.ones(3, **DOUBLE))
    opt = TripleMomentum([p], friction * k * dt**2, (inertia, lookahead, 0.0))
    sizes = []
    for _ in range(2000):
        p.grad = curvature * p.detach()
        opt.step()
        m = opt.state[p]["last_step"]
        sizes.append((m / dt + k * curvature * (p.detach() - lookahead * m)).norm())
    slopes = torch.stack(sizes).log().diff() / dt
    assert (slopes / -friction - 1).abs().max() < 0.02


def test_eval_and_train():
    p = torch.nn.Parameter(torch.ones(3, **DOUBLE))
    opt = TripleMomentum([p], 0.1, (0.5, 0.25, 2.0))
    opt.eval()
    opt.train()  # nothing has moved yet
    assert torch.equal(p.detach(), torch.ones(3, **DOUBLE)) and not opt.state
    p.grad = torch.ones(3, **DOUBLE)
    opt.step()
    here = p.detach().clone()
    opt.eval()
    opt.eval()
    assert torch.allclose(p.detach(), torch.full((3,), 1 - 0.1 - 2 * 0.1, **DOUBLE))
    q, other = copy.deepcopy((p, opt))
    with pytest.raises(RuntimeError, match=r"call train\(\)"):
        other.step()
    assert torch.equal(q, p)
    other.train()
    opt.train()
    assert torch.allclose(p, here) and torch.equal(q, p)


def test_bad_tuning_is_refused():
    p = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="0 < convexity <= smoothness"):
        tuned_momenta(1.0, 2.0)
    with pytest.raises(ValueError, match="choose triple, nesterov, heavy-ball"):
        tuned_momenta(2.0, 1.0, "double")
    with pytest.raises(ValueError, match="momenta="):
        TripleMomentum([p], momenta=(1.0, 0.5, 0.5))
