"""OASIS: the metric and the step size are the paper's, and nothing is left to tune."""

import copy
import math

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from sklearn.datasets import load_breast_cancer
from torch.nn import functional as F

from steepest.estimators import hutchinson
from steepest.kernels import noise, offsets, split_seed
from steepest.lightning import Oracles
from steepest.optim import OASIS
from steepest.oracles import Objective

F64 = torch.float64


def by_hand(params, losses, eta0=1e-3, beta=0.99, truncation=1e-3, warm=1, seed=0):
    """The paper's algorithm, one loss a step, both gradients on that loss. Step sizes too."""
    starts = offsets(params)
    diagonal, last, eta, theta, etas = None, None, eta0, math.inf, []
    for t, loss in enumerate(losses):
        grads = torch.autograd.grad(loss(), params, create_graph=True)
        sample = [torch.zeros_like(p) for p in params]
        for i in range(warm if t == 0 else 1):
            stream = split_seed(split_seed(seed, t), i)
            z = [
                noise(stream, s, p.numel(), "rademacher").view_as(p).to(p)
                for s, p in zip(starts, params, strict=True)
            ]
            products = torch.autograd.grad(grads, params, z, retain_graph=True)
            for d, a, b in zip(sample, z, products, strict=True):
                d += a * b / (warm if t == 0 else 1)
        grads = [g.detach() for g in grads]
        here = [p.detach().clone() for p in params]
        if t == 0:
            diagonal = sample
        else:
            diagonal = [beta * d + (1 - beta) * s for d, s in zip(diagonal, sample, strict=True)]
        scale = [d.abs().clamp_min(truncation) for d in diagonal]
        with torch.no_grad():
            if t > 0:
                for p, b in zip(params, last, strict=True):
                    p.copy_(b)
                with torch.enable_grad():
                    old = torch.autograd.grad(loss(), params)
                moved = sum(
                    (s * (a - b) ** 2).sum() for s, a, b in zip(scale, here, last, strict=True)
                )
                changed = sum(
                    ((a - b) ** 2 / s).sum() for s, a, b in zip(scale, grads, old, strict=True)
                )
                before = eta
                eta = min(math.sqrt(1 + theta) * eta, 0.5 * math.sqrt(moved / changed))
                theta = eta / before
            for p, a, g, s in zip(params, here, grads, scale, strict=True):
                p.copy_(a - eta * g / s)
        last = here
        etas.append(eta)
    return etas


def badly_scaled(seed=0):
    """Logistic loss on breast_cancer with columns in other units; its curvature bound."""
    data = load_breast_cancer()
    x = torch.tensor(data.data)
    x = torch.cat([(x - x.mean(0)) / x.std(0), torch.ones(len(x), 1, dtype=F64)], 1)
    y = torch.tensor(data.target).double()
    rng = torch.Generator().manual_seed(seed)
    x = x * 10 ** (2 * torch.rand(31, generator=rng, dtype=F64) - 1)

    def loss(p):
        return F.binary_cross_entropy_with_logits(x @ p, y) + 5e-4 * p.square().sum()

    return loss, torch.linalg.eigvalsh(x.T @ x / len(y)).max().item() / 4 + 1e-3


def newton(loss):
    p = torch.zeros(31, dtype=F64)
    for _ in range(30):
        g, h = torch.func.grad(loss)(p), torch.autograd.functional.hessian(loss, p)
        p = p - torch.linalg.solve(h, g)
    assert torch.func.grad(loss)(p).norm() < 1e-10
    return loss(p).item()


def run(loss, steps, **options):
    p = torch.nn.Parameter(torch.zeros(31, dtype=F64))
    opt = OASIS([p], **options)
    for _ in range(steps):
        opt.step(lambda: loss(p))
    return loss(p).item()


