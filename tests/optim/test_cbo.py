"""CBO and consensus hopping: transcriptions, limits, and a consensus as a gradient step."""

import math
import statistics

import pytest
import torch

from steepest.kernels import noise, split_seed
from steepest.optim import CBO, ConsensusHopping, consensus_weights

F64 = torch.float64


def bumpy(x):
    """A bowl under a wave: minima near every integer point, the global one at 0."""
    return (x**2 + 2.5 * (1 - torch.cos(2 * math.pi * x))).sum(-1)


def split(theta):
    return [torch.nn.Parameter(part.clone()) for part in theta.split([2, 3])]


def joined(params):
    return torch.cat([p.detach() for p in params])


def normal(seed, step, i, size):
    return noise(split_seed(split_seed(seed, step), i), 0, size).double()


def test_cbo_against_a_transcription():
    n, dt, lam, sigma, alpha, width, seed = 6, 0.3, 1.2, 0.8, 5.0, 0.4, 3
    theta = torch.linspace(-1, 1, 5, dtype=F64)
    params = split(theta)
    opt = CBO(params, dt, alpha, lam, sigma, width, population=n, seed=seed)
    x = torch.stack([theta + width * normal(seed, 0, n + i, 5) for i in range(n)])
    for t in range(4):
        values = bumpy(x)
        w = torch.exp(-alpha * (values - values.min()))
        center = (w[:, None] * x).sum(0) / w.sum()
        shown = opt.step(lambda: bumpy(torch.cat(params)))
        assert torch.allclose(joined(params), center, rtol=1e-9)
        assert torch.isclose(shown, (w * values).sum() / w.sum())
        for i in range(n):
            away = x[i] - center
            z = normal(seed, t, i, 5)
            x[i] = x[i] - dt * lam * away + sigma * math.sqrt(dt) * away.norm() * z
        state = torch.cat([opt.state[p]["particles"] for p in params], 1)
        assert torch.allclose(state, x, rtol=1e-9, atol=1e-12)


def test_hopping_against_a_transcription():
    n, tau, alpha, seed = 7, 0.2, 4.0, 5
    theta = torch.linspace(-1, 1, 5, dtype=F64)
    params = split(theta)
    opt = ConsensusHopping(params, tau, alpha, n, seed=seed)
    for t in range(4):
        s = math.sqrt(tau / alpha)
        x = torch.stack([theta + s * normal(seed, t, i, 5) for i in range(n)])
        w = torch.exp(-alpha * bumpy(x))
        theta = (w[:, None] * x).sum(0) / w.sum()
        opt.step(lambda: bumpy(torch.cat(params)))
        assert torch.allclose(joined(params), theta, rtol=1e-9)


def test_a_cold_consensus_is_the_best_particle():
    values = torch.tensor([3.0, 1.0, 2.0], dtype=F64)
    assert consensus_weights(values, 1e6).tolist() == [0, 1, 0]
    assert torch.allclose(consensus_weights(values, 1e-12), torch.full((3,), 1 / 3, dtype=F64))
    high = consensus_weights(values + 1e5, 2.0)  # nothing underflows
    assert torch.allclose(high, torch.softmax(-2 * values, 0))
    lost = torch.tensor([math.nan, math.inf, 1.0, -math.inf])
    assert consensus_weights(lost, 1.0).tolist() == [0, 0, 1, 0]
    with pytest.raises(FloatingPointError, match="nothing has moved"):
        consensus_weights(lost[:2], 1.0)


def test_without_noise_particles_contract_by_the_drift():
    p = torch.nn.Parameter(torch.zeros(3, dtype=F64))
    opt = CBO([p], lr=0.25, drift=2.0, diffusion=0.0)
    opt.step(lambda: bumpy(p))
    first = opt.state[p]["particles"]
    opt.step(lambda: bumpy(p))
    center = p.detach()
    assert torch.allclose(opt.state[p]["particles"] - center, 0.5 * (first - center))


def test_the_default_noise_contracts_in_high_dimension():
    """It does where 0.7, which is the default in the plane, blows the cloud up."""
    widths = {}
    for sigma in (None, 0.7):
        p = torch.nn.Parameter(torch.zeros(200, dtype=F64))
        opt = CBO([p], lr=0.1, diffusion=sigma)
        for _ in range(40):
            opt.step(lambda p=p: 0.5 * p.square().sum())
        widths[sigma] = opt.state[p]["particles"].std(0).mean().item()
    assert widths[None] < 0.03
    assert widths[0.7] > 10


