"""XGrad: gradients at predicted weights, around any optimizer."""

import copy
import io

import pytest
import torch

from steepest.optim import Adam, AdamW, Filter, INNAprop, TripleMomentum, XGrad

DOUBLE = {"dtype": torch.float64}


class Half(Filter):
    """Halves gradients, and remembers their sum."""

    def filter(self, params, grads, memories):
        sums = [m.get("sum", 0) + g for g, m in zip(grads, memories, strict=True)]
        return [g / 2 for g in grads], [{"sum": s} for s in sums]


BASES = {
    "Adam": lambda ps: Adam(ps, 0.05),
    "AdamW": lambda ps: AdamW(ps, 0.05, weight_decay=0.1),
    "INNAprop": lambda ps: INNAprop(ps, 0.05),
    "torch.AdamW": lambda ps: torch.optim.AdamW(ps, 0.05, weight_decay=0.1),
    "torch.SGD": lambda ps: torch.optim.SGD(ps, 0.05, momentum=0.9, nesterov=True),
    "torch.RMSprop": lambda ps: torch.optim.RMSprop(ps, 0.05),
    "Half": lambda ps: Half(AdamW(ps, 0.05)),
}


def problem():
    """Parameters and a loss on a batch of random numbers."""
    params = [torch.nn.Parameter(torch.ones(n)) for n in (3, 2)]

    def loss(noise):
        x = torch.cat([*params])
        return (x**4).sum() / 4 + (x * noise).sum()

    return params, loss


def go(opt, params, loss, noises):
    for noise in noises:
        opt.zero_grad()
        loss(noise).backward()
        opt.step()


@pytest.mark.parametrize("base", BASES)
def test_without_a_look_ahead_it_is_the_optimizer(base):
    noises = torch.randn(50, 5)
    (params, loss), (others, same) = problem(), problem()
    go(XGrad(BASES[base](params), lookahead=0.0), params, loss, noises)
    go(BASES[base](others), others, same, noises)
    assert all(map(torch.equal, params, others))


@pytest.mark.parametrize("lookahead", [1.0, 3.0])
@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_the_papers_prediction_for_adam_and_adamw(lookahead, decay):
    """theta - s lr mhat / (sqrt(vhat) + eps), with the state as it is, and the decay's part."""
    lr, eps, curvature = 0.05, 1e-3, torch.tensor([0.1, 1.0, 5.0], **DOUBLE)
    theta, ahead = torch.ones(3, **DOUBLE), torch.ones(3, **DOUBLE)
    m = v = torch.zeros(3, **DOUBLE)
    p = torch.nn.Parameter(theta.clone())
    opt = XGrad(AdamW([p], lr, eps=eps, weight_decay=decay), lookahead)
    for t in range(1, 31):
        g = curvature * ahead + ahead.sin()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        delta = m / (1 - 0.9**t) / ((v / (1 - 0.999**t)).sqrt() + eps)
        before, theta = theta, (1 - lr * decay) * theta - lr * delta
        ahead = theta - lookahead * lr * (delta + decay * before)
        p.grad = curvature * p.detach() + p.detach().sin()
        opt.step()
        assert torch.allclose(p.detach(), ahead, rtol=1e-12)
        opt.eval()
        assert torch.allclose(p.detach(), theta, rtol=1e-12)
        opt.train()


def test_around_sgd_with_momentum_it_is_a_look_ahead_of_the_ball():
    """theta - s lr v, the paper's for SGDM; with s equal to the momentum, Nesterov's method."""
    curvature = torch.logspace(-2, 0, 50, **DOUBLE)
    ends = []
    for s, make in (
        (1.0, lambda ps: XGrad(torch.optim.SGD(ps, 0.3, momentum=0.9))),
        (1.0, lambda ps: TripleMomentum(ps, 0.3, (0.9, 1.0, 0.0))),
        (0.9, lambda ps: XGrad(torch.optim.SGD(ps, 0.3, momentum=0.9), lookahead=0.9)),
        (0.9, lambda ps: torch.optim.SGD(ps, 0.3, momentum=0.9, nesterov=True)),
    ):
        p = torch.nn.Parameter(torch.ones(50, **DOUBLE))
        opt = make([p])
        for _ in range(100):
            p.grad = curvature * p.detach()
            opt.step()
        ends.append((s, p.detach()))
    for one, two in (ends[:2], ends[2:]):
        assert torch.allclose(one[1], two[1], rtol=1e-9)
    assert not torch.allclose(ends[0][1], ends[2][1])


