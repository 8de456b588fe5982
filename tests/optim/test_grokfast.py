"""Grokfast against a transcription of the paper's code, and its transfer function."""

import copy
import io
import math
import subprocess
import sys
from collections import deque

import pytest
import torch
from torch.utils._pytree import tree_leaves

from steepest.optim import SGDW, Adam, AdamW, Grokfast, PerpGrad

F64 = torch.float64


def stream(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def passed(make, signal, dtype=F64):
    """What a filter makes of a gradient signal (steps, n): SGD at lr 1 moves by minus it."""
    p = torch.nn.Parameter(torch.zeros(signal.shape[1], dtype=dtype))
    opt, seen = make(torch.optim.SGD([p], lr=1.0)), []
    for g in signal:
        with torch.no_grad():
            p.zero_()
        p.grad = g.to(dtype)
        opt.step()
        assert torch.equal(p.grad, g.to(dtype))  # is as it was
        seen.append(-p.detach().clone())
    return torch.stack(seen)


def test_ema_against_a_transcription():
    """The mean starts at the first gradient, not at zero, and holds the present one."""
    signal, mean, expected = stream(50, 4), None, []
    for g in signal:
        mean = g if mean is None else 0.9 * mean + 0.1 * g
        expected.append(g + 3.0 * mean)
    ours = passed(lambda opt: Grokfast(opt, lamb=3.0, beta=0.9), signal)
    assert torch.allclose(ours, torch.stack(expected), rtol=1e-12, atol=1e-12)
    assert torch.equal(ours[0], 4.0 * signal[0])


def test_ma_against_a_transcription():
    """Before the window is full gradients pass as they are; then the mean holds the present one."""
    signal, queue, expected = stream(50, 4), deque(maxlen=7), []
    for g in signal:
        queue.append(g)
        expected.append(g + 3.0 * sum(queue) / 7 if len(queue) == 7 else g)
    ours = passed(lambda opt: Grokfast(opt, kind="ma", lamb=3.0, window=7), signal)
    assert torch.allclose(ours, torch.stack(expected), rtol=1e-12, atol=1e-12)
    assert torch.equal(ours[:6], signal[:6]) and not torch.equal(ours[6], signal[6])


def gain(make, frequency, periods):
    """Amplitude of the response to a sinusoid over that of the sinusoid, once it is steady."""
    steps = 4000
    t = torch.arange(steps, dtype=F64)
    response = passed(make, torch.cos(frequency * t)[:, None])[:, 0]
    last = round(periods * 2 * math.pi / frequency) if frequency else 500
    wave = torch.exp(-1j * frequency * t)[-last:]
    norm = last if frequency in (0.0, math.pi) else last / 2
    return abs((response[-last:] * wave).sum().item()) / norm


@pytest.mark.parametrize("numerator", [0, 1, 2, 5, 10, 25, 50])
@pytest.mark.parametrize("kind", ["ema", "ma"])
def test_transfer_function_on_sinusoids(kind, numerator):
    """Whole periods in the last 1000 steps: the gain is the formula's, to a millionth."""
    w, lamb, beta, window = 2 * math.pi * numerator / 100, 2.0, 0.98, 30
    z = complex(math.cos(w), -math.sin(w))
    if kind == "ema":
        mean = (1 - beta) / (1 - beta * z)
    else:
        mean = sum(z**k for k in range(window)) / window
    measured = gain(
        lambda opt: Grokfast(opt, kind=kind, lamb=lamb, beta=beta, window=window),
        w,
        periods=10 * numerator,
    )
    assert measured == pytest.approx(abs(1 + lamb * mean), abs=1e-6)
    if numerator == 0:
        assert measured == pytest.approx(1 + lamb, abs=1e-6)
    if numerator == 50 and kind == "ema":
        assert measured == pytest.approx(1 + lamb * (1 - beta) / (1 + beta), abs=1e-6)
        assert measured < 1.03


def trained(make, dtype=torch.float32, steps=30):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
    model.to(dtype)
    opt = make(model.parameters())
    for g in stream(steps, 8, 4).to(dtype):
        opt.zero_grad()
        model(g).square().mean().backward()
        opt.step()
    return model, opt


def same(one, two):
    return all(map(torch.equal, one.parameters(), two.parameters()))


@pytest.mark.parametrize("base", [SGDW, AdamW])
@pytest.mark.parametrize("kind", ["ema", "ma"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_amplification_it_is_its_optimizer(base, kind, dtype):
    plain, _ = trained(lambda ps: base(ps, lr=0.01), dtype)
    ours, _ = trained(lambda ps: Grokfast(base(ps, lr=0.01), kind=kind, lamb=0.0, window=5), dtype)
    assert same(plain, ours)


def test_without_memory_it_is_a_longer_gradient():
    signal = stream(10, 3)
    ours = passed(lambda opt: Grokfast(opt, lamb=2.0, beta=0.0), signal)
    assert torch.allclose(ours, 3 * signal, rtol=1e-12)


def test_the_window_forgets_an_outlier():
    """One gradient of 1e10 leaves no rounding behind once it is out of the sum."""
    signal = torch.ones(40, 1, dtype=torch.float32)
    signal[10] = 1e10
    ours = passed(lambda opt: Grokfast(opt, kind="ma", lamb=1.0, window=5), signal, torch.float32)
    assert (ours[15:] - 2).abs().max() < 1e-5


def test_half_precision_gradients_have_a_float32_mean():
    """1 + 1/1000 is 1 in bfloat16: a mean kept there would stand still."""
    p = torch.nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    opt = Grokfast(torch.optim.SGD([p], lr=1.0), beta=0.999)
    for g in (1.0, *[2.0] * 100):
        p.grad = torch.full_like(p, g)
        opt.step()
    mean = opt.memory[p]["mean"]
    assert mean.dtype == torch.float32
    assert mean.item() == pytest.approx(2 - 0.999**100, rel=1e-4)


def test_a_late_parameter_fills_its_own_window():
    a, b = (torch.nn.Parameter(torch.zeros(1, dtype=F64)) for _ in range(2))
    opt = Grokfast(torch.optim.SGD([a, b], lr=1.0), kind="ma", lamb=1.0, window=3)
    for step in range(6):
        a.grad = torch.ones_like(a)
        b.grad = torch.ones_like(b) if step >= 2 else None
        opt.step()
    assert (a.item(), b.item()) == (-(2 + 4 * 2), -(2 + 2 * 2))


@pytest.mark.parametrize("kind", ["ema", "ma"])
def test_nested_filters_resume_bit_exactly(kind):
    """Grokfast around PerpGrad around AdamW: one checkpoint holds all three."""

    def make(params, **wrong):
        inner = PerpGrad(AdamW(params, lr=wrong.get("lr", 0.01), weight_decay=0.0))
        return Grokfast(inner, kind=kind, lamb=wrong.get("lamb", 3.0), beta=0.9, window=6)

    model, opt = trained(make)
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "opt": opt.state_dict()}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    twin = copy.deepcopy(model)
    twin.load_state_dict(saved["model"])
    other = make(twin.parameters(), lr=0.5, lamb=0.1)
    other.load_state_dict(saved["opt"])
    for g in stream(20, 8, 4, seed=1).float():
        for each, its in ((model, opt), (twin, other)):
            its.zero_grad()
            each(g).square().mean().backward()
            its.step()
    assert same(model, twin)
    assert (other.lamb, other.steps, other.optimizer.steps) == (3.0, 50, 50)


def test_a_checkpoint_of_another_order_is_refused_and_changes_nothing():
    def make(params, outer, inner):
        return outer(inner(AdamW(params, lr=0.01)))

    model, opt = trained(lambda params: make(params, Grokfast, PerpGrad))
    _, other = trained(lambda params: make(params, PerpGrad, Grokfast))
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match="PerpGrad around AdamW, and this one is around Grokfast"):
        other.load_state_dict(opt.state_dict())
    now = other.state_dict()
    assert all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(tree_leaves(before), tree_leaves(now), strict=True)
    )
    make(model.parameters(), Grokfast, PerpGrad).load_state_dict(opt.state_dict())


