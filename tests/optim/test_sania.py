"""SANIA: Polyak's step from a constrained problem, in a metric that follows the units."""

import copy
import math

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from scipy.optimize import minimize
from sklearn.datasets import load_breast_cancer
from torch.nn import functional as F

from steepest.optim import SANIA, Adam

F64 = torch.float64


def lamb_of(loss, f_star, square):
    """The paper's formula in plain numbers."""
    ratio = (loss - f_star) / square
    return 1 - math.sqrt(1 - 2 * ratio) if ratio <= 0.5 else 1.0


def step(params, opt, loss):
    """One step by torch's convention; the loss."""

    def closure():
        opt.zero_grad()
        value = loss(params)
        value.backward()
        return value

    return opt.step(closure).item()


def cancer(scales=None):
    """Standardized breast_cancer with an intercept, columns times the scales."""
    data = load_breast_cancer()
    x = torch.tensor(data.data)
    x = torch.cat([(x - x.mean(0)) / x.std(0), torch.ones(len(x), 1, dtype=F64)], 1)
    return x if scales is None else x * scales, torch.tensor(data.target).double()


def descend(make, x, y, steps=400, batch=64):
    """Losses on all data along a run on batches that depend on the seed only."""
    rng = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(torch.zeros(31, dtype=F64))
    opt, trace = make([p]), []
    for _ in range(steps):
        rows = torch.randint(len(y), (batch,), generator=rng)
        step(
            [p],
            opt,
            lambda ps, rows=rows: F.binary_cross_entropy_with_logits(x[rows] @ ps[0], y[rows]),
        )
        with torch.no_grad():
            trace.append(F.binary_cross_entropy_with_logits(x @ p, y))
    return torch.stack(trace)


@pytest.mark.parametrize("gap", [0.01, 0.3, 0.49, 0.8])
def test_the_step_solves_the_constrained_problem(gap):
    """Against scipy on two variables; if nothing reaches f*, against the model's minimum."""
    g, b, f_star = torch.tensor([3.0, -0.2], dtype=F64), [9.0, 0.04], 0.7
    loss = f_star + gap * 2  # the squared norm in the metric b = g^2 of a first step is 2
    p = torch.nn.Parameter(torch.zeros(2, dtype=F64))
    opt = SANIA([p], f_star=f_star)
    p.grad = g.clone()
    opt.step(lambda: loss)

    def size(w):
        return 0.5 * (b[0] * w[0] ** 2 + b[1] * w[1] ** 2)

    def model(w):
        return loss + g[0].item() * w[0] + g[1].item() * w[1] + size(w)

    if gap <= 0.5:
        bound = {"type": "ineq", "fun": lambda w: f_star - model(w)}
        found = minimize(size, [-0.1, 1.0], constraints=[bound], options={"ftol": 1e-14})
    else:
        found = minimize(model, [0.0, 0.0], tol=1e-12)
    assert found.success or gap > 0.5
    assert p.tolist() == pytest.approx(found.x, rel=1e-4)


def test_where_the_metric_is_the_hessian_one_step_is_enough():
    p = torch.nn.Parameter(torch.tensor([3.0, -4.0], dtype=F64))
    step([p], SANIA([p], preconditioner="identity"), lambda ps: 0.5 * ps[0].square().sum())
    assert p.abs().max() < 1e-7  # a root near zero has half of the digits


def test_for_a_steep_loss_it_is_polyaks_step():
    """Times c, a loss has its gap over its squared slope divided by c: lambda -> that ratio."""
    h = torch.tensor([1.0, 5.0], dtype=F64)
    for c, error in ((1e1, 0.2), (1e4, 1e-4), (1e8, 1e-8)):
        p = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=F64))
        g = c * h * p.detach()
        value = step(
            [p], SANIA([p], preconditioner="identity"), lambda ps, c=c: c * _half(h, ps[0])
        )
        polyak = torch.tensor([1.0, -2.0], dtype=F64) - value / g.square().sum() * g
        assert torch.allclose(p.detach(), polyak, rtol=error, atol=0)


def _half(h, p):
    return 0.5 * (h * p**2).sum()


@pytest.mark.parametrize("kind", ["adagrad-sqr", "adam-sqr", "adagrad", "identity"])
def test_in_plain_numbers_over_two_groups(kind):
    b1, b2 = 0.8, 0.9
    params = [torch.nn.Parameter(torch.tensor(v, dtype=F64)) for v in ([1.0, -1.0], [0.5])]
    groups = [{"params": params[:1]}, {"params": params[1:], "lr": 0.5}]
    opt = SANIA(groups, preconditioner=kind, f_star=0.1, betas=(b1, b2))
    h, w, rates = [1.0, 7.0, 40.0], [1.0, -1.0, 0.5], [1.0, 1.0, 0.5]
    total, m, v = [0.0] * 3, [0.0] * 3, [0.0] * 3
    lambs = []
    h = [0.01 * a if "sqr" in kind else a for a in h]  # so that the model gets down to f*
    curvature = torch.tensor(h, dtype=F64)
    for t in range(1, 6):
        step(params, opt, lambda ps: 0.2 + _half(curvature, torch.cat([*ps])))
        loss = 0.2 + sum(0.5 * a * b * b for a, b in zip(h, w, strict=True))
        g = [a * b for a, b in zip(h, w, strict=True)]
        total = [a + b * b for a, b in zip(total, g, strict=True)]
        m = [b1 * a + (1 - b1) * b for a, b in zip(m, g, strict=True)]
        v = [b2 * a + (1 - b2) * b * b for a, b in zip(v, g, strict=True)]
        d, metric = g, [1.0] * 3
        if kind == "adagrad-sqr":
            metric = total
        elif kind == "adagrad":
            metric = [math.sqrt(a) for a in total]
        elif kind == "adam-sqr":
            d = [a / (1 - b1**t) for a in m]
            metric = [a / (1 - b2**t) for a in v]
        square = sum(a * a / b for a, b in zip(d, metric, strict=True))
        lambs.append(lamb_of(loss, 0.1, square))
        w = [a - r * lambs[-1] * b / c for a, r, b, c in zip(w, rates, d, metric, strict=True)]
        assert torch.cat([p.detach() for p in params]).tolist() == pytest.approx(w, rel=1e-9)
    assert any(lamb < 1 for lamb in lambs)


