"""AdamW and SGDW: decoupled weight decay."""

import pytest
import torch

from steepest.optim import SGDW, Adam, AdamW


def run(make, gradient, steps, start):
    """Position after some steps; the gradient may depend on the position."""
    p = torch.nn.Parameter(start.clone())
    opt = make([p])
    for t in range(steps):
        p.grad = gradient(p.detach(), t)
        opt.step()
    return p.detach()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.5},
        {"amsgrad": True, "weight_decay": 0.5},
        {"maximize": True, "betas": (0.5, 0.8), "eps": 1e-3},
    ],
)
@pytest.mark.parametrize("backend", ["torch", "cpu", "triton"])
def test_adamw_follows_torch(options, backend):
    rng = torch.Generator().manual_seed(2)
    stream = torch.randn(100, 5, 3, generator=rng, dtype=torch.float64)
    start = torch.ones(5, 3, dtype=torch.float64)
    ours = run(lambda ps: AdamW(ps, backend=backend, **options), lambda p, t: stream[t], 100, start)
    theirs = run(lambda ps: torch.optim.AdamW(ps, **options), lambda p, t: stream[t], 100, start)
    assert (ours - theirs).abs().max() < 1e-12


def test_checkpoints_load_from_torch_and_back():
    rng = torch.Generator().manual_seed(3)
    stream = torch.randn(20, 6, generator=rng, dtype=torch.float64)
    for ours, theirs in ((AdamW, torch.optim.AdamW), (Adam, torch.optim.Adam)):
        for first, second in ((ours, theirs), (theirs, ours)):
            p = torch.nn.Parameter(torch.ones(6, dtype=torch.float64))
            q = torch.nn.Parameter(torch.ones(6, dtype=torch.float64))
            start, reference = first([p], lr=0.1), theirs([q], lr=0.1)
            for t in range(20):
                if t == 10:
                    moved = second([p], lr=0.5)
                    moved.load_state_dict(start.state_dict())
                    start = moved
                p.grad, q.grad = stream[t].clone(), stream[t].clone()
                start.step()
                reference.step()
            assert (p - q).abs().max() < 1e-12, (first, second)


def test_paper_convention_decays_by_the_schedule_alone():
    zero = lambda p, t: torch.zeros_like(p)  # noqa: E731
    start = torch.ones(2, dtype=torch.float64)
    for lr in (1e-3, 1e-1):
        shrunk = run(
            lambda ps, lr=lr: AdamW(ps, lr=lr, weight_decay=0.1, decouple_lr=True), zero, 5, start
        )
        assert torch.allclose(shrunk, 0.9**5 * start)
    p = torch.nn.Parameter(start.clone())
    opt = AdamW([p], lr=0.1, weight_decay=0.2, decouple_lr=True)
    opt.param_groups[0]["lr"] = 0.05  # a schedule at one half
    p.grad = torch.zeros_like(p)
    opt.step()
    assert torch.allclose(p.detach(), 0.9 * start)
    with pytest.raises(ValueError, match="needs an initial lr above 0"):
        AdamW([p], lr=0.0, decouple_lr=True)


def test_decay_does_not_depend_on_the_gradients_history():
    """The paper's claim: under Adam with L2, weights with large gradients hardly decay."""
    noise = torch.tensor([10.0, 0.1], dtype=torch.float64)
    rng = torch.Generator().manual_seed(4)
    stream = noise * torch.randn(500, 64, 2, generator=rng, dtype=torch.float64)
    start = torch.ones(64, 2, dtype=torch.float64)

    def ratio(make, penalty):
        gradient = lambda p, t: stream[t] + penalty * p  # noqa: E731
        left, right = run(make, gradient, 500, start).mean(0)
        return (1 - right) / (1 - left)  # how much faster the quiet coordinate decays

    lr = 1e-3
    decoupled = ratio(lambda ps: AdamW(ps, lr=lr, weight_decay=1.0), 0.0)
    coupled = ratio(lambda ps: Adam(ps, lr=lr), 0.05)
    assert 0.9 < decoupled < 1.1
    assert coupled > 3


def test_sgdw_in_plain_numbers():
    lr, mu, wd = 0.1, 0.9, 0.5
    theta, m = 1.0, 0.0
    for g in (1.0, -2.0, 0.25):
        m = mu * m + lr * g
        theta = theta - lr * wd * theta - m
    stream = torch.tensor([[1.0], [-2.0], [0.25]], dtype=torch.float64)
    end = run(
        lambda ps: SGDW(ps, lr=lr, momentum=mu, weight_decay=wd),
        lambda p, t: stream[t],
        3,
        torch.ones(1, dtype=torch.float64),
    )
    assert abs(end.item() - theta) < 1e-14


def test_for_plain_sgd_decay_and_penalty_are_the_same():
    quadratic = lambda p, t: 3 * p - 1  # noqa: E731
    penalized = lambda p, t: 3 * p - 1 + 0.7 * p  # noqa: E731
    start = torch.tensor([2.0, -1.0], dtype=torch.float64)

    def gap(momentum):
        decayed = run(lambda ps: SGDW(ps, 0.1, momentum, 0.7), quadratic, 20, start)
        plain = run(lambda ps: torch.optim.SGD(ps, 0.1, momentum), penalized, 20, start)
        return (decayed - plain).abs().max()

    assert gap(0.0) < 1e-12 and gap(0.9) > 1e-2