def test_a_checkpoint_with_one_wrapper_more_is_refused():
    _, opt = trained(lambda params: Grokfast(PerpGrad(AdamW(params))))
    model, inner = trained(lambda params: PerpGrad(AdamW(params)))
    bare = AdamW(model.parameters())
    for other, around in ((inner, "Grokfast around PerpGrad"), (bare, "PerpGrad around AdamW")):
        before = copy.deepcopy(other.state_dict())
        with pytest.raises(ValueError, match=f"{around}.*leave out its entry"):
            other.load_state_dict(opt.state_dict())
        assert str(other.state_dict()) == str(before)
    inner.load_state_dict({k: v for k, v in opt.state_dict().items() if k != "Grokfast"})


def test_around_xgrad_it_resumes_bit_exactly_in_a_new_process(tmp_path):
    """Grokfast around XGrad around AdamW, saved by one Python and continued by another."""
    script = """
import sys, torch
from steepest.optim import AdamW, Grokfast, XGrad

def run(path, start, stop, load=None):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    opt = Grokfast(XGrad(AdamW(model.parameters(), lr=0.01)), lamb=3.0, beta=0.9)
    if load:
        saved = torch.load(load, weights_only=True)
        model.load_state_dict(saved["model"])
        opt.load_state_dict(saved["opt"])
    rng = torch.Generator().manual_seed(1)
    data = torch.randn(20, 8, 4, generator=rng)
    for x in data[start:stop]:
        opt.zero_grad()
        (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
        opt.step()
    torch.save({"model": model.state_dict(), "opt": opt.state_dict()}, path)

folder, part = sys.argv[1:]
if part == "first":
    run(f"{folder}/whole.pt", 0, 20)
    run(f"{folder}/half.pt", 0, 10)
else:
    run(f"{folder}/rest.pt", 10, 20, load=f"{folder}/half.pt")
"""
    for part in ("first", "second"):
        subprocess.run([sys.executable, "-c", script, tmp_path, part], check=True)
    whole, rest, half = (
        torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("whole", "rest", "half")
    )
    leaves = [torch.as_tensor(v) for v in tree_leaves(whole) if not isinstance(v, str)]
    again = [torch.as_tensor(v) for v in tree_leaves(rest) if not isinstance(v, str)]
    assert len(leaves) == len(again) and all(map(torch.equal, leaves, again))
    assert not torch.equal(whole["model"]["0.weight"], half["model"]["0.weight"])
    assert {"Grokfast", "XGrad"} < set(half["opt"])


