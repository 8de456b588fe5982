"""ZO2 against MeZO, bit for bit; what is on the device, what is copied, and whether it overlaps."""

import threading
import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import steepest.lightning._zo2 as zo2_module
from steepest.lightning import ZO2
from steepest.optim import MeZO


def make(width=12, blocks=8, seed=0, dropout=0.0, last=3):
    torch.manual_seed(seed)
    layers = [
        nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Dropout(dropout))
        for _ in range(blocks - 1)
    ]
    return nn.Sequential(*layers, nn.Linear(width, last))


def batches(count, width=12, seed=1):
    rng = torch.Generator().manual_seed(seed)
    return [(torch.randn(6, width, generator=rng), torch.arange(6) % 3) for _ in range(count)]


def both(steps, make=make, data=batches, schedule=lambda t: 1e-3, device="cpu", **options):
    """The same model by MeZO and by ZO2: losses and weights of each."""
    one, two = make(), make()
    mezo = MeZO(one.named_parameters(), **options)
    off = ZO2(two, device=device, **options)
    losses = []
    for t, (x, y) in enumerate(data(steps)):
        mezo.param_groups[0]["lr"] = off.lr = schedule(t)
        torch.manual_seed(t)
        a = mezo.step(lambda x=x, y=y: F.cross_entropy(one(x), y))
        torch.manual_seed(t)
        b = off.step(x, lambda out, y=y: F.cross_entropy(out, y.to(out.device)))
        losses.append((a, b))
    return one, two, off, losses


def same(one, two):
    return all(
        torch.equal(a, b)
        for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    "options",
    [{}, {"weight_decay": 0.1}, {"kind": "rademacher", "eps": 1e-2}, {"seed": 5}],
    ids=str,
)
def test_weights_and_losses_are_mezos_bit_for_bit(options):
    one, two, off, losses = both(10, schedule=lambda t: 1e-2 / (t + 1), **options)
    assert all(torch.equal(a, b) for a, b in losses)
    assert not same(one, two)  # one update behind
    off.flush()
    assert same(one, two)
    assert not same(one, make())
    off.flush()  # there is nothing left to do
    assert same(one, two) and off.counts["up"] == 8 * 11


def test_bit_for_bit_with_the_compiled_kernel_of_large_models():
    """Each block is too small for it, and the whole is not."""
    pytest.importorskip("numba")
    wide = lambda: make(width=120, blocks=6)  # noqa: E731
    assert sum(p.numel() for p in wide().parameters()) > zo2_module.CHUNK > 120 * 121
    one, two, off, _ = both(3, wide, lambda n: batches(n, 120))
    off.flush()
    assert same(one, two)


def test_bit_for_bit_with_dropout_and_batch_statistics():
    def noisy():
        torch.manual_seed(0)
        middle = [nn.Sequential(nn.Linear(12, 12), nn.Dropout(0.5)) for _ in range(3)]
        return nn.Sequential(nn.BatchNorm1d(12), *middle, nn.BatchNorm1d(12), nn.Linear(12, 3))

    one, two, off, losses = both(5, noisy)
    off.flush()
    assert all(torch.equal(a, b) for a, b in losses)
    assert same(one, two)
    assert two[0].num_batches_tracked == 10


def test_a_flush_in_between_changes_nothing():
    one, two, off, _ = both(4)
    _, three, steady, _ = both(0)
    for t, (x, y) in enumerate(batches(4)):
        steady.lr = 1e-3
        torch.manual_seed(t)
        steady.step(x, lambda out, y=y: F.cross_entropy(out, y))
        steady.flush()
    off.flush()
    assert same(two, three) and same(one, two)


def watch(monkeypatch, delay=0.0):
    """Count the blocks on the device, from when a copy up begins to when one down has ended."""
    lock, now, most = threading.Lock(), [0], [0]
    plain = zo2_module.copy

    def slow(target, source):
        up = threading.current_thread() in uploaders
        with lock:
            now[0] += up
            most[0] = max(most[0], now[0])
        time.sleep(delay)
        plain(target, source)
        with lock:
            now[0] -= not up

    uploaders = set()
    start = zo2_module.Threads.start

    def tell(self, way, target, source, after):
        if way == "up":
            self._workers[way].submit(lambda: uploaders.add(threading.current_thread()))
        return start(self, way, target, source, after)

    monkeypatch.setattr(zo2_module, "copy", slow)
    monkeypatch.setattr(zo2_module.Threads, "start", tell)
    return most


def test_three_blocks_of_eight_are_on_the_device_and_each_travels_once(monkeypatch):
    most = watch(monkeypatch, delay=0.001)
    model = make()
    off = ZO2(model)
    lying = []

    def look(module, args):
        arena = {t.untyped_storage().data_ptr() for t in off._arena}
        lying.append(sum(b.params[0].untyped_storage().data_ptr() in arena for b in off.blocks))

    for block in model:
        block.register_forward_pre_hook(look)
    for t, (x, y) in enumerate(batches(3)):
        off.step(x, lambda out, y=y: F.cross_entropy(out, y))
        assert off.counts == {"up": 8 * (t + 1), "down": 8 * (t + 1)}
    assert 2 <= most[0] <= 3
    assert set(lying) == {1}  # a block that travels is nobody's weights
    assert sum(t.nbytes for t in off._arena) <= 3 * max(b.home.nbytes for b in off.blocks)


