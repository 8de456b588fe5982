"""SharedRandomness: replicas that stay equal, bytes that are counted, a log that is the run."""

import copy
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from steepest.estimators import SPSA
from steepest.kernels import noise, split_seed
from steepest.lightning import DigitsData, SharedRandomness
from steepest.lightning._shared_randomness import ABSENT, decode, encode
from steepest.optim import MeZO

F64 = torch.float64


class Fleet:
    """Simulated machines, each with a model, an optimizer and batches of its own."""

    def __init__(self, machines, model, **options):
        self.models = [copy.deepcopy(model) for _ in range(machines)]
        self.sent = [None] * machines
        self.opts = [
            SharedRandomness(
                m.named_parameters(), rank=r, exchange=lambda _: torch.stack(self.sent), **options
            )
            for r, m in enumerate(self.models)
        ]

    def step(self, losses, absent=()):
        answers = [
            opt.query(opt.objective(lambda m=m, loss=loss: loss(m)))
            for opt, m, loss in zip(self.opts, self.models, losses, strict=True)
        ]
        self.sent = [
            torch.full_like(a.rest, ABSENT) if r in absent else a.rest
            for r, a in enumerate(answers)
        ]
        for opt, answer in zip(self.opts, answers, strict=True):
            opt.update(answer)
            opt.steps += 1
        return [a.value.item() for a in answers]

    def vectors(self):
        return [nn.utils.parameters_to_vector(m.parameters()).detach() for m in self.models]

    def gap(self):
        first, *others = self.vectors()
        return max((v - first).abs().max().item() for v in others)


def problem(dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).to(dtype)
    x, y = torch.randn(60, 8, 4, dtype=dtype), torch.randn(60, 8, 1, dtype=dtype)
    return model, [lambda m, i=i: F.mse_loss(m(x[i]), y[i]) for i in range(60)]


def test_against_a_transcription():
    """Three machines in float64: seeds, codes, scale and sums written out."""
    model, losses = problem(F64)
    start = nn.utils.parameters_to_vector(model.parameters()).detach()
    lr, eps, wd, seed = 0.05, 1e-3, 0.1, 11
    options = {"lr": lr, "eps": eps, "weight_decay": wd, "seed": seed}
    opts, sent = [], []
    models = [copy.deepcopy(model) for _ in range(3)]
    for r, m in enumerate(models):  # parameters without names: their noise is one stream
        opts.append(SharedRandomness(m.parameters(), rank=r, exchange=lambda _: sent[0], **options))
    theta, scale, twin = start.clone(), 1.0, copy.deepcopy(model)
    d = len(theta)

    def at(vector, loss):
        nn.utils.vector_to_parameters(vector, twin.parameters())
        with torch.no_grad():
            return loss(twin).item()

    for t in range(10):
        batch = losses[3 * t : 3 * t + 3]
        values, step = [], torch.zeros(d, dtype=F64)
        for r in range(3):
            own = split_seed(split_seed(seed, t), r)
            z = noise(split_seed(own, 0), 0, d).double()
            w = (at(theta + eps * z, batch[r]) - at(theta - eps * z, batch[r])) / (2 * eps)
            u = split_seed(split_seed(own, 1), 0) / 2**64
            q = math.floor(max(-127, min(127, 127 * w / scale)) + u)
            values.append(q * scale / 127)
            step += values[-1] * z / 3
        theta = (1 - lr * wd) * theta - lr * step
        scale = max(0.95 * scale, 2 * max(map(abs, values)))
        answers = [
            opt.query(opt.objective(lambda m=m, b=b: b(m)))
            for opt, m, b in zip(opts, models, batch, strict=True)
        ]
        sent[:] = [torch.stack([a.rest for a in answers])]
        for opt, answer in zip(opts, answers, strict=True):
            opt.update(answer)
            opt.steps += 1
        assert opts[0].scale == pytest.approx(scale, rel=1e-9)
    ours = nn.utils.parameters_to_vector(models[1].parameters())
    assert torch.allclose(ours, theta, rtol=0, atol=1e-9)


def test_one_machine_that_does_not_round_is_mezo():
    """With its machine's seed in the place of the step's."""
    model, losses = problem(F64)
    twin = copy.deepcopy(model)
    alone = SharedRandomness(model.named_parameters(), lr=0.05, samples=3, exact=True, seed=2)
    mezo = MeZO(twin.named_parameters(), lr=0.05, samples=3, seed=2)
    mezo.draw = lambda: split_seed(split_seed(2, mezo.steps), 0)
    for loss in losses[:20]:
        alone.step(lambda loss=loss: loss(model))
        mezo.step(lambda loss=loss: loss(twin))
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=0, atol=1e-6)  # slopes were sent as float32


