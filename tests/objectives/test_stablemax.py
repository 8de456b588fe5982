"""StableMax against its definition, in numbers and in what it does where softmax rounds to 0."""

import pytest
import torch
from torch.nn import functional as F

from steepest.objectives import stablemax_cross_entropy
from steepest.objectives._stablemax import log_stable
from steepest.optim import AdamW, PerpGrad

F64 = torch.float64


def definition(x, y):
    """The paper's formulas as they stand, in float64."""
    x = x.double()
    s = torch.tensor(
        [[v + 1 if v >= 0 else 1 / (1 - v) for v in row] for row in x.tolist()], dtype=F64
    )
    return -(s / s.sum(1, keepdim=True)).log().gather(1, y[:, None]).squeeze(1)


def test_s_on_both_sides_of_zero():
    x = torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0], dtype=F64, requires_grad=True)
    s = log_stable(x).exp()
    assert torch.allclose(s, torch.tensor([0.1, 0.5, 1.0, 2.0, 10.0], dtype=F64))
    (slope,) = torch.autograd.grad(s.sum(), x)
    assert torch.allclose(slope, torch.tensor([0.01, 0.25, 1.0, 1.0, 1.0], dtype=F64))


@pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float32, 1e-5), (F64, 1e-12), (torch.bfloat16, 1e-5)]
)
@pytest.mark.parametrize("scale", [0.1, 1.0, 100.0])
def test_against_the_definition(dtype, rtol, scale):
    torch.manual_seed(0)
    x, y = (scale * torch.randn(40, 7, dtype=F64)).to(dtype), torch.randint(7, (40,))
    expected = definition(x, y)
    got = {r: stablemax_cross_entropy(x, y, reduction=r).double() for r in ("none", "mean", "sum")}
    assert torch.allclose(got["none"], expected, rtol=rtol)
    assert torch.allclose(got["mean"], expected.mean(), rtol=rtol)
    assert torch.allclose(got["sum"], expected.sum(), rtol=rtol)


def test_its_gradient_is_right():
    torch.manual_seed(0)
    x = (3 * torch.randn(5, 4, dtype=F64)).requires_grad_()
    y = torch.randint(4, (5,))
    assert torch.autograd.gradcheck(lambda x: stablemax_cross_entropy(x, y), (x,))
    zero = torch.zeros(2, 3, dtype=F64, requires_grad=True)
    stablemax_cross_entropy(zero, torch.tensor([0, 2])).backward()
    expected = (torch.full((2, 3), 1 / 3) - F.one_hot(torch.tensor([0, 2]), 3)) / 2
    assert torch.allclose(zero.grad, expected.double(), atol=1e-7)  # s has slope 1 at 0


@pytest.mark.parametrize("margin", [20.0, 60.0, 110.0, 1e4])
def test_softmax_collapses_and_stablemax_does_not(margin):
    """Float32 logits with the right one ahead by a margin: loss and gradients, against float64."""
    logits = torch.tensor([[margin / 2, -margin / 2, -margin / 2]])
    y = torch.tensor([0])
    grads = {}
    for name, loss in (("softmax", F.cross_entropy), ("stablemax", stablemax_cross_entropy)):
        x = logits.clone().requires_grad_()
        value = loss(x, y)
        value.backward()
        grads[name] = value.item(), x.grad[0]
    assert grads["softmax"][0] == 0.0 and grads["softmax"][1][0] == 0.0
    if margin > 104:
        assert (grads["softmax"][1] == 0.0).all()
    exact = logits.double().requires_grad_()
    value = stablemax_cross_entropy(exact, y)
    value.backward()
    assert grads["stablemax"][0] == pytest.approx(value.item(), rel=1e-5) and value.item() > 0
    assert torch.allclose(grads["stablemax"][1].double(), exact.grad[0], rtol=1e-5, atol=0.0)
    assert (grads["stablemax"][1] != 0).all()


def test_it_survives_the_largest_logits():
    x = torch.tensor([[3e38, -3e38], [-3e38, 3e38]], requires_grad=True)
    losses = stablemax_cross_entropy(x, torch.tensor([0, 0]), reduction="none")
    losses.sum().backward()
    assert torch.isfinite(losses).all() and torch.isfinite(x.grad).all()
    assert losses[1].item() == pytest.approx(
        2 * torch.tensor(3e38, dtype=F64).log().item(), rel=1e-5
    )


def test_ignored_samples_and_leading_dimensions():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, dtype=F64, requires_grad=True)
    y = torch.tensor([[0, 4, -100], [2, -100, 1]])
    got = stablemax_cross_entropy(x, y)
    kept = y != -100
    assert torch.allclose(got, definition(x.detach()[kept], y[kept]).mean())
    got.backward()
    assert (x.grad[~kept] == 0).all() and (x.grad[kept] != 0).all()


def test_one_class_is_certain():
    x = torch.zeros(2, 1, requires_grad=True)
    loss = stablemax_cross_entropy(x, torch.tensor([0, 0]))
    loss.backward()
    assert loss.item() == 0 and (x.grad == 0).all()


def grok(loss, wrap=lambda opt: opt, p=23, width=256, steps=1000):
    """Addition modulo p: test accuracy, and the share of training losses that are exactly 0."""
    a, b = torch.arange(p).repeat_interleave(p), torch.arange(p).repeat(p)
    order = torch.randperm(p * p, generator=torch.Generator().manual_seed(0))
    x = torch.cat([F.one_hot(a, p), F.one_hot(b, p)], 1).float()[order]
    y = ((a + b) % p)[order]
    n = int(0.8 * p * p)
    torch.manual_seed(0)
    w1 = torch.nn.Parameter(torch.randn(2 * p, width) / (2 * p) ** 0.5)
    w2 = torch.nn.Parameter(torch.randn(width, p) / width**0.5)
    opt = wrap(AdamW([w1, w2], lr=0.01, betas=(0.9, 0.98), weight_decay=0.0))
    for _ in range(steps):
        opt.zero_grad()
        logits = 5 * (x @ w1).square() @ w2
        loss(logits[:n], y[:n]).backward()
        opt.step()
    right = (logits.argmax(1) == y).float()
    collapsed = F.cross_entropy(logits[:n], y[:n], reduction="none") == 0
    return right[:n].mean().item(), right[n:].mean().item(), collapsed.float().mean().item()


def test_the_papers_claim():
    """Without decay cross-entropy collapses and never generalizes; the two repairs do."""
    train, test, collapsed = grok(F.cross_entropy)
    assert train == 1.0 and test < 0.3 and collapsed > 0.95
    assert grok(F.cross_entropy, PerpGrad, steps=200)[1] > 0.9
    assert grok(stablemax_cross_entropy)[1] > 0.9


def test_bad_arguments():
    x, y = torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match=r"need targets of shape \(4,\), not \(3,\)"):
        stablemax_cross_entropy(x, y[:3])
    with pytest.raises(ValueError, match="choose mean, sum or none"):
        stablemax_cross_entropy(x, y, reduction="median")
    with pytest.raises(TypeError, match=r"integers, not torch\.float32"):
        stablemax_cross_entropy(x, y.float())
