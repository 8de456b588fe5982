"""TrajectoryGradient and Features: a model's slope, exact for the model, close for the loss."""

import math

import pytest
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern

from steepest.estimators import Features, TrajectoryGradient, fit_surrogate
from steepest.optim import Estimated
from steepest.oracles import Objective

F64 = torch.float64


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def flat(tensors):
    return torch.cat([t.detach().flatten() for t in tensors])


def test_the_gradient_is_that_of_the_posterior_mean():
    x, y, at = draw(30, 4), draw(30, seed=1), draw(4, seed=2)
    model = fit_surrogate(x, y, noise=1e-3)
    here = at.clone().requires_grad_()
    (exact,) = torch.autograd.grad(model.mean(here[None])[0], here)
    assert torch.allclose(model.gradient(at), exact, rtol=1e-9, atol=1e-12)
    assert torch.allclose(model.gradient(x[0]), model.gradient(x[0] + 1e-9), atol=1e-6)


def test_mean_and_choice_of_length_agree_with_a_library():
    """At our length scale, and no length of the grid has more evidence."""
    x = draw(25, 3)
    y = torch.sin(x).sum(1)
    model, at = fit_surrogate(x, y, noise=1e-4), draw(10, 3, seed=3)
    kernel = Matern(model.length, "fixed", nu=2.5)
    theirs = GaussianProcessRegressor(kernel, alpha=1e-4, optimizer=None)
    theirs.fit(x.numpy(), (y - y.mean()).numpy())
    expected = torch.as_tensor(theirs.predict(at.numpy())) + y.mean()
    assert torch.allclose(model.mean(at), expected, atol=1e-8)

    def evidence(length):
        k = torch.as_tensor(Matern(length, nu=2.5)(x.numpy())) + 1e-4 * torch.eye(25, dtype=F64)
        z = y - y.mean()
        variance = z @ torch.linalg.solve(k, z) / 25
        law = torch.distributions.MultivariateNormal(torch.zeros(25, dtype=F64), variance * k)
        return law.log_prob(z).item()

    best = max((model.length * 2.0**i for i in range(-3, 4)), key=evidence)
    assert best == pytest.approx(model.length)


def test_doubt_is_the_trace_of_the_posterior_covariance_of_the_gradient():
    """Against second differences of the kernel; small near data, the prior's far from them."""
    x = draw(12, 2)
    model = fit_surrogate(x, draw(12, seed=1), noise=1e-3)
    kernel = Matern(model.length, nu=2.5)

    def k(a, b):
        return torch.as_tensor(kernel(a.numpy(), b.numpy()))

    at, h = draw(1, 2, seed=4), 1e-3
    gram = torch.linalg.inv(k(x, x) + 1e-3 * torch.eye(12, dtype=F64))
    trace = 0.0
    for e in h * torch.eye(2, dtype=F64):
        cross = (k(at + e, x) - k(at - e, x)) / (2 * h)
        prior = (2 * k(at, at) - 2 * k(at + e, at - e)) / (4 * h * h)
        trace += (prior - cross @ gram @ cross.T).item()
    assert model.uncertainty(at).item() == pytest.approx(trace, rel=1e-3)
    far = torch.full((1, 2), 1e4, dtype=F64)
    assert model.uncertainty(far).item() == pytest.approx(2 * 5 / (3 * model.length**2))


def problem(d=8, dtype=F64):
    parts = [torch.nn.Parameter(draw(n).to(dtype)) for n in (3, d - 3)]
    curvature = torch.linspace(0.5, 2, d, dtype=dtype)
    return Objective(lambda: 0.5 * (curvature * torch.cat(parts) ** 2).sum(), parts), curvature


def test_it_is_the_models_gradient_and_costs_what_it_says():
    f, curvature = problem()
    estimator, home = TrajectoryGradient(nearest=30, active=2), flat(f.params)
    for seed in range(3):
        price = estimator.forward
        f.counts.clear()
        answer = estimator(f, seed)
        assert f.counts["forward"] == price == (11, 3, 3)[seed]
        assert torch.equal(flat(f.params), home)
        assert answer.value == f.value()
    near = estimator.closest(home, 30)
    model = fit_surrogate(estimator.points[near], estimator.values[near])
    assert torch.allclose(flat(answer.gradient), model.gradient(home), rtol=1e-9)
    heights = 0.5 * (curvature * estimator.points**2).sum(1)
    assert torch.allclose(heights, estimator.values, rtol=1e-12)  # asked where it says
    assert torch.equal(estimator.points[0], home)


def test_the_past_pays_for_the_present():
    """One value a step, after a start, and yet the gradient; random directions are far off."""
    f, curvature = problem(dtype=torch.float32)
    estimator = TrajectoryGradient(active=1, initial=12, radius=0.03)
    opt = Estimated(torch.optim.SGD(f.params, lr=0.05), estimator)
    cosines = []
    for step in range(12):
        exact = curvature * flat(f.params)
        opt.step(f)
        ours = flat(estimator(f, step).gradient) if step > 3 else None
        if ours is not None:
            exact = curvature * flat(f.params)
            cosines.append(torch.nn.functional.cosine_similarity(ours, exact, dim=0).item())
    assert min(cosines) > 0.95


