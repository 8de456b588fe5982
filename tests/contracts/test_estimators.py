"""Contract of the room ``estimators``: bias, variance, cost and reproducibility of every one."""

import inspect
import itertools
import math

import pytest
import torch

import steepest.estimators
from steepest.estimators import RandomEstimator, hutchinson
from steepest.oracles import Objective

GRADIENT = [
    value
    for value in vars(steepest.estimators).values()
    if inspect.isclass(value)
    and issubclass(value, RandomEstimator)
    and value is not RandomEstimator
]
KINDS = ["gaussian", "rademacher", "sphere"]


def quadratic(dimension=6, seed=0):
    """An objective over two tensors, its exact gradient (flat) and Hessian."""
    rng = torch.Generator().manual_seed(seed)
    root = torch.randn(dimension, dimension, generator=rng, dtype=torch.float64)
    hessian = root @ root.T
    start = torch.randn(dimension, generator=rng, dtype=torch.float64)
    parts = [torch.nn.Parameter(part.clone()) for part in start.split([2, dimension - 2])]

    def loss():
        x = torch.cat(list(parts))
        return 0.5 * x @ hessian @ x

    return Objective(loss, parts), hessian @ start, hessian


def stream(count, seed=0):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def flat(tensors):
    return torch.cat([t.flatten() for t in tensors])


