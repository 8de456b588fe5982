import math

import pytest
import torch
from torch.nn import functional as F

from steepest.lightning import DigitsData
from steepest.oracles import Objective
from steepest.probes import (
    Spectrum,
    batch_hessian,
    batch_learning_rate,
    hessian_noise,
    lanczos,
    learn_rates,
)

F64 = torch.float64
P = 400


def goe(deviation, rng):
    """A symmetric matrix with independent normal entries of this deviation."""
    a = torch.randn(P, P, generator=rng, dtype=F64).triu(1)
    diagonal = math.sqrt(2) * torch.randn(P, generator=rng, dtype=F64)
    return deviation * (a + a.T + diagonal.diag())


@pytest.mark.parametrize("ratio", [1 / 4, 1 / 2, 1, 2, 4, 8, 16])
def test_spike_and_noise_have_the_predicted_top(ratio):
    b, rng = int(ratio * P), torch.Generator().manual_seed(int(16 * ratio))
    tops, overlaps = [], []
    for _ in range(2):
        matrix = goe(1 / math.sqrt(b), rng)
        matrix[0, 0] += 1.0
        values, vectors = torch.linalg.eigh(matrix)
        tops.append(float(values[-1]))
        overlaps.append(float(vectors[0, -1] ** 2))
    predicted = batch_hessian(1.0, b, sigma=1.0, params=P)
    assert abs(sum(tops) / 2 / predicted.largest - 1) < 0.05
    if ratio >= 2:
        assert predicted.largest > 1.05 * predicted.edge
        assert abs(sum(overlaps) / 2 - predicted.overlap) < 0.06
    if ratio <= 1 / 2:
        assert predicted.largest == predicted.edge
        assert predicted.overlap == 0 and sum(overlaps) / 2 < 0.05


def test_formulas_by_hand():
    found = batch_hessian(2.0, 10, sigma=0.3, params=50, samples=30)
    b = 1 / (1 / 10 - 1 / 30)
    assert math.isclose(found.largest, 2 + 50 / b * 0.09 / 2)
    assert math.isclose(found.edge, 2 * math.sqrt(50 / b) * 0.3)
    assert math.isclose(found.overlap, 1 - 50 * 0.09 / (b * 4))


def test_outlier_joins_the_bulk_without_a_jump():
    above = batch_hessian(1.0, 100_001, sigma=1.0, params=100_000)
    below = batch_hessian(1.0, 99_999, sigma=1.0, params=100_000)
    assert abs(above.largest - below.largest) < 1e-4
    assert above.overlap < 1e-4 and below.overlap == 0


def test_the_whole_data_have_no_noise():
    assert batch_hessian(3.0, 64, sigma=5.0, params=10**6, samples=64) == (3.0, 0.0, 1.0)
    assert batch_learning_rate(3.0, 64, sigma=5.0, params=99, samples=64) == 2 / 3
    assert batch_learning_rate(0.0, 64, sigma=5.0, params=99, samples=64) == math.inf


def slope(optimizer, b, **options):
    low, high = (
        batch_learning_rate(1.0, n, sigma=1.0, params=10**8, optimizer=optimizer, **options)
        for n in (b, 2 * b)
    )
    return math.log2(high / low)


def test_rates_scale_as_the_paper_says():
    # The outlier inflated by far, at its transition and beyond; the rest is the plain limit.
    just_out = 10**8 + 1
    assert abs(batch_learning_rate(1.0, just_out, sigma=1.0, params=10**8) - 1) < 1e-6
    assert abs(slope("sgd", 10**12)) < 1e-3
    assert abs(batch_learning_rate(1.0, 10**14, sigma=1.0, params=10**8) - 2) < 1e-5
    assert abs(slope("adam", 10**4) - 0.5) < 1e-9
    assert abs(slope("adam", 10**8, damping=1e-4) - 0.5) < 1e-9
    assert abs(slope("adam", 10**14, damping=1.0)) < 1e-3
    one = batch_learning_rate(1.0, 10**9, sigma=1.0, params=10**8)
    heavy = batch_learning_rate(
        1.0, 10**9, sigma=1.0, params=10**8, optimizer="momentum", momentum=0.8
    )
    assert math.isclose(heavy, 1.8 * one)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
