"""GradientPenalty against autograd through the penalty, and its limits."""

import copy
import itertools

import pytest
import torch

from steepest.optim import SGDW, AdamW, GradientPenalty

F64 = torch.float64


def problem(blocks=3):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1))
    x, y = torch.randn(30, 4, dtype=F64), torch.randn(30, 1, dtype=F64)
    return model.double(), list(zip(x.chunk(blocks), y.chunk(blocks), strict=True))


def losses(model, data):
    mse = torch.nn.functional.mse_loss
    return [lambda a=a, b=b: mse(model(a), b) / len(data) for a, b in data]


def penalized(model, data, strength):
    """Loss plus strength / 4 times the mean of the blocks' squared gradient norms."""
    params, total = list(model.parameters()), 0.0
    for part in losses(model, data):
        loss = part()
        grads = torch.autograd.grad(loss, params, create_graph=True)
        block = sum((len(data) * g).square().sum() for g in grads)
        total = total + loss + strength / 4 * block / len(data)
    return total


def test_its_gradient_is_that_of_the_penalized_loss():
    """By differences, against autograd through the gradient: their error falls with the radius."""
    gaps = []
    for radius in (1e-2, 1e-4):
        model, data = problem()
        twin = copy.deepcopy(model)
        opt = GradientPenalty(torch.optim.SGD(model.parameters(), lr=0.2), 3.0, radius)
        opt.step(losses(model, data))
        exact = torch.autograd.grad(penalized(twin, data, 3.0 * 0.2), list(twin.parameters()))
        moved = [(q - p) / 0.2 for p, q in zip(model.parameters(), twin.parameters(), strict=True)]
        gap = sum((a - b).square().sum() for a, b in zip(moved, exact, strict=True)).sqrt()
        gaps.append((gap / sum(g.square().sum() for g in exact).sqrt()).item())
    assert gaps[0] < 2e-2 and gaps[1] < 1e-2 * gaps[0] * 2


def test_it_penalizes_blocks_and_not_their_mean():
    """Two blocks with opposite slopes: the mean gradient is zero, the penalty's is not."""
    p = torch.nn.Parameter(torch.zeros(1, dtype=F64))
    blocks = [
        lambda: 0.5 * (p - 1).square().sum() / 2,
        lambda: 1.5 * (p + 1 / 3).square().sum() / 2,
    ]
    opt = GradientPenalty(torch.optim.SGD([p], lr=0.1), alpha=2.0)
    opt.step(blocks)
    # gradients -1 and 1 with curvatures 1 and 3: 0.1 / 2 * 2 * mean(1 * -1, 3 * 1) = 0.1
    assert p.item() == pytest.approx(-0.1 * 0.1, abs=1e-12)


CURVATURES, CENTERS = (1.0, 4.0, 2.0), (1.0, -2.0, 0.5)


def bowls(p):
    """Three parabolas, each a third of the loss."""
    return [
        lambda h=h, c=c: 0.5 * h * (p - c).square().sum() / 3
        for h, c in zip(CURVATURES, CENTERS, strict=True)
    ]


def epoch_of_sgd(lr):
    """Where steps on one block after the other end, averaged over their orders."""
    ends = []
    for order in itertools.permutations(range(3)):
        x = 3.0
        for b in order:
            x -= lr * CURVATURES[b] * (x - CENTERS[b])
        ends.append(x)
    return sum(ends) / len(ends)


def flow(lr, alpha, finer=300):
    """Many small steps over the same time, with the penalty of the large ones."""
    p = torch.nn.Parameter(torch.tensor([3.0], dtype=F64))
    opt = GradientPenalty(torch.optim.SGD([p], lr=3 * lr / finer), alpha * finer / 3)
    for _ in range(finer):
        opt.step(bowls(p))
    return p.item()


def test_an_epoch_of_sgd_over_blocks_descends_it():
    """SGD's mean end is the penalized flow's to second order in the step, the plain flow's not."""
    gaps = {
        alpha: [abs(epoch_of_sgd(lr) - flow(lr, alpha)) for lr in (2e-2, 1e-2)]
        for alpha in (0.0, 1.0)
    }
    assert gaps[1.0][1] < 0.1 * gaps[0.0][1]
    assert 3.5 < gaps[0.0][0] / gaps[0.0][1] < 4.5
    assert gaps[1.0][0] / gaps[1.0][1] > 6


@pytest.mark.parametrize("inner", [SGDW, AdamW])
def test_without_strength_it_is_its_optimizer_on_the_full_batch(inner):
    model, data = problem()
    twin = copy.deepcopy(model)
    opt = GradientPenalty(inner(model.parameters(), lr=0.1), alpha=0.0)
    plain = inner(twin.parameters(), lr=0.1)
    for _ in range(10):
        opt.step(losses(model, data))
        plain.zero_grad()
        for part in losses(twin, data):
            part().backward()
        plain.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=0, atol=1e-12)


def test_the_penalty_follows_the_schedule():
    p = torch.nn.Parameter(torch.ones(1, dtype=F64))
    opt = GradientPenalty(torch.optim.SGD([p], lr=0.1), alpha=1.0)
    opt.param_groups[0]["lr"] = 0.01
    opt.step(lambda: (p**2).sum())
    assert p.item() == pytest.approx(1 - 0.01 * (2 + 0.01 / 2 * 4), abs=1e-12)


def test_parameters_come_back_bit_for_bit():
    model, data = problem()
    before = [p.detach().clone() for p in model.parameters()]
    GradientPenalty(torch.optim.SGD(model.parameters(), lr=0.0)).step(losses(model, data))
    assert all(map(torch.equal, model.parameters(), before))


def test_bad_arguments():
    p = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="GradientPenalty: alpha=-1"):
        GradientPenalty(SGDW([p]), alpha=-1.0)
    with pytest.raises(ValueError, match="GradientPenalty: radius=0"):
        GradientPenalty(SGDW([p]), radius=0.0)
