import copy
import math
import random

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from steepest.lightning import Classifier, DigitsData, LRRangeTest
from steepest.optim import SAM, SGDW, AdamW, MeZO
from steepest.schedules import OneCycle

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
]


def sgd(params):
    return torch.optim.SGD(params, 0.05, momentum=0.9)


class Module(Classifier):
    """Dropout, batch normalization, a schedule: whatever has state."""

    def __init__(self, optimizer=sgd):
        network = nn.Sequential(
            nn.Linear(64, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.2), nn.Linear(24, 10)
        )
        super().__init__(network, optimizer=optimizer)
        self.count = 0

    def training_step(self, batch, batch_idx):
        self.count += 1
        random.random(), np.random.rand()
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self):
        opt = self.make_optimizer(self.parameters())
        schedule = {"scheduler": OneCycle(opt, 60, 0.1), "interval": "step"}
        return {"optimizer": opt, "lr_scheduler": schedule}


def flat(thing):
    """Everything in nested state, as something that compares exactly."""
    if isinstance(thing, torch.Tensor):
        return (str(thing.dtype), tuple(thing.shape), thing.detach().numpy().tobytes())
    if isinstance(thing, np.ndarray):
        return thing.tobytes()
    if isinstance(thing, dict):
        return [(str(key), flat(value)) for key, value in thing.items()]
    if isinstance(thing, list | tuple):
        return [flat(value) for value in thing]
    return thing


def state(module, data, trainer=None):
    found = [
        module.state_dict(),
        module.count,
        module.training,
        [p.grad is None for p in module.parameters()],
        random.getstate(),
        np.random.get_state(),
        torch.get_rng_state(),
        data.generator.get_state() if isinstance(data, DataLoader) else list(data.splits),
    ]
    if trainer is not None:
        found += [
            [opt.state_dict() for opt in trainer.optimizers],
            [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
            trainer.fit_loop.state_dict(),
            trainer.global_step,
            [type(callback).__name__ for callback in trainer.callbacks],
        ]
    return flat(found)


def digits_loader():
    data = DigitsData()
    data.setup()
    train = data.splits["train"]
    return DataLoader(
        TensorDataset(train.inputs, train.targets),
        batch_size=32,
        shuffle=True,
        generator=torch.Generator().manual_seed(3),
    )


@pytest.mark.parametrize("make_data", [DigitsData, digits_loader])
def test_nothing_remains_of_it(trainer, make_data):
    module, data = Module(), make_data()
    before = state(module, data)
    test = LRRangeTest(1e-4, 100.0, 40)
    test.run(module, data)
    assert state(module, data) == before and len(test.rates) > 10

    # Nor in the middle of a training that goes on afterwards.
    runner = trainer(max_epochs=1, limit_train_batches=20, limit_val_batches=0)
    runner.fit(module, data)
    before = state(module, data, runner)
    test.run(module, data)
    assert state(module, data, runner) == before and module.trainer is runner


def test_training_is_the_same_with_it_and_without(trainer):
    weights = []
    for tested in (False, True):
        torch.manual_seed(5)
        module, data = Module(), digits_loader()
        if tested:
            LRRangeTest(1e-4, 10.0, 20).run(module, data)
        trainer(max_epochs=1, limit_train_batches=15, limit_val_batches=0).fit(module, data)
        weights.append(flat(module.state_dict()))
    assert weights[0] == weights[1]


ZEROS = DataLoader(torch.zeros(30, 1))


class Quadratic(LightningModule):
    def __init__(self, curvatures):
        super().__init__()
        self.p = nn.Parameter(torch.ones(len(curvatures), dtype=torch.float64))
        self.q = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.curvatures = curvatures

    def training_step(self, batch, batch_idx):
        return 0.5 * (self.curvatures * self.p**2).sum() + 0.5 * self.q.square().sum()

    def configure_optimizers(self):
        return torch.optim.SGD([{"params": [self.p], "lr": 0.1}, {"params": [self.q], "lr": 0.2}])


def test_rates_and_losses_are_those_of_a_loop_by_hand():
    curvatures = torch.tensor([1.0, 3.0], dtype=torch.float64)
    test = LRRangeTest(1e-3, 10.0, 30, window=1)
    lr_max = test.run(Quadratic(curvatures), ZEROS)
    p = torch.ones(2, dtype=torch.float64)
    rates, losses = [], []
    for k in range(30):
        rates.append(1e-3 * 1e4 ** (k / 29))
        losses.append(0.5 * (curvatures * p**2).sum().item())
        if losses[-1] > 4 * losses[0]:
            break
        p = p - rates[-1] * curvatures * p
    assert test.rates == pytest.approx(rates) and test.losses == pytest.approx(losses)
    assert lr_max == rates[losses.index(min(losses))]
    # Steps shrink the steepest direction up to 2 / 3, and it takes a few to see that they do not.
    assert 2 / 3 < lr_max < 2


@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_within_four_times_of_the_largest_stable_constant_rate(seed):
    data = DigitsData(64)
    data.setup()
    train = data.splits["train"]
    torch.manual_seed(seed)

    class Plain(Classifier):
        def configure_optimizers(self):
            return SGDW(self.parameters(), 0.1, momentum=0.9, weight_decay=0.0)

    module = Plain(hidden=[32])
    lr_max = LRRangeTest(1e-3, 100.0, 100).run(module, data)

    def stable(lr):
        """Whether 150 steps at this rate end below a half of the first loss."""
        model = copy.deepcopy(module.network)
        opt = SGDW(model.parameters(), lr, momentum=0.9, weight_decay=0.0)
        rng = torch.Generator().manual_seed(seed)
        tail = []
        for k in range(150):
            rows = torch.randint(len(train), (64,), generator=rng)
            loss = F.cross_entropy(model(train.inputs[rows]), train.targets[rows])
            opt.zero_grad()
            loss.backward()
            opt.step()
            if k >= 130:
                tail.append(loss.item())
        return sum(tail) / len(tail) < 0.5 * math.log(10)

    scan = [2.0 ** (k / 2) for k in range(-12, 9)]
    largest = max(lr for lr in scan if stable(lr))
    assert not stable(scan[-1])
    assert largest / 4 <= lr_max <= 4 * largest


@pytest.mark.parametrize(
    "make",
    [
        AdamW,
        lambda ps: SAM(torch.optim.SGD(ps, 0.1)),
        lambda ps: MeZO(ps, lr=1e-3),
    ],
    ids=["AdamW", "SAM", "MeZO"],
)
def test_optimizers_that_ask_are_tested_like_others(make):
    class Asking(Module):
        def configure_optimizers(self):
            return self.make_optimizer(self.parameters())

    module, data = Asking(make), DigitsData()
    before = state(module, data)
    test = LRRangeTest(1e-5, 1e3, 30)
    assert 1e-5 <= test.run(module, data) <= 1e3
    assert state(module, data) == before


def test_it_ends_early_and_accumulates():
    curvatures = torch.tensor([1.0], dtype=torch.float64)
    test = LRRangeTest(1e-2, 1e6, 60, window=1)
    test.run(Quadratic(curvatures), ZEROS)
    assert 10 < len(test.losses) < 60 and test.losses[-1] > 4 * test.losses[0]
    test = LRRangeTest(1e-3, 1e-1, 5)
    test.run(Quadratic(curvatures), ZEROS, accumulate_grad_batches=3)
    assert len(test.rates) == 15 and len(set(test.rates)) == 5


def test_a_schedule_of_the_module_does_not_interfere():
    seen = []

    class Watched(Module):
        def on_before_optimizer_step(self, optimizer):
            seen.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))

    test = LRRangeTest(1e-4, 1e-1, 12)
    test.run(Watched(), DigitsData())
    assert [lr for lr, _ in seen] == test.rates == pytest.approx(list(np.geomspace(1e-4, 0.1, 12)))
    assert {momentum for _, momentum in seen} == {0.95}  # as the cycle sets it when it is made


