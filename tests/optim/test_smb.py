"""SMB: repaired steps are the paper's, and accepted ones are SGD's."""

import copy
import math

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from sklearn.datasets import load_diabetes
from torch.nn import functional as F

from steepest.lightning import Oracles
from steepest.optim import SMB
from steepest.oracles import Objective

F64 = torch.float64


def repaired(g, ahead, lr, eta):
    """The paper's step for one tensor: sigma, theta and three coefficients."""
    s, y = -lr * g, ahead - g
    ys, ss, yy = (y * s).sum(), (s * s).sum(), (y * y).sum()
    yg, gg, sg = (y * g).sum(), (g * g).sum(), (s * g).sum()
    sigma = 0.5 * (ss.sqrt() * (yy.sqrt() + gg.sqrt() / eta) - ys)
    theta = (ys + 2 * sigma) ** 2 - ss * yy
    cg = -ss / (2 * sigma)
    cs = cg / theta * (-(ys + 2 * sigma) * yg + yy * sg)
    cy = cg / theta * (-(ys + 2 * sigma) * sg + ss * yg)
    return cs * s + cg * g + cy * y


def two_gradients(p, g, y, lr):
    """A loss whose gradient is g at 0 and g + y at the trial point, where it is higher."""
    s = -lr * g
    ss = (s * s).sum()

    def loss():
        along = (s * p).sum() / ss
        bend = along * (y * p).sum() - 0.5 * (y * s).sum() * along**2
        jump = 1e6 * float((p != 0).any())  # in the value, not in the gradient
        return (g * p).sum() + bend + jump

    return loss


def by_hand(net, loss, lr, eta=0.99, c=0.1):
    """One step on a network; whether its trial failed."""
    params = list(net.parameters())
    value = loss()
    grads = torch.autograd.grad(value, params)
    with torch.no_grad():
        for p, g in zip(params, grads, strict=True):
            p -= lr * g
    trial = loss()
    if trial <= value - c * lr * sum(g.square().sum() for g in grads):
        return False
    ahead = torch.autograd.grad(trial, params)
    with torch.no_grad():
        for p, g, a in zip(params, grads, ahead, strict=True):
            p += lr * g + repaired(g, a, lr, eta)
    return True


def least_squares():
    """Standardized diabetes: loss of a weight vector, largest curvature, and least value."""
    data = load_diabetes()
    x, t = torch.tensor(data.data), torch.tensor(data.target)
    x, t = (x - x.mean(0)) / x.std(0), (t - t.mean()) / t.std()
    best = torch.linalg.lstsq(x, t[:, None]).solution[:, 0]

    def loss(p):
        return 0.5 * (x @ p - t).square().mean()

    return loss, torch.linalg.eigvalsh(x.T @ x / len(t)).max().item(), loss(best).item()


@pytest.mark.parametrize("eta", [0.99, 0.5])
def test_a_repaired_step_is_the_papers_descends_and_is_bounded(eta):
    rng = torch.Generator().manual_seed(0)
    for i in range(100):
        size = 10.0 ** (i % 7 - 3)
        g, y = torch.randn(2, 5, generator=rng, dtype=F64)
        y *= size
        p = torch.nn.Parameter(torch.zeros(5, dtype=F64))
        SMB([p], lr=0.3, eta=eta).step(two_gradients(p, g, y, 0.3))
        step = p.detach()
        assert torch.allclose(step, repaired(g, g + y, 0.3, eta), rtol=1e-6, atol=1e-12)
        assert (g * step).sum() < 0
        assert step.norm() <= eta * 0.3 * g.norm() * (1 + 1e-9)


def test_without_a_change_of_gradient_it_is_a_shorter_sgd_step():
    g = torch.tensor([1.0, -2.0], dtype=F64)
    p = torch.nn.Parameter(torch.zeros(2, dtype=F64))
    SMB([p], lr=0.3, eta=0.9).step(two_gradients(p, g, 0 * g, 0.3))
    assert torch.allclose(p.detach(), -0.9 * 0.3 * g, rtol=1e-12)


@pytest.mark.parametrize("lr", [3.0, 1e3, 1e6])
def test_in_one_dimension_no_rate_is_too_large(lr):
    """With curvature h the step is lr eta / (1 + 2 lr eta h) g, half of Newton's at most."""
    h, eta = 2.0, 0.99
    p = torch.nn.Parameter(torch.ones(1, dtype=F64))
    SMB([p], lr=lr, eta=eta).step(lambda: 0.5 * h * (p**2).sum())
    assert math.isclose(p.item(), 1 - lr * eta * h / (1 + 2 * lr * eta * h), rel_tol=1e-6)
    assert p.item() > 0.5


def test_each_tensor_has_a_model_of_its_own():
    curvature = torch.tensor([1.0, 2.0, 30.0], dtype=F64)
    ends = {}
    for cut in ([3], [1, 2]):
        params = [torch.nn.Parameter(torch.ones(n, dtype=F64)) for n in cut]
        SMB(params, lr=0.5).step(lambda ps=params: 0.5 * (curvature * torch.cat(ps) ** 2).sum())
        ends[len(cut)] = torch.cat([p.detach() for p in params])
        g = list(curvature.split(cut))
        ahead = [h * (1 - 0.5 * h) for h in g]
        steps = [repaired(a, b, 0.5, 0.99) for a, b in zip(g, ahead, strict=True)]
        assert torch.allclose(ends[len(cut)], 1 + torch.cat(steps), rtol=1e-9)
    assert (ends[1] - ends[2]).abs().max() > 1e-3


def net_and_batches(dtype=torch.float32):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 2))
    return net.to(dtype), torch.randn(20, 16, 5, dtype=dtype), torch.randn(20, 16, 2, dtype=dtype)


