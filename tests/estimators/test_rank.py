"""RankGradient: an order's weights, their direction, and who may give the order."""

import itertools
import math

import pytest
import torch

from steepest.estimators import SPSA, NoisyJudge, RankGradient, rank_weights
from steepest.optim import Estimated
from steepest.oracles import Objective

F64 = torch.float64
KINDS = ["gaussian", "rademacher", "sphere"]


def flat(tensors):
    return torch.cat([t.detach().flatten() for t in tensors])


def quadratic(d=20, seed=0, change=lambda f: f):
    """An increasing function of a quadratic, over two tensors; and its exact gradient."""
    rng = torch.Generator().manual_seed(seed)
    start = torch.randn(d, generator=rng, dtype=F64)
    parts = [torch.nn.Parameter(part.clone()) for part in start.split([d // 3, d - d // 3])]
    curvature = torch.linspace(0.5, 2, d, dtype=F64)
    return Objective(
        lambda: change(0.5 * (curvature * torch.cat(parts) ** 2).sum()), parts
    ), curvature * start


@pytest.mark.parametrize("points", [2, 3, 5])
def test_weights_are_those_of_the_graph(points):
    """Every order of every length, against the edges one by one."""
    for k in range(1, points + 1):
        for order in itertools.permutations(range(points), k):
            edges = [
                (better, worse)
                for place, better in enumerate(order)
                for worse in range(points)
                if worse not in order[: place + 1]
            ]
            brute = [0.0] * points
            for better, worse in edges:
                brute[better] -= 1 / len(edges)
                brute[worse] += 1 / len(edges)
            assert len(edges) == k * points - (k * k + k) // 2
            assert rank_weights(order, points) == pytest.approx(brute, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_against_a_transcription(kind):
    """Points, order and the mean over pairs, written out with the directions of SPSA."""
    f, _ = quadratic()
    estimator, m, k = RankGradient(0.3, 7, 3, kind), 7, 3
    home = flat(f.params)
    draws = SPSA(samples=m, kind=kind)
    z = [flat(draws.combine(f, 5, {i: 1.0})) * draws.stretch(f, 5, i) for i in range(m)]
    curvature = torch.linspace(0.5, 2, 20, dtype=F64)
    values = [(0.5 * curvature * (home + 0.3 * v) ** 2).sum().item() for v in z]
    order = sorted(range(m), key=values.__getitem__)
    pairs = [z[worse] - z[better] for a, better in enumerate(order[:k]) for worse in order[a + 1 :]]
    found = flat(estimator(f, 5).gradient)
    assert torch.allclose(found, torch.stack(pairs).mean(0), atol=1e-6)
    assert f.counts["forward"] == f.counts["rank"] * m == estimator.forward == m
    assert f.counts["value"] == 0 and torch.equal(flat(f.params), home)


@pytest.mark.parametrize("steps", [(), (3.0, 1.0, 0.3)])
def test_increasing_functions_of_the_loss_are_one_run_bit_for_bit(steps):
    ends = []
    for change in (lambda f: f, torch.exp, torch.log1p, lambda f: 1e-3 * f - 7):
        f, _ = quadratic(change=change)
        opt = Estimated(
            torch.optim.SGD(f.params, lr=1.0 if steps else 0.2), RankGradient(steps=steps), seed=3
        )
        for _ in range(6):
            opt.step(f)
        ends.append(flat(f.params))
    for end in ends[1:]:
        assert torch.equal(end, ends[0])
    f, _ = quadratic(change=lambda f: -f)
    assert not torch.equal(flat(RankGradient(steps=steps)(f, 0).gradient), ends[0])


def cosines(m, k, runs=2000, d=20):
    """Cosines of estimates with the gradient of a linear loss, many at once."""
    rng = torch.Generator().manual_seed(m + k)
    z = torch.randn(runs, m, d, generator=rng, dtype=F64)
    orders = z[..., 0].argsort(1)[:, :k].tolist()
    w = torch.tensor([rank_weights(order, m) for order in orders], dtype=F64)
    g = (w[..., None] * z).sum(1)
    return g[:, 0] / g.norm(dim=1)


def test_it_points_uphill_and_better_with_more_points_and_a_longer_order():
    """The paper's claim, with five standard errors between neighbors."""
    runs = 2000
    for few, many in (((20, 1), (20, 10)), ((5, 5), (20, 20)), ((20, 3), (40, 3))):
        a, b = cosines(*few), cosines(*many)
        assert b.mean() - a.mean() > 5 * math.hypot(a.std(), b.std()) / runs**0.5
        assert a.mean() > 0.25
    f, exact = quadratic()
    found = torch.stack([flat(RankGradient(0.01, 20, 10)(f, s).gradient) for s in range(40)])
    law, ours = cosines(20, 10), torch.nn.functional.cosine_similarity(found, exact[None])
    assert abs(ours.mean() - law.mean()) < 5 * law.std() / 40**0.5
    up, down = (
        flat(RankGradient()(Objective(lambda s=s: s * f.loss(), f.params), 1).gradient)
        for s in (1, -1)
    )
    assert torch.allclose(up, -down)  # all are named


def test_the_mean_is_the_gradients_direction_at_the_length_of_normal_differences():
    """Two points differ by sqrt(2) times a normal; the nearer is named: 2 / sqrt(pi) on average."""
    f, exact = quadratic(6)
    runs = 400
    estimator = RankGradient(1e-5, 2)
    draws = torch.stack([flat(estimator(f, seed).gradient) for seed in range(runs)])
    expected = 2 / math.sqrt(math.pi) * exact / exact.norm()
    assert ((draws.mean(0) - expected).abs() < 5 * draws.std(0) / runs**0.5).all()


def test_a_ranked_step_goes_to_the_best_of_the_points():
    f, _ = quadratic()
    plain, searched = RankGradient(), RankGradient(steps=[8.0, 1.0, 0.125])
    g, h = (flat(e(f, 4).gradient) for e in (plain, searched))
    home = flat(f.params)
    curvature = torch.linspace(0.5, 2, 20, dtype=F64)
    heights = {s: (curvature * (home - s * g) ** 2).sum().item() for s in (0.0, 8.0, 1.0, 0.125)}
    assert torch.allclose(h, min(heights, key=heights.get) * g)
    assert f.counts["forward"] == plain.forward + searched.forward == 15 + 15 + 4
    g = Objective(lambda: sum((p**2).sum() for p in f.params), f.params)
    for p in f.params:
        p.data.zero_()
    assert flat(searched(g, 0).gradient).abs().max() == 0  # at the minimum, to stay is best


def descend(loss, estimator, rounds, seed):
    p = torch.nn.Parameter(torch.full((20,), -0.5, dtype=F64))
    opt = Estimated(torch.optim.SGD([p], lr=1.0), estimator, seed=seed)
    first = loss(p).item()
    for _ in range(rounds):
        opt.step(lambda: loss(p))
    return loss(p).item() / first


def climb(loss, eps, rounds, points, seed):
    """Go to the best of some random points if it is better: as many points a round."""
    p = torch.nn.Parameter(torch.full((20,), -0.5, dtype=F64))
    f, rng = Objective(lambda: loss(p), [p]), torch.Generator().manual_seed(seed)
    first = loss(p).item()
    for _ in range(rounds):
        moves = [[torch.zeros(20, dtype=F64)]]
        moves += [[eps * torch.randn(20, generator=rng, dtype=F64)] for _ in range(points)]
        p.data += moves[f.rank(moves, top=1)[0]][0]
    return loss(p).item() / first


def test_orders_alone_descend_a_quadratic_and_beat_climbing():
    """As many points a round, and a fifth of what hill climbing leaves at its best radius."""
    steps = [0.5**i for i in range(8)]

    def loss(p):
        return (p**2).sum()

    left = descend(loss, RankGradient(0.01, 10, steps=steps), 60, 0)
    climbed = min(climb(loss, e, 60, 18, s) for e in (0.03, 0.1, 0.3) for s in range(3))
    assert left < 1e-2
    assert left < 0.2 * climbed


def test_a_noisy_judge_prefers_with_the_models_probabilities():
    p = torch.zeros(2, requires_grad=True)
    f = Objective(lambda: p.sum(), [p])
    points, gap, s, runs = [[torch.zeros(2)], [torch.tensor([0.4, 0.3])]], 0.7, 0.5, 2000
    for kind, law in (
        ("gumbel", 1 / (1 + math.exp(-gap / s))),
        ("gaussian", 0.5 * (1 + math.erf(gap / (2 * s)))),
    ):
        judge = NoisyJudge(s, kind, seed=1)
        share = sum(judge(f, points, 1) == [0] for _ in range(runs)) / runs
        assert abs(share - law) < 5 * math.sqrt(law * (1 - law) / runs)
    assert NoisyJudge(0.0)(f, points, 2) == [0, 1] == f.rank(points)
    again = [[NoisyJudge(9.0, seed=2)(f, points * 4, 8) for _ in range(2)] for _ in range(2)]
    assert again[0] == again[1]


def test_noise_weakens_the_direction_and_does_not_turn_it():
    f, exact = quadratic()

    def cosine(noise, runs=25):
        estimator = RankGradient(0.1, judge=NoisyJudge(noise))
        found = torch.stack([flat(estimator(f, seed).gradient) for seed in range(runs)])
        return torch.nn.functional.cosine_similarity(found, exact[None], dim=1).mean()

    sure, unsure, lost = map(cosine, (0.0, 0.3, 1e6))
    assert sure > unsure + 0.05 > 0.2
    assert abs(lost) < 5 / math.sqrt(25 * 20)


def test_a_person_may_rank():
    """The judge is asked about displacements and never needs the loss."""
    f, exact = quadratic()

    def person(objective, points, top):
        assert objective is f and top == 4
        return sorted(range(len(points)), key=lambda i: flat(points[i]) @ exact)[:top]

    found = flat(RankGradient(samples=9, top=4, judge=person)(f, 0).gradient)
    assert torch.nn.functional.cosine_similarity(found, exact, dim=0) > 0
    assert not f.counts
    for answer in ([0, 0, 1, 2], [0, 1, 2], [0, 1, 2, 9], [0, 1, 2, 3, 0]):
        with pytest.raises(ValueError, match="best 4 of 9"):
            RankGradient(samples=9, top=4, judge=lambda *_, answer=answer: answer)(f, 0)


def test_bad_losses_raise_and_leave_the_parameters():
    p = torch.nn.Parameter(torch.randn(5))
    before = p.detach().clone()

    def late(bad):
        calls = iter(range(99))
        return lambda: bad() if next(calls) % 15 == 6 else p.sum()

    for loss, error, text in (
        (lambda: p.sum() * math.nan, RuntimeError, "NaN or infinite"),
        (lambda: p.sum() * 0 + math.inf, RuntimeError, "NaN or infinite"),
        (lambda: p * 2, ValueError, "one real number"),
        (lambda: p.sum().backward(), RuntimeError, "calls backward"),
        (late(lambda: p * 2), ValueError, "one real number"),
    ):
        for judge in (None,) if error is RuntimeError else (None, NoisyJudge(0.1)):
            with pytest.raises(error, match=text):
                RankGradient(judge=judge)(Objective(loss, [p]), 0)
            assert torch.equal(p, before) and p.grad is None
    assert RankGradient()(Objective(lambda: p.sum() * 0, [p]), 0).gradient[0].abs().max() == 0
    some = Objective(lambda: torch.where(p[0] > before[0], p.sum(), math.nan), [p])
    assert RankGradient()(some, 0).gradient[0][0] < 0  # NaN is worst, and so uphill


@pytest.mark.parametrize(
    "options",
    [
        {"samples": 0},
        {"samples": 1},
        {"samples": 2.5},
        {"eps": 0.0},
        {"eps": math.nan},
        {"top": 0},
        {"top": 16},
        {"steps": [0.0]},
    ],
)
def test_arguments_out_of_range(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        RankGradient(**options)


def test_unknown_kinds_and_impossible_noise():
    with pytest.raises(ValueError, match="cauchy"):
        RankGradient(kind="cauchy")
    for options in ({"noise": -1.0}, {"noise": math.nan}, {"noise": 1.0, "kind": "cauchy"}):
        with pytest.raises(ValueError, match=r"noise|kind"):
            NoisyJudge(**options)


def test_a_judge_that_moves_parameters_leaves_them_where_they_were():
    p = torch.nn.Parameter(torch.randn(5))
    before = p.detach().clone()

    def careless(objective, points, top):
        p.data.add_(1.0)
        if len(points) < 15:
            raise KeyError("no more")
        return range(top)

    f = Objective(lambda: p.sum(), [p])
    RankGradient(judge=careless)(f, 0)
    assert torch.equal(p, before)
    with pytest.raises(KeyError, match="no more"):
        RankGradient(samples=3, judge=careless)(f, 0)
    assert torch.equal(p, before)


def test_points_of_the_sphere_are_on_it():
    p = torch.nn.Parameter(torch.zeros(7, dtype=F64))

    def far(objective, points, top):
        for (point,) in points:
            assert point.norm().item() == pytest.approx(0.3 * math.sqrt(7), rel=1e-6)
        return range(top)

    RankGradient(0.3, 4, kind="sphere", judge=far)(Objective(lambda: p.sum(), [p]), 0)
