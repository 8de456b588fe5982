"""Optimizers whose numbers are measured on the tensors, in a declared pre-pass."""

import copy
from typing import ClassVar

import pytest
import torch

from steepest.estimators import SPSA
from steepest.kernels import reduction, rule, xp
from steepest.optim import (
    LAWN,
    SAM,
    AdamW,
    Elementwise,
    Estimated,
    Grokfast,
    OracleDriven,
    XGrad,
)
from steepest.optim._base import Slot


@reduction
def travelled(p, g, home):
    # $\lVert g \rVert^2$
    gg = xp.sum(g * g)
    # $\lVert \theta - \theta_0 \rVert^2$
    d = p - home
    dd = xp.sum(d * d)
    return gg, dd


@rule
def scaled(p, g, *, lr, scale):
    # $\theta \leftarrow \theta - \eta s\, g$
    step = lr * scale
    p = p - step * g
    return p  # noqa: RET504  (a rule returns names)


class Leash(Elementwise):
    """Steps of length lr * loss over the whole model, shorter the farther a tensor is from home."""

    prepass: ClassVar = travelled
    needs_loss: ClassVar = True
    slots: ClassVar = {"home": Slot("home", "parameter")}
    extra_keys: ClassVar = frozenset({"farthest"})

    def __init__(self, params, lr=0.1, **options):
        super().__init__(params, {"lr": lr, "maximize": False}, **options)

    def rule(self, group):
        return scaled

    def numbers(self, group, step):
        return {"lr": float(group["lr"])}

    def coefficients(self, measured, loss):
        norm = torch.cat([m.sums["gg"] for m in measured]).sum().sqrt()
        if (norm > 100).item():
            raise RuntimeError("too steep")
        made = []
        for m in measured:
            far = m.sums["dd"].sqrt()
            for state, d in zip(m.states, far, strict=True):
                state["farthest"] = torch.maximum(state.get("farthest", d), d)
            made.append({"scale": loss / (norm * (1 + far))})
        return made


def make(backend="torch", dtype=torch.float64):
    rng = torch.Generator().manual_seed(0)
    params = [
        torch.nn.Parameter(torch.randn(s, generator=rng, dtype=torch.float64).to(dtype))
        for s in ((3, 5), (7,), (), (2, 2))
    ]
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.3}]
    return params, Leash(groups, backend=backend)


def loss_of(params, scale=1.0):
    return scale * sum((p**2).sum() for p in params) + params[0].sum()


def closure(params, opt, scale=1.0):
    def call():
        opt.zero_grad()
        loss = loss_of(params, scale)
        loss.backward()
        return loss

    return call


@pytest.mark.parametrize("backend", ["torch", "cpu", "triton"])
def test_trajectory_over_groups(backend):
    params, opt = make(backend)
    home = [p.detach().clone() for p in params]
    mine = [p.detach().clone().requires_grad_() for p in params]
    for _ in range(5):
        opt.step(closure(params, opt))
        loss = loss_of(mine)
        grads = torch.autograd.grad(loss, mine)
        norm = torch.cat([g.flatten() for g in grads]).norm()
        with torch.no_grad():
            for p, g, start, lr in zip(mine, grads, home, (0.1, 0.1, 0.3, 0.3), strict=True):
                p -= lr * loss / (norm * (1 + (p - start).norm())) * g
    assert all(torch.allclose(p, q, rtol=1e-12) for p, q in zip(params, mine, strict=True))


def test_measured_state_resumes_in_its_own_precision():
    params, opt = make(dtype=torch.bfloat16)
    for _ in range(3):
        opt.step(closure(params, opt))
    farthest = opt.state[params[0]]["farthest"]
    assert farthest.dtype == torch.float64 and farthest > 0
    again = [torch.nn.Parameter(p.detach().clone()) for p in params]
    resumed = Leash([{"params": again[:2]}, {"params": again[2:]}])
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert torch.equal(resumed.state[again[0]]["farthest"], farthest)
    opt.step(closure(params, opt))
    resumed.step(closure(again, resumed))
    assert all(map(torch.equal, params, again))


def test_a_step_that_raises_has_changed_nothing():
    params, opt = make()
    before = [p.detach().clone() for p in params]
    with pytest.raises(RuntimeError, match="too steep"):
        opt.step(closure(params, opt, scale=1000.0))
    assert not opt.state
    with pytest.raises(RuntimeError, match="needs the loss: pass a closure"):
        opt.step()
    with pytest.raises(RuntimeError, match=r"loss of shape \(2,\)"):
        opt.step(lambda: torch.ones(2))
    assert all(map(torch.equal, params, before))
    # With a gradient of only some parameters, and then of all, state is where it belongs.
    params[0].grad = None
    params[1].grad = torch.ones(7, dtype=torch.float64)
    for p in params[2:]:
        p.grad = None
    opt.step(lambda: 1.0)
    assert set(opt.state) == {params[1]}


def test_a_wrapper_hands_the_loss_on():
    """Around an optimizer that reads the loss, whatever the wrapper."""
    for wrap in (Grokfast, XGrad, LAWN, SAM, lambda opt: Estimated(opt, SPSA())):
        p = torch.nn.Parameter(torch.ones(4, 3))
        opt = wrap(Leash([p]))
        assert opt.needs_loss
        if isinstance(opt, OracleDriven):
            opt.step(lambda p=p: (p**2).sum())
        else:
            p.grad = torch.ones_like(p)
            with pytest.raises(RuntimeError, match="Leash needs the loss"):
                opt.step()
            assert torch.equal(p, torch.ones(4, 3))
            opt.step(lambda: 1.0)
        assert not torch.equal(p, torch.ones(4, 3))
    assert not Grokfast(AdamW([p])).needs_loss
