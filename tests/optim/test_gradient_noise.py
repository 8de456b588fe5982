"""Gradient noise: its moments, its schedule, and that a resumed run draws the same."""

import io

import pytest
import torch

from steepest.kernels import noise, split_seed
from steepest.optim import SGDW, AdamW, ClipNorm, GradientNoise


def drawn(opt, p):
    """The noise of a step: SGD at lr 1 with a zero gradient moves by minus it."""
    with torch.no_grad():
        p.zero_()
    p.grad = torch.zeros_like(p)
    opt.step()
    return -p.detach().clone()


def test_it_is_the_noise_of_seed_step_and_element():
    """Worked out from the generator: the seed of each step, one place for each element."""
    params = [torch.nn.Parameter(torch.zeros(n)) for n in (3, 5)]
    opt = GradientNoise(torch.optim.SGD(params, lr=1.0), eta=0.3, gamma=0.55, seed=7)
    total = torch.zeros(8)
    for t in range(4):
        for p in params:
            p.grad = torch.ones_like(p)
        opt.step()
        total -= 1 + (0.3 / (1 + t) ** 0.55) ** 0.5 * noise(split_seed(7, t), 0, 8)
    assert torch.allclose(torch.cat([p.detach() for p in params]), total, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("step", [0, 1, 99])
def test_mean_and_variance_of_a_step(step):
    """Within 5 standard errors, sigma / sqrt(n) and sigma^2 sqrt(2 / n)."""
    n, variance = 60_000, 0.3 / (1 + step) ** 0.55
    p = torch.nn.Parameter(torch.zeros(n))
    opt = GradientNoise(torch.optim.SGD([p], lr=1.0), eta=0.3, seed=step)
    opt.steps = step
    assert opt.variance == pytest.approx(variance)
    z = drawn(opt, p).double()
    assert abs(z.mean().item()) < 5 * (variance / n) ** 0.5
    assert abs(z.var().item() - variance) < 5 * variance * (2 / n) ** 0.5


def test_steps_parameters_and_seeds_differ_and_copies_agree():
    p, q = (torch.nn.Parameter(torch.zeros(1000)) for _ in range(2))
    opt = GradientNoise(torch.optim.SGD([p, q], lr=1.0), eta=1.0, gamma=0.0)
    p.grad = q.grad = torch.zeros(1000)
    opt.step()
    first = -p.detach().clone()
    other = drawn(GradientNoise(torch.optim.SGD([p], lr=1.0), eta=1.0, seed=1), p)
    again = drawn(GradientNoise(torch.optim.SGD([p], lr=1.0), eta=1.0), p)
    second = drawn(opt, p)
    assert torch.equal(first, again)
    for different in (-q.detach(), other, second):
        assert abs(torch.corrcoef(torch.stack([first, different]))[0, 1].item()) < 5 / 1000**0.5


def test_a_missing_gradient_does_not_move_the_others_noise():
    def ends(skip):
        params = [torch.nn.Parameter(torch.zeros(n)) for n in (3, 5, 4)]
        opt = GradientNoise(torch.optim.SGD(params, lr=1.0), eta=1.0)
        for i, p in enumerate(params):
            p.grad = None if i == skip else torch.zeros_like(p)
        opt.step()
        return [p.detach() for i, p in enumerate(params) if i != skip]

    first, middle, last = ends(skip=None)
    for skip, expected in ((0, [middle, last]), (1, [first, last]), (2, [first, middle])):
        assert all(map(torch.equal, ends(skip), expected))


def test_mixed_precisions_have_their_places_too():
    """The stream runs on over tensors of different types, and each keeps its own."""
    params = [
        torch.nn.Parameter(torch.zeros(n, dtype=t))
        for n, t in ((3, torch.float32), (2, torch.float64), (4, torch.bfloat16))
    ]
    opt = GradientNoise(torch.optim.SGD(params, lr=1.0), eta=1.0, seed=2)
    for p in params:
        p.grad = torch.zeros_like(p)
    opt.step()
    moved = torch.cat([p.detach().double() for p in params])
    assert torch.allclose(moved, -noise(split_seed(2, 0), 0, 9).double(), rtol=4e-3)


def test_named_parameters_have_noise_by_name():
    def by_name(order):
        params = {n: torch.nn.Parameter(torch.zeros(4)) for n in "ab"}
        opt = GradientNoise(torch.optim.SGD([(n, params[n]) for n in order], lr=1.0), eta=1.0)
        for p in params.values():
            p.grad = torch.zeros(4)
        opt.step()
        return params["a"].detach()

    assert torch.equal(by_name("ab"), by_name("ba"))


@pytest.mark.parametrize("base", [SGDW, AdamW])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_without_variance_it_is_its_optimizer(base, dtype):
    paths = []
    for wrap in (lambda opt: opt, lambda opt: GradientNoise(opt, eta=0.0)):
        torch.manual_seed(0)
        p = torch.nn.Parameter(torch.randn(6, dtype=dtype))
        opt = wrap(base([p], lr=0.1))
        for _ in range(10):
            p.grad = torch.randn(6, dtype=dtype)
            opt.step()
        paths.append(p.detach())
    assert torch.equal(*paths)


def test_resume_is_bit_exact_and_takes_the_seed_along():
    def train(opt, p, steps):
        for _ in range(steps):
            p.grad = p.detach().clone()
            opt.step()

    p = torch.nn.Parameter(torch.ones(30, 30))
    opt = GradientNoise(AdamW([p], lr=0.01), eta=0.5, seed=3)
    train(opt, p, 5)
    buffer = io.BytesIO()
    torch.save(opt.state_dict(), buffer)
    buffer.seek(0)
    q = torch.nn.Parameter(p.detach().clone())
    other = GradientNoise(AdamW([q], lr=0.9), eta=0.1, gamma=1.0, seed=8)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    train(opt, p, 5)
    train(other, q, 5)
    assert torch.equal(p, q) and (other.seed, other.steps, other.eta) == (3, 10, 0.5)


def test_a_step_that_raises_draws_the_same_noise_again():
    p = torch.nn.Parameter(torch.zeros(10))
    opt = GradientNoise(SGDW([p], lr=1.0, momentum=0.0), eta=1.0)
    expected = drawn(GradientNoise(SGDW([p], lr=1.0, momentum=0.0), eta=1.0), p)
    p.grad = torch.zeros(10)
    opt.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr"):
        opt.step()
    opt.param_groups[0]["lr"] = 1.0
    assert opt.steps == 0 and torch.equal(drawn(opt, p), expected)


def test_clipping_comes_before_the_noise():
    """ClipNorm outside: the noise is not scaled with the gradient."""
    p = torch.nn.Parameter(torch.zeros(1000))
    opt = ClipNorm(GradientNoise(torch.optim.SGD([p], lr=1.0), eta=1.0), max_norm=1.0)
    p.grad = torch.full((1000,), 1e6)
    opt.step()
    assert 0.9 < p.detach().std().item() < 1.1


def test_a_network_of_zeros_learns_only_with_noise():
    """Every unit has the same gradient, none; noise tells them apart."""
    torch.manual_seed(0)
    x = torch.randn(256, 8)
    y = (x[:, 0] * x[:, 1] > 0).long()
    accuracy = {}
    for eta in (0.0, 0.3):
        net = torch.nn.Sequential(
            torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 32), torch.nn.ReLU()
        ).append(torch.nn.Linear(32, 2))
        for p in net.parameters():
            torch.nn.init.zeros_(p)
        opt = GradientNoise(torch.optim.SGD(net.parameters(), lr=0.2), eta=eta)
        for _ in range(800):
            opt.zero_grad()
            torch.nn.functional.cross_entropy(net(x), y).backward()
            opt.step()
        accuracy[eta] = (net(x).argmax(1) == y).float().mean().item()
    assert accuracy[0.0] < 0.6 and accuracy[0.3] > 0.9


def test_bad_arguments():
    base = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    for bad in ({"eta": -1.0}, {"gamma": -0.5}, {"eta": float("nan")}):
        with pytest.raises(ValueError, match=f"GradientNoise: {next(iter(bad))}="):
            GradientNoise(base, **bad)
