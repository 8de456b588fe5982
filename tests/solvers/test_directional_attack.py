"""DirectionalAttack: attacks with a known answer, its accounts, and the hybrid with cDSM."""

import math
import statistics
from functools import cache

import pytest
import torch

from steepest.estimators import SPSA
from steepest.solvers import DirectionalAttack, attack_direction, direct_search, directional_attack

F64 = torch.float64
WEIGHT = torch.tensor([[1.0, -3.0, 0.5], [0.2, 0.1, -2.0]], dtype=F64)


def affine(x):
    return WEIGHT @ x + 1


def test_on_an_affine_network_an_attack_is_the_maximum_over_the_box():
    x, u = torch.tensor([0.1, 0.2, 0.3], dtype=F64), torch.tensor([1.0, -2.0], dtype=F64)
    expected = x + 0.5 * (WEIGHT.T @ u).sign()
    for steps in (1, 2, 5):
        found, cost = directional_attack(affine, x, u, 0.5, steps=steps)
        assert torch.allclose(found, expected) and cost == 2 * steps
    guess, cost = directional_attack(affine, x, u, 0.5, estimator=SPSA(samples=64))
    assert torch.allclose(guess, expected) and cost == 128
    boxed, _ = directional_attack(affine, x, u, 0.5, bounds=(0.0, torch.tensor([0.2, 9, 9])))
    assert torch.allclose(boxed, torch.tensor([0.2, 0.0, 0.8], dtype=F64))


def test_an_attack_of_several_steps_against_a_transcription():
    def network(x):
        return torch.stack([torch.sin(3 * x).sum(), x.prod()])

    x, u, r, k = torch.tensor([0.1, 0.9], dtype=F64), torch.tensor([1.0, 0.5], dtype=F64), 0.8, 4
    d = torch.zeros(2, dtype=F64)
    for _ in range(k):
        y = x + d
        slope = u[0] * 3 * torch.cos(3 * y) + u[1] * y.flip(0)
        d = (d + 1.5 * r / k * slope.sign()).clamp(-r, r)
    found, _ = directional_attack(network, x, u, r, steps=k)
    assert torch.allclose(found, x + d)
    gain = u @ (network(found) - network(x))
    once, _ = directional_attack(network, x, u, r, steps=1)
    assert gain > u @ (network(once) - network(x))  # a step too long is corrected


def test_the_direction_leaves_tight_constraints_alone():
    y = torch.tensor([1.0, 2.0, -1.0], dtype=F64)

    def limits(y):
        return torch.stack([y[0] + y[1] - 3.05, y[2] - 5, (y[2] > 0).double() - 0.01])

    free = attack_direction(y, lambda y: -y.sum(), limits)
    assert torch.equal(free, torch.ones(3, dtype=F64))
    held = attack_direction(y, lambda y: -y.sum(), limits, slack=0.1)
    assert torch.allclose(held, torch.tensor([0.0, 0.0, 1.0], dtype=F64), atol=1e-12)
    inward = attack_direction(y, lambda y: y.sum(), limits, slack=0.1)
    assert torch.equal(inward, -torch.ones(3, dtype=F64))


def test_the_radius_follows_success_and_the_budget_is_kept():
    attack = DirectionalAttack(affine, torch.sum, radius=0.5, smallest=0.2, largest=0.8)
    x, box = torch.zeros(3, dtype=F64), (-torch.ones(3), torch.ones(3))
    radii = []
    for success in (True, True, False, False, False):
        attack.report(success)
        radii.append(attack.radius)
    assert radii == [0.8, 0.8, 0.4, 0.2, 0.2]
    assert attack.propose(x, box, 3) == ([], 0)
    points, cost = attack.propose(x, box, 4)
    assert len(points) == 1 and cost == 3


def test_bad_arguments():
    x, u = torch.zeros(3, dtype=F64), torch.ones(2, dtype=F64)
    with pytest.raises(ValueError, match="radius=0"):
        directional_attack(affine, x, u, 0.0)
    with pytest.raises(ValueError, match="steps=0"):
        directional_attack(affine, x, u, 1.0, steps=0)
    with pytest.raises(ValueError, match=r"direction of shape \(3,\) for outputs of shape \(2,\)"):
        directional_attack(affine, x, torch.ones(3, dtype=F64), 1.0)
    with pytest.raises(ValueError, match="radius=nan"):
        DirectionalAttack(affine, torch.sum, radius=math.nan)
    with pytest.raises(ValueError, match="steps=0"):
        DirectionalAttack(affine, torch.sum, steps=0)
    assert torch.equal(x, torch.zeros(3))


