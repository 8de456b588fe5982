"""UDoG against a transcription, and its acceleration against DoG's."""

import numpy as np
import pytest
import torch

from steepest.optim import Averaged, DoG, UDoG

F64 = torch.float64


def stream(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def transcription(first, second, start, steps, reps_rel):
    """The recurrences with explicit sums; first and second are gradients of (point, step)."""
    x, y, x0 = start.clone(), start.clone(), start.clone()
    reach, reaches, ws, xs, change, most = reps_rel * (1 + x0.norm()), [], [], [], 0.0, 0.0
    for t in range(steps):
        reach = max(reach, (x - x0).norm(), (y - x0).norm())
        reaches.append(reach)
        alpha = sum(reaches) / reach
        ws.append(alpha * reach)
        point = (sum(w * z for w, z in zip(ws[:-1], xs, strict=True)) + ws[-1] * y) / sum(ws)
        m = first(point, t)
        most = max(most, alpha**2 * m.square().sum())
        gx = change + most
        x = y - alpha * reach / gx.sqrt() * m
        xs.append(x)
        mean = sum(w * z for w, z in zip(ws, xs, strict=True)) / sum(ws)
        g = second(mean, t)
        change = change + alpha**2 * (g - m).square().sum()
        most = max(most, alpha**2 * g.square().sum())
        gy = max(gx, change + most)
        y = y - alpha * reach / gy.sqrt() * g
    return mean


@pytest.mark.parametrize("split", [False, True])
def test_against_a_transcription_over_two_tensors(split):
    """With split, the first gradient is of one loss and the second of the other."""
    curvature, noise = torch.logspace(-2, 0, 9, dtype=F64), stream(2, 25, 9, seed=2)
    p, q = (torch.nn.Parameter(part.clone()) for part in stream(9).split([4, 5]))
    opt = UDoG([p, q], reps_rel=1e-2, split=split)
    clock = iter(range(25))

    def loss(t, k):
        x = torch.cat([p, q])
        return (0.5 * curvature * x**2).sum() + noise[k, t] @ x

    def exact(k):
        if split:
            return lambda x, t: curvature * x + noise[k, t]
        return lambda x, t: curvature * x + noise[:, t].mean(0)

    for t in clock:
        opt.step([lambda t=t: loss(t, 0) / 2, lambda t=t: loss(t, 1) / 2])
    expected = transcription(exact(0), exact(1), stream(9), 25, 1e-2)
    assert torch.allclose(torch.cat([p, q]), expected, rtol=1e-9)


def gaps(make, steps, mean=False):
    """Loss along a run on a quadratic of condition 1000, from 0 toward ones."""
    curvature = torch.logspace(-3, 0, 50, dtype=F64)
    p = torch.nn.Parameter(torch.zeros(50, dtype=F64))
    opt, trace = make([p]), []

    def loss():
        return 0.5 * (curvature * (p - 1) ** 2).sum()

    for _ in range(steps):
        if isinstance(opt, UDoG):
            opt.step(loss)
            at = p.detach()
        else:
            p.grad = curvature * (p.detach() - 1)
            opt.step()
            at = opt.memory[p]["mean"] if mean else p.detach()
        trace.append((0.5 * curvature * (at - 1) ** 2).sum().item())
    return trace


def test_it_is_accelerated_where_dog_is_not():
    """At equal numbers of gradients, and in the rate over T."""
    ours = gaps(UDoG, 1000)
    last = gaps(lambda ps: Averaged(DoG(ps, reps_rel=1e-4)), 1000)
    mean = gaps(lambda ps: Averaged(DoG(ps, reps_rel=1e-4)), 1000, mean=True)
    assert ours[499] < 0.1 * min(last[-1], mean[-1])
    lengths = [50, 100, 200, 500, 1000]
    slope = np.polyfit(np.log(lengths), np.log([ours[n - 1] for n in lengths]), 1)[0]
    assert slope < -1.7


def test_the_first_distance_hardly_matters():
    ends = [gaps(lambda ps, r=r: UDoG(ps, reps_rel=r), 300)[-1] for r in (1e-7, 1e-5, 1e-3)]
    assert max(ends) < 1e-4


def test_what_it_refuses():
    p = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="UDoG: reps_rel="):
        UDoG([p], reps_rel=0.0)
    opt = UDoG([p], split=True)
    with pytest.raises(RuntimeError, match="of different losses and got one"):
        opt.step(lambda: (p**2).sum())
    assert torch.equal(p, torch.ones(3)) and not opt.state
