from itertools import chain, islice

import pytest
import torch
from torch import distributed as dist

from steepest.lightning._loader import EpochLoader, Tensors, loader

SIZE, BATCH = 23, 4
DATA = Tensors(torch.arange(SIZE), torch.arange(SIZE) ** 2)


def batches(shuffled):
    return [x.tolist() for x, _ in shuffled]


def test_order_depends_on_seed_and_epoch_only():
    shuffled = loader(DATA, BATCH, seed=3, shuffle=True)
    first = batches(shuffled)
    torch.manual_seed(99)
    torch.rand(7)
    again = loader(DATA, BATCH, seed=3, shuffle=True)
    assert batches(again) == first
    assert sorted(chain.from_iterable(first)) == list(range(SIZE))
    assert batches(loader(DATA, BATCH, seed=4, shuffle=True)) != first
    again.sampler.set_epoch(0)
    assert batches(again) == first


def test_a_complete_pass_advances_the_epoch():
    shuffled = loader(DATA, BATCH, shuffle=True)
    passes = [batches(shuffled) for _ in range(3)]
    assert len({str(order) for order in passes}) == 3
    other = loader(DATA, BATCH, shuffle=True)
    other.sampler.set_epoch(2)
    assert batches(other) == passes[2]


def test_passes_do_not_touch_the_global_generator():
    state = torch.get_rng_state()
    batches(loader(DATA, BATCH, shuffle=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_order_is_natural_without_shuffling():
    assert list(chain.from_iterable(batches(loader(DATA, BATCH)))) == list(range(SIZE))


@pytest.mark.parametrize("delivered", range(7))
def test_resumes_after_any_batch(delivered):
    whole = loader(DATA, BATCH, shuffle=True)
    batches(whole)
    state = {"epoch": 1, "batches": 0}
    running = iter(whole)
    for _ in islice(running, delivered):
        state = whole.state_dict()
    rest = [x.tolist() for x, _ in running]
    resumed = loader(DATA, BATCH, shuffle=True)
    resumed.load_state_dict(state)
    # After the last batch the next pass is a whole one; Lightning sets its epoch.
    expected = rest if delivered < 6 else batches_of_epoch(1)
    assert batches(resumed) == expected
    assert batches(resumed) == batches_of_epoch(2)


def batches_of_epoch(epoch):
    shuffled = loader(DATA, BATCH, shuffle=True)
    shuffled.sampler.set_epoch(epoch)
    return batches(shuffled)


def test_a_state_of_another_epoch_skips_nothing():
    resumed = loader(DATA, BATCH, shuffle=True)
    resumed.load_state_dict({"epoch": 0, "batches": 3})
    resumed.sampler.set_epoch(1)
    assert batches(resumed) == batches_of_epoch(1)


def test_batches_of_two_processes_are_the_batch_of_one(monkeypatch):
    size = SIZE - 1  # even, so that nothing is repeated to fill up
    data = Tensors(torch.arange(size), torch.arange(size))
    alone = batches(loader(data, 4, shuffle=True))
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        parts.append(batches(loader(data, 2, shuffle=True)))
    assert [sorted(a + b) for a, b in zip(*parts, strict=True)] == [sorted(b) for b in alone]


def test_single_examples_equal_rows_of_batches():
    data = Tensors(torch.arange(5), torch.arange(5), transform=lambda x: x / 2)
    x, y = data.__getitems__([3, 1])
    assert x.tolist() == [1.5, 0.5]
    assert y.tolist() == [3, 1]
    assert data[3] == (x[0], y[0])
    with pytest.raises(ValueError, match="5 inputs but 4 targets"):
        Tensors(torch.arange(5), torch.arange(4))


def test_a_sampler_without_epochs_is_refused():
    with pytest.raises(TypeError, match="sampler=DistributedSampler"):
        next(iter(EpochLoader(range(4), batch_size=2)))
