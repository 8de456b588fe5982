"""Regularized minimal polynomial extrapolation."""

import pytest
import torch

from steepest.estimators import extrapolate


def linear_sequence(eigenvalues, length, seed=0):
    """x_{i+1} = A x_i + b with the given eigenvalues, and its fixed point."""
    rng = torch.Generator().manual_seed(seed)
    n = len(eigenvalues)
    q = torch.linalg.qr(torch.randn(n, n, generator=rng, dtype=torch.float64))[0]
    a = q @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ q.T
    b = torch.randn(n, generator=rng, dtype=torch.float64)
    xs = [torch.randn(n, generator=rng, dtype=torch.float64)]
    for _ in range(length - 1):
        xs.append(a @ xs[-1] + b)
    return xs, torch.linalg.solve(torch.eye(n, dtype=torch.float64) - a, b)


def test_finds_the_fixed_point_of_few_eigenvalues():
    """Three eigenvalues among six coordinates: four differences are enough, three are not."""
    xs, fixed = linear_sequence([0.9, 0.9, 0.5, 0.5, -0.3, -0.3], 5)
    exact = extrapolate([[x] for x in xs], ridge=1e-14)[0]
    assert (exact - fixed).norm() < 1e-5 * (xs[-1] - fixed).norm()
    short = extrapolate([[x] for x in xs[:4]], ridge=1e-14)[0]
    assert (short - fixed).norm() > 1e-3 * (xs[-1] - fixed).norm()


def test_finds_limits_of_divergent_sequences_too():
    xs, fixed = linear_sequence([1.5, -1.2], 4)
    assert torch.allclose(extrapolate([[x] for x in xs], ridge=1e-14)[0], fixed, rtol=1e-4)


def test_weights_sum_to_one():
    rng = torch.Generator().manual_seed(1)
    history = [[torch.randn(7, generator=rng)] for _ in range(5)]
    shifted = [[x + 100] for (x,) in history]
    gap = extrapolate(shifted)[0] - extrapolate(history)[0]
    assert torch.allclose(gap, torch.full((7,), 100.0), rtol=1e-3)


def test_a_constant_sequence_stays():
    history = [[torch.full((3,), 2.0)] for _ in range(4)]
    assert torch.allclose(extrapolate(history)[0], torch.full((3,), 2.0))


def test_two_vectors_are_too_few():
    with pytest.raises(ValueError, match="at least three"):
        extrapolate([[torch.zeros(1)], [torch.ones(1)]])
