"""Contract of the room ``estimators``: bias, variance, cost and reproducibility of every one."""

import inspect
import itertools
import math

import pytest
import torch

import steepest.estimators
from steepest.estimators import GradientEstimator, hutchinson
from steepest.oracles import Objective

GRADIENT = [
    value
    for value in vars(steepest.estimators).values()
    if inspect.isclass(value)
    and issubclass(value, GradientEstimator)
    and value is not GradientEstimator
]
KINDS = ["gaussian", "rademacher"]


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