def test_three_steps_in_plain_numbers():
    """A separable quartic: the diagonal is exact whatever the signs, and changes."""
    h, alpha, beta, eta0 = [1.0, 50.0, 0.01], 0.5, 0.9, 1e-2
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=F64))
    curvature = torch.tensor(h, dtype=F64)
    opt = OASIS([p], eta0=eta0, beta=beta, truncation=alpha)
    w, d, last_w, last_g, eta, theta = [1.0, -2.0, 3.0], [], [], [], eta0, math.inf
    for t in range(3):
        opt.step(lambda: (0.5 * curvature * p**2 + 0.01 * p**4).sum())
        g = [a * b + 0.04 * b**3 for a, b in zip(h, w, strict=True)]
        hess = [a + 0.12 * b**2 for a, b in zip(h, w, strict=True)]
        d = hess if t == 0 else [beta * a + (1 - beta) * b for a, b in zip(d, hess, strict=True)]
        s = [max(abs(a), alpha) for a in d]
        if t > 0:
            moved = sum(a * (b - c) ** 2 for a, b, c in zip(s, w, last_w, strict=True))
            changed = sum((b - c) ** 2 / a for a, b, c in zip(s, g, last_g, strict=True))
            before = eta
            eta = min(math.sqrt(1 + theta) * eta, math.sqrt(moved / changed) / 2)
            theta = eta / before
        last_w, last_g = w, g
        w = [a - eta * b / c for a, b, c in zip(w, g, s, strict=True)]
        assert p.tolist() == pytest.approx(w, rel=1e-12)
        assert opt.state[p]["hessian_diagonal"].tolist() == pytest.approx(d, rel=1e-12)
        assert float(opt.param_groups[0]["step_size"]) == pytest.approx(eta, rel=1e-12)


def test_on_a_diagonal_quadratic_it_halves_the_distance():
    """There the metric is the Hessian: the measured smoothness is 1, and steps are one half."""
    h = torch.logspace(-3, 3, 7, dtype=F64)
    p = torch.nn.Parameter(torch.ones(7, dtype=F64))
    opt = OASIS([p], eta0=1e-6, truncation=1e-6)
    opt.step(lambda: 0.5 * (h * p**2).sum())
    for k in range(1, 10):
        before = p.detach().clone()
        opt.step(lambda: 0.5 * (h * p**2).sum())
        assert torch.allclose(p.detach(), before / 2, rtol=1e-6), k


def test_the_first_diagonal_is_a_mean_of_warm_samples():
    loss, _ = badly_scaled()
    p = torch.nn.Parameter(torch.zeros(31, dtype=F64))
    opt = OASIS([p], warm=7, seed=3)
    expected = hutchinson(Objective(lambda: loss(p), [p]), split_seed(3, 0), 7).diagonal[0]
    objective = Objective(lambda: loss(p), [p])
    opt.step(objective)
    assert torch.equal(opt.state[p]["hessian_diagonal"], expected)
    assert objective.counts["hvp"] == 7
    opt.step(objective)
    assert objective.counts["hvp"] == 8


def test_truncation_comes_after_the_average():
    """Curvatures 1 and -1 average to 0, which is truncated; their sizes average to 1."""
    p = torch.nn.Parameter(torch.ones(1, dtype=F64))
    opt = OASIS([p], eta0=0.01, beta=0.5, truncation=0.1)
    opt.step(lambda: 0.5 * (p**2).sum())
    before = p.item()
    opt.step(lambda: -0.5 * (p**2).sum())
    eta = float(opt.param_groups[0]["step_size"])
    assert opt.state[p]["hessian_diagonal"].item() == pytest.approx(0.0, abs=1e-15)
    assert eta == pytest.approx(0.1 / 2)  # |s|_D / 2 |y|_{1/D} = D / 2
    assert p.item() == pytest.approx(before + eta * before / 0.1)


def test_without_curvature_steps_grow_by_the_root():
    p = torch.nn.Parameter(torch.zeros(2, dtype=F64))
    opt = OASIS([p], eta0=1e-3, truncation=0.5)
    etas = []
    for _ in range(5):
        opt.step(lambda: p.sum())
        etas.append(float(opt.param_groups[0]["step_size"]))
    expected, growth = [1e-3, 1e-3], 1.0
    for _ in range(3):
        expected.append(expected[-1] * math.sqrt(1 + growth))
        growth = expected[-1] / expected[-2]
    assert etas == pytest.approx(expected)


def test_on_full_batches_remembering_is_asking():
    """With and without ``stochastic`` the path is the same; one gradient a step is saved."""
    loss, _ = badly_scaled()
    paths, counts = [], []
    for stochastic in (True, False):
        p = torch.nn.Parameter(torch.zeros(31, dtype=F64))
        objective = Objective(lambda p=p: loss(p), [p])
        opt = OASIS([p], stochastic=stochastic)
        path = []
        for _ in range(20):
            opt.step(objective)
            path.append(p.detach().clone())
        paths.append(torch.stack(path))
        counts.append((objective.counts["forward"], objective.counts["backward"]))
    assert torch.equal(*paths)
    assert counts == [(40, 60), (20, 40)]


