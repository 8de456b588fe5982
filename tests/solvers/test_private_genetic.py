"""Private-GSD: the noise, the bookkeeping of edits, and tables that answer their queries."""

import itertools
import math
import statistics

import pytest
import torch

from steepest.solvers import (
    gaussian_mechanism,
    genetic_search,
    halfspaces,
    marginals,
    private_genetic,
    zcdp_scale,
)

F64 = torch.float64
DOMAIN = [2, 4, 3, (0.0, 1.0), (0.0, 1.0)]
PAIRS = list(itertools.combinations(range(3), 2))
TABLES = marginals(DOMAIN, PAIRS)


def rows(count, seed=0):
    """A table whose columns depend on each other."""
    rng = torch.Generator().manual_seed(seed)
    z = torch.randn(count, 5, generator=rng, dtype=F64)
    u = torch.rand(count, 2, generator=rng, dtype=F64)
    first = (u[:, 0] < torch.sigmoid(2 * z[:, 0])).double()
    second = (z[:, 1] + 0.5 * z[:, 2] + 1.5).round().clamp(0, 3)
    third = (first + (u[:, 1] < 0.3).double()).clamp(0, 2)
    real = [torch.sigmoid(1.2 * z[:, 0] + 0.3 * z[:, 3]), torch.sigmoid(z[:, 0] + z[:, 1]) ** 2]
    return torch.stack([first, second, third, *real], 1)


