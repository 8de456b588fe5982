"""perpGrad: orthogonal, of the old length, tensor by tensor."""

import copy

import pytest
import torch

from steepest.optim import SGDW, AdamW, PerpGrad

F64 = torch.float64


def draw(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def cosine(a, b):
    a, b = a.double().flatten(), b.double().flatten()
    return (a @ b / (a.norm() * b.norm())).abs().item()


def perpendicular(weights, grads):
    opt = PerpGrad(torch.optim.SGD([torch.nn.Parameter(w) for w in weights]))
    return opt.filter(weights, grads, [{} for _ in weights])[0]


def test_against_a_transcription():
    """The authors' arithmetic, a tensor at a time, in float64."""
    weights = [draw(5, 3), draw(7, seed=1), draw(2, 2, 2, seed=2)]
    grads = [draw(*w.shape, seed=9 + i) for i, w in enumerate(weights)]
    for w, g, ours in zip(weights, grads, perpendicular(weights, grads), strict=True):
        left = g - (w * g).sum() / ((w * w).sum() + 1e-30) * w
        expected = left * (g.norm() / (left.norm() + 1e-30))
        assert torch.allclose(ours, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tilt", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_orthogonal_and_as_long_even_where_nearly_parallel(dtype, tilt):
    """Scaled logits make gradients that are almost along the weights."""
    w = draw(60, 50, dtype=dtype)
    g = -3 * w + tilt * draw(60, 50, seed=1, dtype=dtype)
    (ours,) = perpendicular([w], [g])
    assert cosine(w, ours) < 1e-7
    assert (ours.norm() / g.norm()).item() == pytest.approx(1.0, abs=1e-5)


def test_a_step_keeps_norms_to_first_order():
    """|w - lr g|^2 = |w|^2 + lr^2 |g|^2, for each tensor by itself."""
    params = [torch.nn.Parameter(draw(n, seed=n)) for n in (4, 9)]
    before = [p.detach().clone() for p in params]
    opt = PerpGrad(torch.optim.SGD(params, lr=0.1))
    for p in params:
        p.grad = draw(*p.shape, seed=5) + p.detach()
    opt.step()
    for p, old in zip(params, before, strict=True):
        expected = old.square().sum() + 0.01 * p.grad.square().sum()
        assert p.detach().square().sum().item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_parallel_becomes_zero_and_not_amplified_rounding(dtype):
    """A scalar's gradient always is; so is that of a loss that sees only the norm."""
    scalar, vector = torch.tensor([3.0], dtype=dtype), draw(100, seed=3, dtype=dtype)
    p, q = torch.nn.Parameter(scalar.clone()), torch.nn.Parameter(vector.clone())
    opt = PerpGrad(torch.optim.SGD([p, q], lr=1.0))
    p.grad, q.grad = torch.tensor([0.1], dtype=dtype), 0.5 * vector
    opt.step()
    assert torch.equal(p, scalar) and torch.equal(q, vector)


def test_zero_weights_and_zero_gradients():
    """A bias that starts at zero learns as ever; a zero gradient stays one."""
    p, q = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.ones(3))
    opt = PerpGrad(torch.optim.SGD([p, q], lr=1.0))
    p.grad, q.grad = torch.tensor([1.0, 2.0, 2.0]), torch.zeros(3)
    opt.step()
    assert torch.allclose(p, -p.grad) and torch.equal(q, torch.ones(3))


@pytest.mark.parametrize("base", [SGDW, AdamW])
def test_where_gradients_are_orthogonal_it_is_its_optimizer(base):
    """A network that ends in a normalization sees no length: what is left is rounding."""
    torch.manual_seed(0)
    net = torch.nn.Linear(6, 4, bias=False).double()
    twin, start = copy.deepcopy(net), net.weight.detach().clone()
    opt, plain = (
        PerpGrad(base(net.parameters(), lr=0.01, weight_decay=0.0)),
        base(twin.parameters(), lr=0.01, weight_decay=0.0),
    )
    for x in draw(20, 1, 6, seed=4):
        for each, its in ((net, opt), (twin, plain)):
            its.zero_grad()
            w = each.weight / each.weight.norm()
            (x @ w.T).cos().sum().backward()
            its.step()
    assert torch.allclose(net.weight, twin.weight, rtol=1e-9, atol=1e-12)
    assert not torch.equal(net.weight, start)


def test_complex_parameters_are_pairs_of_real_numbers():
    p = torch.nn.Parameter(torch.tensor([2.0j]))
    opt = PerpGrad(torch.optim.SGD([p], lr=1.0))
    p.grad = torch.tensor([3.0 + 4.0j])
    opt.step()
    assert torch.allclose(p.detach(), torch.tensor([-5.0 + 2.0j]))


def test_a_scaled_network_is_the_same_classifier_and_perpgrad_does_not_scale_it():
    """Right everywhere, SGD grows the weights along themselves; perpGrad turns them."""
    torch.manual_seed(0)
    x = torch.randn(100, 5, dtype=F64)
    y = (x[:, 0] > 0).long()
    growth = {}
    for name in ("SGD", "PerpGrad"):
        w = torch.nn.Parameter(torch.zeros(2, 5, dtype=F64))
        with torch.no_grad():
            w[1, 0], w[0, 0] = 5.0, -5.0
        opt = torch.optim.SGD([w], lr=1.0)
        opt = PerpGrad(opt) if name == "PerpGrad" else opt
        start = w.detach().norm().item()
        for _ in range(200):
            opt.zero_grad()
            torch.nn.functional.cross_entropy(x @ w.T, y).backward()
            opt.step()
        growth[name] = w.detach().norm().item() / start
    assert growth["SGD"] > 1.05 and growth["PerpGrad"] < 1 + 0.25 * (growth["SGD"] - 1)
