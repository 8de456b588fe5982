import math

import numpy as np
import pytest

from steepest.schedules import fit_bowl, fit_power_law, step_law

SIZES = np.array([6e7, 1e8, 2e8, 4e8, 1e9])
TOKENS = np.array([2e9, 8e9, 3e10, 1e11])
N, D = (grid.ravel() for grid in np.meshgrid(SIZES, TOKENS))


def test_the_numbers_of_the_paper():
    for n, d in [(1e9, 1e11), (6e7, 2e9), (123.0, 4567.0)]:
        law = step_law(n, d)
        assert law.lr == pytest.approx(
            1.79 * math.exp(-0.713 * math.log(n) + 0.307 * math.log(d)), rel=1e-6
        )
        assert law.batch_tokens == pytest.approx(0.58 * math.exp(0.571 * math.log(d)), rel=1e-6)


def test_the_batch_is_counted_in_tokens_and_does_not_know_the_model():
    # A batch of 1.1 million tokens is 540 sequences of 2048: in sequences the number is absurd.
    assert 300 < step_law(1e9, 1e11).batch_tokens / 2048 < 800
    assert step_law(1e8, 1e11).batch_tokens == step_law(1e9, 1e11).batch_tokens
    assert step_law(1e8, 1e11).lr > step_law(1e9, 1e11).lr > step_law(1e9, 1e10).lr


def test_without_noise_a_fit_is_exact():
    lr, batch = zip(*map(step_law, N, D), strict=True)
    law = fit_power_law([N, D], lr)
    assert law.constant == pytest.approx(1.79, rel=1e-9)
    assert law.exponents == pytest.approx((-0.713, 0.307), abs=1e-10)
    assert law(1e10, 1e12) == pytest.approx(step_law(1e10, 1e12).lr, rel=1e-8)
    assert fit_power_law([D], batch).exponents == pytest.approx((0.571,), abs=1e-10)


def surfaces(rng, noise):
    """The planted law's optima as a 9 x 7 grid of noisy losses shows them, at each (N, D)."""
    found = []
    for n, d in zip(N, D, strict=True):
        truth = step_law(n, d)
        x, y = (g.ravel() for g in np.meshgrid(np.arange(-4, 5) / 2, np.arange(-3, 4) / 2))
        # The grid is not centered on the optimum, whose place is unknown.
        x, y = x + rng.uniform(-0.5, 0.5), y + rng.uniform(-0.5, 0.5)
        loss = 2.5 + 0.02 * x**2 + 0.005 * x * y + 0.01 * y**2 + noise * rng.normal(size=x.size)
        found.append(fit_bowl(truth.lr * 2**x, loss, truth.batch_tokens * 2**y))
    return found


def test_planted_exponents_come_back_from_noisy_surfaces():
    bowls = surfaces(np.random.default_rng(0), noise=0.003)
    assert np.mean([bowl.convex for bowl in bowls]) >= 0.9
    lr = fit_power_law([N, D], [bowl.lr for bowl in bowls])
    batch = fit_power_law([D], [bowl.batch for bowl in bowls])
    assert lr.exponents == pytest.approx((-0.713, 0.307), abs=0.03)
    assert batch.exponents == pytest.approx((0.571,), abs=0.03)


@pytest.mark.parametrize("level", [0.8, 0.95])
@pytest.mark.parametrize("points", [6, 20])
def test_intervals_cover_the_truth_as_often_as_they_say(level, points):
    rng = np.random.default_rng(1)
    rows = np.arange(points) if points == 20 else np.array([0, 2, 4, 15, 17, 19])
    n, d = N[rows], D[rows]
    truth = (1.79, -0.713, 0.307)
    draws, hits = 300, np.zeros(3)
    for seed in range(draws):
        y = [step_law(a, b).lr * math.exp(0.1 * rng.normal()) for a, b in zip(n, d, strict=True)]
        law = fit_power_law([n, d], y, level=level, resamples=400, seed=seed)
        hits += [low < t < high for t, (low, high) in zip(truth, law.interval, strict=True)]
    # Plain percentiles of 6 refits cover 0.95 in less than 0.8 of the draws.
    assert hits / draws == pytest.approx([level] * 3, abs=0.06)


def test_a_bowl_in_one_variable_is_a_parabola():
    rates = np.array([1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2])
    bowl = fit_bowl(rates, 1.0 + 0.3 * np.log2(rates / 5e-3) ** 2)
    assert bowl.lr == pytest.approx(5e-3) and bowl.loss == pytest.approx(1.0)
    assert bowl.curvature[0, 0] == pytest.approx(0.6) and math.isnan(bowl.batch)
    # Within the plateau's factor the loss is within the tolerance, and at its edge it is at it.
    edge = 5e-3 * bowl.plateau(0.1)
    assert 0.3 * math.log2(edge / 5e-3) ** 2 == pytest.approx(0.1)


def test_a_ridge_is_not_convex():
    rates = np.array([1.0, 2.0, 4.0, 8.0])
    assert not fit_bowl(rates, -(np.log2(rates) ** 2)).convex


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="numbers > 0"):
        step_law(0, 1e9)
    with pytest.raises(ValueError, match="above 0"):
        fit_power_law([[1.0, 2.0, 3.0, -4.0]], [1.0, 2.0, 3.0, 4.0])
    with pytest.raises(ValueError, match="add more"):
        fit_power_law([[1.0, 2.0, 3.0]], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="one length"):
        fit_power_law([[1.0, 2.0, 3.0]], [1.0, 2.0])
    with pytest.raises(ValueError, match="do not determine"):
        fit_bowl([1.0, 1.0, 2.0], [1.0, 1.0, 2.0])
    with pytest.raises(ValueError, match="leave out"):
        fit_bowl([1.0, 2.0, 4.0], [1.0, math.nan, 2.0])