def close(net, twin):
    pairs = zip(net.parameters(), twin.parameters(), strict=True)
    return all(torch.allclose(p, q, rtol=1e-9) for p, q in pairs)


def test_accepted_trials_are_sgds_steps_bit_for_bit():
    net, xs, ys = net_and_batches()
    twin = copy.deepcopy(net)
    opt, sgd = SMB(net.parameters(), lr=0.05), torch.optim.SGD(twin.parameters(), lr=0.05)
    for x, y in zip(xs, ys, strict=True):
        objective = Objective(lambda x=x, y=y: F.mse_loss(net(x), y), net.parameters())
        opt.step(objective)
        assert objective.counts == {"gradient": 1, "value": 1, "forward": 2, "backward": 1}
        sgd.zero_grad()
        F.mse_loss(twin(x), y).backward()
        sgd.step()
        assert all(map(torch.equal, net.parameters(), twin.parameters()))


def test_a_failed_trial_costs_one_gradient_more_and_is_by_hand():
    net, xs, ys = net_and_batches(F64)
    twin = copy.deepcopy(net)
    opt, failures = SMB(net.parameters(), lr=1.8), 0
    for x, y in zip(xs, ys, strict=True):
        objective = Objective(lambda x=x, y=y: F.mse_loss(net(x), y), net.parameters())
        opt.step(objective)
        failed = by_hand(twin, lambda x=x, y=y: F.mse_loss(twin(x), y), 1.8)
        assert objective.counts["gradient"] == 1 + failed and objective.counts["value"] == 1
        failures += failed
    assert 3 <= failures <= 17
    assert close(net, twin)


def test_a_query_moves_nothing_also_when_it_raises():
    net, xs, ys = net_and_batches()
    opt = SMB(net.parameters(), lr=1e3)  # a trial from which subtraction would not come back
    home = copy.deepcopy(list(net.parameters()))
    opt.query(opt.objective(lambda: F.mse_loss(net(xs[0]), ys[0])))
    assert all(map(torch.equal, net.parameters(), home))
    for bad in (2, 3):  # at the trial's value, and at its gradient
        calls = []

        def loss(calls=calls, bad=bad):
            calls.append(0)
            if len(calls) == bad:
                raise ZeroDivisionError
            return F.mse_loss(net(xs[0]), ys[0])

        with pytest.raises(ZeroDivisionError):
            opt.step(loss)
        assert all(map(torch.equal, net.parameters(), home)) and opt.steps == 0


def test_infinity_ahead_is_an_error():
    p = torch.nn.Parameter(torch.ones(2))
    opt = SMB([p], lr=1e30)
    with pytest.raises(RuntimeError, match=r"trial point.*NaN or infinity.*lower lr"):
        opt.step(lambda: (p**4).sum())
    assert torch.equal(p.data, torch.ones(2)) and opt.param_groups[0]["failed"] == 0


def test_the_schedule_follows_the_share_of_failures():
    """On a parabola of curvature 1 a trial fails if lr > 2 (1 - c) = 1.8."""
    p = torch.nn.Parameter(torch.ones(1, dtype=F64))
    opt = SMB([p], lr=2.1, period=4)
    rates = []
    for _ in range(20):
        p.data.fill_(1.0)
        opt.step(lambda: 0.5 * (p**2).sum())
        rates.append(opt.param_groups[0]["lr"])
    down, last = 2.1 * 0.9, 2.1 * 0.9 * 0.9
    expected = [2.1] * 3 + [down] * 4 + [last] * 4 + [last / 0.9] * 4 + [last] * 4 + [last / 0.9]
    assert rates == pytest.approx(expected)
    still = SMB([p], lr=19.0, c=0.0, period=1)
    p.data.fill_(0.0)
    still.step(lambda: 0.0 * (p**2).sum())
    assert still.param_groups[0]["lr"] == 19.0  # 19 / 0.9 would be above 20


def test_a_rate_five_times_too_large_still_converges():
    """The paper's claim, where SGD diverges: least squares at ten over the curvature."""
    loss, curvature, least = least_squares()
    p = torch.nn.Parameter(torch.zeros(10, dtype=F64))
    q = torch.nn.Parameter(torch.zeros(10, dtype=F64))
    opt = SMB([p], lr=10 / curvature)
    sgd = torch.optim.SGD([q], lr=10 / curvature)
    start = loss(p).item() - least
    for _ in range(100):
        opt.step(lambda: loss(p))
        sgd.zero_grad()
        loss(q).backward()
        sgd.step()
    assert loss(p).item() - least < 0.01 * start
    assert loss(q).item() > 1e50 * start


class Module(LightningModule):
    def __init__(self, net, lr):
        super().__init__()
        self.net, self.lr = net, lr

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.mse_loss(self.net(x), y)

    def configure_optimizers(self):
        return SMB(self.parameters(), lr=self.lr)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore:.*many workers")
def test_under_lightning_it_is_the_loop_by_hand():
    net, xs, ys = net_and_batches(F64)
    twin, data = copy.deepcopy(net), list(zip(xs[:10], ys[:10], strict=True))
    silent = dict.fromkeys(
        ("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger"), False
    )
    trainer = Trainer(accelerator="cpu", max_epochs=1, callbacks=[Oracles()], **silent)
    trainer.fit(Module(net, 1.8).double(), torch.utils.data.DataLoader(data, batch_size=None))
    failed = [by_hand(twin, lambda x=x, y=y: F.mse_loss(twin(x), y), 1.8) for x, y in data]
    assert any(failed) and not all(failed)
    assert close(net, twin)