def test_the_rate_is_where_a_quadratic_begins_to_diverge(optimizer):
    momentum = 0.6 if optimizer == "momentum" else 0.0
    found = batch_hessian(1.0, 900, sigma=1.0, params=P)
    rate = batch_learning_rate(
        1.0, 900, sigma=1.0, params=P, optimizer=optimizer, momentum=momentum
    )
    ends = []
    for factor in (0.99, 1.01):
        w = torch.ones(1, dtype=F64, requires_grad=True)
        opt = torch.optim.SGD([w], lr=factor * rate, momentum=momentum)
        for _ in range(2000):
            opt.zero_grad()
            (0.5 * found.largest * w**2).sum().backward()
            opt.step()
        ends.append(abs(w.item()))
    assert ends[0] < 1e-3 and ends[1] > 1e3


def quadratic(matrix, p):
    return Objective(lambda: 0.5 * p @ matrix @ p, [p])


def test_noise_is_estimated_without_bias():
    rng = torch.Generator().manual_seed(0)
    p = torch.zeros(P, dtype=F64, requires_grad=True)
    mean, sigma, b, n = goe(1.0, rng), 0.7, 20, 100
    deviation = sigma * math.sqrt(1 / b - 1 / n)
    batches = [quadratic(mean + goe(deviation, rng), p) for _ in range(6)]
    found = hessian_noise(batches, quadratic(mean, p), b, samples=n, probes=3)
    # Of the 18 squares each has a relative deviation of about sqrt(2/P) / sqrt(P) and more.
    assert abs(found / sigma - 1) < 0.02


def test_learned_rates_are_the_fastest_heavy_ball():
    values = torch.linspace(0.1, 4.0, 30, dtype=F64)
    p = torch.ones(30, dtype=F64, requires_grad=True)
    f = quadratic(values.diag(), p)
    rates = learn_rates(lanczos(f, 30))

    def radius(lr, momentum):
        """Spectral radius of heavy ball's iteration."""
        roots = [
            torch.linalg.eigvals(
                torch.tensor([[1 + momentum - lr * h, -momentum], [1.0, 0.0]], dtype=F64)
            )
            for h in values.tolist()
        ]
        return max(float(r.abs().max()) for r in roots)

    best = radius(*rates)
    assert abs(best - math.sqrt(rates.momentum)) < 1e-3
    for lr in (0.9, 1.1):
        for momentum in (0.97, 1.0, 1.03):
            assert radius(lr * rates.lr, momentum * rates.momentum) > best
    assert learn_rates(Spectrum(torch.tensor([2.0, 2.0]), torch.ones(2))) == (0.5, 0.0)


def test_the_mirrored_edge_of_the_bulk_bounds_the_momentum():
    weights = torch.full((3,), 1 / 3)
    assert learn_rates(Spectrum(torch.tensor([-1.0, 0.0, 9.0]), weights)) == (0.25, 0.25)
    damped = learn_rates(Spectrum(torch.tensor([-1.0, 0.0, 6.0]), weights), damping=3.0)
    assert damped == learn_rates(Spectrum(torch.tensor([4.0, 5.0, 9.0]), weights))


@pytest.fixture(scope="module")
def digits():
    data = DigitsData()
    data.setup()
    train = data.splits["train"]
    return train.inputs, train.targets


