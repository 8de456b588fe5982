"""direct_search: its bookkeeping, a transcription, and what covering adds."""

import math

import pytest
import torch

from steepest.solvers import Proposal, direct_search

F64 = torch.float64


def bowl(x):
    return (x - 1).square().sum()


def test_plain_direct_search_against_a_transcription():
    rng = torch.Generator().manual_seed(4)
    x, delta, n = torch.tensor([0.3, -0.8, 0.1], dtype=F64), 0.5, 3
    best, points, values = bowl(x), [x], [bowl(x)]
    while len(points) < 60:
        q, _ = torch.linalg.qr(torch.randn(n, n, generator=rng, dtype=F64))
        d = torch.cat([q, -q])[torch.randperm(2 * n, generator=rng)]
        for each in d[: 60 - len(points)]:
            trial = x + delta * each
            points.append(trial)
            values.append(bowl(trial))
            if values[-1] < best:
                x, best, delta = trial, values[-1], 2 * delta
                break
        else:
            delta /= 2
    found = direct_search(bowl, points[0], 60, radius=0.5, covering=0, seed=4)
    assert torch.allclose(found.points, torch.stack(points), rtol=1e-12)
    assert torch.allclose(found.values, torch.stack(values), rtol=1e-12)
    assert torch.equal(found.x, x) and found.value == best
    assert set(found.steps) == {"start", "poll"}
    assert found.evaluations.tolist() == list(range(1, 61))
    assert torch.equal(found.best, found.values.cummin(0).values)


def test_a_poll_has_a_direction_within_its_angle_of_any_other():
    """A positive basis of +-Q: the cosine with any unit vector is at least 1 / sqrt(n)."""
    seen = []

    def flat(x):
        seen.append(x)
        return 0.0

    direct_search(flat, torch.zeros(5, dtype=F64), 11, covering=0)
    directions = torch.stack(seen[1:])
    assert torch.allclose(directions.norm(dim=1), torch.ones(10, dtype=F64))
    any_ = torch.nn.functional.normalize(torch.randn(500, 5, dtype=F64), dim=1)
    assert ((any_ @ directions.T).amax(1) >= 1 / math.sqrt(5) - 1e-9).all()


def gap(found, radius, n=2):
    """How far a point of the ball around the solution can be from all that were tried."""
    rng = torch.Generator().manual_seed(0)
    d = torch.nn.functional.normalize(torch.randn(4000, n, generator=rng, dtype=F64), dim=1)
    probes = found.x + radius * d * torch.rand(4000, 1, generator=rng, dtype=F64).sqrt()
    return torch.cdist(probes, found.points).amin(1).max().item()


def test_covering_makes_the_trial_points_dense():
    """The largest gap falls as the budget to the power -1/n; without covering it stays."""
    start = torch.tensor([0.2, 0.4], dtype=F64)
    gaps = [gap(direct_search(bowl, start, budget, radius=0.5), 0.5) for budget in (150, 600, 2400)]
    assert gaps[1] < 0.7 * gaps[0] and gaps[2] < 0.7 * gaps[1] and gaps[2] < 0.07
    plain = gap(direct_search(bowl, start, 2400, radius=0.5, covering=0), 0.5)
    assert plain > 3 * gaps[2]


def test_a_covering_point_is_far_from_all_before_it():
    """On a flat objective the incumbent stays; k points of a unit disk can be 1 / sqrt(k) apart."""
    found = direct_search(lambda x: 0.0, torch.zeros(2), 200, tolerance=0.5)
    for k, step in enumerate(found.steps):
        if step == "cover":
            gap = (found.points[k] - found.points[:k]).norm(dim=1).min()
            assert gap > 0.7 / math.sqrt(k) and found.points[k].norm() <= 1
    assert found.steps.count("cover") > 150


def test_covering_finds_what_polls_miss_at_a_jump():
    """A small disk beside the minimum of a bowl is deeper: plain search shrinks onto the bowl."""
    disk = torch.tensor([1.25, 1.2], dtype=F64)

    def jump(x):
        return torch.where((x - disk).norm() < 0.08, -1.0, bowl(x))

    hits = {0.0: 0, 0.5: 0}
    for covering in hits:
        for seed in range(10):
            rng = torch.Generator().manual_seed(seed)
            start = 4 * torch.rand(2, generator=rng, dtype=F64) - 2
            found = direct_search(jump, start, 500, radius=0.5, covering=covering, seed=seed)
            hits[covering] += found.value == -1
    assert hits[0.5] == 10
    assert hits[0.0] <= 5


