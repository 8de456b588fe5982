import math
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

from steepest.oracles import Composite
from steepest.probes import GradientMoments, coordinate_norm_test, norm_test

F64 = torch.float64


def gaussian(trials, sizes, mean, deviation, seed=0):
    """Gradients of parts of these sizes of batches whose samples' gradients are normal."""
    rng = torch.Generator().manual_seed(seed)
    noise = torch.randn(trials, len(sizes), len(mean), generator=rng, dtype=F64)
    return mean + deviation * noise / torch.tensor(sizes, dtype=F64).sqrt()[:, None]


def within(samples, exact):
    return abs(samples.mean() - exact) < 5 * samples.std() / math.sqrt(len(samples))


def by_hand(rows, sizes, eta, floor=None):
    """The formula in Python's numbers."""
    n, m = sum(sizes), len(sizes)
    mean = [
        sum(k * r[j] for k, r in zip(sizes, rows, strict=True)) / n for j in range(len(rows[0]))
    ]
    var = [
        sum(k * (r[j] - mean[j]) ** 2 for k, r in zip(sizes, rows, strict=True)) / (m - 1)
        for j in range(len(mean))
    ]
    if floor is None:
        return math.ceil(sum(var) / (eta**2 * sum(g * g for g in mean)))
    least = floor * sum(g * g for g in mean) / len(mean)
    return max(math.ceil(v / (eta**2 * max(g * g, least))) for v, g in zip(var, mean, strict=True))


@pytest.mark.parametrize("sizes", [[1] * 8, [4] * 8, [1, 2, 3, 10, 4]])
def test_noise_is_the_variance_of_a_sample_without_bias(sizes):
    mean = torch.tensor([0.3, -1.0, 2.0], dtype=F64)
    deviation = torch.tensor([0.5, 3.0, 1.0], dtype=F64)
    rows = gaussian(4000, sizes, mean, deviation)
    noise = torch.tensor([norm_test([r], sizes=sizes).noise for r in rows], dtype=F64)
    assert within(noise, deviation.square().sum())
    # Dividing by m would miss: the test above can tell.
    assert not within(noise * (1 - 1 / len(sizes)), deviation.square().sum())


def test_size_is_unbiased_where_the_signal_is_known():
    mean = torch.tensor([1000.0, 0.0, 0.0], dtype=F64)
    deviation = torch.tensor([0.0, 20000.0, 30000.0], dtype=F64)
    rows = gaussian(4000, [100] * 6, mean, deviation)
    rows[:, :, 1:] -= rows[:, :, 1:].mean(1, keepdim=True)  # so that the mean is exact
    eta = 0.5
    size = torch.tensor([norm_test([r], eta, sizes=[100] * 6).size for r in rows], dtype=F64)
    exact = deviation.square().sum() / (eta**2 * mean.square().sum())
    assert within(size - 0.5, exact)  # a ceiling adds a half
    assert not within((size - 0.5) * 5 / 6, exact)


def test_noise_of_the_mean_of_a_batch_of_that_size_is_eta_of_the_signal():
    mean, deviation, eta = torch.tensor([1.0, 2.0], dtype=F64), torch.tensor([4.0, 7.0]), 0.3
    exact = float(deviation.square().sum() / (eta**2 * mean.square().sum()))
    batch = gaussian(1, [1] * 50_000, mean, deviation.double())[0]
    b = norm_test([batch], eta).size
    assert abs(b / exact - 1) < 0.1
    means = gaussian(2000, [int(b)], mean, deviation.double())[:, 0]
    error = (means - mean).square().sum(1) / mean.square().sum()
    assert 0.85 * eta**2 < error.mean() < 1.15 * eta**2


@pytest.mark.parametrize("sizes", [[1, 1, 1], [3, 1, 5]])
def test_both_tests_by_hand(sizes):
    rows = torch.tensor([[1.0, -2.1, 0.13], [2.5, 0.57, 0.31], [0.27, 4.0, -0.22]], dtype=F64)
    values = rows.tolist()
    for eta in (0.1, 0.5, 0.9):
        cut = [rows[:, :1], rows[:, 1:]]  # how parameters are cut does not matter
        assert norm_test(cut, eta, sizes=sizes).size == by_hand(values, sizes, eta)
        for floor in (0.0, 0.1, 1.0):
            asked = coordinate_norm_test(cut, eta, sizes=sizes, floor=floor).size
            assert asked == by_hand(values, sizes, eta, floor)


def test_in_one_dimension_the_two_tests_are_one():
    rows = torch.randn(9, 1, dtype=F64) + 1
    for floor in (0.0, 1.0):
        assert coordinate_norm_test([rows], floor=floor) == norm_test([rows])


