"""LAWN: geometry of the constrained step, its phases, and logits that stay bounded."""

import copy
import io

import pytest
import torch

from steepest.optim import LAWN, SGDW, Adam, AdamW

F64 = torch.float64


def problem(seed=0):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    return model.double(), torch.randn(20, 16, 4, dtype=F64), torch.randint(0, 3, (20, 16))


def train(model, opt, x, y):
    for a, b in zip(x, y, strict=True):
        opt.zero_grad()
        torch.nn.functional.cross_entropy(model(a), b).backward()
        opt.step()


def test_norms_stay_and_biases_are_free():
    model, x, y = problem()
    opt = LAWN(AdamW(model.parameters(), lr=0.05), free_steps=5)
    train(model, opt, x[:5], y[:5])
    norms = [model[i].weight.norm().item() for i in (0, 2)]
    bias = model[2].bias.detach().clone()
    train(model, opt, x[5:], y[5:])
    assert [model[i].weight.norm().item() for i in (0, 2)] == pytest.approx(norms, rel=1e-12)
    assert not torch.allclose(model[2].bias, bias, rtol=0.1)


def test_before_the_switch_it_is_its_optimizer():
    model, x, y = problem()
    twin = copy.deepcopy(model)
    train(model, LAWN(AdamW(model.parameters(), lr=0.05), free_steps=20), x, y)
    train(twin, AdamW(twin.parameters(), lr=0.05), x, y)
    assert all(map(torch.equal, model.parameters(), twin.parameters()))


def test_against_a_transcription_with_momentum():
    """Gradient and step projected, the norm put back; momentum is of projected gradients."""
    rng = torch.Generator().manual_seed(0)
    w = torch.nn.Parameter(torch.randn(3, 4, generator=rng, dtype=F64))
    opt = LAWN(torch.optim.SGD([w], lr=0.1, momentum=0.9))
    x, norm = w.detach().clone(), w.detach().norm()
    m = torch.zeros_like(x)
    for _ in range(30):
        g = torch.randn(3, 4, generator=rng, dtype=F64)
        w.grad = g.clone()
        opt.step()
        m = 0.9 * m + g - (g * x).sum() / norm**2 * x
        d = -0.1 * m
        x = x + d - (d * x).sum() / norm**2 * x
        x = x * norm / x.norm()
    assert torch.allclose(w, x, rtol=0, atol=1e-12)


def test_decay_of_constrained_weights_has_no_effect():
    ends = []
    for decay in (0.0, 0.5):
        model, x, y = problem()
        for layer in (model[0], model[2]):
            layer.bias.requires_grad_(False)
        train(model, LAWN(SGDW(model.parameters(), lr=0.1, weight_decay=decay)), x, y)
        ends.append(model[0].weight.detach())
    assert torch.allclose(*ends, rtol=0, atol=1e-12)


def test_the_state_is_cleared_and_the_rate_warms_up_at_the_switch():
    w = torch.nn.Parameter(torch.tensor([[2.0, 0.0]], dtype=F64))
    opt = LAWN(Adam([w], lr=1e-3), free_steps=3, warmup=4)
    for _ in range(3):
        w.grad = torch.tensor([[0.0, 1.0]], dtype=F64)
        opt.step()
    assert opt.state[w]["step"] == 3
    angles = []
    for _ in range(5):
        before = w.detach().clone()
        w.grad = torch.tensor([[0.0, 1.0]], dtype=F64)
        opt.step()
        angles.append((w - before).norm().item())
    assert opt.state[w]["step"] == 5 and opt.param_groups[0]["lr"] == 1e-3
    assert [a / angles[3] for a in angles[:4]] == pytest.approx([0.25, 0.5, 0.75, 1], abs=1e-3)


def test_logits_stay_bounded_and_gradients_alive():
    """On separable data Adam's logits grow and its gradients vanish; under LAWN neither."""
    torch.manual_seed(0)
    x = torch.randn(64, 4, dtype=F64)
    y = (x[:, 0] > 0).long()
    found = {}
    for name in ("Adam", "LAWN"):
        torch.manual_seed(1)
        model = torch.nn.Sequential(
            torch.nn.Linear(4, 16, bias=False), torch.nn.ReLU(), torch.nn.Linear(16, 2, bias=False)
        ).double()
        opt = Adam(model.parameters(), lr=0.01)
        opt = LAWN(opt, free_steps=20) if name == "LAWN" else opt
        train(model, opt, x.expand(1500, -1, -1), y.expand(1500, -1))
        torch.nn.functional.cross_entropy(model(x), y).backward()
        size = sum(p.grad.square().sum() for p in model.parameters()).sqrt()
        found[name] = (model(x).abs().max(), size)
    assert found["LAWN"][0] < 0.3 * found["Adam"][0]
    assert found["LAWN"][1] > 10 * found["Adam"][1]


def test_resume_across_the_switch_is_bit_exact():
    model, x, y = problem()
    opt = LAWN(AdamW(model.parameters(), lr=0.05), free_steps=4, warmup=8)
    train(model, opt, x[:7], y[:7])
    buffer = io.BytesIO()
    torch.save((model.state_dict(), opt.state_dict()), buffer)
    train(model, opt, x[7:], y[7:])
    buffer.seek(0)
    weights, state = torch.load(buffer, weights_only=True)
    resumed, _, _ = problem(seed=5)
    resumed.load_state_dict(weights)
    other = LAWN(AdamW(resumed.parameters()), free_steps=4, warmup=8)
    other.load_state_dict(state)
    train(resumed, other, x[7:], y[7:])
    assert all(map(torch.equal, model.parameters(), resumed.parameters()))


def test_bad_calls_change_nothing():
    model, x, y = problem()
    opt = LAWN(AdamW(model.parameters(), lr=0.05), free_steps=1)
    train(model, opt, x[:1], y[:1])
    before = copy.deepcopy((list(model.parameters()), opt.state_dict()))
    torch.nn.functional.cross_entropy(model(x[1]), y[1]).backward()
    opt.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr=-1"):
        opt.step()  # the step of the switch
    opt.param_groups[0]["lr"] = 0.05
    assert all(map(torch.equal, model.parameters(), before[0]))
    assert str(opt.state_dict()) == str(before[1])
    with pytest.raises(ValueError, match="not among the optimizer's parameters"):
        LAWN(AdamW(model.parameters()), layers=[torch.ones(2, 2)])
    with pytest.raises(ValueError, match="LAWN: warmup=-1"):
        LAWN(AdamW(model.parameters()), warmup=-1)