# ---- the paper's claims


@cache
def problem():
    """A network of 10 inputs and 3 outputs, fitted to a smooth map; 10 feasible starts."""
    rng = torch.Generator().manual_seed(1)
    a, b = (torch.randn(10, 3, generator=rng, dtype=F64) / math.sqrt(10) for _ in range(2))
    torch.manual_seed(1)
    network = torch.nn.Sequential(
        torch.nn.Linear(10, 32), torch.nn.Tanh(), torch.nn.Linear(32, 3)
    ).double()
    adam = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(300):
        x = 4 * torch.rand(256, 10, generator=rng, dtype=F64) - 2
        adam.zero_grad()
        (network(x) - torch.sin(x @ a) - 0.5 * x @ b).square().mean().backward()
        adam.step()
    network.requires_grad_(False)
    x = 4 * torch.rand(100, 10, generator=rng, dtype=F64) - 2
    return network, x[network(x)[:, 2] <= 0][:10]


def goal(y):
    return y[0] + 0.5 * y[1] ** 2


def limit(y):
    return y[2:]


def solve(kind, start, seed, budget=600):
    network, _ = problem()

    def attack():
        return DirectionalAttack(network, goal, limit, radius=0.5)

    return direct_search(
        lambda x: goal(network(x)),
        start,
        budget,
        bounds=(-2.0, 2.0),
        constraints=lambda x: limit(network(x)),
        radius=0.5,
        search=attack() if kind == "hybrid" else None,
        seed=seed,
    )


def attacks_alone(start, budget=600):
    """Attack after attack, and nothing where they fail."""
    network, _ = problem()
    attack, spent = DirectionalAttack(network, goal, limit, radius=0.5), 1
    x, value = start, goal(network(start)).item()
    box = torch.full_like(start, -2.0), torch.full_like(start, 2.0)
    while spent + 4 <= budget:
        points, cost = attack.propose(x, box, budget - spent)
        y = network(points[0])
        better = bool(limit(y) <= 0) and goal(y).item() < value
        if better:
            x, value = points[0], goal(y).item()
        attack.report(better)
        spent += cost + 1
    return value


def test_the_hybrid_is_better_at_equal_evaluations():
    """And needs half of them or fewer, in the median, for what cDSM ends at."""
    network, starts = problem()
    plain = [solve("plain", x, seed) for seed, x in enumerate(starts)]
    hybrid = [solve("hybrid", x, seed) for seed, x in enumerate(starts)]
    median = {
        name: statistics.median(run.value for run in runs)
        for name, runs in (("plain", plain), ("hybrid", hybrid))
    }
    assert median["hybrid"] <= median["plain"]
    needed = []
    for one, two in zip(hybrid, plain, strict=True):
        reached = one.best <= two.value
        needed.append(int(one.evaluations[reached.int().argmax()]) if reached.any() else math.inf)
    assert statistics.median(needed) <= 0.5 * 600
    for run in (*plain, *hybrid):
        assert limit(network(run.x)) <= 0 and run.evaluations[-1] <= 600
        feasible = network(run.points)[:, 2] <= 0
        assert run.values.isfinite().eq(feasible).all()
    alone = statistics.median(attacks_alone(x) for x in starts)
    assert alone >= median["hybrid"]


def test_an_attack_without_derivatives_works_too():
    network, starts = problem()
    search = DirectionalAttack(network, goal, limit, 0.5, estimator=SPSA(samples=4))
    first = goal(network(starts[0])).item()
    found = direct_search(
        lambda x: goal(network(x)),
        starts[0],
        200,
        bounds=(-2.0, 2.0),
        constraints=lambda x: limit(network(x)),
        search=search,
    )
    wins = [
        step == "search" and value < before
        for step, value, before in zip(found.steps[1:], found.values[1:], found.best, strict=False)
    ]
    assert any(wins) and found.value < first - 1