def test_no_incumbent_is_infeasible_and_bounds_hold():
    def inside(x):
        return torch.stack([x[0] + x[1] - 1, x.norm() - 1.2])

    asked = []

    def objective(x):
        asked.append(x)
        return -x[0] - 2 * x[1]

    start = torch.zeros(2, dtype=F64)
    found = direct_search(
        objective, start, 500, bounds=(-1.0, torch.tensor([1.0, 0.9])), constraints=inside
    )
    assert all((inside(x) <= 0).all() for x in asked)  # nor is it asked for there
    low_high = found.points.amin(), found.points[:, 1].amax()
    assert low_high[0] >= -1 and low_high[1] <= 0.9
    broken = torch.stack([(inside(x) > 0).any() for x in found.points])
    assert broken.any() and (found.values[broken] == math.inf).all()
    assert len(asked) == int((~broken).sum())
    assert torch.allclose(found.x, torch.tensor([0.1, 0.9], dtype=F64), atol=0.02)


def test_values_that_are_nan_are_infeasible():
    found = direct_search(
        lambda x: x.log().sum() if x.min() > -0.5 else x.sum() * math.nan, torch.ones(2), 100
    )
    assert math.isfinite(found.value) or found.value == -math.inf
    assert not found.values.isnan().any()


def test_a_search_step_is_paid_for_and_told():
    class Ask:
        def __init__(self):
            self.heard, self.left = [], []

        def propose(self, x, bounds, left):
            self.left.append(left)
            x += 9  # what it does to its copy is its own affair
            return Proposal([torch.full((2,), 5.0), torch.ones(2)], 3) if left > 3 else ([], 0)

        def report(self, success):
            self.heard.append(success)

    class Silent(Ask):
        def propose(self, x, bounds, left):
            return Proposal([], 0)

    ask = Ask()
    found = direct_search(bowl, torch.zeros(2), 40, search=ask)
    assert ask.heard[:2] == [True, False] and ask.left[0] == 39
    assert found.steps[:4] == ["start", "search", "search", "search"]  # 1 % and more: at once again
    assert found.evaluations[:4].tolist() == [1, 5, 6, 10]
    assert found.evaluations[-1] <= 40 and found.value == 0
    alone = direct_search(bowl, torch.zeros(2), 40)
    silent = direct_search(bowl, torch.zeros(2), 40, search=Silent())
    assert torch.equal(silent.points, alone.points)


def test_it_stops():
    found = direct_search(bowl, torch.ones(2), 10_000, covering=0, tolerance=1e-3)
    assert found.radius < 1e-3 and len(found.points) < 100
    assert len(direct_search(bowl, torch.zeros(2), 1).points) == 1
    half = direct_search(lambda x: float(bowl(x)), torch.zeros(2, dtype=torch.float32), 5)
    assert half.x.dtype == F64


def test_bad_arguments():
    start = torch.zeros(2)
    for change, message in (
        ({"budget": 0}, "budget=0"),
        ({"budget": 2.5}, r"budget=2\.5"),
        ({"radius": -1.0}, "radius=-1"),
        ({"covering": math.nan}, "covering=nan"),
        ({"tolerance": 0.0}, "tolerance=0"),
        ({"start": torch.zeros(2, 1)}, "start="),
        ({"start": start * math.nan}, "start="),
        ({"bounds": (torch.zeros(3), 1.0)}, "bounds="),
        ({"bounds": (1.0, -1.0)}, "not below"),
        ({"bounds": (0.5, 1.0)}, "out of bounds"),
        ({"constraints": lambda x: x + 1}, "violates a constraint"),
        ({"constraints": lambda x: x * math.nan}, "violates a constraint"),
        ({"objective": lambda x: math.nan}, "NaN or infinite at the start"),
    ):
        good = {"objective": bowl, "start": start, "budget": 5}
        with pytest.raises(ValueError, match=message):
            direct_search(**{**good, **change})
    assert torch.equal(start, torch.zeros(2))
