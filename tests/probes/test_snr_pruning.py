"""Pruning by signal-to-noise ratio: bookkeeping, what the score measures, and winning tickets."""

import itertools
import math

import pytest
import torch
from sklearn.datasets import load_digits

from steepest.optim import SNES, rank_utilities
from steepest.probes import prune_lowest, signal_to_noise, snr_pruning

F64 = torch.float64


def search(losses, mean, mask, steps, sigma0, rng, population=16):
    """SNES with all candidates at once: the losses of rows."""
    sigma, d = torch.full_like(mean, sigma0), int(mask.sum())
    rate = (3 + math.log(d)) / (5 * math.sqrt(d))
    for _ in range(steps):
        z = torch.randn(population, len(mean), generator=rng, dtype=mean.dtype) * mask
        u = rank_utilities(losses(mean + sigma * z))
        mean = mean + sigma * (u @ z)
        sigma = sigma * torch.exp(0.5 * rate * (u @ z**2))
    return mean, sigma


def magnitude(means, sigmas):
    return [m.abs() for m in means]


def ranks(x):
    return x.argsort().argsort().double()


def test_every_round_starts_at_the_start_and_prunes_among_those_left():
    start = [torch.arange(1.0, 9.0), torch.full((4, 3), 9.0), torch.full((5,), -1.0)]
    given = []

    def train(m, masks):
        given.append((m, masks))
        ends = [t + 100 * k for t, k in zip(m, masks, strict=True)]
        m[0].zero_()  # what it does to its copies is its own affair
        return ends, [torch.ones_like(t) for t in start]

    tickets = snr_pruning(train, start, rounds=3, fraction=0.25, prunable=[True, True, False])
    assert [sum(int(m.sum()) for m in t.masks[:2]) for t in tickets] == [20, 15, 11, 8]
    for one, two in itertools.pairwise(tickets):
        for before, after in zip(one.masks, two.masks, strict=True):
            assert not (after & ~before).any()  # what is pruned stays so
    for ticket in tickets:
        assert ticket.masks[2].all()
        for m0, mask, m in zip(start, ticket.masks, ticket.start, strict=True):
            assert torch.equal(m, m0 * mask)
    # The lowest ratios were those of the smallest elements.
    assert tickets[3].masks[0].sum() == 0 and tickets[3].masks[1].sum() == 8
    assert torch.equal(start[0], torch.arange(1.0, 9.0))


def test_pruned_zeros_are_not_compared():
    """Otherwise the quantile would be of them, and nothing more would go."""
    scores, mask = [torch.tensor([0.0] * 6 + [1.0, 2.0, 3.0, 4.0])], [torch.arange(10) >= 6]
    (left,) = prune_lowest(scores, mask, 0.5)
    assert left.nonzero().flatten().tolist() == [8, 9]
    (same,) = prune_lowest([torch.full((10,), math.nan)], [torch.zeros(10, dtype=torch.bool)], 0.5)
    assert not same.any()


def test_bad_arguments():
    def train(m, masks):
        return m, m

    ones = [torch.ones(3)]
    with pytest.raises(ValueError, match=r"fraction=1\.0"):
        snr_pruning(train, ones, 1, 1.0)
    with pytest.raises(ValueError, match="rounds=-1"):
        snr_pruning(train, ones, -1)
    with pytest.raises(ValueError, match="NaN"):
        snr_pruning(train, [torch.zeros(3)], 1)


def test_it_prunes_what_an_optimizer_with_a_mask_trains():
    curvature = torch.tensor([1.0, 1.0, 1e-4, 1e-4], dtype=F64)
    goal = torch.tensor([1.0, -1.0, 1.5, -1.5], dtype=F64)

    def train(m, masks):
        p = torch.nn.Parameter(m[0])
        opt = SNES([p], sigma0=1.0, population=8, mask=lambda params: masks)
        for _ in range(60):
            opt.step(lambda: (curvature * (p - goal) ** 2).sum())
        return [p.detach()], [opt.state[p]["sigma"]]

    dense, sparse = snr_pruning(train, [torch.zeros(4, dtype=F64)], 1, 0.5)
    assert sparse.masks[0].tolist() == [True, True, False, False]
    assert dense.masks[0].all() and (sparse.means[0][2:] == 0).all()
    assert (sparse.means[0][:2] - goal[:2]).norm() < 0.1


def test_the_score_is_a_saliency_and_beats_magnitude():
    """Half of the weights are large and do not matter, half are small and do."""
    rng, d = torch.Generator().manual_seed(0), 40
    flat = torch.arange(d) < d // 2
    size = torch.where(flat, 2.0, 0.1) + torch.rand(d, generator=rng) * torch.where(flat, 1.0, 0.4)
    goal = (size * (torch.randint(2, (d,), generator=rng) * 2 - 1)).double()
    h = torch.where(flat, 1e-3, 10.0).double()
    root = h.sqrt()[:, None] * torch.randn(d, d, generator=rng, dtype=F64) / d
    coupled = h.diag() + 0.1 * root @ root.T

    def loss(x):
        return ((x - goal) @ coupled * (x - goal)).sum(-1)

    def train(m, masks):
        mean, sigma = search(loss, m[0], masks[0], 300, 0.5, rng)
        return [mean], [sigma]

    start = [0.01 * torch.randn(d, generator=rng, dtype=F64)]
    ratio = snr_pruning(train, start, 1, 0.5)
    size = snr_pruning(train, start, 1, 0.5, score=magnitude)
    assert loss(ratio[1].means[0]) < 0.5 * loss(size[1].means[0])
    (score,) = signal_to_noise(ratio[0].means, ratio[0].sigmas)
    pair = torch.stack([ranks(score**2), ranks(h * goal**2)])
    assert torch.corrcoef(pair)[0, 1] > 0.7


def test_tickets_beat_random_masks_on_digits():
    """A linear classifier by evolution, with a fifth of its weights."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16).float(), torch.tensor(labels)
    accuracy = {}
    for name in ("ratio", "random"):
        rng = torch.Generator().manual_seed(1)

        def train(m, masks, rng=rng):
            def losses(rows):
                at = torch.randint(1000, (128,), generator=rng)
                out = torch.einsum("bi,nij->nbj", x[at], rows[:, :640].view(-1, 64, 10))
                logp = (out + rows[:, None, 640:]).log_softmax(2)
                return -logp[:, torch.arange(128), y[at]].mean(1)

            mean, sigma = search(losses, torch.cat(m), torch.cat(masks), 200, 0.1, rng)
            return mean.split([640, 10]), sigma.split([640, 10])

        def by_chance(means, sigmas, rng=rng):
            return [torch.rand(m.shape, generator=rng) for m in means]

        start = [0.1 * torch.randn(640, generator=rng), torch.zeros(10)]
        tickets = snr_pruning(
            train,
            start,
            3,
            1 - 0.2 ** (1 / 3),
            score=signal_to_noise if name == "ratio" else by_chance,
            prunable=[True, False],
        )
        weight, bias = tickets[-1].means
        assert int(tickets[-1].masks[0].sum()) in (127, 128, 129)
        found = (x[1000:] @ weight.view(64, 10) + bias).argmax(1)
        accuracy[name] = (found == y[1000:]).float().mean().item()
    assert accuracy["ratio"] >= accuracy["random"] + 0.03
