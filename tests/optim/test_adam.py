"""Adam and AdaMax."""

import math

import pytest
import torch

from steepest.optim import Adam, AdaMax


def trajectory(make, gradients, start):
    """Positions of one parameter after each of the given gradients."""
    p = torch.nn.Parameter(start.clone())
    opt = make([p])
    path = []
    for g in gradients:
        p.grad = g.clone()
        opt.step()
        path.append(p.detach().clone())
    return torch.stack(path)


@pytest.fixture
def stream():
    rng = torch.Generator().manual_seed(1)
    return torch.randn(100, 4, 3, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.1},
        {"amsgrad": True},
        {"amsgrad": True, "weight_decay": 0.1, "maximize": True},
        {"lr": 0.3, "betas": (0.5, 0.9), "eps": 0.1},
        {"lr": torch.tensor(0.01), "betas": (0.0, 0.99)},
    ],
)
def test_adam_follows_torch(stream, options):
    start = torch.ones(4, 3, dtype=torch.float64)
    ours = trajectory(lambda ps: Adam(ps, **options), stream, start)
    theirs = trajectory(lambda ps: torch.optim.Adam(ps, foreach=False, **options), stream, start)
    assert (ours - theirs).abs().max() < 1e-12


def test_adamax_against_the_paper_in_plain_numbers():
    lr, beta1, beta2 = 0.1, 0.8, 0.95
    gradients = [3.0, -1.0, 0.0, 0.5, -7.0]
    theta, m, u, expected = 1.0, 0.0, 0.0, []
    for t, g in enumerate(gradients, start=1):
        m = beta1 * m + (1 - beta1) * g
        u = max(beta2 * u, abs(g))
        theta = theta - lr / (1 - beta1**t) * m / u
        expected.append(theta)
    path = trajectory(
        lambda ps: AdaMax(ps, lr=lr, betas=(beta1, beta2)),
        [torch.tensor([g], dtype=torch.float64) for g in gradients],
        torch.ones(1, dtype=torch.float64),
    )
    assert torch.allclose(path[:, 0], torch.tensor(expected, dtype=torch.float64), rtol=1e-14)


def test_adamax_follows_torch_where_its_epsilon_does_not_matter(stream):
    start = torch.ones(4, 3, dtype=torch.float64)
    ours = trajectory(lambda ps: AdaMax(ps, lr=0.01), stream, start)
    theirs = trajectory(lambda ps: torch.optim.Adamax(ps, lr=0.01, eps=0.0), stream, start)
    assert (ours - theirs).abs().max() < 1e-12


def test_adamax_leaves_a_coordinate_without_gradient_alone():
    gradients = [torch.tensor([1.0, 0.0])] * 3
    path = trajectory(lambda ps: AdaMax(ps, lr=0.1), gradients, torch.ones(2))
    assert (path[:, 1] == 1).all() and (path[:, 0] < 1).all()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_first_step_is_the_sign_times_lr(scale):
    g = torch.tensor([3.0, -0.2, 1e-3], dtype=torch.float64) * scale
    for make in (lambda ps: Adam(ps, lr=0.1, eps=0), lambda ps: AdaMax(ps, lr=0.1)):
        path = trajectory(make, [g], torch.zeros(3, dtype=torch.float64))
        assert torch.allclose(path[0], -0.1 * g.sign(), rtol=1e-9)


def test_adam_without_memory_is_sign_descent(stream):
    start = torch.zeros(4, 3, dtype=torch.float64)
    path = trajectory(lambda ps: Adam(ps, lr=0.1, betas=(0.0, 0.0), eps=0), stream, start)
    # m + (g - m) is g up to the rounding of a much larger m: equal, but not to the last bit
    assert torch.allclose(path, -0.1 * stream.sign().cumsum(0), atol=1e-7)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_adam_at_its_default_beats_tuned_sgd_on_badly_scaled_features(seed):
    """The paper's claim: one default step size serves coordinates of very different scale."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    x = torch.tensor(data.data, dtype=torch.float64)
    x = (x - x.mean(0)) / x.std(0)
    rng = torch.Generator().manual_seed(seed)
    x = x * 10 ** (6 * torch.rand(x.shape[1], generator=rng, dtype=torch.float64) - 3)
    y = torch.tensor(data.target, dtype=torch.float64)

    def final_loss(make):
        w = torch.nn.Parameter(torch.zeros(x.shape[1], dtype=torch.float64))
        opt, batches = make([w]), torch.Generator().manual_seed(1)

        def loss(rows):
            return torch.nn.functional.binary_cross_entropy_with_logits(x[rows] @ w, y[rows])

        for _ in range(300):
            opt.zero_grad()
            loss(torch.randint(len(y), (64,), generator=batches)).backward()
            opt.step()
        return loss(slice(None)).item()

    sgd = min(final_loss(lambda ps, lr=10.0**k: torch.optim.SGD(ps, lr=lr)) for k in range(-6, 2))
    assert math.isfinite(sgd)
    assert final_loss(Adam) <= 0.8 * sgd
