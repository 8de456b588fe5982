"""VRGD against a transcription, its limits, and the coordinates that it trusts."""

import pytest
import torch

from steepest.optim import SGDW, VRGD, AdamW
from steepest.optim._vrgd import gsnr

F64 = torch.float64


def stream(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def parts(params, grads):
    """Losses of which each has its share of these gradients as slopes."""
    k = len(grads)
    return [
        lambda each=each: sum((p * g).sum() for p, g in zip(params, each, strict=True)) / k
        for each in grads
    ]


@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_against_a_transcription(beta):
    """Two layers, four parts, 30 steps: the layer's mean, the clip, the memory, the order."""
    params = [torch.nn.Parameter(torch.ones(n, dtype=F64)) for n in (5, 3)]
    opt = VRGD(torch.optim.SGD(params, lr=0.1, momentum=0.9), beta=beta)
    theta = [torch.ones(n, dtype=F64) for n in (5, 3)]
    velocity = [torch.zeros(n, dtype=F64) for n in (5, 3)]
    memory = [torch.zeros(n, dtype=F64) for n in (5, 3)]
    for t in range(1, 31):
        grads = [[stream(5, seed=8 * t + d) + 0.5, stream(3, seed=8 * t + d + 4)] for d in range(4)]
        opt.step(parts(params, grads))
        for i in range(2):
            g = torch.stack([each[i] for each in grads])
            mean, variance = g.mean(0), (g**2).mean(0) - g.mean(0) ** 2
            r = mean**2 / variance
            r = (r / r.mean()).clamp(0.1, 1)
            memory[i] = beta * memory[i] + (1 - beta) * r
            velocity[i] = 0.9 * velocity[i] + memory[i] / (1 - beta**t) * mean
            theta[i] = theta[i] - 0.1 * velocity[i]
    for p, expected in zip(params, theta, strict=True):
        assert torch.allclose(p, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("inner", [SGDW, AdamW])
def test_without_noise_it_is_its_optimizer(inner):
    """Equal parts: an infinite ratio everywhere, which the clip makes one."""
    p, q = (torch.nn.Parameter(stream(6)) for _ in range(2))
    opt, plain = VRGD(inner([p], lr=0.1)), inner([q], lr=0.1)
    for t in range(20):
        g = stream(6, seed=t)
        opt.step(parts([p], [[g]] * 4))
        q.grad = g.clone()
        plain.step()
    assert torch.allclose(p, q, rtol=0, atol=1e-14)


def test_equal_ratios_are_one_whatever_their_size():
    """The same relative noise everywhere: nothing is scaled, as ratios count against their mean."""
    g = torch.tensor([1.0, -20.0, 0.003], dtype=F64)
    p = torch.nn.Parameter(torch.zeros(3, dtype=F64))
    VRGD(torch.optim.SGD([p], lr=1.0)).step(parts([p], [[1.5 * g], [0.5 * g]]))
    assert torch.allclose(p, -g, rtol=1e-12)


def test_the_ratio_is_invariant_to_scale_and_stays_in_its_bounds():
    mean, variance = stream(50), stream(50, seed=1).square()
    r = gsnr(mean, variance, 0.1)
    assert torch.allclose(gsnr(1e3 * mean, 1e6 * variance, 0.1), r, rtol=1e-12)
    assert r.min() == 0.1 and r.max() == 1.0
    dead = gsnr(torch.zeros(3), torch.zeros(3), 0.1)
    assert torch.equal(dead, torch.ones(3))


def test_it_trusts_coordinates_that_inform():
    """A regression with 10 informative features of 100: smaller gap at equal training loss."""
    rng = torch.Generator().manual_seed(0)
    x, test = (torch.randn(n, 100, generator=rng, dtype=F64) for n in (120, 2000))
    truth = torch.zeros(100, dtype=F64)
    truth[:10] = 1
    y = x @ truth + torch.randn(120, generator=rng, dtype=F64)
    clean = test @ truth

    def run(make, target):
        w = torch.nn.Parameter(torch.zeros(100, dtype=F64))
        opt = make([w])
        blocks = list(zip(x.chunk(8), y.chunk(8), strict=True))
        for _ in range(3000):
            loss = opt.step([lambda a=a, b=b: ((a @ w - b) ** 2).mean() / 8 for a, b in blocks])
            if loss < target:
                return ((test @ w - clean) ** 2).mean().item(), opt
        raise AssertionError("it did not get there")

    plain, _ = run(lambda params: VRGD(torch.optim.SGD(params, lr=0.05), floor=1.0), 1.0)
    error, opt = run(lambda params: VRGD(torch.optim.SGD(params, lr=0.05)), 1.0)
    assert error < 0.8 * plain
    assert opt.memory  # the ratios are remembered


def test_a_parameter_that_joins_late_has_its_own_correction():
    p, q = (torch.nn.Parameter(torch.zeros(1, dtype=F64)) for _ in range(2))
    opt = VRGD(torch.optim.SGD([p], lr=1.0))
    one = torch.ones(1, dtype=F64)
    for _ in range(50):
        opt.step(parts([p], [[one], [one]]))
    opt.add_param_group({"params": [q]})
    opt.step(parts([p, q], [[one, one], [one, one]]))
    assert q.item() == pytest.approx(-1.0)
    opt.step(parts([p, q], [[one, one]]))  # a last batch of one part: what is remembered
    assert q.item() == pytest.approx(-2.0)


def test_a_step_that_is_left_out_teaches_nothing():
    """With a batch of NaN in the middle, the run is the run without that batch."""
    ends = []
    for batches in ([0, 1, None, 2, 3], [0, 1, 2, 3]):
        p = torch.nn.Parameter(torch.ones(5, dtype=F64))
        opt = VRGD(SGDW([p], lr=0.1, nonfinite="skip"))
        for t in batches:
            nan = torch.full((5,), torch.nan, dtype=F64)
            grads = [[nan if t is None else stream(5, seed=2 * t + d) + 0.5] for d in range(2)]
            opt.step(parts([p], grads))
        ends.append((p.detach().clone(), opt.memory[p]["steps"].item()))
    assert torch.equal(ends[0][0], ends[1][0]) and ends[0][1] == ends[1][1] == 4
    assert (ends[0][0] - 1).abs().min() > 0


def test_bad_arguments():
    p = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="VRGD: floor=2"):
        VRGD(SGDW([p]), floor=2.0)
    with pytest.raises(ValueError, match="VRGD: beta=1"):
        VRGD(SGDW([p]), beta=1.0)
    with pytest.raises(RuntimeError, match="compares parts of a batch and got one"):
        VRGD(SGDW([p])).step(lambda: p.sum())
