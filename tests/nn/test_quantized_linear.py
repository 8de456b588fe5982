"""Integers of 4 and 8 bits: what they stand for, what they weigh, and how their scales train."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from steepest.nn import QuantizedLinear, quantize
from steepest.optim import MeZO


def linear(n=70, m=5, seed=0, **options):
    torch.manual_seed(seed)
    return nn.Linear(n, m, **options).double()


def naive(weight, bits, group):
    """Round each group to integers of its own largest element, in plain Python."""
    top = 2 ** (bits - 1) - 1
    rows = []
    for row in weight.tolist():
        out = []
        for at in range(0, len(row), group):
            part = row[at : at + group]
            s = max(map(abs, part)) / top
            out += [s * round(w / s) if s else 0.0 for w in part]
        rows.append(out)
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("n", "group"), [(64, 32), (70, 32), (7, 3), (5, 100), (1, 1)])
def test_weights_are_the_formulas(bits, n, group):
    given = linear(n)
    given.weight.data[0] = 0  # a group of zeros
    layer = QuantizedLinear.of(given, bits, group)
    expected = naive(given.weight.detach(), bits, group)
    assert torch.allclose(layer.weight, expected, rtol=1e-12, atol=0)
    x = torch.randn(3, 2, n, dtype=torch.float64)
    assert torch.allclose(layer(x), x @ expected.T + given.bias)
    error = (layer.weight - given.weight).abs()
    half = layer.scale.repeat_interleave(group, 1)[:, :n] / 2
    assert (error <= half * (1 + 1e-9)).all()


def test_codes_take_half_a_byte_or_one():
    given = nn.Linear(256, 100)
    four, eight = (QuantizedLinear.of(given, bits, 32) for bits in (4, 8))
    assert four.codes.untyped_storage().nbytes() == 256 * 100 // 2
    assert eight.codes.untyped_storage().nbytes() == 256 * 100
    assert sum(p.numel() for p in four.parameters()) == 256 * 100 // 32
    saved = sum(t.numel() * t.element_size() for t in four.state_dict().values())
    assert saved < 0.7 * 256 * 100  # 0.5 for codes, 4/32 for scales, and the bias


def test_every_code_packs_and_unpacks():
    given = nn.Linear(15, 1, bias=False)
    given.weight.data = torch.arange(-7.0, 8.0).view(1, -1)
    assert QuantizedLinear.of(given, 4, 15).integers.tolist() == [list(range(-7, 8))]


def test_the_derivative_by_a_scale_is_that_of_its_group():
    layer = QuantizedLinear.of(linear(), 4, 32)
    x = torch.randn(4, 70, dtype=torch.float64)
    layer(x).sum().backward()
    by_hand = (layer.integers * x.sum(0)).double()
    parts = torch.stack([part.sum(1) for part in by_hand.split(32, 1)], 1)
    assert torch.allclose(layer.scale.grad, parts)


def test_a_step_of_qzo_by_hand():
    """Only scales move, along z, by the derivative cut to the bound."""
    layer = QuantizedLinear.of(linear(), 8, 32)
    codes, start = layer.codes.clone(), layer.scale.detach().clone()
    slope = torch.randn_like(start)
    for clip in (None, 0.25, 1e9):
        layer.scale.data.copy_(start)
        opt = MeZO(layer.parameters(), lr=0.01, clip=clip)
        f = opt.objective(lambda: (slope * layer.scale).sum())
        z = opt.estimator.combine(f, opt.draw(), {0: 1.0})[0]
        d = (slope * z).sum().item()
        assert abs(d) > 0.25
        opt.step(f)
        cut = d if clip is None else math.copysign(min(abs(d), clip), d)
        assert torch.allclose(layer.scale, start - 0.01 * cut * z, rtol=0, atol=1e-9)
        assert torch.equal(layer.codes, codes)


def test_each_derivative_is_cut_before_the_mean():
    p = nn.Parameter(torch.zeros(20, dtype=torch.float64))
    slope = torch.randn(20, dtype=torch.float64)
    free, cut = (MeZO([p], samples=8, clip=clip) for clip in (None, 1.0))
    f = free.objective(lambda: (slope * p).sum())
    whole = torch.tensor([*free.query(f).rest.weights.values()]) * 8
    parts = torch.tensor([*cut.query(f).rest.weights.values()]) * 8
    assert torch.allclose(parts, whole.clamp(-1, 1))
    assert (whole.abs() > 1).any() and (whole.abs() < 1).any()


def test_a_loss_that_is_not_finite_is_refused_and_not_cut():
    p = nn.Parameter(torch.ones(3))
    opt = MeZO([p], clip=1.0)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(RuntimeError, match="NaN or infinite"):
            opt.step(lambda bad=bad: p.sum() * bad)
        assert torch.allclose(p, torch.ones(3), rtol=0, atol=1e-6)


def test_a_bad_bound():
    for bad in (0.0, -1.0, float("nan"), "no"):
        with pytest.raises(ValueError, match="number > 0, or None"):
            MeZO([nn.Parameter(torch.ones(2))], clip=bad)


def test_a_copy_has_the_bound():
    opt = copy.deepcopy(MeZO([nn.Parameter(torch.ones(2))], clip=3.0))
    assert opt.clip == 3.0


def tuned(clip, steps=200):
    """Loss of a quantized layer before, and after training with outliers in 5 % of losses."""
    torch.manual_seed(0)
    x = torch.randn(64, 32)
    target = F.linear(x, torch.randn(8, 32) / 6)
    layer = quantize(nn.Linear(32, 8), bits=4, group=16)
    codes = layer.codes.clone()

    def loss():
        return F.mse_loss(layer(x), target)

    opt = MeZO(layer.parameters(), lr=2e-3, clip=clip)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        before = loss().item()
        for _ in range(steps):
            shock = 1e3 if torch.rand((), generator=rng) < 0.05 else 1.0
            opt.step(lambda shock=shock: shock * loss())
        assert torch.equal(layer.codes, codes)
        return before, loss().item()


def test_outliers_ruin_a_run_that_is_not_clipped():
    before, clipped = tuned(1.0)
    assert clipped < 0.9 * before
    _, free = tuned(None)
    assert not free < 1.5 * clipped


def test_quantize_replaces_linear_layers_and_leaves_scales_to_train():
    shared = nn.Linear(8, 8)
    model = nn.ModuleDict(
        {"a": shared, "b": shared, "norm": nn.LayerNorm(8), "deep": nn.Sequential(nn.Linear(8, 3))}
    ).eval()
    assert quantize(model, keep=["norm"]) is model
    assert model["a"] is model["b"] and not model["a"].training
    kinds = {name: type(m).__name__ for name, m in model.named_modules()}
    assert kinds["a"] == kinds["deep.0"] == "QuantizedLinear" and kinds["norm"] == "LayerNorm"
    left = {name for name, p in model.named_parameters() if p.requires_grad}
    assert left == {"a.scale", "deep.0.scale"}
    again = quantize(model, keep=["norm"])
    assert again["a"] is model["a"]


class Odd(nn.Linear):
    pass


@pytest.mark.parametrize(
    ("last", "options", "error", "message"),
    [
        (nn.Conv1d(4, 4, 1), {}, TypeError, r"1 is a Conv1d.*keep=\['1'\]"),
        (Odd(4, 4), {}, TypeError, "1 is a Odd"),
        (nn.MultiheadAttention(4, 2), {}, TypeError, "MultiheadAttention"),
        (nn.Linear(4, 4), {"bits": 3}, ValueError, "4 or 8"),
        (nn.Linear(4, 4), {"group": 0}, ValueError, "whole number >= 1"),
        (nn.Linear(4, 4), {"keep": ["nobody"]}, ValueError, "does not have"),
    ],
)
def test_errors_change_nothing(last, options, error, message):
    model = nn.Sequential(nn.Linear(4, 4), last)
    before = list(model.modules())
    with pytest.raises(error, match=message):
        quantize(model, **options)
    assert all(a is b for a, b in zip(before, model.modules(), strict=True))
    assert all(p.requires_grad for p in model.parameters())


def test_tied_and_infinite_weights_are_refused():
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match="shares its weight"):
        quantize(tied)
    bad = nn.Linear(2, 2)
    bad.weight.data[0, 0] = float("inf")
    with pytest.raises(ValueError, match="NaN or infinite"):
        quantize(bad)


def test_checkpoints_load():
    one, two = (quantize(nn.Linear(9, 4), group=4) for _ in range(2))
    two.load_state_dict(one.state_dict())
    x = torch.randn(2, 9)
    assert torch.equal(one(x), two(x))
