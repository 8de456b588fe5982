"""The bound on the last iterate: its value by hand, and what it says of schedules."""

import math

import pytest
import scipy.integrate

from steepest.probes import last_iterate_bound


def variance_term(rates):
    """The sum that multiplies 2 sigma^2: no way to go, unit noise."""
    return last_iterate_bound(rates, divergence=0.0, noise=1.0) / 2


def test_by_hand():
    rates = [0.5, 0.25, 1.0]
    terms = 0.25 / 1.75 + 0.0625 / 1.25 + 1.0 / 1.0
    expected = 3.0 / 1.75 + 2 * (4 * 4.0 + 9.0) * terms
    ours = last_iterate_bound(rates, divergence=3.0, lipschitz=2.0, noise=3.0)
    assert ours == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("steps", [1, 10, 1000])
def test_a_constant_rate_pays_the_harmonic_number_and_linear_decay_two(steps):
    harmonic = sum(1 / k for k in range(1, steps + 1))
    assert variance_term([0.1] * steps) == pytest.approx(0.1 * harmonic, rel=1e-12)
    linear = [0.1 * (steps - t) / steps for t in range(steps)]
    exact = 0.1 * sum(2 * k / (k + 1) for k in range(1, steps + 1)) / steps
    assert variance_term(linear) == pytest.approx(exact, rel=1e-12)
    assert variance_term(linear) <= 2 * 0.1


def test_any_decay_to_zero_as_a_power_has_no_logarithm():
    """Of rates (1 - t/T)^a the sum tends to an integral, (a + 1) / a: 2 for linear decay."""
    for power in (0.5, 1.0, 2.0):
        limit, _ = scipy.integrate.quad(lambda u, a=power: (a + 1) * u ** (a - 1), 0, 1)
        assert limit == pytest.approx((power + 1) / power)
        steps = 20_000
        sums = variance_term([((steps - t) / steps) ** power for t in range(steps)])
        assert sums == pytest.approx(limit, rel=0.02)


def test_where_it_says_nothing():
    assert math.isfinite(last_iterate_bound([0.25], 1.0, smoothness=2.0))
    with pytest.raises(ValueError, match=r"above 1 / \(2 L\) = 0.25"):
        last_iterate_bound([0.3], 1.0, smoothness=2.0)
    for bad in ([], [0.1, -0.1], [0.1, 0.0], [math.nan]):
        with pytest.raises(ValueError, match="rates have to be"):
            last_iterate_bound(bad, 1.0)
