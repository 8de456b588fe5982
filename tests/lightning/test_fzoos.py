"""FZooS: where clients live does not matter, and what they send helps."""

import math
import sys
from pathlib import Path

import pytest
import torch

from steepest.estimators import SPSA
from steepest.lightning import FZooS
from steepest.optim import Estimated

sys.path.insert(0, str(Path(__file__).parent))
from _fzoos import F64, make, problem


def test_two_processes_make_the_rounds_of_one(two_processes):
    """One client here and three there, over gloo: the points of four in one process."""
    a, b = two_processes("_fzoos.py")
    assert torch.equal(a["path"], b["path"]) and torch.equal(a["mean"], b["mean"])
    p, losses, _, _ = problem()
    alone, path = make(p, losses), []
    for _ in range(3):
        alone.round()
        path.append(p.detach().clone())
    assert torch.allclose(torch.stack(path), a["path"], rtol=0, atol=1e-9)
    assert a["sent"] == alone.sent == 3 * (6 + 1 + 200)  # a point, a value, weights


def watch(fleet, h, c):
    """Cosines with the mean's gradient, before and after correction, from the third round on."""
    found, plain = [], fleet.gradient

    def gradient(i, t, x, slope):
        turned = plain(i, t, x, slope)
        exact = (h * (x - c)).mean(0)
        if len(fleet.history) >= 2:
            found.append(
                [torch.nn.functional.cosine_similarity(g, exact, dim=0) for g in (slope, turned)]
            )
        return turned

    fleet.gradient = gradient
    return found


@pytest.mark.parametrize("fade", [0.0, 1.0])
def test_the_correction_turns_clients_to_the_mean(fade):
    """By 0.1 with the fading of the authors' program, by 0.4 without."""
    p, losses, h, c = problem(5, 20)
    fleet = make(p, losses, fade=fade)
    fleet.optimizer = lambda params: torch.optim.Adam(params, lr=0.03)
    fleet.steps, fleet.queries = 8, 40
    found = watch(fleet, h, c)
    for _ in range(5):
        fleet.round()
    before, after = torch.tensor(found).mean(0)
    assert after - before > (0.1 if fade else 0.4)


def test_the_correction_fades_as_told_and_goes_from_the_client_to_the_mean():
    p, losses, _, _ = problem()
    for fade in (0.0, 1.0, 2.0):
        fleet = make(p, losses, fade=fade)
        slope, x = torch.ones(6, dtype=F64), torch.full((6,), 0.1, dtype=F64)
        assert torch.equal(fleet.gradient(1, 3, x, slope), slope)  # before the first exchange
        fleet.own = torch.randn(4, 200, dtype=F64, generator=torch.Generator().manual_seed(1))
        fleet.mean = fleet.own.mean(0)
        to, away = (fleet.features.gradient(x, w) for w in (fleet.mean, fleet.own[1]))
        expected = slope + (to - away) / 4**fade
        assert torch.allclose(fleet.gradient(1, 3, x, slope), expected, atol=1e-12)


def federated(p, losses, lr, directions, steps, rounds):
    """FedZO: random directions in place of surrogates, and plain averages."""
    for r in range(rounds):
        home, ends = p.detach().clone(), []
        for i, loss in enumerate(losses):
            p.data.copy_(home)
            spsa = SPSA(1e-3, directions, one_sided=True)
            opt = Estimated(torch.optim.Adam([p], lr=lr), spsa, seed=100 * r + i)
            for _ in range(steps):
                opt.step(loss)
            ends.append(p.detach().clone())
        p.data.copy_(torch.stack(ends).mean(0))


def test_at_equal_queries_it_ends_at_half_of_random_directions_or_less():
    """Both at their better learning rate of two."""
    gaps = {"ours": [], "theirs": []}
    for lr in (0.05, 0.1):
        p, losses, h, c = problem(5, 20)
        best = (h * c).sum(0) / h.sum(0)

        def gap(p=p, h=h, c=c, best=best):
            return sum(0.5 * h * ((x - c) ** 2 - (best - c) ** 2) for x in (p.detach(),)).mean()

        fleet = make(p, losses)
        fleet.optimizer = lambda params, lr=lr: torch.optim.Adam(params, lr=lr)
        for _ in range(5):
            fleet.round()
        asked = max(o.counts["forward"] for o in fleet.objectives)
        gaps["ours"].append(gap())
        p.data.zero_()
        directions, steps = 7, 5
        rounds = math.ceil(asked / (steps * (directions + 1)))
        federated(p, losses, lr, directions, steps, rounds)
        gaps["theirs"].append(gap())
    assert min(gaps["ours"]) < 0.5 * min(gaps["theirs"])


def test_alone_and_uncorrected_it_is_the_optimizer_on_its_estimates():
    p, losses, _, _ = problem(1)
    q, same, _, _ = problem(1)
    fleet = make(p, losses, correct=False)
    fleet.round()
    opt = torch.optim.Adam([q], lr=0.1)
    from steepest.estimators import TrajectoryGradient

    estimator = TrajectoryGradient(candidates=10, nearest=60)
    for t in range(5):
        q.grad = estimator(fleet.objectives[0].__class__(same[0], [q]), seed(0, t)).gradient[0]
        opt.step()
    assert torch.allclose(p, q, atol=1e-12)


def seed(i, t):
    from steepest.kernels import split_seed

    return split_seed(split_seed(split_seed(split_seed(0, 1), 0), i), t)


def test_a_point_that_is_not_lower_is_refused():
    p = torch.nn.Parameter(torch.full((3,), 0.01, dtype=F64))
    fleet = FZooS([p], [lambda: (p**2).sum()], lambda ps: torch.optim.SGD(ps, lr=1.5), 1, queries=5)
    first = fleet.round()
    before = p.detach().clone()
    second = fleet.round()
    assert first.accepted and not second.accepted and second.value > first.value
    assert torch.equal(p, before)


def test_a_client_that_fails_on_its_way_leaves_the_point():
    """Its first step moves each element by 0.1, where its loss has no value any more."""
    p, losses, _, _ = problem()
    fleet = make(p, [losses[0], lambda: losses[1]() * (math.nan if p.abs().max() > 0.05 else 1.0)])
    with pytest.raises(RuntimeError, match="NaN or infinite"):
        fleet.round()
    assert fleet.objectives[1].counts["forward"] > 11  # the first step's queries, and more
    assert p.abs().max() == 0 and p.grad is None and not fleet.history


def test_each_client_asks_at_points_of_its_own():
    """Also where clients are alike, and begin at the same point."""
    p, losses, _, _ = problem(1)
    fleet = make(p, 3 * losses)
    fleet.round()
    first, second, third = (t.points[1:11] for t in fleet.trajectories)  # beside the start
    for one, other in ((first, second), (first, third), (second, third)):
        assert (one != other).all()


def test_bad_clients_raise_and_leave_the_point():
    p, losses, _, _ = problem()
    for bad, error, text in (
        (lambda: p.sum() * math.nan, RuntimeError, "NaN or infinite"),
        (lambda: p * 2, ValueError, "one real number"),
        (lambda: p.sum().backward(), RuntimeError, "calls backward"),
    ):
        fleet = make(p, [losses[0], bad])
        with pytest.raises(error, match=text):
            fleet.round()
        assert p.abs().max() == 0 and p.grad is None and not fleet.history
    with pytest.raises(ValueError, match="no clients"):
        make(p, [])
    for options in ({"fade": -1.0}, {"nearest": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            make(p, losses, **options)
