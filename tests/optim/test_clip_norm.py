"""ClipNorm against torch's clipping, and on a cliff."""

import copy
import math

import pytest
import torch

from steepest.optim import SGDW, AdamW, ClipNorm, GradientNoise


@pytest.mark.parametrize("max_norm", [1e-3, 0.5, 3.0, math.inf])
@pytest.mark.parametrize("base", [SGDW, AdamW])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_it_is_torchs_clipping_then_the_optimizer(base, dtype, max_norm):
    """Bit for bit, with one norm over all groups; at infinity, the optimizer alone."""
    torch.manual_seed(0)
    one = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
    one.to(dtype)
    two = copy.deepcopy(one)
    groups = [
        [{"params": net[0].parameters()}, {"params": net[2].parameters()}] for net in (one, two)
    ]
    opt, plain = ClipNorm(base(groups[0], lr=0.1), max_norm=max_norm), base(groups[1], lr=0.1)
    for x in 10 * torch.randn(20, 8, 6, dtype=dtype):
        for net, its in ((one, opt), (two, plain)):
            its.zero_grad()
            net(x).square().mean().backward()
        if math.isfinite(max_norm):
            torch.nn.utils.clip_grad_norm_(two.parameters(), max_norm)
        kept = [p.grad.clone() for p in one.parameters()]
        opt.step()
        plain.step()
        assert all(torch.equal(p.grad, g) for p, g in zip(one.parameters(), kept, strict=True))
    assert all(map(torch.equal, one.parameters(), two.parameters()))


def test_the_norm_is_of_all_and_the_direction_stays():
    """(3, 4) has length 5 over two tensors: clipped each by itself it would point elsewhere."""
    a, b = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    opt = ClipNorm(torch.optim.SGD([{"params": [a]}, {"params": [b]}], lr=1.0), max_norm=1.0)
    a.grad, b.grad = torch.tensor([3.0]), torch.tensor([4.0])
    opt.step()
    assert (a.item(), b.item()) == pytest.approx((-0.6, -0.8), abs=1e-6)


def unrolled(theta):
    """A one-unit network, x = w sigmoid(x) + b: how far from 0.7 it is after 50 steps."""
    x = torch.tensor(0.5, dtype=torch.float64)
    for _ in range(50):
        x = theta[0] * torch.sigmoid(x) + theta[1]
    return (torch.sigmoid(x) - 0.7) ** 2


def test_at_the_wall_a_clipped_step_is_short_and_a_plain_one_is_not():
    """The gradient on the wall is 50 Jacobians long: unclipped it throws the weights away."""
    longest, final = {}, {}
    for tau in (math.inf, 1.0):
        theta = torch.nn.Parameter(torch.tensor([5.0, -2.0], dtype=torch.float64))
        opt = ClipNorm(torch.optim.SGD([theta], lr=0.3), max_norm=tau)
        path = [theta.detach().clone()]
        for _ in range(150):
            opt.zero_grad()
            unrolled(theta).backward()
            opt.step()
            path.append(theta.detach().clone())
        longest[tau] = torch.stack(path).diff(dim=0).norm(dim=1).max().item()
        final[tau] = unrolled(theta).item()
    assert longest[1.0] <= 0.3 * 1.0 * (1 + 1e-9) and longest[math.inf] > 3 * 0.3
    assert final[1.0] < 0.02 and final[math.inf] > 0.05


def test_the_threshold_is_in_the_checkpoint():
    p = torch.nn.Parameter(torch.ones(3))
    opt = ClipNorm(GradientNoise(SGDW([p], lr=0.1), eta=0.3, seed=5), max_norm=0.3)
    p.grad = torch.ones(3)
    opt.step()
    other = ClipNorm(GradientNoise(SGDW([p], lr=0.2)), max_norm=math.inf)
    other.load_state_dict(opt.state_dict())
    assert (other.max_norm, other.steps, other.optimizer.seed) == (0.3, 1, 5)
    assert other.param_groups[0]["lr"] == 0.1


def test_no_gradients_and_bad_arguments():
    p = torch.nn.Parameter(torch.ones(3))
    ClipNorm(SGDW([p], lr=0.1)).step()
    assert torch.equal(p, torch.ones(3))
    for bad in (0.0, -1.0, math.nan, "big"):
        with pytest.raises(ValueError, match="ClipNorm: max_norm="):
            ClipNorm(SGDW([p]), max_norm=bad)