def test_there_are_some():
    assert {cls.__name__ for cls in GRADIENT} >= {"SPSA", "ForwardGradient"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cls", GRADIENT)
def test_unbiased_with_the_variance_that_theory_gives(cls, kind):
    """On a quadratic: mean within 5 standard errors, total variance as in the docstring."""
    objective, exact, _ = quadratic()
    estimator, runs = cls(kind=kind), 600
    draws = torch.stack([flat(estimator(objective, seed).gradient) for seed in range(runs)])
    errors = draws.std(0) / math.sqrt(runs)
    assert ((draws.mean(0) - exact).abs() < 5 * errors + 1e-9).all()
    d = len(exact) + (1 if kind == "gaussian" else -1)
    squares = (draws - exact).square().sum(1)
    expected = d * exact.square().sum()
    assert abs(squares.mean() - expected) < 5 * squares.std() / math.sqrt(runs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cls", GRADIENT)
def test_a_mask_probes_a_part_without_bias_and_with_that_parts_variance(cls, kind):
    """Elements that are left out do not move, have gradient zero, and add no variance."""
    objective, exact, _ = quadratic(dimension=9)
    asked = []

    def mask(params):
        asked.append(flat(params).clone())
        return [torch.arange(p.numel()) % 2 == 0 for p in params]

    estimator, runs = cls(kind=kind, mask=mask), 600
    start = flat(objective.params).detach().clone()
    kept = flat(mask(objective.params))
    draws = torch.stack([flat(estimator(objective, seed).gradient) for seed in range(runs)])
    assert all(torch.equal(seen, start) for seen in asked)  # never a perturbed point
    assert (draws[:, ~kept] == 0).all()
    part, target = draws[:, kept], exact[kept]
    assert ((part.mean(0) - target).abs() < 5 * part.std(0) / math.sqrt(runs) + 1e-9).all()
    squares = (part - target).square().sum(1)
    expected = (kept.sum() + (1 if kind == "gaussian" else -1)) * target.square().sum()
    assert abs(squares.mean() - expected) < 5 * squares.std() / math.sqrt(runs)


@pytest.mark.parametrize("cls", GRADIENT)
def test_directions_on_the_sphere_have_one_length(cls):
    """On a linear loss along an estimate's own direction, |g|^2 = d <g, exact>, for each seed."""
    parts = [torch.nn.Parameter(torch.zeros(n, dtype=torch.float64)) for n in (3, 5)]
    slope = stream(8)
    objective = Objective(lambda: torch.cat(list(parts)) @ slope, parts)
    for seed in range(20):
        g = flat(cls(kind="sphere")(objective, seed).gradient)
        assert g.square().sum().item() == pytest.approx(8 * (g @ slope).item(), rel=1e-6)


@pytest.mark.parametrize("cls", GRADIENT)
def test_more_samples_divide_the_variance(cls):
    objective, exact, _ = quadratic()
    errors = []
    for samples in (1, 8):
        estimator = cls(samples=samples)
        draws = [flat(estimator(objective, seed).gradient) - exact for seed in range(250)]
        errors.append(torch.stack(draws).square().sum(1).mean())
    assert 6 < errors[0] / errors[1] < 10.5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cls", GRADIENT)
def test_cost_in_oracle_calls(cls, kind):
    for samples in (1, 3):
        objective, _, _ = quadratic()
        estimator = cls(samples=samples, kind=kind)
        estimator(objective, 0)
        assert objective.counts["forward"] == estimator.forward
        assert objective.counts["backward"] == 0


@pytest.mark.parametrize("cls", GRADIENT)
def test_parameters_end_bit_for_bit_as_they_were(cls):
    for dtype in (torch.float32, torch.bfloat16):
        p = torch.nn.Parameter(torch.randn(1000).to(dtype))
        before = p.detach().clone()
        cls(samples=2)(Objective(lambda p=p: (p.float() ** 2).sum(), [p]), 3)
        assert torch.equal(p.detach(), before) and p.grad is None


@pytest.mark.parametrize("cls", GRADIENT)
def test_parameters_are_restored_when_the_loss_fails(cls):
    p = torch.nn.Parameter(torch.ones(5))
    calls = itertools.count()

    def loss():
        if next(calls) == 1:
            raise ArithmeticError("the loss fails at its second call")
        return (p**2).sum()

    with pytest.raises(ArithmeticError):
        cls(samples=2)(Objective(loss, [p]), 0)
    assert torch.equal(p.detach(), torch.ones(5))


@pytest.mark.parametrize("cls", GRADIENT)
def test_an_estimate_is_a_function_of_the_seed(cls):
    objective, _, _ = quadratic()
    torch.manual_seed(1)
    one = flat(cls()(objective, 7).gradient)
    torch.manual_seed(2)
    two = flat(cls()(objective, 7).gradient)
    other = flat(cls()(objective, 8).gradient)
    assert torch.equal(one, two) and not torch.allclose(one, other)


@pytest.mark.parametrize("cls", GRADIENT)
def test_how_elements_are_cut_into_tensors_does_not_matter(cls):
    x = torch.linspace(-1, 1, 12, dtype=torch.float64)
    estimates = []
    for sizes in ([12], [5, 7], [1, 0, 11]):
        parts = [torch.nn.Parameter(part.clone()) for part in x.split(sizes)]
        objective = Objective(lambda parts=parts: torch.cat(list(parts)).pow(4).sum(), parts)
        estimates.append(flat(cls(samples=2)(objective, 5).gradient))
    assert torch.allclose(estimates[0], estimates[1]) and torch.allclose(estimates[0], estimates[2])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cls", GRADIENT)
def test_noise_belongs_to_a_name(cls, kind):
    """Neither the order of named parameters nor the presence of others changes an estimate."""
    sizes = {"a": 3, "b": 200, "c": 7}
    parts = {name: torch.nn.Parameter(stream(n, seed=n)) for name, n in sizes.items()}

    def estimate(names):
        # the others' terms are not there: directions are all that could differ
        objective = Objective(
            lambda: sum(parts[n].sum() for n in names), [(n, parts[n]) for n in names]
        )
        weights = cls(samples=2, kind=kind).project(objective, 5).weights
        assert len(weights) == 2
        directions = cls(samples=2, kind=kind).combine(objective, 5, {0: 1.0, 1: -2.0})
        return dict(zip(names, directions, strict=True)), weights

    whole, weights = estimate("abc")
    turned, again = estimate("cab")
    fewer, _ = estimate("cb")
    for name in "abc":
        assert torch.equal(whole[name], turned[name])
    assert weights == pytest.approx(again, rel=1e-6)
    assert torch.equal(whole["b"], fewer["b"]) and torch.equal(whole["c"], fewer["c"])
    assert not torch.equal(whole["b"][:3], whole["a"])


@pytest.mark.parametrize("cls", GRADIENT)
def test_parameters_end_as_they_were(cls):
    """Bit for bit, also when the loss fails halfway."""
    objective, _, _ = quadratic()
    before = [p.detach().clone() for p in objective.params]
    cls(samples=3)(objective, 0)
    assert all(map(torch.equal, objective.params, before))
    calls = iter(range(3))

    def fails():
        if next(calls) == 2:
            raise KeyError("the third pass")
        return sum(p.square().sum() for p in objective.params)

    with pytest.raises(KeyError, match="third"):
        cls(samples=3)(Objective(fails, objective.params), 0)
    assert all(map(torch.equal, objective.params, before))


@pytest.mark.parametrize("cls", GRADIENT)
def test_bad_arguments(cls):
    for bad in ({"samples": 0}, {"samples": 1.5}, {"kind": "cauchy"}):
        with pytest.raises(ValueError, match=r"whole number >= 1|choose one of"):
            cls(**bad)


def test_spsa_is_forward_mode_for_a_small_radius_and_errs_by_its_square():
    p = torch.nn.Parameter(torch.linspace(0.5, 1.5, 8, dtype=torch.float64))
    objective = Objective(lambda: p.exp().sum(), [p])
    exact = flat(steepest.estimators.ForwardGradient()(objective, 1).gradient)
    gaps = [
        (flat(steepest.estimators.SPSA(eps)(objective, 1).gradient) - exact).norm()
        for eps in (1e-2, 1e-3)
    ]
    assert gaps[1] < 1e-4 * exact.norm()
    assert 80 < gaps[0] / gaps[1] < 120  # a tenth of the radius, a hundredth of the error


def test_a_one_sided_difference_errs_by_its_radius_and_costs_a_value_less():
    p = torch.nn.Parameter(torch.linspace(0.5, 1.5, 8, dtype=torch.float64))
    objective = Objective(lambda: p.exp().sum(), [p])
    exact = flat(steepest.estimators.ForwardGradient()(objective, 1).gradient)
    gaps = []
    for eps in (1e-3, 1e-4):
        estimator = steepest.estimators.SPSA(eps, samples=1, one_sided=True)
        answer = estimator(objective, 1)
        assert answer.value == p.exp().sum()
        gaps.append((flat(answer.gradient) - exact).norm())
    assert 9 < gaps[0] / gaps[1] < 11
    objective.counts.clear()
    steepest.estimators.SPSA(samples=5, one_sided=True)(objective, 1)
    assert objective.counts["forward"] == 6


def test_spsa_in_place_is_spsa_to_within_rounding():
    objective, _, _ = quadratic()
    before = flat(objective.params).detach().clone()
    copied, subtracted = (
        steepest.estimators.SPSA(samples=3, in_place=in_place).project(objective, 7)
        for in_place in (False, True)
    )
    assert subtracted.weights == pytest.approx(copied.weights, rel=1e-9)
    assert torch.allclose(flat(objective.params), before, rtol=0, atol=1e-14)
    assert not torch.equal(flat(objective.params), before)  # it did subtract


@pytest.mark.parametrize("samples", [1, 4])
def test_hutchinson_mean_and_variance(samples):
    objective, gradient, hessian = quadratic()
    runs = 1500
    draws = torch.stack([flat(hutchinson(objective, s, samples).diagonal) for s in range(runs)])
    exact = hessian.diagonal()
    variance = (hessian.square().sum(1) - exact.square()) / samples
    assert ((draws.mean(0) - exact).abs() < 5 * (variance / runs).sqrt()).all()
    squares = (draws - exact).square()
    assert ((squares.mean(0) - variance).abs() < 5 * squares.std(0) / math.sqrt(runs)).all()
    assert torch.allclose(flat(hutchinson(objective, 0).gradient), gradient)


def test_hutchinson_is_exact_for_a_diagonal_hessian_and_costs_what_it_says():
    p = torch.nn.Parameter(torch.linspace(1, 2, 50))
    objective = Objective(lambda: (p**3).sum(), [p])
    assert torch.allclose(hutchinson(objective, 0, samples=2).diagonal[0], 6 * p.detach())
    assert objective.counts["forward"] == 2 and objective.counts["backward"] == 4
    with pytest.raises(ValueError, match="whole number >= 1"):
        hutchinson(objective, 0, samples=0)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("cls", GRADIENT)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: f * math.nan, "NaN or infinite"),
        (lambda f: f * math.inf, "NaN or infinite"),
        (lambda f: torch.stack([f, f]), "shape"),
        (lambda f: f.item(), "tensor"),
    ],
)
def test_a_loss_that_is_none_is_refused_and_nothing_moves(cls, samples, spoil, message):
    """At the first probe, at a later one, and where parameters were to stay at the last."""
    for good in (0, 1, 2 * samples - 1):
        p = torch.nn.Parameter(stream(5))
        calls = []

        def loss(p=p, calls=calls, good=good):
            calls.append(1)
            value = p.square().sum()
            return value if len(calls) <= good else spoil(value)

        estimator = cls(samples=samples)
        estimator.stay = True
        before = p.detach().clone()
        if good >= estimator.forward:
            continue
        with pytest.raises((RuntimeError, TypeError, ValueError), match=message):
            estimator(Objective(loss, [p]), 0)
        assert torch.equal(p, before)