def test_a_batch_of_digits_is_sharper_the_smaller_it_is(digits):
    x, y = digits
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 16), torch.nn.Tanh(), torch.nn.Linear(16, 10))
    opt = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(60):
        opt.zero_grad()
        F.cross_entropy(net(x), y).backward()
        opt.step()
    sizes, tops, rng = (8, 16, 32, 64, 128), [], torch.Generator().manual_seed(1)
    for size in sizes:
        top = 0.0
        for i in range(20):
            rows = torch.randperm(len(x), generator=rng)[:size]
            f = Objective(lambda rows=rows: F.cross_entropy(net(x[rows]), y[rows]), net)
            top += float(lanczos(f, 8, seed=i).values[-1]) / 20
        tops.append(top)
    assert tops == sorted(tops, reverse=True)
    u = torch.tensor([1 / size - 1 / len(x) for size in sizes], dtype=F64)
    v = torch.tensor(tops, dtype=F64)
    slope = ((u - u.mean()) * (v - v.mean())).sum() / (u - u.mean()).square().sum()
    left = v - v.mean() - slope * (u - u.mean())
    assert slope > 0
    assert 1 - left.square().sum() / (v - v.mean()).square().sum() >= 0.9


def test_the_largest_stable_rate_of_small_batches_grows_threefold(digits):
    # Least squares on whitened digits: no direction is steeper than another, so that a small
    # batch's curvature is mostly noise.
    x, y = digits[0].double(), F.one_hot(digits[1], 10).double()
    x, y = x - x.mean(0), y - y.mean(0)
    _, _, v = torch.linalg.svd(x, full_matrices=False)
    z = x @ v[:40].T
    z = z / z.std(0)

    def diverges(size, lr, seed):
        w, rng = torch.zeros(40, 10, dtype=F64), torch.Generator().manual_seed(seed)
        for _ in range(200):
            rows = torch.randint(len(z), (size,), generator=rng)
            w -= lr / size * z[rows].T @ (z[rows] @ w - y[rows])
        return not (z @ w - y).square().sum() < y.square().sum()

    largest = {}
    for size in (8, 64):
        rates = [0.05 * 1.1**k for k in range(50)]
        largest[size] = next(
            lr for lr in rates if any(diverges(size, 1.1 * lr, seed) for seed in range(3))
        )
        tops = [
            float(torch.linalg.eigvalsh(z[rows].T @ z[rows] / size)[-1])
            for rows in torch.randint(
                len(z), (20, size), generator=torch.Generator().manual_seed(0)
            )
        ]
        # The prediction from a batch's curvature is of the right size, not exact.
        assert 0.5 < largest[size] / (2 * len(tops) / sum(tops)) < 2
    assert largest[64] >= 3 * largest[8]


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="curvature=-1"):
        batch_hessian(-1.0, 8, sigma=1.0, params=3)
    with pytest.raises(ValueError, match="sigma=nan"):
        batch_hessian(1.0, 8, sigma=math.nan, params=3)
    with pytest.raises(ValueError, match="samples=7"):
        batch_hessian(1.0, 8, sigma=1.0, params=3, samples=7)
    with pytest.raises(ValueError, match="choose one of sgd, momentum, adam"):
        batch_learning_rate(1.0, 8, sigma=1.0, params=3, optimizer="rmsprop")
    with pytest.raises(ValueError, match="momentum=1"):
        batch_learning_rate(1.0, 8, sigma=1.0, params=3, momentum=1.0)
    with pytest.raises(ValueError, match="damping=0"):
        batch_learning_rate(1.0, 8, sigma=1.0, params=3, damping=0.0)
    p = torch.zeros(2, requires_grad=True)
    f = Objective(lambda: (p**2).sum(), [p])
    with pytest.raises(ValueError, match="at least one batch"):
        hessian_noise([], f, 8)
    with pytest.raises(ValueError, match="has no noise"):
        hessian_noise([f], f, 8, samples=8)
    falling = Spectrum(torch.tensor([-2.0, -1.0]), torch.ones(2))
    with pytest.raises(ValueError, match="no curvature is positive"):
        learn_rates(falling)
    with pytest.raises(ValueError, match="damping=-1"):
        learn_rates(falling, damping=-1)
