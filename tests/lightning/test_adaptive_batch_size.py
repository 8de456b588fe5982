import math
import sys
from collections import Counter
from functools import partial
from itertools import chain, pairwise
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar, TQDMProgressBar
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import nn
from torch.nn import functional as F
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from torchmetrics import MeanMetric

from steepest.lightning import AdaptiveBatchSize, Classifier, DigitsData, Oracles, RandomState
from steepest.lightning._adaptive_batch_size import split
from steepest.lightning._growing_loader import GrowingBatchSampler, GrowingLoader, Order
from steepest.optim import SAM, AdamW
from steepest.probes import coordinate_norm_test, norm_test

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter` step flavor"),
]

SAMPLES = 200


def data():
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(SAMPLES, 6, generator=rng)
    y = torch.randint(0, 3, (SAMPLES,), generator=rng)
    return TensorDataset(x, y, torch.arange(SAMPLES))


ADAGRAD = partial(torch.optim.Adagrad, lr=0.1)


class Net(LightningModule):
    """A module that leaves traces wherever a module can."""

    def __init__(self, make=ADAGRAD, *, noisy=True, norm=nn.LayerNorm):
        super().__init__()
        torch.manual_seed(0)
        extra = [norm(8), nn.Dropout(0.3)] if noisy else []
        self.net = nn.Sequential(nn.Linear(6, 8), *extra, nn.Tanh(), nn.Linear(8, 3))
        self.mean, self.make = MeanMetric(), make
        self.seen, self.validated = [], []

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.mean.update(loss.detach())
        self.log("mean", self.mean, on_step=True, on_epoch=True)
        self.log_dict({"loss": loss.detach()}, on_step=False, on_epoch=True)
        return {"loss": loss}

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.seen.append(batch[2].tolist())

    def validation_step(self, batch, batch_idx):
        self.validated.append((self.current_epoch, self.global_step))

    def configure_optimizers(self):
        return self.make(self.parameters())


def sizes(module):
    return [len(batch) for batch in module.seen]


def identical(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def loaded(batch_size=4, **options):
    return DataLoader(data(), batch_size, **{"shuffle": True, **options})


def epochs(module, length=SAMPLES):
    """The batches of each epoch."""
    out, count = [[]], 0
    for batch in module.seen:
        if count == length:
            out.append([])
            count = 0
        out[-1].append(batch)
        count += len(batch)
    return out


# The batch sampler


def drain(batches, size, *, ahead=0, stop=None):
    """Deliver a pass, drawing some batches ahead; ``size(k)`` is in force after k are delivered."""
    running, drawn, seen, promised = iter(batches), [], [], []
    while True:
        while len(drawn) <= ahead and (batch := next(running, None)) is not None:
            drawn.append(batch)
        if not drawn:
            return seen, promised
        seen.append(drawn.pop(0))
        batches.deliver()
        batches.batch_size = size(batches.delivered)
        promised.append(len(batches))
        if batches.delivered == stop:
            return seen, promised


@pytest.mark.parametrize("ahead", [0, 1, 3])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("at", [1, 3, 6, 10, 12])
def test_every_index_once_whatever_the_sizes(ahead, drop_last, at):
    batches = GrowingBatchSampler(Order(range(50), 0), 4, drop_last)
    batches.start()
    assert len(batches) == 13 - drop_last
    seen, promised = drain(batches, lambda k: 9 if k >= at else 4, ahead=ahead)
    counts = [len(batch) for batch in seen]
    assert list(chain.from_iterable(seen)) == list(range(sum(counts)))
    assert promised[at - 1 :] == [len(seen)] * (len(seen) - at + 1)
    old = at + ahead  # what was drawn before the change
    assert counts[:old] == ([4] * 12 + [2] * (not drop_last))[:old]
    if drop_last:
        assert 50 - sum(counts) < counts[-1]  # too few for one more, of the size before at least
    else:
        assert sum(counts) == 50
        assert all(n == 9 for n in counts[old:-1])


def test_an_order_is_a_function_of_seed_and_epoch_for_samplers_that_draw():
    own = torch.Generator().manual_seed(5)
    for make in (
        lambda: RandomSampler(range(30)),
        lambda: RandomSampler(range(30), generator=own),
        lambda: WeightedRandomSampler(torch.arange(1.0, 31), 30),
    ):
        torch.manual_seed(1)
        before = torch.get_rng_state(), own.get_state()
        first = list(Order(make(), 3))
        assert torch.equal(before[0], torch.get_rng_state())
        assert torch.equal(before[1], own.get_state())
        torch.manual_seed(2)
        again = Order(make(), 3)
        assert list(again) == first
        again.set_epoch(1)
        assert list(again) != first
        assert list(Order(make(), 4)) != first


@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize("stop", range(1, 8))
def test_a_state_continues_with_the_very_batches(ahead, stop):
    def size(delivered):
        return 4 + delivered

    def fresh(seed):
        return GrowingBatchSampler(Order(RandomSampler(range(60)), seed), 4, False)

    whole, half, rest = fresh(7), fresh(7), fresh(0)
    for batches in (whole, half):
        batches.sampler.set_epoch(3)
        batches.start()
    seen, promised = drain(whole, size, ahead=ahead)
    before, _ = drain(half, size, ahead=ahead, stop=stop)
    rest.load_state_dict(half.state_dict())
    rest.start()
    assert len(rest) == promised[stop - 1]
    after, _ = drain(rest, size, ahead=ahead)
    assert before + after == seen
    rest.start()
    assert rest.delivered == 0  # the next pass is a whole one
    half.sampler.set_epoch(4)
    assert half.state_dict()["delivered"] == 0  # and so is that over another epoch


# Training


def test_a_run_is_the_formula_by_hand(trainer):
    module = Net(noisy=False)
    grow = AdaptiveBatchSize(eta=0.7, every=2, parts=3)
    runner = trainer(callbacks=[grow], max_epochs=2)
    runner.fit(module, loaded(5))
    twin = Net(noisy=False)
    opt = twin.configure_optimizers()
    x, y, _ = data().tensors
    size = 5
    for step, rows in enumerate(module.seen):
        if step % 2 == 0:
            parts = torch.tensor(rows).tensor_split(min(3, len(rows)))
            stacks = [
                torch.autograd.grad(F.cross_entropy(twin.net(x[p]), y[p]), twin.net.parameters())
                for p in parts
            ]
            if len(parts) > 1:
                asked = norm_test(
                    [torch.stack(g) for g in zip(*stacks, strict=True)],
                    0.7,
                    sizes=[len(p) for p in parts],
                ).size
                size = max(size, min(asked, SAMPLES))
        opt.zero_grad()
        F.cross_entropy(twin.net(x[rows]), y[rows]).backward()
        opt.step()
        if step + 1 < len(module.seen):
            rest = SAMPLES - sum(map(len, module.seen[: step + 1])) % SAMPLES
            assert len(module.seen[step + 1]) == min(size, rest)
    assert identical(module.net.parameters(), twin.net.parameters())
    assert grow.batch_size == size > 20
    assert runner.global_step == len(module.seen)


def test_a_gradient_that_is_no_number_changes_no_size(trainer):
    module = Net(noisy=False)
    module.training_step = lambda batch, batch_idx: module.net(batch[0]).sum() * math.nan
    grow = AdaptiveBatchSize(every=1)
    trainer(callbacks=[grow], max_steps=3, max_epochs=1).fit(module, loaded())
    assert grow.batch_size == 4


def test_coordinates_ask_for_their_own_test(trainer):
    module = Net(noisy=False)
    grow = AdaptiveBatchSize(eta=0.7, every=1, parts=5, coordinatewise=True, max_batch_size=90)
    trainer(callbacks=[grow], max_epochs=1).fit(module, loaded(5))
    twin, (x, y, _) = Net(noisy=False), data().tensors
    gradients = [
        torch.autograd.grad(F.cross_entropy(twin.net(x[[i]]), y[[i]]), twin.net.parameters())
        for i in module.seen[0]
    ]
    rows = [torch.stack(g) for g in zip(*gradients, strict=True)]
    asked = coordinate_norm_test(rows, 0.7).size
    assert sizes(module)[1] == min(asked, 90) != norm_test(rows, 0.7).size


@pytest.mark.parametrize("workers", [0, 2])
def test_every_sample_once_an_epoch_while_sizes_grow_in_its_middle(trainer, workers):
    module = Net()
    loader = loaded(num_workers=workers, persistent_workers=workers > 0)
    trainer(callbacks=[AdaptiveBatchSize(eta=0.8, every=1)], max_epochs=3).fit(module, loader)
    passes = epochs(module)
    assert len(passes) == 3
    for batches in passes:
        assert sorted(chain.from_iterable(batches)) == list(range(SAMPLES))
        assert all(len(a) <= len(b) for a, b in pairwise(batches[:-1]))
    assert len(set(map(len, passes[0][:-1]))) > 1  # it grew within the first epoch
    assert passes[0][0] != passes[1][0]


def test_prefetched_batches_keep_the_size_at_which_they_were_drawn(trainer):
    class Once(AdaptiveBatchSize):
        def _wanted(self, *_):
            return 20

    module = Net()
    loader = loaded(num_workers=2, prefetch_factor=3)
    trainer(callbacks=[Once(every=1)], max_epochs=1).fit(module, loader)
    assert sizes(module)[:9] == [4] * (1 + 2 * 3) + [20, 20]
    module = Net()
    trainer(callbacks=[Once(every=1)], max_epochs=1).fit(module, loaded())
    assert sizes(module)[:3] == [4, 20, 20]


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.BatchNorm1d])
def test_a_test_leaves_no_trace(trainer, norm):
    make = partial(AdamW, lr=0.01)
    runs = []
    for eta, parts in ((0.5, 8), (0.9, 2)):
        seed_everything(0, verbose=False)
        module = Net(make, norm=norm)
        grow = AdaptiveBatchSize(eta, every=1, parts=parts, max_batch_size=4)
        runner = trainer(callbacks=[grow], max_epochs=2)
        runner.fit(module, loaded())
        runs.append((module, runner.callback_metrics["mean_epoch"], torch.rand(1)))
    seed_everything(0, verbose=False)
    plain = Net(make, norm=norm)
    runner = trainer(max_epochs=2)
    runner.fit(plain, OrderedLoader(runs[0][0].seen))
    runs.append((plain, runner.callback_metrics["mean_epoch"], None))
    for module, mean, draw in runs[1:]:
        assert module.seen == runs[0][0].seen
        assert identical(module.state_dict().values(), runs[0][0].state_dict().values())
        assert torch.equal(mean, runs[0][1])
        assert draw is None or torch.equal(draw, runs[0][2])


class OrderedLoader(DataLoader):
    """Batches as they were in another run; it draws nothing."""

    def __init__(self, seen):
        self.seen = [seen[: len(seen) // 2], seen[len(seen) // 2 :]]
        super().__init__(data(), 4)

    def __iter__(self):
        tensors = self.dataset.tensors
        return iter([[t[rows] for t in tensors] for rows in self.seen.pop(0)])


def test_other_callbacks_and_optimizers_that_ask(trainer):
    module = Net(lambda params: SAM(torch.optim.SGD(params, lr=0.1), rho=0.05), noisy=False)
    grow = AdaptiveBatchSize(eta=0.7, every=1)
    trainer(callbacks=[Oracles(), grow], max_epochs=2).fit(module, loaded())
    twin, (x, y, _) = Net(noisy=False), data().tensors
    opt = SAM(torch.optim.SGD(twin.net.parameters(), lr=0.1), rho=0.05)
    for rows in module.seen:
        opt.step(lambda rows=rows: F.cross_entropy(twin.net(x[rows]), y[rows]))
    assert identical(module.net.parameters(), twin.net.parameters())
    assert grow.batch_size > 4


def test_accumulated_batches_count_together(trainer):
    class Asks(AdaptiveBatchSize):
        asked = 0

        def _wanted(self, *args):
            self.asked += 1
            return super()._wanted(*args)

    chosen = []
    for accumulate in (1, 4):
        grow = Asks(eta=0.1, every=1, max_batch_size=10**6)
        runner = trainer(
            callbacks=[grow], max_steps=1, accumulate_grad_batches=accumulate, max_epochs=1
        )
        runner.fit(Net(noisy=False), loaded(8))
        chosen.append(grow.batch_size)
        assert grow.asked == 1
    assert chosen[1] > 8
    assert 4 * (chosen[1] - 1) < chosen[0] <= 4 * chosen[1]


# Lightning's count of an epoch's batches


class Totals(TQDMProgressBar):
    def __init__(self):
        super().__init__()
        self.totals, self.last = [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        super().on_train_batch_end(trainer, module, outputs, batch, batch_idx)
        bar = self.train_progress_bar
        self.totals.append((bar.n, bar.total, trainer.num_training_batches))
        if trainer.is_last_batch:
            self.last.append(len(self.totals))


def test_validation_and_progress_bar_follow_the_number_of_batches(trainer, capsys):
    module, bar = Net(), Totals()
    runner = trainer(
        callbacks=[AdaptiveBatchSize(eta=0.8, every=1), bar],
        max_epochs=3,
        enable_progress_bar=True,
        num_sanity_val_steps=0,
    )
    runner.fit(module, loaded(), DataLoader(data(), SAMPLES))
    ends = torch.tensor([len(e) for e in epochs(module)]).cumsum(0).tolist()
    assert module.validated == list(zip(range(3), ends, strict=True))
    assert bar.totals[0][1] < 50  # the first test was before the first step
    assert bar.last == ends
    last = [bar.totals[end - 1] for end in ends]
    assert [n for n, _, _ in last] == [total for _, total, _ in last]
    assert all(total == batches for _, total, batches in bar.totals)
    capsys.readouterr()


def test_a_rich_progress_bar_follows_too(trainer, capsys):
    module, bar = Net(), RichProgressBar()
    ended = []
    module.on_train_epoch_end = lambda: ended.append(
        (bar.train_progress_bar.completed, bar.train_progress_bar.total)
    )
    runner = trainer(
        callbacks=[AdaptiveBatchSize(eta=0.8, every=1), bar],
        max_epochs=2,
        enable_progress_bar=True,
    )
    runner.fit(module, loaded())
    assert ended == [(len(e), len(e)) for e in epochs(module)]
    capsys.readouterr()


def test_validation_within_an_epoch(trainer):
    module = Net()
    grow = AdaptiveBatchSize(eta=0.8, every=1, max_batch_size=10)
    runner = trainer(callbacks=[grow], max_epochs=3, val_check_interval=0.5, num_sanity_val_steps=0)
    runner.fit(module, loaded(), DataLoader(data(), SAMPLES))
    assert [step for epoch, step in module.validated if epoch == 2] == [
        runner.global_step - 10,
        runner.global_step,
    ]


def test_a_limit_of_batches_holds(trainer):
    module = Net()
    grow = AdaptiveBatchSize(eta=0.8, every=1, max_batch_size=20)
    runner = trainer(callbacks=[grow], max_epochs=3, limit_train_batches=6)
    runner.fit(module, loaded(), DataLoader(data(), SAMPLES))
    assert runner.global_step == 18
    assert {epoch for epoch, _ in module.validated} == {0, 1, 2}


def test_what_is_logged(trainer):
    module, logged = Net(), []
    grow = AdaptiveBatchSize(eta=0.8, every=1)
    runner = trainer(callbacks=[grow], max_epochs=2)
    plain = module.on_train_batch_end

    def on_train_batch_end(outputs, batch, batch_idx):
        plain(outputs, batch, batch_idx)
        logged.append((grow.batch_size, runner.progress_bar_metrics.get("batch_size")))

    module.on_train_batch_end = on_train_batch_end
    runner.fit(module, loaded())
    assert runner.logged_metrics["batch_size"] == grow.batch_size > 4
    # What the batch after it has, but for the last of an epoch: no logger, so a step behind.
    assert all(n <= size for (size, _), n in zip(logged, sizes(module)[1:], strict=False))


def test_a_loader_made_anew_keeps_the_size(trainer):
    module = Net()
    runner = trainer(
        callbacks=[AdaptiveBatchSize(eta=0.8, every=1)],
        max_epochs=3,
        reload_dataloaders_every_n_epochs=1,
    )
    runner.fit(module, loaded())
    passes = epochs(module)
    assert len(passes) == 3
    assert len(passes[1][0]) >= max(map(len, passes[0][:-1])) > 4


# Resume


@pytest.fixture
def run(trainer, tmp_path):
    def run(*, resume=None, seed=0, workers=0, every=3, **options):
        seed_everything(seed, verbose=False)
        module = Net()
        grow = AdaptiveBatchSize(eta=0.8, every=2, max_batch_size=60)
        keep = ModelCheckpoint(
            tmp_path,
            filename="{step}",
            auto_insert_metric_name=False,
            every_n_train_steps=1,
            save_top_k=-1,
        )
        runner = trainer(
            callbacks=[RandomState(), grow, keep],
            enable_checkpointing=True,
            num_sanity_val_steps=0,
            **{"max_epochs": 3, **options},
        )
        loader = loaded(num_workers=workers)
        path = tmp_path / f"{resume}.ckpt" if resume else None
        # With a generator of its own: an iterator draws from the global one, with no workers too.
        check = DataLoader(data(), SAMPLES, generator=torch.Generator())
        runner.fit(module, loader, check, ckpt_path=path)
        return module, grow, runner

    return run


def test_resume_after_any_step_is_exact(run):
    whole, grow, runner = run()
    steps = runner.global_step
    assert len(epochs(whole)[0]) > 6
    for step in range(1, steps):
        resumed, again, other = run(resume=step, seed=9)
        assert resumed.seen == whole.seen[step:]
        assert identical(resumed.state_dict().values(), whole.state_dict().values())
        assert again.batch_size == grow.batch_size
        assert other.global_step == steps
        assert [v for v in resumed.validated if v[1] > step] == [
            v for v in whole.validated if v[1] > step
        ]


@pytest.mark.parametrize("step", [1, 4, 7, 12])
def test_resume_with_workers_is_exact(run, step):
    whole, _, _ = run(workers=2)
    resumed, _, _ = run(resume=step, seed=9, workers=2)
    assert resumed.seen == whole.seen[step:]
    assert identical(resumed.state_dict().values(), whole.state_dict().values())
    first = epochs(whole)[0]
    assert len(set(map(len, first[:-1]))) > 1


def test_resume_in_a_run_of_steps(run):
    whole, _, runner = run(max_epochs=-1, max_steps=25)
    for step in (5, 16):
        resumed, _, _ = run(resume=step, seed=9, max_epochs=-1, max_steps=25)
        assert resumed.seen == whole.seen[step:]
        assert identical(resumed.state_dict().values(), whole.state_dict().values())
    assert runner.global_step == 25


def test_the_checkpoint_holds_plain_data(run, tmp_path):
    run(max_epochs=1)
    state = torch.load(tmp_path / "3.ckpt", weights_only=True)["callbacks"]["AdaptiveBatchSize"]
    assert set(state) == {
        *("seed", "epoch", "batch_size", "delivered", "samples", "pending", "last")
    }
    assert state["delivered"] == 3


def test_the_books_data_come_in_their_own_order(trainer):
    seen = []
    for callbacks in ([], [AdaptiveBatchSize(max_batch_size=32)]):
        module = Classifier(hidden=[8])
        batches = []
        module.on_train_batch_end = lambda o, b, i, batches=batches: batches.append(b[1])
        trainer(callbacks=callbacks, max_epochs=2).fit(module, DigitsData(32))
        seen.append(torch.cat(batches))
    assert torch.equal(*seen)


# Several processes


def test_two_processes_grow_together(two_processes, tmp_path):
    (a, a_resumed), (b, b_resumed) = two_processes("_ddp_batch_size.py", tmp_path / "kept")
    assert a["sizes"] == b["sizes"]
    assert max(a["sizes"]) > 4
    assert [len(x) for x in a["seen"]] == [len(x) for x in b["seen"]]
    everyone = Counter(chain.from_iterable(a["seen"] + b["seen"]))
    assert everyone == {i: 3 for i in range(240)}  # in three epochs, by one of the two
    # The first size is that of one process that cuts the union in the same parts.
    sys.path.insert(0, str(Path(__file__).parent))
    import _ddp_batch_size as twin

    module, (x, y, _) = twin.Net(), twin.data().tensors
    gradients = [
        torch.autograd.grad(F.cross_entropy(module.net(x[[i]]), y[[i]]), module.net.parameters())
        for i in a["seen"][0] + b["seen"][0]
    ]
    rows = [torch.stack(g) for g in zip(*gradients, strict=True)]
    assert a["sizes"][0] == math.ceil(min(norm_test(rows, 0.6).size / 2, 120))
    for whole, resumed in ((a, a_resumed), (b, b_resumed)):
        assert resumed["seen"] == whole["seen"][5:]
        assert identical(resumed["weights"].values(), whole["weights"].values())
    assert identical(a["weights"].values(), b["weights"].values())


# The paper's claim


def logistic(n=16384, d=20):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=rng, dtype=torch.float64)
    w = torch.randn(d, generator=rng, dtype=torch.float64) / math.sqrt(d)
    odds = torch.sigmoid(3 * x @ w)
    return TensorDataset(x, (torch.rand(n, generator=rng, dtype=torch.float64) < odds).double())


class Logistic(LightningModule):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(20, dtype=torch.float64))

    def training_step(self, batch, batch_idx):
        return F.binary_cross_entropy_with_logits(batch[0] @ self.w, batch[1])

    def configure_optimizers(self):
        return torch.optim.Adagrad([self.w], lr=0.1)


def test_batches_grow_and_steps_fall_at_equal_samples_and_loss(trainer):
    dataset, eta, trace = logistic(), 0.5, []
    x, y = dataset.tensors

    class Watched(AdaptiveBatchSize):
        """Compare the noise of a batch of the new size with the exact gradient."""

        def on_train_batch_start(self, runner, module, batch, batch_idx):
            super().on_train_batch_start(runner, module, batch, batch_idx)
            rows = x * (torch.sigmoid(x @ module.w.detach()) - y)[:, None]
            noise = rows.var(0).sum() / self.batch_size / rows.mean(0).square().sum()
            trace.append((self.batch_size, float(noise)))

    torch.manual_seed(0)
    module = Logistic()
    runner = trainer(callbacks=[Watched(eta, every=1)], max_epochs=2)
    runner.fit(module, DataLoader(dataset, 8, shuffle=True))
    constant = Logistic()
    opt = constant.configure_optimizers()
    for rows in torch.cat([torch.randperm(len(x)) for _ in range(2)]).split(8):
        opt.zero_grad()
        F.binary_cross_entropy_with_logits(x[rows] @ constant.w, y[rows]).backward()
        opt.step()
    chosen = [size for size, _ in trace]
    assert chosen == sorted(chosen)
    assert chosen[-1] >= 8 * chosen[0]
    grown = [noise for size, noise in trace if size > 8]
    assert sum(grown) / len(grown) <= 1.5 * eta**2
    ours, theirs = (
        float(F.binary_cross_entropy_with_logits(x @ m.w.detach(), y)) for m in (module, constant)
    )
    assert ours <= 1.1 * theirs
    assert runner.global_step <= 0.5 * 2 * len(x) / 8


# What cannot be done


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.randn(8, 32))


class Own(DataLoader):
    def __iter__(self):
        return super().__iter__()


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (lambda: DataLoader(Stream(), 4), "IterableDataset"),
        (
            lambda: DataLoader(
                torch.randn(8, 32),
                batch_sampler=type("Mine", (BatchSampler,), {})(
                    SequentialSampler(range(8)), 2, False
                ),
            ),
            "Mine makes",
        ),
        (lambda: DataLoader(torch.randn(8, 32), batch_size=None), "batch_size=None makes"),
        (lambda: Own(torch.randn(8, 32), 4), "Own, which iterates in its own way"),
        (lambda: [torch.randn(4, 32)], "a Tensor"),
        (lambda: {"a": loaded(), "b": loaded()}, "a single one"),
    ],
)
def test_loaders_that_make_their_own_batches_are_refused(trainer, loader, message):
    module = BoringModel()
    before = [p.clone() for p in module.parameters()]
    runner = trainer(callbacks=[AdaptiveBatchSize()], max_epochs=1, limit_val_batches=0)
    with pytest.raises(TypeError, match=message):
        runner.fit(module, loader())
    assert identical(before, module.parameters())
    assert "process_dataloader" not in vars(runner.strategy)


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        (None, TypeError, "no loss"),
        ({"out": 1}, TypeError, "no loss"),
        (1.0, TypeError, "float"),
    ],
)
def test_a_step_without_a_loss_is_refused(trainer, output, error, message):
    module = BoringModel()
    module.training_step = lambda batch, batch_idx: output
    runner = trainer(callbacks=[AdaptiveBatchSize()], max_epochs=1, limit_val_batches=0)
    with pytest.raises(error, match=message):
        runner.fit(module)


def test_a_batch_that_cannot_be_cut_is_refused():
    t = torch.arange(10)
    parts = list(split({"x": t, "y": (t, 3, None)}, 4))
    assert [size for _, size in parts] == [3, 3, 2, 2]
    assert torch.equal(torch.cat([p["x"] for p, _ in parts]), t)
    assert [len(p["y"][0]) for p, _ in parts] == [3, 3, 2, 2]
    assert all(p["y"][1:] == (3, None) for p, _ in parts)
    assert len(list(split(t[:2], 4))) == 2
    for batch in ([t, t[:3]], [t, "names"], torch.tensor(1.0), [1, 2]):
        with pytest.raises(ValueError, match="cannot cut this batch"):
            list(split(batch, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": 0.0}, "eta=0.0"),
        ({"eta": 1.0}, "eta=1.0"),
        ({"parts": 1}, "parts=1"),
        ({"every": 0}, "every=0"),
        ({"max_batch_size": 0}, "max_batch_size=0"),
        ({"every": 1.5}, "every=1.5"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveBatchSize(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_check_interval": 2}, "val_check_interval=2"),
        ({"limit_train_batches": 0.5}, r"limit_train_batches=0\.5"),
    ],
)
def test_trainers_that_count_batches_are_refused(trainer, options, message):
    runner = trainer(callbacks=[AdaptiveBatchSize()], max_epochs=1, **options)
    with pytest.raises(RuntimeError, match=message):
        runner.fit(Net(), loaded())


def test_modules_that_cannot_be_asked_twice_are_refused(trainer):
    module = BoringModel()
    module.automatic_optimization = False
    with pytest.raises(RuntimeError, match="manual"):
        trainer(callbacks=[AdaptiveBatchSize()], max_epochs=1).fit(module)

    class Iterates(BoringModel):
        def training_step(self, dataloader_iter):
            raise AssertionError

    with pytest.raises(RuntimeError, match="dataloader_iter"):
        trainer(callbacks=[AdaptiveBatchSize()], max_epochs=1).fit(Iterates())
    with pytest.raises(RuntimeError, match="two callbacks"):
        trainer(callbacks=[AdaptiveBatchSize(), Twice()], max_epochs=1).fit(BoringModel())
    with pytest.raises(RuntimeError, match="before a fit"):
        _ = AdaptiveBatchSize().batch_size


class Twice(AdaptiveBatchSize):
    @property
    def state_key(self):
        return "another"


def test_the_loader_takes_after_the_one_given():
    def collate(rows):
        return torch.stack(rows)

    given = DataLoader(torch.randn(8, 3), 4, collate_fn=collate, drop_last=True, timeout=0)
    grown = GrowingLoader(given, 0)
    assert grown.collate_fn is collate
    assert (grown.batch_sampler.batch_size, grown.batch_sampler.drop_last) == (4, True)
    assert isinstance(grown.batch_sampler.sampler.sampler, SequentialSampler)
    assert len(grown) == 2