def test_it_brakes_a_ball_in_a_ravine():
    """The paper's claim: the same optimizer at the same learning rate gets further."""
    curvature = torch.logspace(-2, 0, 50, **DOUBLE)

    def loss_after(lookahead, steps):
        p = torch.nn.Parameter(torch.ones(50, **DOUBLE))
        opt = XGrad(torch.optim.SGD([p], 1.0, momentum=0.9), lookahead)
        for _ in range(steps):
            p.grad = curvature * p.detach()
            opt.step()
        opt.eval()
        return (0.5 * curvature * p.detach() ** 2).sum().item()

    assert loss_after(1.0, 30) < 0.1 * loss_after(0.0, 30)
    assert loss_after(1.0, 300) < 1e-3 * loss_after(0.0, 300)


def test_a_look_ahead_of_the_delay_undoes_it():
    """Gradients that arrive 2 steps late: with s = 2 a learning rate converges that did not."""
    curvature, delay = torch.logspace(-2, 0, 50, **DOUBLE), 2

    def loss(lookahead):
        p = torch.nn.Parameter(torch.ones(50, **DOUBLE))
        opt = XGrad(torch.optim.SGD([p], 0.1, momentum=0.9), lookahead)
        past = [p.detach().clone()] * delay
        for _ in range(200):
            past.append(p.detach().clone())
            p.grad = curvature * past.pop(0)
            opt.step()
        return (0.5 * curvature * p.detach() ** 2).sum().item()

    assert loss(2.0) < 1e-2 < 1e2 < loss(0.0)


def test_eval_and_train_put_the_weights_in_place_exactly():
    params, loss = problem()
    opt = XGrad(AdamW(params, 0.05))
    opt.eval()
    opt.train()
    go(opt, params, loss, torch.randn(5, 5))
    predicted = [p.detach().clone() for p in params]
    opt.eval()
    opt.eval()
    own = [p.detach().clone() for p in params]
    assert not any(map(torch.equal, predicted, own))
    with pytest.raises(RuntimeError, match=r"call train\(\)"):
        opt.step()
    saved = opt.state_dict()["XGrad"]["memory"]
    assert all(torch.equal(saved[i]["weights"], w) for i, w in enumerate(own))
    for p in params:
        p.data.zero_()  # whatever is done to them there
    opt.train()
    opt.train()
    assert all(map(torch.equal, params, predicted))


@pytest.mark.parametrize("base", ["Half", "torch.AdamW"])
def test_checkpoints_resume_bit_exactly_around_a_filter(base):
    noises = torch.randn(20, 5)
    params, loss = problem()
    opt = XGrad(BASES[base](params), lookahead=2.0)
    go(opt, params, loss, noises[:10])
    file = io.BytesIO()
    torch.save({"params": [p.data for p in params], "opt": opt.state_dict()}, file)
    go(opt, params, loss, noises[10:])
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    others, same = problem()
    for p, value in zip(others, saved["params"], strict=True):
        p.data.copy_(value)
    resumed = XGrad(BASES[base](others))
    resumed.load_state_dict(saved["opt"])
    assert resumed.lookahead == 2.0
    go(resumed, others, same, noises[10:])
    assert all(map(torch.equal, params, others))
    if base == "Half":
        assert resumed.optimizer.steps == 20
        assert all(
            torch.equal(opt.optimizer.memory[p]["sum"], resumed.optimizer.memory[q]["sum"])
            for p, q in zip(params, others, strict=True)
        )


def test_a_filter_may_stand_on_either_side():
    """A filter of gradients and a forecast of weights commute."""
    noises, ends = torch.randn(20, 5), []
    for make in (lambda ps: XGrad(Half(AdamW(ps))), lambda ps: Half(XGrad(AdamW(ps)))):
        params, loss = problem()
        go(make(params), params, loss, noises)
        ends.append(torch.cat([p.detach() for p in params]))
    assert torch.equal(*ends)


def test_a_step_that_raises_changes_nothing():
    params, loss = problem()
    opt = XGrad(AdamW(params, 0.05, nonfinite="raise"))
    go(opt, params, loss, torch.randn(3, 5))
    twins, other = copy.deepcopy((params, opt))
    params[1].grad[0] = torch.nan
    with pytest.raises(RuntimeError, match="NaN"):
        opt.step()
    assert all(map(torch.equal, params, twins))
    opt.eval()
    other.eval()
    assert all(map(torch.equal, params, twins))
    with pytest.raises(ValueError, match=r"lookahead=-1"):
        XGrad(AdamW(params), lookahead=-1)


def test_a_closure_is_called_at_the_predicted_weights():
    p = torch.nn.Parameter(torch.ones(1))
    opt = XGrad(torch.optim.SGD([p], 0.1))
    seen = []

    def closure():
        seen.append(p.item())
        opt.zero_grad()
        loss = p.sum()
        loss.backward()
        return loss

    for _ in range(3):
        assert opt.step(closure).item() == pytest.approx(seen[-1])
    assert seen == pytest.approx([1.0, 0.8, 0.7])