def test_units_do_not_matter_without_the_root():
    """The paper's claim: the same losses on columns times 10^U(-3, 3), and with a root not."""
    rng = torch.Generator().manual_seed(1)
    scales = 10 ** (6 * torch.rand(31, generator=rng, dtype=F64) - 3)
    (x, y), (scaled, _) = cancer(), cancer(scales)
    one, other = (descend(SANIA, each, y) for each in (x, scaled))
    assert (one - other).abs().max() < 1e-6
    root = [
        descend(lambda ps: SANIA(ps, preconditioner="adagrad"), each, y) for each in (x, scaled)
    ]
    assert (root[0][-1] - root[1][-1]).abs() > 0.1
    adam = [
        descend(lambda ps, lr=lr: Adam(ps, lr=lr), scaled, y)[-1] for lr in (1e-3, 1e-2, 0.1, 1.0)
    ]
    assert other[-1] <= min(adam)
    # Adam-SQR is as invariant; it is not stable, and then rounding is not small for long.
    short = [
        descend(lambda ps: SANIA(ps, preconditioner="adam-sqr"), each, y, steps=10)
        for each in (x, scaled)
    ]
    assert (short[0] - short[1]).abs().max() < 1e-9


def test_epsilon_ends_the_invariance():
    rng = torch.Generator().manual_seed(1)
    scales = 10 ** (6 * torch.rand(31, generator=rng, dtype=F64) - 3)
    (x, y), (scaled, _) = cancer(), cancer(scales)
    one, other = (descend(lambda ps: SANIA(ps, eps=0.1), each, y) for each in (x, scaled))
    assert (one - other).abs().max() > 0.1


def test_a_loss_below_its_minimum_moves_nothing():
    p = torch.nn.Parameter(torch.ones(3))
    opt = SANIA([p], f_star=2.0)
    p.grad = torch.ones(3)
    opt.step(lambda: torch.tensor(1.5))
    assert torch.equal(p.data, torch.ones(3))
    p.grad = torch.zeros(3)
    opt.step(lambda: torch.tensor(9.0))
    assert torch.equal(p.data, torch.ones(3))


def test_bad_calls():
    p = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="choose one of adagrad-sqr, adam-sqr, adagrad, identity"):
        SANIA([p], preconditioner="newton")
    with pytest.raises(ValueError, match="f_star=nan"):
        SANIA([p], f_star=math.nan)
    opt = SANIA([p])
    p.grad = torch.ones(3)
    with pytest.raises(RuntimeError, match="needs the loss: pass a closure"):
        opt.step()
    other = SANIA([p], preconditioner="adam-sqr")
    other.step(lambda: 1.0)
    with pytest.raises(ValueError, match="of another optimizer"):
        other.load_state_dict(opt.state_dict() | {"state": {0: {"step": 1, "squares": p.data}}})
    opt.load_state_dict(other.state_dict())  # takes the preconditioner as any hyper-parameter
    assert opt.rule(opt.param_groups[0]) is other.rule(other.param_groups[0])
    assert opt.prepass is other.prepass
    with pytest.raises(ValueError, match="one preconditioner and one f_star"):
        SANIA([{"params": [p]}, {"params": [torch.nn.Parameter(p.data)], "f_star": 1.0}])


class Module(LightningModule):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.mse_loss(self.net(x), y)

    def configure_optimizers(self):
        return SANIA(self.parameters(), lr=0.5)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore:.*many workers")
def test_under_lightning_it_is_the_loop_by_hand_with_no_callback():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 2))
    twin = copy.deepcopy(net.double())
    x, y = torch.randn(10, 16, 5, dtype=F64), torch.randn(10, 16, 2, dtype=F64)
    data = list(zip(x, y, strict=True))
    silent = dict.fromkeys(
        ("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger"), False
    )
    trainer = Trainer(accelerator="cpu", max_epochs=1, **silent)
    trainer.fit(Module(net).double(), torch.utils.data.DataLoader(data, batch_size=None))
    params = list(twin.parameters())
    total = [torch.zeros_like(p) for p in params]
    for inputs, targets in data:
        loss = F.mse_loss(twin(inputs), targets)
        grads = torch.autograd.grad(loss, params)
        with torch.no_grad():
            total = [t + g * g for t, g in zip(total, grads, strict=True)]
            square = sum((g * g / t).sum() for g, t in zip(grads, total, strict=True)).item()
            lamb = lamb_of(loss.item(), 0.0, square)
            for p, g, t in zip(params, grads, total, strict=True):
                p -= 0.5 * lamb * g / t
    for p, q in zip(net.parameters(), params, strict=True):
        assert torch.allclose(p, q, rtol=1e-7, atol=1e-9)