def test_weights_live_in_the_files(tmp_path):
    model = make()
    off = ZO2(model, lr=1e-2, folder=tmp_path)
    for x, y in batches(2):
        off.step(x, lambda out, y=y: F.cross_entropy(out, y))
    off.flush()
    assert len(list(tmp_path.iterdir())) == 8
    raw = torch.frombuffer(bytearray((tmp_path / "block-3.bin").read_bytes()), dtype=torch.float32)
    assert torch.equal(raw[:144].view(12, 12), model[3][0].weight)


class Slow(nn.Module):
    """A block that takes its time."""

    def __init__(self, seconds):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.seconds = seconds

    def forward(self, x):
        time.sleep(self.seconds)
        return x * self.scale


def test_copies_overlap_with_each_other_and_with_computing(monkeypatch):
    """Serial, 8 blocks take 8 (up + two passes + down); overlapped, about the largest of them."""
    watch(monkeypatch, delay=0.04)
    off = ZO2(nn.Sequential(*[Slow(0.02) for _ in range(8)]))
    off.step(torch.ones(1), lambda out: out.sum())  # what is compiled at first use
    begin = time.perf_counter()
    off.step(torch.ones(1), lambda out: out.sum())
    assert time.perf_counter() - begin < 0.6 * 8 * 0.12


@pytest.mark.parametrize("where", range(6))
def test_a_step_that_fails_leaves_the_weights(where):
    """In any block's first or second pass."""
    model = make(blocks=3)
    start = [p.detach().clone() for p in model.parameters()]
    off = ZO2(model, lr=1e-2)
    calls = []

    def count(module, args):
        calls.append(1)
        if len(calls) == where + 1:
            raise KeyError("a block fails")

    hooks = [block.register_forward_pre_hook(count) for block in model]
    x, y = batches(1)[0]
    with pytest.raises(KeyError, match="a block fails"):
        off.step(x, lambda out: F.cross_entropy(out, y))
    off.flush()
    assert off.steps == 0
    for p, q in zip(model.parameters(), start, strict=True):
        assert torch.allclose(p, q, rtol=0, atol=1e-6)
    for hook in hooks:
        hook.remove()
    off.step(x, lambda out: F.cross_entropy(out, y))  # and it goes on


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (lambda out: out.sum() * float("nan"), RuntimeError, "NaN or infinite"),
        (lambda out: out.sum(1), ValueError, "one real number"),
        (lambda out: 1.0, TypeError, "returned a float"),
        (lambda out: out.sum().backward(), RuntimeError, "calls backward"),
    ],
)
def test_a_bad_loss_leaves_the_weights_as_a_step_of_mezo_does(loss, error, message):
    one, model = make(), make()
    off, (x, _) = ZO2(model, lr=1e-2), batches(1)[0]
    with pytest.raises(error, match=message):
        off.step(x, loss)
    off.flush()
    with pytest.raises(error):
        MeZO(one.named_parameters(), lr=1e-2).step(lambda: loss(one(x)))
    for p, q, r in zip(model.parameters(), make().parameters(), one.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=0, atol=1e-6) and torch.allclose(r, q, rtol=0, atol=1e-6)


def test_what_it_cannot_train():
    tied = make()
    tied[1] = tied[0]
    frozen = make().requires_grad_(False)
    for model, options, error, message in (
        (make()[0][0], {}, TypeError, "Sequential"),
        (tied, {}, ValueError, "share"),
        (frozen, {}, ValueError, "requires a gradient"),
        (make().bfloat16(), {}, ValueError, "bfloat16"),
        (make(), {"lr": -1.0}, ValueError, "lr"),
        (make(), {"eps": 0.0}, ValueError, "eps"),
        (make(), {"kind": "sphere"}, ValueError, "gaussian"),
    ):
        with pytest.raises(error, match=message):
            ZO2(model, **options)


def test_a_frozen_block_stays():
    model = make()
    model[2].requires_grad_(False)
    before = model[2][0].weight.clone()
    off = ZO2(model, lr=1e-1)
    for x, y in batches(3):
        off.step(x, lambda out, y=y: F.cross_entropy(out, y))
    off.flush()
    assert torch.equal(model[2][0].weight, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_bit_for_bit_on_a_gpu():
    def on_gpu():
        return make(width=64).cuda()

    def data(count):
        return [(x.cuda(), y.cuda()) for x, y in batches(count, 64)]

    one, two, off, losses = both(20, on_gpu, data, device="cuda")
    off.flush()
    assert all(torch.equal(a, b) for a, b in losses)
    assert all(
        torch.equal(a.cpu(), b.cpu())
        for a, b in zip(one.parameters(), two.parameters(), strict=True)
    )