def test_rounding_is_unbiased_within_the_range_and_saturates_outside():
    slopes, scale, runs = [0.3, -0.004, 0.0, 1.0], 1.0, 4000
    draws = torch.stack([decode(encode(slopes, scale, s), scale) for s in range(runs)])
    bound = 5 * (1 / 127) / 2 / math.sqrt(runs)  # a coin's deviation is at most half a unit
    assert (draws.mean(0) - torch.tensor(slopes, dtype=F64)).abs().max() < bound
    assert (draws - torch.tensor(slopes, dtype=F64)).abs().max() < 1 / 127
    law = (0.3 * 127 % 1) * (1 - 0.3 * 127 % 1) / 127**2
    assert abs(draws[:, 0].var().item() / law - 1) < 0.2
    assert encode([9.0, -9.0, math.nan, math.inf], 1.0, 0).tolist() == [127, -127, ABSENT, ABSENT]
    assert decode(torch.tensor([ABSENT], dtype=torch.int8), 1.0).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replicas_are_equal_and_a_log_is_the_run(dtype):
    """Four machines with other data each: no difference in any bit; a joiner catches up."""
    model, losses = problem(dtype)
    fleet = Fleet(4, model, lr=0.02, weight_decay=0.1, samples=2, seed=3)
    for t in range(15):
        fleet.step(losses[4 * t : 4 * t + 4], absent={t % 4} if t % 3 == 0 else ())
        assert fleet.gap() == 0
    assert not torch.equal(
        fleet.vectors()[0], nn.utils.parameters_to_vector(model.parameters()).detach()
    )
    late = SharedRandomness(model.named_parameters(), lr=0.02, weight_decay=0.1, samples=2, seed=3)
    for entry in fleet.opts[0].log:
        late.replay(entry)
    assert torch.equal(
        nn.utils.parameters_to_vector(model.parameters()).detach(), fleet.vectors()[0]
    )
    assert late.steps == 15 and late.scale == fleet.opts[0].scale
    assert all(e.codes.nbytes == 8 for e in late.log)  # 4 machines, 2 directions


def test_machines_that_returned_by_subtraction_would_drift():
    """Why parameters return from a copy."""
    model, losses = problem()
    fleet = Fleet(2, model, lr=0.02)
    for opt in fleet.opts:
        opt.estimator = SPSA(1e-3, in_place=True)
    for t in range(10):
        fleet.step(losses[2 * t : 2 * t + 2])
    assert fleet.gap() > 0


def test_machines_probe_directions_of_their_own():
    model, losses = problem(F64)
    fleet = Fleet(3, model, lr=0.0, exact=True)
    fleet.step([losses[0]] * 3)  # the same data
    assert len({code.item() for code in fleet.sent}) == 3


def test_an_absent_machine_is_absent_from_the_sum():
    """Of three with one absent, the mean is over two; NaN is absence, too."""
    model, losses = problem(F64)
    ends = []
    for broken in (False, True):
        fleet = Fleet(3, model, lr=0.05)
        bad = (lambda m: losses[1](m) * math.nan) if broken else losses[1]
        fleet.step([losses[0], bad, losses[2]], absent=() if broken else {1})
        ends.append(fleet.vectors()[0])
    assert torch.equal(*ends)
    fleet = Fleet(3, model, lr=0.05)
    own = [0, 2]
    fleet.step(losses[:3], absent={1})
    slopes = [decode(fleet.sent[r], 1.0).item() for r in own]
    z = fleet.opts[0]
    total = [torch.zeros_like(p) for p in model.parameters()]
    for r, w in zip(own, slopes, strict=True):
        seed = split_seed(split_seed(0, 0), r)
        places = z.estimator.places(z.objective(lambda: None))
        z.estimator.accumulate_(total, seed, {0: -0.05 * w / 2}, places)
    moved = [p + s for p, s in zip(model.parameters(), total, strict=True)]
    assert torch.allclose(
        torch.cat([t.flatten() for t in moved]).detach(), fleet.vectors()[2], atol=1e-12
    )


def test_the_scale_finds_the_slopes_from_far_off():
    """Doubling from below, fading from above; then the byte is used."""
    p = nn.Parameter(torch.ones(3))
    for scale in (1e-5, 1e2):
        opt = SharedRandomness([p], lr=0.0, scale=scale)
        for _ in range(150):
            opt.step(lambda: p.sum())
        largest = max(e.codes.abs().max().item() for e in opt.log[-30:])
        assert 20 < largest <= 127
        assert 1 < opt.scale < 10


