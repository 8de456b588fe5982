import math
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from steepest.lightning import DigitsData
from steepest.optim import SGDW, Adam, AdamW
from steepest.oracles import Objective
from steepest.probes import instability_index, lanczos, stability, stability_threshold

F64 = torch.float64


@pytest.fixture(autouse=True)
def one_thread():
    """Small products are slowed down by threads, a great deal where cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


CURVATURES = torch.tensor([0.1, 1.0, 5.0], dtype=F64)


def quadratic(p):
    return Objective(lambda: 0.5 * (CURVATURES * p**2).sum(), [p])


def diverges(opt, p, steps=3000):
    """Whether the distance to the minimum grows a thousandfold before it shrinks as much."""
    start = p.detach().norm()
    for _ in range(steps):
        p.grad = CURVATURES * p.detach()
        opt.step()
        ratio = (p.detach().norm() / start).item()
        if not 1e-3 < ratio < 1e3:
            return ratio > 1
    raise AssertionError("neither")


METHODS = {
    "gd": (0.0, lambda p, lr, m: torch.optim.SGD([p], lr)),
    "heavy-ball": (0.8, lambda p, lr, m: torch.optim.SGD([p], lr, m)),
    "nesterov": (0.8, lambda p, lr, m: torch.optim.SGD([p], lr, m, nesterov=True)),
    # With a huge epsilon Adam's scale does not move: the linear recursion that theory is about.
    "adam": (0.9, lambda p, lr, m: aged(torch.optim.Adam([p], lr * 1e6, (m, 0.999), eps=1e6))),
}


def aged(opt, steps=10**17):
    """An Adam that no longer corrects a bias."""
    for p in opt.param_groups[0]["params"]:
        p.grad = torch.zeros_like(p)
        opt.step()
        state = opt.state[p]
        state["step"] = torch.tensor(float(steps)) if torch.is_tensor(state["step"]) else steps
    return opt


@pytest.mark.parametrize("momentum", [None, 0.3])
@pytest.mark.parametrize("name", METHODS)
def test_runs_converge_just_below_the_threshold_and_diverge_just_above(name, momentum):
    usual, make = METHODS[name]
    m = usual if momentum is None or name == "gd" else momentum
    threshold = stability_threshold(name, m)
    for factor in (0.99, 1.01):
        p = torch.nn.Parameter(torch.ones(3, dtype=F64))
        opt = make(p, factor * threshold / CURVATURES.max().item(), m)
        # The probe reads the optimizer, and says what will happen.
        assert stability(quadratic(p), opt).ratio == pytest.approx(factor, rel=1e-6)
        assert diverges(opt, p) == (factor > 1)


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.AdamW, Adam, AdamW])
@pytest.mark.parametrize("factor", [0.99, 1.01])
def test_adams_edge_with_a_scale_for_each_coordinate(make, factor):
    # A second moment that is given, and practically does not change any more.
    v = torch.tensor([1e-4, 1e-2, 4.0], dtype=F64)
    sharpest = (CURVATURES / (v.sqrt() + 1e-3)).max().item()
    assert sharpest > 3 * CURVATURES[2] / 2  # the sharpest coordinate is another one than for SGD
    lr = factor * stability_threshold("adam", 0.9) / sharpest
    p = torch.nn.Parameter(1e-3 * torch.ones(3, dtype=F64))
    opt = aged(make([p], lr, (0.9, 1 - 1e-15), eps=1e-3, weight_decay=0.0))
    opt.state[p]["exp_avg_sq"].copy_(v)
    found = stability(quadratic(p), opt)
    assert found.curvature == pytest.approx(sharpest, rel=1e-6)
    assert found.ratio == pytest.approx(factor, rel=1e-6)
    assert diverges(opt, p) == (factor > 1)


def test_adams_first_step_is_measured_with_its_bias_corrections():
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=F64))
    opt = Adam([p], lr=0.1)
    g = p.grad = CURVATURES * p.detach()
    opt.step()
    # After one step the corrected second moment is the square of the gradient.
    exact = (CURVATURES / ((1 - 0.9) * (g.abs() + 1e-8))).max().item()
    assert stability(quadratic(p), opt).curvature == pytest.approx(exact, rel=1e-6)


def test_amsgrad_is_measured_with_its_maximum():
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=F64))
    opt = torch.optim.Adam([p], lr=0.1, amsgrad=True)
    for scale in (100.0, 1e-3):
        p.grad = scale * torch.ones_like(p)
        opt.step()
    vmax = opt.state[p]["max_exp_avg_sq"] / (1 - 0.999**2)
    exact = (CURVATURES / ((1 - 0.9**2) * (vmax.sqrt() + 1e-8))).max().item()
    assert stability(quadratic(p), opt).curvature == pytest.approx(exact, rel=1e-6)


def test_momentum_is_read_from_the_group():
    p = torch.nn.Parameter(torch.ones(3, dtype=F64))
    assert stability(quadratic(p), SGDW([p], 0.1, momentum=0.5)).edge == pytest.approx(30.0)
    nesterov = torch.optim.SGD([p], 0.1, momentum=0.5, nesterov=True)
    assert stability(quadratic(p), nesterov).edge == pytest.approx(15.0)


def test_a_large_negative_curvature_is_not_an_edge():
    p = torch.nn.Parameter(torch.ones(3, dtype=F64))
    values = torch.tensor([-50.0, 1.0, 4.0], dtype=F64)
    saddle = Objective(lambda: 0.5 * (values * p**2).sum(), [p])
    assert stability(saddle, torch.optim.SGD([p], 0.25)).ratio == pytest.approx(0.5)


def test_instability_index():
    assert instability_index([3.0, 2.0, 2.0, 1.0]) == 1.0
    assert instability_index([4.0, 2.0, 6.0, 1.0, 2.5]) == 3.0
    assert instability_index([1.0, math.nan]) == instability_index([1.0, math.inf]) == math.inf


def test_what_cannot_be_measured_is_refused():
    p = torch.nn.Parameter(torch.ones(3, dtype=F64))
    q = torch.nn.Parameter(torch.ones(3, dtype=F64))
    with pytest.raises(ValueError, match="after a step"):
        stability(quadratic(p), Adam([p]))
    with pytest.raises(ValueError, match="groups differ"):
        groups = [{"params": [p], "lr": 0.1}, {"params": [q], "lr": 0.2}]
        stability(quadratic(p), torch.optim.SGD(groups))
    with pytest.raises(ValueError, match="choose of"):
        stability_threshold("adagrad")
    with pytest.raises(ValueError, match="momentum"):
        stability_threshold("nesterov", 1.0)
    for bad in ([], [1.0, 0.0], [1.0, -1.0]):
        with pytest.raises(ValueError, match="above 0"):
            instability_index(bad)


def network(seed, norm=False, gain=1.41, act=torch.nn.Tanh, width=32, depth=6):
    """A network whose weights are larger by the gain than they should be."""
    rng = torch.Generator().manual_seed(seed)
    layers, before = [], 64
    for after in [width] * (depth - 1) + [10]:
        linear = torch.nn.Linear(before, after)
        with torch.no_grad():
            noise = torch.randn(linear.weight.shape, generator=rng)
            linear.weight.copy_(gain * noise / before**0.5)
            linear.bias.zero_()
        layers += [linear, *([torch.nn.LayerNorm(after)] if norm else []), act()]
        before = after
    return torch.nn.Sequential(*(layers[:-2] if norm else layers[:-1]))


@pytest.fixture(scope="module")
def loss_of():
    data = DigitsData()
    data.setup()
    train = data.splits["train"]
    x, y = train.inputs[:256], F.one_hot(train.targets[:256], 10).float()
    return lambda model: 0.5 * (model(x) - y).square().sum(1).mean()


def top(model, loss_of):
    return lanczos(Objective(partial(loss_of, model), model), 15).values[-1].item()


def descend(model, loss_of, lr, warmup, every=0, steps=400):
    """Losses of full-batch gradient descent, and its stability every so many steps."""
    opt = torch.optim.SGD(model.parameters(), lr)
    schedule = torch.optim.lr_scheduler.LinearLR(opt, 1 / warmup, 1.0, max(warmup - 1, 1))
    losses, seen = [], []
    for k in range(steps):
        loss = loss_of(model)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            break
        if every and k % every == 0:
            seen.append(stability(Objective(partial(loss_of, model), model), opt, steps=8))
        opt.zero_grad()
        loss.backward()
        opt.step()
        schedule.step()
    return losses, seen


@pytest.mark.parametrize("seed", [0, 1])
def test_warm_up_pushes_curvature_down_along_two_over_the_rate(loss_of, seed):
    start = top(network(seed), loss_of)
    # A network survives the 4 / curvature of which a quadratic dies six times over; not this.
    lr = 12 / start
    losses, _ = descend(network(seed), loss_of, lr, warmup=1)
    assert not math.isfinite(losses[-1]) or losses[-1] > losses[0]
    assert instability_index(losses) > 100

    model = network(seed)
    losses, seen = descend(model, loss_of, lr, warmup=300, every=10)
    assert losses[-1] <= 0.3 * losses[0]
    ratios = [found.ratio for found in seen[:31]]
    first = next(k for k, ratio in enumerate(ratios) if ratio >= 1)
    assert first < 15 and min(ratios[first:]) >= 0.7 and max(ratios[first:]) <= 1.6
    assert top(model, loss_of) <= 0.5 * start


def test_normalization_lowers_the_first_curvature(loss_of):
    relu = partial(network, 0, gain=2.0, act=torch.nn.ReLU)
    assert top(relu(norm=True), loss_of) <= 0.5 * top(relu(), loss_of)
    # Not so where tanh bounds the activations already.
    assert top(network(0, norm=True), loss_of) > 0.5 * top(network(0), loss_of)
