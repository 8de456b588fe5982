import copy

import pytest
import torch
from lightning.pytorch import Trainer
from torch.optim.lr_scheduler import OneCycleLR

from steepest.lightning import Classifier, DigitsData
from steepest.optim import SAM, SGDW, AdamW
from steepest.schedules import OneCycle

LR_MAX = 0.8


def parameter(seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.nn.Parameter(torch.randn(3, generator=rng, dtype=torch.float64))


def read(opt):
    group = opt.param_groups[0]
    return group["lr"], group["betas"][0] if "betas" in group else group["momentum"]


def play(schedule, steps):
    """Learning rates and momenta at steps 0, 1, ..., steps."""
    opt, seen = schedule.optimizer, [read(schedule.optimizer)]
    for _ in range(steps):
        opt.param_groups[0]["params"][0].grad = torch.ones(3, dtype=torch.float64)
        opt.step()
        schedule.step()
        seen.append(read(opt))
    return [torch.tensor(column, dtype=torch.float64) for column in zip(*seen, strict=True)]


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam, SGDW, AdamW])
@pytest.mark.parametrize("steps", [20, 61, 1000])
def test_it_is_torchs_schedule_of_three_linear_phases(make, steps):
    options = {"momentum": 0.9} if make in (torch.optim.SGD, SGDW) else {}
    opt = make([parameter()], lr=LR_MAX, **options)
    ours = play(OneCycle(opt, steps, ratio=13.0, annihilation=200.0), steps)
    # torch counts the last step's rate among its steps, and puts each phase's end a step earlier.
    theirs = play(
        OneCycleLR(
            make([parameter()], lr=LR_MAX, **options),
            LR_MAX,
            total_steps=steps + 1,
            pct_start=(0.45 * steps + 1) / (steps + 1),
            anneal_strategy="linear",
            three_phase=True,
            div_factor=13.0,
            final_div_factor=200.0,
        ),
        steps,
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_peak_turning_point_and_end():
    steps = 200
    rates, momenta = play(OneCycle(SGDW([parameter()], lr=LR_MAX, momentum=0.9), steps), steps)
    lr_min, peak = LR_MAX / 10, round(0.45 * steps)
    assert rates[0] == pytest.approx(lr_min, rel=1e-15)
    assert rates[peak] == pytest.approx(LR_MAX, rel=1e-15)
    assert rates.argmax() == momenta.argmin() == peak
    assert momenta[0] == 0.95 and momenta[peak] == pytest.approx(0.85)
    assert rates[2 * peak] == pytest.approx(lr_min) and momenta[2 * peak] == pytest.approx(0.95)
    assert rates[-1] <= lr_min / 100 * (1 + 1e-12) and (momenta[2 * peak :] >= 0.95 - 1e-12).all()
    # Momentum is an affine function of the rate until the last phase: always against it.
    cycle = slice(0, 2 * peak + 1)
    joint = torch.corrcoef(torch.stack([rates[cycle], momenta[cycle]]))[0, 1]
    assert joint == pytest.approx(-1.0, abs=1e-12)


def test_without_cycle_and_momentum_it_is_a_constant_rate_until_the_last_phase():
    opt = SGDW([parameter()], lr=LR_MAX, momentum=0.7)
    rates, momenta = play(OneCycle(opt, 100, ratio=1.0, momentum=None), 100)
    torch.testing.assert_close(rates[:91], torch.full((91,), LR_MAX, dtype=torch.float64))
    assert (rates[91:] < LR_MAX).all() and set(momenta.tolist()) == {0.7}


def test_groups_have_peaks_of_their_own():
    groups = [{"params": [parameter(k)], "lr": lr} for k, lr in enumerate((0.1, 1.0))]
    schedule = OneCycle(AdamW(groups), 20)
    peaks = [max(rates) for rates in zip(*[_next(schedule) for _ in range(20)], strict=True)]
    assert peaks == pytest.approx([0.1, 1.0])
    schedule = OneCycle(AdamW([{"params": g["params"]} for g in groups]), 20, [0.2, 3.0])
    peaks = [max(rates) for rates in zip(*[_next(schedule) for _ in range(20)], strict=True)]
    assert peaks == pytest.approx([0.2, 3.0])


def _next(schedule):
    schedule.optimizer.step()
    schedule.step()
    return schedule.get_last_lr()


def test_it_stays_where_it_ended():
    rates, _ = play(OneCycle(AdamW([parameter()], lr=LR_MAX), 20), 25)
    assert rates[20:].tolist() == pytest.approx([LR_MAX / 1000] * 6)


@pytest.mark.parametrize("make", [SGDW, AdamW])
def test_resume_is_exact(make):
    def train(p, opt, schedule, steps):
        for _ in range(steps):
            p.grad = torch.sin(3 * p.detach())
            opt.step()
            schedule.step()

    p = parameter()
    opt = make([p], lr=LR_MAX)
    schedule = OneCycle(opt, 40, 0.3)
    train(p, opt, schedule, 17)
    saved = copy.deepcopy((opt.state_dict(), schedule.state_dict(), p.detach()))
    train(p, opt, schedule, 23)

    q = torch.nn.Parameter(saved[2])
    resumed = make([q], lr=9.0)
    again = OneCycle(resumed, 40, 0.3)
    resumed.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    train(q, resumed, again, 23)
    assert torch.equal(p, q) and read(opt) == read(resumed)


def test_it_cycles_what_a_wrapper_wraps():
    inner = torch.optim.SGD([parameter()], lr=LR_MAX, momentum=0.9)
    OneCycle(SAM(inner), 20)
    assert read(inner) == (pytest.approx(LR_MAX / 10), 0.95)


def test_it_moves_with_every_batch_under_a_trainer():
    class Module(Classifier):
        def configure_optimizers(self):
            opt = SGDW(self.parameters(), lr=LR_MAX)
            steps = int(self.trainer.estimated_stepping_batches)
            return {
                "optimizer": opt,
                "lr_scheduler": {"scheduler": OneCycle(opt, steps), "interval": "step"},
            }

        def on_before_optimizer_step(self, optimizer):
            self.seen.append(read(optimizer))

    module = Module(hidden=[8])
    module.seen = []
    trainer = Trainer(
        max_epochs=2,
        limit_train_batches=10,
        limit_val_batches=0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DigitsData())
    expected = play(OneCycle(SGDW([parameter()], lr=LR_MAX), 20), 19)
    for seen, planned in zip(zip(*module.seen, strict=True), expected, strict=True):
        assert list(seen) == planned.tolist()
    last = module.optimizers().param_groups[0]["lr"]
    assert last == pytest.approx(LR_MAX / 1000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"total_steps": 0}, "total_steps"),
        ({"lr_max": -1.0}, "lr_max"),
        ({"lr_max": [1.0, 1.0]}, "lr_max"),
        ({"ratio": 0.5}, "ratio"),
        ({"annihilation": 0.0}, "annihilation"),
        ({"momentum": (0.8, 0.9)}, "momentum"),
        ({"rise": 0.5}, "rise"),
    ],
)
def test_bad_arguments_change_nothing(options, message):
    opt = SGDW([parameter()], lr=LR_MAX, momentum=0.9)
    with pytest.raises(ValueError, match=message):
        OneCycle(opt, **{"total_steps": 10, **options})
    assert read(opt) == (LR_MAX, 0.9) and "initial_lr" not in opt.param_groups[0]


def test_a_group_without_momentum_is_refused():
    opt = torch.optim.Adagrad([parameter()], lr=LR_MAX)
    with pytest.raises(ValueError, match="momentum=None"):
        OneCycle(opt, 10)
    OneCycle(opt, 10, momentum=None)
    assert opt.param_groups[0]["lr"] == pytest.approx(LR_MAX / 10)