def test_the_guard_bounds_what_a_coordinate_at_its_minimum_asks():
    rows = torch.randn(64, 10, dtype=F64) + 1
    rows[:, 3] -= rows[:, 3].mean() - 1e-9
    plain = coordinate_norm_test([rows], floor=0.0).size
    guarded = coordinate_norm_test([rows], floor=1.0).size
    assert plain > 1e15
    assert guarded < 20
    assert coordinate_norm_test([rows], floor=0.01).size <= 100 * guarded


def test_a_coordinate_without_noise_passes_though_its_gradient_is_zero():
    rows = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    assert coordinate_norm_test([rows], floor=0.0).size == norm_test([rows[:, :1]]).size
    silent = [torch.zeros(4, 2)]
    assert norm_test(silent).size == coordinate_norm_test(silent).size == 1


def test_no_signal_asks_for_any_batch_and_no_number_for_none():
    rows = torch.tensor([[1.0], [-1.0]])
    assert norm_test([rows]).size == coordinate_norm_test([rows]).size == math.inf
    for bad in (math.nan, math.inf):
        rows = torch.tensor([[bad], [1.0]])
        assert math.isnan(norm_test([rows]).size)
        assert math.isnan(coordinate_norm_test([rows]).size)


def test_moments_one_at_a_time_are_those_of_all_at_once():
    sizes = [3, 1, 4, 1, 5]
    rows = torch.randn(5, 7, dtype=F64) + 1000
    moments = GradientMoments()
    for row, size in zip(rows, sizes, strict=True):
        moments.add([row], size)
    n = torch.tensor(sizes, dtype=F64)[:, None]
    mean = (n * rows).sum(0) / n.sum()
    torch.testing.assert_close(moments.mean[0], mean)
    torch.testing.assert_close(moments.variance()[0], (n * (rows - mean) ** 2).sum(0) / 4)
    torch.testing.assert_close(
        torch.tensor(norm_test(moments)), torch.tensor(norm_test([rows], sizes=sizes))
    )


def test_pooled_moments_are_those_of_one_process():
    rows, sizes = torch.randn(6, 3, dtype=F64), [1, 2, 3, 4, 5, 6]
    whole, parts = GradientMoments(), [GradientMoments(), GradientMoments()]
    for i, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        whole.add([row], size)
        parts[i % 2].add([row], size)
    meeting, slots = Barrier(2), [None, None]

    def pool(rank):
        def add(t):
            slots[rank] = t.clone()
            meeting.wait(10)
            total = slots[0] + slots[1]
            meeting.wait(10)
            return total

        return parts[rank].pooled(add)

    with ThreadPoolExecutor(2) as processes:
        pooled, other = processes.map(pool, range(2))
    assert norm_test(pooled) == norm_test(other)
    assert (pooled.parts, pooled.samples) == (6, 21)
    torch.testing.assert_close(pooled.mean[0], whole.mean[0])
    torch.testing.assert_close(pooled.variance()[0], whole.variance()[0])


def test_per_sample_gradients_and_their_means_over_parts_agree():
    torch.manual_seed(3)
    model = torch.nn.Linear(5, 3).double()
    x, y = torch.randn(4096, 5, dtype=F64), torch.randint(0, 3, (4096,))
    rows = Composite(model, torch.nn.CrossEntropyLoss(), x, y).per_sample_gradients()
    single = norm_test(rows)
    grouped = norm_test([r.unflatten(0, (256, 16)).mean(1) for r in rows], sizes=[16] * 256)
    assert math.isclose(single.signal, grouped.signal, rel_tol=1e-9)
    assert abs(grouped.noise / single.noise - 1) < 0.1


def test_half_precision_is_summed_in_single():
    rows = torch.full((3, 2), 300.0, dtype=torch.float16)
    assert norm_test([rows]).signal == 180000.0  # beyond float16


def test_what_does_not_fit_is_refused():
    rows = [torch.ones(3, 2), torch.ones(3)]
    with pytest.raises(ValueError, match="eta=0"):
        norm_test(rows, 0.0)
    with pytest.raises(ValueError, match="eta=nan"):
        norm_test(rows, math.nan)
    with pytest.raises(ValueError, match="floor=-1"):
        coordinate_norm_test(rows, floor=-1)
    with pytest.raises(ValueError, match="rows do not fit"):
        norm_test([torch.ones(3), torch.ones(2)])
    with pytest.raises(ValueError, match="rows do not fit"):
        norm_test(rows, sizes=[1, 2])
    with pytest.raises(ValueError, match="rows do not fit"):
        norm_test([])
    with pytest.raises(ValueError, match="at least one sample"):
        norm_test(rows, sizes=[1, 0, 1])
    with pytest.raises(ValueError, match="two or more"):
        norm_test([torch.ones(1, 2)])
    moments = GradientMoments()
    with pytest.raises(ValueError, match="size=0"):
        moments.add([torch.ones(2)], 0)
    with pytest.raises(ValueError, match="leave sizes out"):
        norm_test(moments, sizes=[1])
