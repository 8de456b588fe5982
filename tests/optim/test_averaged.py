"""Averaged: which average, where it is kept, and how one gets there and back."""

import copy

import pytest
import torch

from steepest.optim import SGDW, AdamW, Averaged, DoG

F64 = torch.float64


def run(opt, p, steps=40, seed=0):
    rng, path = torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        p.grad = torch.randn(p.shape, generator=rng, dtype=F64).to(p.dtype) + p.detach()
        opt.step()
        path.append(p.detach().clone())
    return torch.stack(path)


def test_gamma_0_is_the_mean_and_gamma_8_the_published_recurrence():
    for gamma in (0.0, 8.0):
        p = torch.nn.Parameter(torch.ones(5, dtype=F64))
        opt = Averaged(SGDW([p], lr=0.1), gamma=gamma)
        path = run(opt, p)
        mean = torch.zeros(5, dtype=F64)
        for t, x in enumerate(path, 1):
            weight = (1 + gamma) / (t + gamma)
            mean = (1 - weight) * mean + weight * x
        assert torch.allclose(opt.memory[p]["mean"], mean, rtol=1e-12)
        if gamma == 0:
            assert torch.allclose(mean, path.mean(0), rtol=1e-12)


def test_the_average_has_the_variance_of_its_weights():
    """Of independent iterates: sum of squared weights, which is 1 / T for the mean."""
    steps, variances = 50, {}
    for gamma in (0.0, 8.0):
        p = torch.nn.Parameter(torch.zeros(20_000))
        opt = Averaged(torch.optim.SGD([p], lr=1.0), gamma=gamma)
        rng = torch.Generator().manual_seed(0)
        for _ in range(steps):
            p.grad = p.detach() - torch.randn(20_000, generator=rng)  # the next iterate is noise
            opt.step()
        variances[gamma] = opt.memory[p]["mean"].var().item()
        weights, left = [], 1.0
        for t in range(steps, 0, -1):
            w = (1 + gamma) / (t + gamma)
            weights.append(left * w)
            left *= 1 - w
        assert variances[gamma] == pytest.approx(sum(w * w for w in weights), rel=0.05)
    assert variances[0.0] == pytest.approx(1 / steps, rel=0.05)


def test_training_is_as_without_it_and_the_weights_come_back_bit_for_bit():
    p, q = (torch.nn.Parameter(torch.ones(5)) for _ in range(2))
    opt, plain = Averaged(AdamW([p], lr=0.1)), AdamW([q], lr=0.1)
    for part in range(3):
        assert torch.equal(run(opt, p, 10, part), run(plain, q, 10, part))
        opt.eval()
        opt.eval()
        assert torch.equal(p.detach(), opt.memory[p]["mean"]) and not torch.equal(p, q)
        state = copy.deepcopy(opt.state_dict())
        with pytest.raises(RuntimeError, match=r"call train\(\) first"):
            opt.step()
        opt.train()
        opt.train()
        assert torch.equal(p, q)
        same = opt.state_dict()
        assert repr(same) == repr(state)


def test_low_precision_weights_have_a_float32_average():
    """A thousand steps of 1/1024 from 1: in bfloat16 a mean would not have moved."""
    p = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    opt = Averaged(torch.optim.SGD([p], lr=1.0), gamma=0.0)
    for value in torch.linspace(1, 2, 1000):
        p.grad = p.detach() - value.bfloat16()
        opt.step()
    mean = opt.memory[p]["mean"]
    assert mean.dtype == torch.float32 and mean.item() == pytest.approx(1.5, abs=2e-3)


def test_a_resumed_average_goes_on():
    p = torch.nn.Parameter(torch.ones(4))
    opt = Averaged(DoG([p], reps_rel=1e-2), gamma=3.0)
    run(opt, p, 10)
    q = torch.nn.Parameter(p.detach().clone())
    other = Averaged(DoG([q]))
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert (other.steps, other.gamma) == (10, 3.0)
    assert torch.equal(run(opt, p, 10, 1), run(other, q, 10, 1))
    assert torch.equal(opt.memory[p]["mean"], other.memory[q]["mean"])


def test_bad_arguments():
    with pytest.raises(ValueError, match="Averaged: gamma="):
        Averaged(SGDW([torch.nn.Parameter(torch.ones(1))]), gamma=-1.0)


def test_a_parameter_that_grew_is_refused_before_the_step():
    p = torch.nn.Parameter(torch.zeros(3))
    opt = Averaged(torch.optim.SGD([p], lr=0.1))
    p.grad = torch.ones(3)
    opt.step()
    p.data = torch.zeros(5)
    p.grad = torch.ones(5)
    with pytest.raises(ValueError, match=r"mean of parameter 0 has shape \(3,\)"):
        opt.step()
    assert torch.equal(p, torch.zeros(5)) and opt.steps == 1


def test_a_step_that_is_left_out_is_not_averaged():
    p = torch.nn.Parameter(torch.zeros(1))
    opt = Averaged(AdamW([p], nonfinite="skip"), gamma=0.0)
    for g in (1.0, float("nan"), 1.0):
        p.grad = torch.tensor([g])
        opt.step()
    assert opt.steps == 2 and opt.memory[p]["mean"] == pytest.approx(-0.0015, rel=1e-3)