def test_bytes_train_as_floats_do_and_four_machines_better_than_one():
    """A network of 4,736 weights on digits, 300 steps; at one model, as replicas are equal.

    One machine has the best learning rate of a grid, four have one of it.
    """
    data = DigitsData()
    data.setup()
    x, y = data.splits["train"].inputs, data.splits["train"].targets
    start = torch.randn(4736, generator=torch.Generator().manual_seed(0)) / 8

    def train(machines, lr, **options):
        theta, rng, sent = nn.Parameter(start.clone()), torch.Generator().manual_seed(1), []
        opts = [
            SharedRandomness([theta], lr, rank=r, exchange=lambda _: torch.stack(sent), **options)
            for r in range(machines)
        ]

        def loss(rows):
            hidden, last = theta[:4096].view(64, 64), theta[4096:].view(10, 64)
            return F.cross_entropy(torch.tanh(x[rows] @ hidden.T) @ last.T, y[rows])

        for _ in range(300):
            answers = []
            for opt in opts:
                rows = torch.randint(len(y), (32,), generator=rng)
                opt.steps, opt.scale = opts[0].steps, opts[0].scale
                answers.append(opt.query(opt.objective(lambda rows=rows: loss(rows))))
            sent[:] = [answer.rest for answer in answers]
            opts[0].update(answers[0])
            opts[0].steps += 1
        with torch.no_grad():
            return loss(slice(None)).item()

    ones = {lr: train(1, lr) for lr in (8e-3, 16e-3, 32e-3)}
    assert min(ones, key=ones.get) == 16e-3
    four, floats = (train(4, 32e-3, exact=exact) for exact in (False, True))
    assert four / floats < 1.1
    assert four < 0.6 * min(ones.values())


def test_a_checkpoint_has_the_scale_and_goes_on_bit_for_bit():
    model, losses = problem()
    opt = SharedRandomness(model.named_parameters(), lr=0.02)
    for loss in losses[:5]:
        opt.step(lambda loss=loss: loss(model))
    twin = copy.deepcopy(model)
    resumed = SharedRandomness(twin.named_parameters(), lr=0.02)
    resumed.load_state_dict(opt.state_dict())
    for m, o in ((model, opt), (twin, resumed)):
        for loss in losses[5:10]:
            o.step(lambda m=m, loss=loss: loss(m))
    assert all(map(torch.equal, model.parameters(), twin.parameters()))
    both = copy.deepcopy((model, opt))
    assert both[1].scale == opt.scale and both[1].param_groups[0]["params"][0] is both[0][0].weight


def test_bad_calls_change_nothing():
    model, losses = problem()
    opt = SharedRandomness(model.named_parameters(), lr=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match="no machine has a finite loss"):
        opt.step(lambda: losses[0](model) * math.inf)
    with pytest.raises(RuntimeError, match="queries the value oracle"):
        opt.step()
    opt.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr=-1"):
        opt.step(lambda: losses[0](model))
    assert all(map(torch.equal, model.parameters(), before))
    assert opt.steps == 0 and opt.log == [] and opt.scale == 1.0
    for bad in ({"lr": -1.0}, {"scale": 0.0}, {"samples": 0}, {"eps": 0.0}, {"seed": 0.5}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            SharedRandomness(model.parameters(), **bad)


def test_two_processes_send_two_bytes_a_step_and_stay_equal(two_processes):
    """DDP over gloo: equal weights and logs, what one process simulates, and nothing else sent."""
    a, b = two_processes("_shared_randomness.py")
    assert all(torch.equal(a["weights"][k], b["weights"][k]) for k in a["weights"])
    assert a["sent"] == b["sent"] == {"all_reduce": 0, "all_gather": 2 * 12, "broadcast": 0}
    sys.path.insert(0, str(Path(__file__).parent))
    import _shared_randomness as twin

    module = twin.Net(twin.make)
    fleet = Fleet(2, module, lr=0.05, samples=2, seed=5)
    for pair in zip(twin.batches(0), twin.batches(1), strict=True):
        fleet.step([lambda m, batch=batch: m.training_step(batch, 0) for batch in pair])
    assert torch.equal(torch.stack([e[2] for e in a["log"]]), torch.stack([e[2] for e in b["log"]]))
    for ours, theirs in zip(fleet.opts[0].log, a["log"], strict=True):
        assert (ours.codes.int() - theirs[2].int()).abs().max() <= 1  # sums may round otherwise
    for p, q in zip(fleet.models[1].net.parameters(), a["weights"].values(), strict=True):
        assert torch.allclose(p, q, atol=1e-4)