def test_groups_keep_their_proportions():
    seen = []

    class Watched(Quadratic):
        def on_before_optimizer_step(self, optimizer):
            seen.append([group["lr"] for group in optimizer.param_groups])

    module = Watched(torch.tensor([1.0], dtype=torch.float64))
    LRRangeTest(1e-3, 1e-1, 5).run(module, ZEROS)
    assert [b / a for a, b in seen] == pytest.approx([2.0] * 5)
    assert seen[0][0] == pytest.approx(1e-3) and seen[-1][0] == pytest.approx(1e-1)


def test_a_plot_shows_the_suggestion():
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("agg")
    test = LRRangeTest(1e-3, 10.0, 30)
    with pytest.raises(RuntimeError, match="fewer than three"):
        test.lr_max  # noqa: B018
    lr_max = test.run(Quadratic(torch.tensor([1.0], dtype=torch.float64)), ZEROS)
    ax = test.plot()
    assert ax.get_xscale() == "log" and len(ax.lines) == 3
    assert ax.lines[2].get_xdata()[0] == lr_max
    plt.close("all")


def test_bad_arguments_are_refused():
    for low, high in ((0.0, 1.0), (1.0, 0.1), (1.0, math.inf)):
        with pytest.raises(ValueError, match="low < high"):
            LRRangeTest(low, high)
    for options in ({"steps": 2}, {"window": 0}, {"window": 200}, {"stop": 0.0}):
        with pytest.raises(ValueError, match="at least 3 steps"):
            LRRangeTest(**options)


def test_a_module_that_it_cannot_test_is_refused():
    class Two(Quadratic):
        automatic_optimization = False

        def configure_optimizers(self):
            return [torch.optim.SGD([self.p], 0.1), torch.optim.SGD([self.q], 0.1)]

    class Silent(Quadratic):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            return None

    curvatures = torch.ones(2, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="2 optimizers"):
        LRRangeTest().run(Two(curvatures), ZEROS)
    with pytest.raises(RuntimeError, match="no loss"):
        LRRangeTest().run(Silent(curvatures), ZEROS)