def test_named_parameters_in_another_order_have_the_same_gradient():
    p, q = (torch.nn.Parameter(draw(n)) for n in (2, 3))
    answers = []
    for order in ([("p", p), ("q", q)], [("q", q), ("p", p)]):
        f = Objective(lambda: (p**2).sum() + (q**3).sum(), order)
        found = TrajectoryGradient(initial=60)(f, 0).gradient
        answers.append(
            dict(zip(("p", "q") if order[0][0] == "p" else ("q", "p"), found, strict=True))
        )
    exact = {"p": 2 * p.detach(), "q": 3 * q.detach() ** 2}
    for name in ("p", "q"):
        for answer in answers:
            assert torch.allclose(answer[name], exact[name], atol=0.05)


def test_it_asks_where_it_doubts_the_most_and_fits_what_is_nearest():
    f, _ = problem()
    estimator = TrajectoryGradient(radius=0.5)
    estimator(f, 0)
    here = flat(f.params)
    before = fit_surrogate(
        torch.cat([estimator.points, here[None]]),
        torch.cat([estimator.values, f.value()[None]]),
    )
    estimator.explore(f, 7, 4, 60, 0.5)
    asked = estimator.points[-4:]
    estimator.explore(f, 7, 60, 60, 0.5)  # the same candidates, all of them
    doubts = before.uncertainty(estimator.points[-60:])
    assert before.uncertainty(asked).min() > doubts.median()
    distance = (estimator.points - here).norm(dim=1)
    near = estimator.closest(here, 9)
    assert len(near) == 9 and distance[near].max() <= distance.sort().values[8]


def test_the_past_is_bounded():
    f, _ = problem()
    estimator = TrajectoryGradient(memory=20)
    for seed in range(4):
        estimator(f, seed)
    assert estimator.points.shape == (20, 8) and estimator.values.shape == (20,)


def test_bad_losses_raise_and_change_nothing():
    p = torch.nn.Parameter(draw(4))
    estimator = TrajectoryGradient()
    estimator(Objective(lambda: p.sum(), [p]), 0)
    before, points = p.detach().clone(), estimator.points.clone()
    calls = iter(range(99))
    for loss, error, text in (
        (lambda: p.sum() * math.nan, RuntimeError, "NaN or infinite"),
        (lambda: p.sum() * (math.inf if next(calls) == 3 else 1), RuntimeError, "NaN or infinite"),
        (lambda: p * 2, ValueError, "one real number"),
        (lambda: p.sum().backward(), RuntimeError, "calls backward"),
    ):
        with pytest.raises(error, match=text):
            estimator(Objective(loss, [p]), 1)
        assert torch.equal(p, before) and torch.equal(estimator.points, points)
    q = torch.nn.Parameter(draw(5))
    with pytest.raises(ValueError, match="past is of 4"):
        estimator(Objective(lambda: q.sum(), [q]), 1)


@pytest.mark.parametrize("name", ["nearest", "initial", "candidates", "memory", "radius", "noise"])
def test_arguments_out_of_range(name):
    with pytest.raises(ValueError, match=name):
        TrajectoryGradient(**{name: 0})
    with pytest.raises(ValueError, match="active"):
        TrajectoryGradient(active=-1)
    for bad in ({"count": 0}, {"length": 0.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Features(3, **bad)


def test_features_have_the_kernel_as_their_mean_product():
    x = draw(6, 3)
    features = Features(3, 20000, length=1.5)
    expected = torch.exp(-torch.cdist(x, x).square() / (2 * 1.5**2))
    assert (features(x) @ features(x).T - expected).abs().max() < 5 / math.sqrt(20000)


def test_the_gradient_of_features_and_their_fit():
    features, x, y = Features(3, 300, length=2.0), draw(40, 3), draw(40, seed=1)
    weights = features.fit(x, y, ridge=1e-2)
    at = draw(3, seed=2).requires_grad_()
    (exact,) = torch.autograd.grad((features(at[None]) @ weights)[0], at)
    assert torch.allclose(features.gradient(at.detach(), weights), exact)
    phi = features(x)
    ridge = torch.linalg.solve(phi.T @ phi + 1e-2 * torch.eye(300, dtype=F64), phi.T @ y)
    assert torch.allclose(weights, ridge, atol=1e-9)


def test_the_mean_of_weights_is_the_model_of_the_mean_and_needs_one_seed():
    x, ys = draw(60, 3), [draw(60, seed=s) for s in (1, 2, 3)]
    features = Features(3, 400)
    mean = torch.stack([features.fit(x, y) for y in ys]).mean(0)
    assert torch.allclose(mean, features.fit(x, torch.stack(ys).mean(0)), atol=1e-8)
    others = [Features(3, 400, seed=s).fit(x, y) for s, y in enumerate(ys)]
    wrong = torch.stack(others).mean(0)
    off = features(x) @ wrong - torch.stack(ys).mean(0)
    assert off.norm() > 0.5 * torch.stack(ys).mean(0).norm()