def test_groups_share_the_step_size():
    """Two groups of a separable loss move as one tensor does."""
    h = torch.tensor([1.0, 50.0, 3.0], dtype=F64)
    whole = torch.nn.Parameter(torch.ones(3, dtype=F64))
    parts = [torch.nn.Parameter(torch.ones(n, dtype=F64)) for n in (1, 2)]
    one, two = OASIS([whole]), OASIS([{"params": [q]} for q in parts])
    for _ in range(5):
        one.step(lambda: (0.5 * h * whole**2 + 0.1 * whole**4).sum())
        two.step(lambda: (0.5 * h * (q := torch.cat(parts)) ** 2 + 0.1 * q**4).sum())
        assert torch.allclose(whole, torch.cat(parts), rtol=1e-12)


def test_a_remembered_gradient_resumes():
    loss, _ = badly_scaled()
    p = torch.nn.Parameter(torch.zeros(31, dtype=F64))
    opt = OASIS([p], stochastic=False)
    for _ in range(5):
        opt.step(lambda: loss(p))
    q = torch.nn.Parameter(p.detach().clone())
    other = OASIS([q], stochastic=False)
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    for _ in range(5):
        opt.step(lambda: loss(p))
        other.step(lambda: loss(q))
    assert torch.equal(p, q)


def test_a_step_that_raises_leaves_everything():
    loss, _ = badly_scaled()
    p = torch.nn.Parameter(torch.zeros(31, dtype=F64))
    opt = OASIS([p])
    for _ in range(3):
        opt.step(lambda: loss(p))
    home, state = p.detach().clone(), copy.deepcopy(opt.state_dict())
    calls = []

    def bad():
        calls.append(0)
        if len(calls) == 2:  # at the last point
            raise ZeroDivisionError
        return loss(p)

    with pytest.raises(ZeroDivisionError):
        opt.step(bad)
    assert torch.equal(p, home)
    after = opt.state_dict()
    for key, value in state["state"][0].items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(after["state"][0][key]))
    assert state["param_groups"] == after["param_groups"]


def test_no_rate_to_tune_on_a_badly_scaled_problem():
    """Within 100 steps the gap is below a twentieth of that of gradient descent at 1 / L."""
    loss, curvature = badly_scaled()
    least = newton(loss)
    q = torch.zeros(31, dtype=F64)
    for _ in range(100):
        q = q - torch.func.grad(loss)(q) / curvature
    gaps = [run(loss, 100, warm=100, stochastic=False, seed=s) - least for s in range(3)]
    assert max(gaps) < 0.05 * (loss(q).item() - least)
    # A first step of a millionth of the distance, or of all of it, is forgotten at once.
    ends = [
        run(loss, 100, warm=100, stochastic=False, eta0=eta0) - least for eta0 in (1e-6, 1e-2, 1.0)
    ]
    assert max(ends) < 1.5 * min(ends)


class Module(LightningModule):
    def __init__(self, net, **options):
        super().__init__()
        self.net, self.options = net, options

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.mse_loss(self.net(x), y)

    def configure_optimizers(self):
        return OASIS(self.parameters(), **self.options)


def fit(net, data, clip=None, **options):
    silent = dict.fromkeys(
        ("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger"), False
    )
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, callbacks=[Oracles()], gradient_clip_val=clip, **silent
    )
    loader = torch.utils.data.DataLoader(data, batch_size=None)
    trainer.fit(Module(net, **options).double(), loader)
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def net_and_batches():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 2))
    x, y = torch.randn(10, 16, 5, dtype=F64), torch.randn(10, 16, 2, dtype=F64)
    return net.double(), list(zip(x, y, strict=True))


lightning = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore:.*many workers")


@lightning
def test_under_lightning_it_is_the_loop_by_hand():
    """On ten different batches, so the second gradient must be of the batch at hand."""
    net, data = net_and_batches()
    twin = copy.deepcopy(net)
    made = fit(net, data, warm=4, seed=3, truncation=0.05, beta=0.9)
    losses = [lambda x=x, y=y: F.mse_loss(twin(x), y) for x, y in data]
    etas = by_hand(list(twin.parameters()), losses, warm=4, seed=3, truncation=0.05, beta=0.9)
    assert len({round(eta, 6) for eta in etas}) > 5
    assert (made - torch.cat([p.detach().flatten() for p in twin.parameters()])).abs().max() < 1e-9


@lightning
def test_clipping_does_not_pass_for_curvature():
    """What is remembered, and compared, is the gradient before Lightning clips it."""
    net, data = net_and_batches()
    twin, same = copy.deepcopy(net), data[:1] * 10
    asked = fit(net, same, clip=0.01, truncation=0.05)
    remembered = fit(twin, same, clip=0.01, truncation=0.05, stochastic=False)
    assert torch.allclose(asked, remembered, rtol=1e-12)