def test_a_group_without_a_step_is_not_searched():
    still, moved = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    seen = []

    def loss():
        seen.append(still.detach().clone())
        return (still + moved).sum()

    for make in (CBO, ConsensusHopping):
        make([{"params": [still], "lr": 0.0}, {"params": [moved]}]).step(loss)
    assert all(torch.equal(s, torch.ones(2)) for s in seen)
    assert torch.equal(still, torch.ones(2)) and not torch.equal(moved, torch.ones(2))


def test_bad_arguments():
    p = torch.nn.Parameter(torch.zeros(2))
    for make in (CBO, ConsensusHopping):
        with pytest.raises(ValueError, match="alpha=0"):
            make([p], alpha=0.0)
        with pytest.raises(ValueError, match="population=1 "):
            make([p], population=1)
    with pytest.raises(ValueError, match="drift=-1"):
        CBO([p], drift=-1.0)
    complex_ = torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(TypeError, match="complex"):
        CBO([complex_]).step(lambda: complex_.abs().sum())
    opt = CBO([p], population=3)
    opt.step(lambda: p.sum())
    other = CBO([p], population=4)
    other.load_state_dict(opt.state_dict())
    with pytest.raises(ValueError, match="population=3"):
        other.step(lambda: p.sum())


def test_if_every_particle_is_lost_nothing_moves():
    for make in (CBO, ConsensusHopping):
        p = torch.nn.Parameter(torch.ones(3))
        opt = make([p])
        with pytest.raises(FloatingPointError, match="nothing has moved"):
            opt.step(lambda p=p: p.sum() * math.nan)
        assert torch.equal(p, torch.ones(3)) and not opt.state and opt.steps == 0


# ---- the paper's claims, on many particles at once


def consensus(loss, x, alpha, s, n, rng):
    sample = x + s * torch.randn(n, len(x), generator=rng, dtype=F64)
    return consensus_weights(loss(sample), alpha) @ sample


def test_a_consensus_is_a_proximal_point_and_so_a_gradient_step():
    a = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=F64)
    x, rng = torch.tensor([0.6, -0.4], dtype=F64), torch.Generator().manual_seed(0)

    def loss(y):
        return 0.5 * (y @ a * y).sum(-1)

    alpha, s = 5.0, 0.3
    prox = torch.linalg.solve(torch.eye(2, dtype=F64) + alpha * s**2 * a, x)
    error = {
        n: statistics.mean(
            (consensus(loss, x, alpha, s, n, rng) - prox).norm().item() for _ in range(50)
        )
        for n in (100, 10_000)
    }
    assert error[100] / error[10_000] > 3
    assert error[10_000] < 0.02
    step = consensus(loss, x, alpha, 0.1, 10_000, rng) - x
    assert torch.cosine_similarity(step, -(a @ x), dim=0) > 0.95


def test_the_class_takes_a_proximal_step():
    p = torch.nn.Parameter(torch.tensor([0.6, -0.4], dtype=F64))
    curvature = torch.tensor([2.0, 0.5], dtype=F64)
    prox = p.detach() / (1 + 0.45 * curvature)
    opt = ConsensusHopping([p], lr=0.45, alpha=5.0, population=1000)
    opt.step(lambda: 0.5 * (curvature * p**2).sum())
    assert (p - prox).norm() < 0.05


def test_it_leaves_local_minima():
    """200 particles from around (3, 3), 20 runs, against gradient descent from there."""
    rng = torch.Generator().manual_seed(0)
    x = 3 + 2 * torch.randn(20, 200, 2, generator=rng, dtype=F64)
    dt, sigma = 0.1, 0.7
    for _ in range(600):
        w = torch.stack([consensus_weights(row, 1e3) for row in bumpy(x)])
        center = (w[..., None] * x).sum(1, keepdim=True)
        away = x - center
        z = torch.randn(x.shape, generator=rng, dtype=F64)
        x = x - dt * away + sigma * math.sqrt(dt) * away.norm(dim=2, keepdim=True) * z
    assert (center[:, 0].norm(dim=1) < 0.3).sum() >= 16
    p = torch.nn.Parameter(torch.full((2,), 3.0, dtype=F64))
    sgd = torch.optim.SGD([p], lr=0.005)
    for _ in range(600):
        sgd.zero_grad()
        bumpy(p).backward()
        sgd.step()
    assert p.grad.norm() < 1e-6 and p.detach().norm() > 3
