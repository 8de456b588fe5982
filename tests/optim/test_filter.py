"""A filter that is a rule joins its optimizer's launch, and nothing else changes."""

import copy

import pytest
import torch

from steepest.kernels import RULES, compose
from steepest.optim import SGDW, AdamW, Elementwise, Grokfast, OptAMSGrad, PerpGrad

FILTERS = {"Grokfast": lambda opt: Grokfast(opt, lamb=3.0, beta=0.8), "PerpGrad": PerpGrad}


def trained(make, base, monkeypatch, *, dtype, backend, fused):
    """Parameters after ten steps; tensors of two groups, one of which joins late."""
    monkeypatch.setattr(Elementwise, "takes_lens", fused)
    rng = torch.Generator().manual_seed(0)
    shapes = [(6, 5), (7,), (3, 2, 2), (1,)]
    params = [torch.nn.Parameter(torch.randn(s, generator=rng).to(dtype)) for s in shapes]
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.05}]
    opt = make(base(groups, lr=0.01, backend=backend))
    for step in range(10):
        for p in params:
            late = p is params[1] and step < 3
            p.grad = None if late else torch.randn(p.shape, generator=rng).to(dtype) + p.detach()
        before = [None if p.grad is None else p.grad.clone() for p in params]
        opt.step()
        for p, g in zip(params, before, strict=True):
            assert (p.grad is None) if g is None else torch.equal(p.grad, g)
    return params, opt


@pytest.mark.parametrize("backend", ["torch", "cpu", "triton"])
@pytest.mark.parametrize("base", [SGDW, AdamW])
@pytest.mark.parametrize("name", FILTERS)
def test_one_launch_makes_the_steps_of_two(name, base, backend, monkeypatch):
    ways = [
        trained(FILTERS[name], base, monkeypatch, dtype=torch.float64, backend=b, fused=fused)
        for b, fused in (("torch", False), (backend, True))
    ]
    (plain, one), (fused, other) = ways
    assert all(torch.allclose(p, q, rtol=1e-9) for p, q in zip(plain, fused, strict=True))
    assert len(one.memory) == len(other.memory) == (4 if name == "Grokfast" else 0)
    for p, q in zip(plain, fused, strict=True):
        for key, value in one.memory.get(p, {}).items():
            assert torch.allclose(value, other.memory[q][key], rtol=1e-9)


def test_in_low_precision_the_changed_gradient_is_not_rounded():
    """Between filter and optimizer it stays in float32: a step is the exact one, rounded once."""
    rng = torch.Generator().manual_seed(0)
    start = torch.randn(1000, generator=rng).bfloat16()
    g = torch.randn(1000, generator=rng).bfloat16()
    p = torch.nn.Parameter(start.clone())
    opt = Grokfast(SGDW([p], lr=0.3, momentum=0.0, weight_decay=0.0), lamb=1.1)
    p.grad = g
    opt.step()
    exact = start.double() - 0.3 * 2.1 * g.double()
    assert (p.double() - exact).abs().max() <= (exact.bfloat16().double() - exact).abs().max()
    twice = start.double() - 0.3 * (2.1 * g.double()).bfloat16().double()
    assert not torch.equal(p, twice.bfloat16())
    assert opt.memory[p]["mean"].dtype == torch.float32


def test_an_optimizer_that_reads_gradients_elsewhere_gets_changed_ones():
    """OptAMSGrad guesses the next gradient from the last, which has to be the filtered one."""
    p = torch.nn.Parameter(torch.zeros(3))
    opt = OptAMSGrad([p], lr=0.1)
    assert not opt.takes_lens and AdamW([p]).takes_lens
    assert not AdamW([p], maximize=True).takes_lens
    assert not AdamW([p], nonfinite="skip").takes_lens
    twin = torch.nn.Parameter(torch.zeros(3))
    plain, filtered = OptAMSGrad([twin], lr=0.1), Grokfast(opt, lamb=1.0, beta=0.0)
    for g in torch.randn(5, 3):
        p.grad, twin.grad = g, 2 * g
        filtered.step()
        plain.step()
    assert torch.allclose(p, twin, rtol=1e-6)


@pytest.mark.parametrize("name", FILTERS)
def test_a_step_that_raises_has_taught_the_filter_nothing(name):
    p = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    opt = FILTERS[name](AdamW([p]))
    p.grad = torch.ones(2)
    opt.step()
    before, memory = p.detach().clone(), copy.deepcopy(opt.own_state())
    opt.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr"):
        opt.step()
    opt.param_groups[0]["lr"] = 0.1
    assert torch.equal(p, before) and repr(opt.own_state()) == repr(memory)
    assert opt.optimizer._lens is None


def test_only_a_rule_of_the_gradient_can_come_first():
    with pytest.raises(ValueError, match="adamw cannot come first"):
        compose(RULES["adamw"], RULES["sgdw"])
    fused = compose(RULES["grokfast"], RULES["adamw"])
    assert fused is compose(RULES["grokfast"], RULES["adamw"])
    assert "g" not in fused.written and fused.written[0] == "p"
