"""AdaHessian against a transcription, its exact case, and its averages."""

import math

import pytest
import torch

from steepest.kernels import noise, offsets, split_seed
from steepest.optim import AdaHessian
from steepest.oracles import Objective

F64 = torch.float64


def transcription(params, losses, lr, betas, eps, wd, power, seed):
    """The paper's algorithm, with the package's signs; convolutions average |D|."""
    beta1, beta2 = betas
    m, v = ([torch.zeros_like(p) for p in params] for _ in range(2))
    for t, loss in enumerate(losses, 1):
        grads = torch.autograd.grad(loss(), params, create_graph=True)
        stream = split_seed(split_seed(seed, t - 1), 0)
        z = [
            noise(stream, s, p.numel(), "rademacher").to(p).view_as(p)
            for s, p in zip(offsets(params), params, strict=True)
        ]
        hz = torch.autograd.grad(grads, params, z)
        for i, p in enumerate(params):
            d = (z[i] * hz[i]).abs()
            if p.ndim == 4:
                d = d.mean((2, 3), keepdim=True).expand_as(d)
            m[i] = beta1 * m[i] + (1 - beta1) * grads[i].detach()
            v[i] = beta2 * v[i] + (1 - beta2) * d.square()
            scale = (v[i] / (1 - beta2**t)).sqrt() ** power + eps
            p.data -= lr * (m[i] / (1 - beta1**t) / scale + wd * p.data)


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 3), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(12, 2)
    ).double()


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_against_a_transcription(power):
    model, twin = network(), network()
    x, y = torch.randn(20, 8, 1, 4, 4, dtype=F64), torch.randint(0, 2, (20, 8))
    losses = {
        net: [
            lambda net=net, a=a, b=b: torch.nn.functional.cross_entropy(net(a), b)
            for a, b in zip(x, y, strict=True)
        ]
        for net in (model, twin)
    }
    hyper = dict(lr=0.05, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1, power=power, seed=6)
    opt = AdaHessian(model.parameters(), **hyper)
    for loss in losses[model]:
        opt.step(loss)
    hyper["wd"] = hyper.pop("weight_decay")
    transcription(list(twin.parameters()), losses[twin], **hyper)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=0, atol=1e-9)


def test_the_first_two_steps_by_hand():
    """Loss 0.5 h x^2 at x = 1, h = 4, lr = 0.5, beta = (0.5, 0.5), eps = 0.

    Step 1: m/c1 = 4, sqrt(v/c2) = 4, x = 1 - 0.5 = 0.5. Step 2: g = 2, m = 0.5 * 2 + 0.5 * 2 = 2,
    c1 = 0.75, scale 4 again: x = 0.5 - 0.5 * (2 / 0.75) / 4 = 1/6.
    """
    p = torch.nn.Parameter(torch.ones(1, dtype=F64))
    opt = AdaHessian([p], lr=0.5, betas=(0.5, 0.5), eps=0.0)
    path = []
    for _ in range(2):
        opt.step(lambda: 2 * (p**2).sum())
        path.append(p.item())
    assert path == pytest.approx([0.5, 1 / 6], abs=1e-12)


def test_on_a_separable_quadratic_conditioning_is_gone():
    """Curvatures over six decades: every coordinate takes the same path, as with one curvature."""
    h = torch.logspace(-3, 3, 13, dtype=F64)
    p = torch.nn.Parameter(torch.ones(13, dtype=F64))
    opt = AdaHessian([p], lr=0.15, eps=0.0)
    for _ in range(200):
        opt.step(lambda: 0.5 * (h * p**2).sum())
    assert (p - p[0]).abs().max() < 1e-9
    descent = [(h * (1 - lr * h) ** 400).sum() for lr in torch.logspace(-6, 0, 200, dtype=F64)]
    assert (h * p**2).sum() < 1e-6 * min(descent)


def test_signs_make_the_diagonal_exact_and_gaussians_would_not():
    """After one step the state is the squared curvature, not twice it on average."""
    h = torch.tensor([0.1, 1.0, 10.0], dtype=F64)
    p = torch.nn.Parameter(torch.ones(3, dtype=F64))
    opt = AdaHessian([p], betas=(0.9, 0.99))
    opt.step(lambda: 0.5 * (h * p**2).sum())
    assert torch.allclose(opt.state[p]["exp_hessian_diag_sq"], 0.01 * h**2, rtol=1e-12)


def test_more_samples_divide_the_noise():
    """On a dense Hessian the spread of D falls as one over the root of the samples."""
    rng = torch.Generator().manual_seed(0)
    root = torch.randn(8, 8, generator=rng, dtype=F64)
    h = root @ root.T
    p = torch.nn.Parameter(torch.ones(8, dtype=F64))
    spread = []
    for samples in (1, 9):
        opt = AdaHessian([p], samples=samples)
        objective = Objective(lambda: 0.5 * p @ h @ p, [p])
        draws = []
        for t in range(250):
            opt.steps = t
            draws.append(opt.query(objective).rest[0])
        spread.append(torch.stack(draws).std(0).mean())
        assert objective.counts["hvp"] == 250 * samples
    assert abs(spread[0] / spread[1] / math.sqrt(9) - 1) < 0.2


def test_windows_are_averaged_unless_told_otherwise():
    p = torch.nn.Parameter(torch.ones(1, 1, 2, 2, dtype=F64))
    h = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=F64)
    states = {}
    for average in (True, False):
        opt = AdaHessian([p], lr=0.0, average=average, betas=(0.9, 0.0))
        opt.step(lambda: 0.5 * (h * p**2).sum())
        states[average] = opt.state[p]["exp_hessian_diag_sq"].flatten().tolist()
    assert states[True] == pytest.approx([6.25] * 4)
    assert states[False] == pytest.approx([1, 4, 9, 16])


def test_negative_curvature_counts_by_its_size():
    """Uphill in curvature, downhill in slope: at a saddle it leaves along the slope."""
    p = torch.nn.Parameter(torch.tensor([0.1, 0.1], dtype=F64))
    opt = AdaHessian([p], lr=0.1, eps=0.0)
    for _ in range(20):
        opt.step(lambda: 0.5 * (p[0] ** 2 - p[1] ** 2))
    assert abs(p[0]) < 0.1 < p[1]


def test_curvature_that_is_not_finite_is_seen():
    p = torch.nn.Parameter(torch.zeros(2, dtype=F64))
    for nonfinite in ("raise", "skip"):
        opt = AdaHessian([p], nonfinite=nonfinite)
        if nonfinite == "raise":
            with pytest.raises(RuntimeError, match="curvature has NaN"):
                opt.step(lambda: (p.abs() ** 1.5).sum())
        else:
            opt.step(lambda: (p.abs() ** 1.5).sum())
        assert (p == 0).all() and not opt.state
    z = torch.nn.Parameter(torch.ones(2, dtype=torch.complex128))
    with pytest.raises(TypeError, match="a parameter is complex"):
        AdaHessian([z]).step(lambda: (z.abs() ** 2).sum())


def test_bad_arguments():
    p = torch.nn.Parameter(torch.ones(1))
    for bad, message in (
        ({"power": 0.0}, "power=0"),
        ({"power": 1.5}, "power=1.5"),
        ({"samples": 0}, "samples=0"),
        ({"betas": (1.0, 0.9)}, "betas="),
    ):
        with pytest.raises(ValueError, match=f"AdaHessian: {message}"):
            AdaHessian([p], **bad)