def thresholds(count=40, seed=1):
    """Prefixes of the real columns, then random halfspaces."""
    rng = torch.Generator().manual_seed(seed)
    normals = torch.zeros(count, 5, dtype=F64)
    half = torch.arange(count // 2)
    normals[half, 3 + half % 2] = 1.0
    normals[count // 2 :, 3:] = torch.randn(count - count // 2, 2, generator=rng, dtype=F64)
    anchors = torch.rand(count, 5, generator=rng, dtype=F64)
    return normals, (normals * anchors).sum(1)


NORMALS, OFFSETS = thresholds()
QUERIES = TABLES + halfspaces(NORMALS, OFFSETS)


def test_queries_against_counting():
    table, answers = rows(50), QUERIES.answer(rows(50)).mean(0)
    k = 0
    for i, j in PAIRS:
        for a in range(DOMAIN[i]):
            for b in range(DOMAIN[j]):
                count = ((table[:, i] == a) & (table[:, j] == b)).sum()
                assert math.isclose(answers[k], int(count) / 50)
                k += 1
    for normal, offset in zip(NORMALS, OFFSETS, strict=True):
        assert math.isclose(answers[k], ((table * normal).sum(1) <= offset).double().mean())
        k += 1
    assert k == len(answers)


def test_no_two_rows_are_farther_apart_than_the_spread():
    numbers = QUERIES.answer(rows(300))
    assert torch.cdist(numbers, numbers).max() <= QUERIES.spread
    assert math.isclose(QUERIES.spread, math.sqrt(2 * 3 + 40))
    one = marginals([2], [[0]])  # for one table the bound is met
    both = one.answer(torch.tensor([[0.0], [1.0]]))
    assert math.isclose((both[0] - both[1]).norm(), one.spread)


def test_the_noise_has_the_scale_of_the_formula():
    data, rho = rows(1000), 0.1
    scale = math.sqrt(2 * 3 + 40) / 1000 / math.sqrt(2 * rho)
    assert math.isclose(zcdp_scale(QUERIES.spread / 1000, rho), scale)
    exact = QUERIES.answer(data).mean(0)
    noise = torch.stack(
        [
            private_genetic(data, QUERIES, DOMAIN, rho, generations=0, seed=s).target - exact
            for s in range(50)
        ]
    )
    count = noise.numel()
    assert abs(noise.std() / scale - 1) < 5 / math.sqrt(2 * count)
    assert noise.mean().abs() < 5 * scale / math.sqrt(count)
    # Two halves of a budget, averaged, are as good as the whole.
    parts = [gaussian_mechanism(torch.zeros(20_000), 1.0, rho / 2, s) for s in (1, 2)]
    assert abs((sum(parts) / 2).std() / zcdp_scale(1.0, rho) - 1) < 0.03


def test_noise_is_not_repeated_without_a_seed():
    one, two = (gaussian_mechanism(torch.zeros(3), 1.0, 1.0) for _ in range(2))
    assert not torch.equal(one, two)


def test_incremental_statistics_equal_recomputation():
    target = QUERIES.answer(rows(500)).mean(0)
    found = genetic_search(target, QUERIES, DOMAIN, rows=77, generations=300, seed=0)
    again = QUERIES.answer(found.rows).sum(0) / 77
    assert torch.equal(found.answers, again)
    assert found.losses[-1] == (target - again).square().sum()
    assert (found.losses.diff() <= 0).all() and found.losses[-1] < 0.1 * found.losses[0]


def test_the_search_stays_in_the_domain_and_repeats():
    target = QUERIES.answer(rows(500)).mean(0)
    one, two = (genetic_search(target, QUERIES, DOMAIN, 40, 100, seed=3) for _ in range(2))
    assert torch.equal(one.rows, two.rows)
    for j, known in enumerate(DOMAIN):
        column = one.rows[:, j]
        if isinstance(known, int):
            assert set(column.tolist()) <= set(range(known))
        else:
            assert column.min() >= known[0] and column.max() <= known[1]
    assert torch.isclose(one.strategies.sum(), torch.tensor(1.0, dtype=F64))


def test_it_finds_a_table_that_exists():
    """Four queries, twelve rows, no noise: the loss is zero."""
    queries = marginals([2, 2], [(0, 1)])
    target = torch.tensor([1, 5, 4, 2], dtype=F64) / 12
    found = genetic_search(target, queries, [2, 2], rows=12, generations=500, seed=0)
    assert found.losses[-1] < 1e-30


def test_the_search_sees_only_what_is_published():
    """Two tables with the same noisy statistics give the same synthetic one."""
    target = gaussian_mechanism(QUERIES.answer(rows(500)).mean(0), QUERIES.spread / 500, 1.0, 7)
    published = private_genetic(rows(500), QUERIES, DOMAIN, 1.0, 30, 50, seed=7)
    alone = genetic_search(target, QUERIES, DOMAIN, 30, 50, seed=8)
    assert torch.equal(published.target, target)
    assert torch.equal(published.rows, alone.rows)


def test_bad_arguments():
    data = rows(10)
    with pytest.raises(ValueError, match="rho=0"):
        private_genetic(data, TABLES, DOMAIN, 0.0)
    with pytest.raises(ValueError, match="rows=0"):
        private_genetic(data, TABLES, DOMAIN, 1.0, rows=0)
    with pytest.raises(ValueError, match="column 3 is not categorical"):
        marginals(DOMAIN, [(0, 3)])
    data[0, 3] = 1.5
    with pytest.raises(ValueError, match="column 3 of the data leaves its domain"):
        private_genetic(data, TABLES, DOMAIN, 1.0)
    with pytest.raises(ValueError, match="5 columns"):
        private_genetic(data[:, :4], TABLES, DOMAIN, 1.0)
    with pytest.raises(ValueError, match="a target is NaN"):
        genetic_search(torch.full((26,), math.nan), TABLES, DOMAIN)
    with pytest.raises(ValueError, match=r"shape \(1,\) for 26 queries"):
        genetic_search(torch.zeros(1), TABLES, DOMAIN)


# ---- the paper's claims


def error(found, exact):
    return (found.answers - exact).abs().mean().item()


def test_it_matches_the_noisy_statistics_and_a_budget_buys_accuracy():
    data = rows(1000)
    exact, errors = QUERIES.answer(data).mean(0), {}
    for rho in (0.01, 0.1, 10.0):
        found = private_genetic(data, QUERIES, DOMAIN, rho, generations=3000, seed=0)
        off = (found.answers - found.target).abs().mean()
        assert off <= 3 * zcdp_scale(QUERIES.spread / 1000, rho) + 1 / 200
        errors[rho] = error(found, exact)
    assert errors[10.0] < 0.3 * errors[0.1] < 0.3 * 0.7 * errors[0.01]


def relaxed(target, lr, width, seed, count=200, steps=300):
    """Soft one-hot columns and soft thresholds, by Adam; then a table drawn from them."""
    rng = torch.Generator().manual_seed(seed)
    logits = [torch.randn(count, n, generator=rng, dtype=F64).requires_grad_() for n in DOMAIN[:3]]
    real = torch.randn(count, 2, generator=rng, dtype=F64).requires_grad_()
    adam = torch.optim.Adam([*logits, real], lr=lr)
    for _ in range(steps):
        soft = [each.softmax(1) for each in logits]
        cells = [(soft[i][:, :, None] * soft[j][:, None]).mean(0).flatten() for i, j in PAIRS]
        sides = torch.sigmoid((OFFSETS - real.sigmoid() @ NORMALS[:, 3:].T) / width).mean(0)
        adam.zero_grad()
        (torch.cat([*cells, sides]) - target).square().sum().backward()
        adam.step()
    with torch.no_grad():
        drawn = [torch.multinomial(each.softmax(1), 1, generator=rng) for each in logits]
        return torch.cat([*drawn, real.sigmoid()], 1)


def test_thresholds_are_met_no_worse_than_by_a_relaxation():
    """The relaxation has the best rate and width of four, chosen by its true error."""
    data = rows(1000)
    exact, searched = QUERIES.answer(data).mean(0), []
    grid = {setting: [] for setting in itertools.product((0.1, 0.3), (0.01, 0.03))}
    for seed in range(2):
        found = private_genetic(data, QUERIES, DOMAIN, 1.0, generations=3000, seed=seed)
        searched.append((found.answers - exact)[-40:].abs().mean().item())
        for (lr, width), errors in grid.items():
            table = relaxed(found.target, lr, width, seed)
            off = QUERIES.answer(table).mean(0) - exact
            errors.append(off[-40:].abs().mean().item())
    best = min(statistics.mean(errors) for errors in grid.values())
    assert statistics.mean(searched) <= 0.9 * best