def test_nested_filters_are_their_composition():
    """The outer filter's output is the inner one's input."""
    p = torch.nn.Parameter(torch.tensor([0.0, 2.0], dtype=F64))
    opt = Grokfast(PerpGrad(torch.optim.SGD([p], lr=1.0)), lamb=1.0)
    p.grad = torch.tensor([3.0, 4.0], dtype=F64)
    opt.step()
    assert torch.allclose(p, torch.tensor([-10.0, 2.0], dtype=F64))


@pytest.mark.parametrize("kind", ["ema", "ma"])
def test_a_step_that_raises_leaves_the_memory(kind):
    model, opt = trained(lambda ps: Grokfast(AdamW(ps, lr=0.01), kind=kind, window=5))
    before = copy.deepcopy(opt.own_state())
    opt.param_groups[0]["lr"] = -1.0
    for p in model.parameters():
        p.grad = torch.full_like(p, 7.0)
    with pytest.raises(ValueError, match="lr"):
        opt.step()
    after = opt.own_state()
    assert after["steps"] == before["steps"] == 30
    for i, memory in before["memory"].items():
        assert memory.keys() == after["memory"][i].keys()
        assert all(torch.equal(value, after["memory"][i][key]) for key, value in memory.items())


def steps_to_a_tenth(make, steps=400):
    """Steps in which a two-scale quadratic, curvatures 1 and 1/100, falls to a tenth, else all."""
    curvature = torch.tensor([1.0, 0.01], dtype=F64)
    p = torch.nn.Parameter(torch.ones(2, dtype=F64))
    opt = make([p])
    for t in range(steps):
        p.grad = curvature * p.detach()
        opt.step()
        if p.detach().abs().max() < 0.1:
            return t
    return steps


def test_it_speeds_up_what_is_slow_where_a_larger_step_diverges():
    """At lr = 1 the slow coordinate takes 230 steps; 6 times the rate diverges in the fast one."""

    def sgd(lr):
        return lambda ps: torch.optim.SGD(ps, lr=lr)

    plain = steps_to_a_tenth(sgd(1.0))
    ours = steps_to_a_tenth(lambda ps: Grokfast(sgd(1.0)(ps), lamb=5.0, beta=0.9))
    assert 200 < plain < 240 and steps_to_a_tenth(sgd(6.0)) == 400
    assert ours < plain / 4


def test_under_adam_a_gain_at_all_frequencies_is_divided_out():
    """A constant gradient: with any amplification Adam makes the same steps."""
    paths = []
    for lamb in (0.0, 5.0):
        p = torch.nn.Parameter(torch.zeros(3, dtype=F64))
        opt = Grokfast(Adam([p], lr=0.1, eps=0.0), lamb=lamb)
        for _ in range(20):
            p.grad = torch.tensor([1.0, -2.0, 1e-3], dtype=F64)
            opt.step()
        paths.append(p.detach())
    assert torch.allclose(*paths, rtol=1e-9)


def test_bad_arguments():
    base = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    for bad in ({"lamb": -1.0}, {"beta": 1.0}, {"window": 0}, {"kind": "kalman"}):
        with pytest.raises(ValueError, match=f"Grokfast: {next(iter(bad))}="):
            Grokfast(base, **bad)


@pytest.mark.parametrize("kind", ["ema", "ma"])
def test_a_step_that_is_left_out_teaches_nothing(kind):
    """With a batch of NaN in the middle, the run is the run without that batch."""
    ends = []
    for batches in ([0, 1, None, 2, 3], [0, 1, 2, 3]):
        p = torch.nn.Parameter(torch.zeros(3, dtype=F64))
        opt = Grokfast(PerpGrad(AdamW([p], lr=0.1, nonfinite="skip")), kind=kind, window=2)
        for t in batches:
            p.grad = torch.full((3,), torch.nan, dtype=F64) if t is None else stream(4, 3)[t]
            opt.step()
        ends.append((p.detach().clone(), opt.steps, opt.optimizer.steps))
    assert torch.equal(ends[0][0], ends[1][0]) and ends[0][1:] == ends[1][1:] == (4, 4)
    assert ends[0][0].abs().min() > 0
