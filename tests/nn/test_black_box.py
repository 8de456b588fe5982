import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from steepest.estimators import SPSA, Coordinates
from steepest.kernels import split_seed
from steepest.nn import BlackBox
from steepest.oracles import Objective


def network(*sizes):
    layers = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b, dtype=torch.float64), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def slope(f, x, target):
    x = x.clone().requires_grad_()
    F.cross_entropy(f(x), target).backward()
    return x.grad


@pytest.fixture
def problem():
    return network(6, 8, 4), torch.randn(5, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0])


def test_coordinates_give_the_gradient_to_first_order(problem):
    f, x, y = problem
    exact = slope(f, x, y)
    errors = [(slope(BlackBox(f, eps), x, y) - exact).abs().max() for eps in (1e-2, 1e-3, 1e-4)]
    assert errors[0] < 5e-3
    for far, near in itertools.pairwise(errors):
        assert 8 < far / near < 12


def test_sample_by_sample_it_is_the_estimators_of_the_project(problem):
    """Coordinate-wise for each row, and one-sided SPSA with the same directions for one row."""
    f, x, _ = problem
    for directions in (None, 4):
        rows = x if directions is None else x[:1]
        box = BlackBox(f, 1e-3, directions, seed=3)
        given = rows.clone().requires_grad_()
        answers = box(given)
        slopes = torch.randn_like(answers)
        answers.backward(slopes)
        for row, v, found in zip(rows, slopes, given.grad, strict=True):
            z = row.clone().requires_grad_()
            alone = Objective(lambda z=z, v=v: (f(z[None]) * v).sum(), [z])
            if directions is None:
                expected = Coordinates(1e-3)(alone, 0).gradient[0]
            else:
                expected = SPSA(1e-3, 4, one_sided=True)(alone, split_seed(3, 1)).gradient[0]
            torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_it_asks_one_query_a_coordinate_or_direction_and_one_for_the_value(problem):
    f, x, y = problem
    for directions, asked in ((None, 6), (3, 3)):
        box = BlackBox(f, directions=directions, chunk=7)
        slope(box, x, y)
        assert box.queries == 5 * (asked + 1)
    with torch.no_grad():
        box(x)
    assert box.queries == 5 * (3 + 1) + 5


def test_chunks_change_nothing(problem):
    f, x, y = problem
    for directions in (None, 4):
        whole, cut = (slope(BlackBox(f, directions=directions, chunk=c), x, y) for c in (999, 3))
        torch.testing.assert_close(cut, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
def test_random_directions_are_unbiased_with_the_known_variance(kind):
    d, q, n = 6, 3, 4000
    weight = torch.randn(d, 1, dtype=torch.float64)
    x = torch.randn(1, d, dtype=torch.float64).expand(n, d).clone().requires_grad_()
    BlackBox(lambda x: x @ weight, directions=q, kind=kind)(x).sum().backward()
    off = x.grad - weight.T
    square = weight.square().sum()
    per = (d + 1 if kind == "gaussian" else d - 1) / q * square
    assert (off.mean(0).abs() < 5 * (per / d / n) ** 0.5 * 3).all()
    assert abs(off.square().sum(1).mean() / per - 1) < 0.1


def test_no_gradient_passes_through_the_box_and_none_reaches_its_parameters(problem):
    f, x, y = problem

    def query(z):
        assert not torch.is_grad_enabled() and not z.requires_grad
        return f(z)

    encoder = network(6, 6)
    box = BlackBox(query, 1e-6)
    F.cross_entropy(box(encoder(x)), y).backward()
    found = [p.grad for p in encoder.parameters()]
    assert all(p.grad is None for p in f.parameters())
    assert list(BlackBox(f).parameters()) == []
    encoder.zero_grad()
    F.cross_entropy(f(encoder(x)), y).backward()
    for estimate, p in zip(found, encoder.parameters(), strict=True):
        torch.testing.assert_close(estimate, p.grad, rtol=1e-4, atol=1e-6)


def test_seeds_repeat_and_estimates_differ(problem):
    f, x, y = problem
    a, b, other = (BlackBox(f, directions=2, seed=seed) for seed in (0, 0, 1))
    first = slope(a, x, y)
    assert torch.equal(first, slope(b, x, y))
    assert not torch.equal(first, slope(a, x, y))
    assert not torch.equal(first, slope(other, x, y))


def test_a_code_needs_fewer_queries_than_pixels():
    """The paper's point: as many queries see the slope in a code, and lose it among pixels."""
    pixels, code = 64, 8
    encoder, decoder = (nn.Linear(*s, dtype=torch.float64) for s in ((pixels, code), (code, 64)))
    classifier = network(pixels, 16, 4)
    x, y = torch.randn(16, pixels, dtype=torch.float64), torch.arange(16) % 4

    def trained(before, after, **how):
        for p in encoder.parameters():
            p.grad = None
        box = after if how.get("exact") else BlackBox(after, 1e-4, how["directions"])
        F.cross_entropy(box(before(x)), y).backward()
        return torch.cat([p.grad.flatten() for p in encoder.parameters()])

    both = nn.Sequential(encoder, decoder)
    exact = trained(both, classifier, exact=True)
    in_code = trained(encoder, nn.Sequential(decoder, classifier), directions=None)
    in_pixels = trained(both, classifier, directions=code)
    assert F.cosine_similarity(in_code, exact, dim=0) > 0.99
    assert F.cosine_similarity(in_pixels, exact, dim=0) < 0.8


@pytest.mark.parametrize(
    ("query", "error", "message"),
    [
        (lambda x: x * torch.nan, RuntimeError, "NaN or infinite"),
        (lambda x: x.sum(), ValueError, "one row for each"),
        (lambda x: x[:2], ValueError, "one row for each"),
        (lambda x: x.tolist(), TypeError, "real numbers"),
        (lambda x: x.argmax(1), TypeError, "real numbers"),
    ],
)
def test_answers_that_are_none(query, error, message):
    with pytest.raises(error, match=message):
        BlackBox(query)(torch.ones(3, 2))


@pytest.mark.parametrize(
    "options",
    [{"eps": 0.0}, {"eps": float("nan")}, {"directions": 0}, {"chunk": 0}],
)
def test_arguments_out_of_range(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        BlackBox(torch.sin, **options)


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="unknown noise 'cauchy'"):
        BlackBox(torch.sin, kind="cauchy")
