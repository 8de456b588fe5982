"""Oracles: what asks the loss trains under Lightning as in a loop written by hand."""

import copy
import runpy
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC

from steepest.estimators import SPSA, ForwardGradient
from steepest.kernels import noise, offsets, split_seed
from steepest.lightning import Oracles, RandomState, Transformer
from steepest.optim import (
    SAM,
    SGDW,
    AdaHessian,
    AdamW,
    Estimated,
    MeZO,
    create,
)
from steepest.optim import list as list_optimizers

F64 = torch.float64

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # Lightning about torch
    pytest.mark.filterwarnings("ignore:.*many workers"),
]


class Net(LightningModule):
    """An ordinary module: it knows nothing of oracles."""

    def __init__(self, make, layers=None, schedule=None):
        super().__init__()
        torch.manual_seed(0)
        self.net = layers or nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        self.make, self.schedule = make, schedule
        self.accuracy = MulticlassAccuracy(3, average="micro")
        self.passes = []

    def training_step(self, batch, batch_idx):
        x, y = batch
        out = self.net(x)
        loss = F.cross_entropy(out, y)
        self.passes.append((batch_idx, torch.is_grad_enabled()))
        self.accuracy(out, y)
        self.log("loss", loss, on_step=True, on_epoch=True, batch_size=len(x))
        self.log("accuracy", self.accuracy, on_step=False, on_epoch=True, batch_size=len(x))
        return loss

    def configure_optimizers(self):
        opt = self.make(self.parameters())
        if self.schedule is None:
            return opt
        schedule = {"scheduler": self.schedule(opt), "interval": "step"}
        return {"optimizer": opt, "lr_scheduler": schedule}


def batches(count=20, size=8, dtype=F64):
    rng = torch.Generator().manual_seed(7)
    x = torch.randn(count, size, 6, generator=rng, dtype=dtype)
    y = torch.randint(0, 3, (count, size), generator=rng)
    return [(a, b) for a, b in zip(x, y, strict=True)]


def loader(data):
    # With a generator of its own it leaves the global one, which a resumed run restores, alone.
    return torch.utils.data.DataLoader(data, batch_size=None, generator=torch.Generator())


@pytest.fixture
def fit(trainer):
    def fit(module, data, *callbacks, ckpt_path=None, **options):
        options = {"max_epochs": 1, **options}
        t = trainer(callbacks=[Oracles(), *callbacks], **options)
        t.fit(module, loader(data), ckpt_path=ckpt_path)
        return t

    return fit


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def loss_of(net, batch):
    return F.cross_entropy(net(batch[0]), batch[1])


# ---- the same steps by hand


def sam_by_hand(net, data, lr=0.3, rho=0.1):
    opt = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    for batch in data:
        home = copy.deepcopy(net.state_dict())
        grads = torch.autograd.grad(loss_of(net, batch), list(net.parameters()))
        norm = torch.sqrt(sum(g.square().sum() for g in grads))
        with torch.no_grad():
            for p, g in zip(net.parameters(), grads, strict=True):
                p += rho * g / norm
        grads = torch.autograd.grad(loss_of(net, batch), list(net.parameters()))
        net.load_state_dict(home)
        for p, g in zip(net.parameters(), grads, strict=True):
            p.grad = g
        opt.step()


def adahessian_by_hand(net, data, lr=0.1, beta1=0.9, beta2=0.999, eps=1e-4, seed=3, norm=None):
    params = list(net.parameters())
    m, v = ([torch.zeros_like(p) for p in params] for _ in range(2))
    starts = offsets(params)
    for t, batch in enumerate(data, 1):
        loss = loss_of(net, batch)
        grads = torch.autograd.grad(loss, params, create_graph=True)
        stream = split_seed(split_seed(seed, t - 1), 0)
        z = [
            noise(stream, s, p.numel(), "rademacher").view_as(p).to(p)
            for s, p in zip(starts, params, strict=True)
        ]
        hz = torch.autograd.grad(grads, params, z)
        size = torch.sqrt(sum(g.square().sum() for g in grads)).item()
        factor = 1.0 if norm is None else min(1.0, norm / (size + 1e-6))
        with torch.no_grad():
            for i, p in enumerate(params):
                m[i] = beta1 * m[i] + (1 - beta1) * factor * grads[i].detach()
                v[i] = beta2 * v[i] + (1 - beta2) * (z[i] * hz[i]) ** 2
                scale = (v[i] / (1 - beta2**t)).sqrt() + eps
                p -= lr * m[i] / (1 - beta1**t) / scale


def mezo_by_hand(net, data, lr=0.05, eps=1e-3, seed=3):
    params = list(net.parameters())
    starts = offsets(params)
    for t, batch in enumerate(data):
        stream = split_seed(split_seed(seed, t), 0)
        z = [
            noise(stream, s, p.numel()).view_as(p).to(p)
            for s, p in zip(starts, params, strict=True)
        ]
        home = [p.detach().clone() for p in params]
        values = []
        with torch.no_grad():
            for side in (eps, -eps):
                for p, h, d in zip(params, home, z, strict=True):
                    p.copy_(h + side * d)
                values.append(loss_of(net, batch))
            slope = (values[0] - values[1]) / (2 * eps)
            for p, h, d in zip(params, home, z, strict=True):
                p.copy_(h - lr * slope * d)


SAM_OPT = dict(make=lambda params: SAM(torch.optim.SGD(params, lr=0.3, momentum=0.9), rho=0.1))
HESSIAN_OPT = dict(make=lambda params: AdaHessian(params, lr=0.1, seed=3))
MEZO_OPT = dict(make=lambda params: MeZO(params, lr=0.05, seed=3))
BY_HAND = {
    "SAM": (SAM_OPT, sam_by_hand),
    "AdaHessian": (HESSIAN_OPT, adahessian_by_hand),
    "MeZO": (MEZO_OPT, mezo_by_hand),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_it_is_the_loop_written_by_hand(fit, name):
    made, by_hand = BY_HAND[name]
    module = Net(**made).double()
    twin = copy.deepcopy(module.net)
    start = weights(module)
    trainer = fit(module, batches())
    by_hand(twin, batches())
    assert trainer.global_step == 20
    assert (weights(module) - weights(twin)).abs().max() < 1e-9
    assert (weights(module) - start).abs().max() > 0.01


def test_sam_ascends_on_this_batchs_gradient(fit):
    """Two passes on each batch, the same one, with a graph; none on the batch before."""
    module = Net(**SAM_OPT).double()
    fit(module, batches(5))
    assert module.passes == [(i, True) for i in range(5) for _ in range(2)]


def test_mezo_keeps_no_graph_and_runs_no_backward(fit):
    module = Net(**MEZO_OPT).double()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        fit(module, batches(5))
    assert module.passes == [(i, False) for i in range(5) for _ in range(2)]
    assert not saved and all(p.grad is None for p in module.parameters())


# ---- what Lightning does around a step


def test_clipping_acts_on_the_gradient_that_was_found(fit):
    module = Net(**HESSIAN_OPT).double()
    twin = copy.deepcopy(module.net)
    fit(module, batches(), gradient_clip_val=0.05)
    adahessian_by_hand(twin, batches(), norm=0.05)
    assert (weights(module) - weights(twin)).abs().max() < 1e-9


@pytest.mark.parametrize("name", BY_HAND)
def test_accumulation_asks_about_the_mean(fit, name):
    """Four batches of 8, accumulated, are one of 32; each is logged once."""
    made, by_hand = BY_HAND[name]
    data = batches(16)
    module = Net(**made).double()
    twin = copy.deepcopy(module.net)
    trainer = fit(module, data, accumulate_grad_batches=4)
    by_hand(
        twin, [tuple(map(torch.cat, zip(*data[i : i + 4], strict=True))) for i in (0, 4, 8, 12)]
    )
    assert trainer.global_step == 4
    assert (weights(module) - weights(twin)).abs().max() < 1e-9


def test_a_learning_rate_schedule_moves_the_steps(fit):
    half = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    module = Net(lambda params: SAM(torch.optim.SGD(params, lr=0.4)), schedule=half).double()
    twin = copy.deepcopy(module.net)
    fit(module, batches(3))
    for i, batch in enumerate(batches(3)):
        sam_by_hand(twin, [batch], lr=0.4 / 2**i, rho=0.05)
    assert (weights(module) - weights(twin)).abs().max() < 1e-9


@pytest.mark.parametrize("name", BY_HAND)
def test_bf16_mixed_runs_every_pass_under_autocast(fit, name):
    made, by_hand = BY_HAND[name]
    data = batches(10, dtype=torch.float32)
    module = Net(**made)
    twin = copy.deepcopy(module.net)
    fit(module, data, precision="bf16-mixed")
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        by_hand(twin, data)
    assert (weights(module) - weights(twin)).abs().max() < 1e-5


class Hooks(Callback):
    """Writes down in which order Lightning calls, and what it shows."""

    def __init__(self):
        self.calls, self.grads, self.losses = [], [], []

    def on_before_zero_grad(self, *_):
        self.calls.append("zero_grad")

    def on_before_backward(self, *_):
        self.calls.append("backward")

    def on_after_backward(self, trainer, module):
        self.calls.append("after")
        self.grads.append([p.grad for p in module.parameters()])

    def on_before_optimizer_step(self, *_):
        self.calls.append("step")

    def on_train_batch_end(self, trainer, module, outputs, *_):
        self.losses.append(outputs["loss"])


def test_hooks_run_in_their_order_and_see_the_gradient(fit):
    class Back(Net):
        def backward(self, loss):
            raise AssertionError("SAM's gradient is known")

    hooks = Hooks()
    module = Back(**SAM_OPT).double()
    twin = copy.deepcopy(module.net)
    fit(module, batches(1), hooks)
    assert hooks.calls == ["zero_grad", "backward", "after", "step"]
    reference = Net(**SAM_OPT).double().net
    sam_by_hand(reference, batches(1))
    for p, g in zip(reference.parameters(), hooks.grads[0], strict=True):
        assert torch.allclose(p.grad, g, atol=1e-12)
    assert torch.allclose(hooks.losses[0], loss_of(twin, batches(1)[0]))
    with pytest.raises(AssertionError, match="known"):
        module.backward(None)  # the module's own is back


def test_what_a_pass_leaves_behind_it_leaves_once(fit):
    """Logs, metrics and batch normalization are those of one pass, as with SGD."""

    def layers():
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))

    data = batches(6)
    runs = {}
    for name, make in {
        "plain": lambda params: torch.optim.SGD(params, lr=0.0),
        "SAM": lambda params: SAM(torch.optim.SGD(params, lr=0.0), rho=0.5),
        "AdaHessian": lambda params: AdaHessian(params, lr=0.0),
        "Estimated": lambda params: Estimated(SGDW(params, lr=0.0), SPSA(1e-12, samples=3)),
    }.items():
        torch.manual_seed(0)
        module = Net(make, layers()).double()
        trainer = fit(module, data, accumulate_grad_batches=2)
        stats = [b.clone() for b in module.net.buffers()]
        runs[name] = (stats, {k: v.item() for k, v in trainer.callback_metrics.items()})
    stats, logs = runs.pop("plain")
    assert stats[2] == 6 and 0 < logs["accuracy"] < 1
    for name, (other, found) in runs.items():
        assert all(torch.allclose(a, b, rtol=1e-9) for a, b in zip(stats, other, strict=True)), name
        assert found == pytest.approx(logs, rel=1e-9), name


def test_dropout_is_the_same_in_every_pass_of_a_step(fit):
    """SPSA's two values differ by the step alone: the estimate is the forward gradient's."""

    def run(estimator):
        layers = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 3))
        module = Net(lambda params: Estimated(SGDW(params, lr=0.1), estimator), layers).double()
        torch.manual_seed(0)
        for p in module.parameters():
            nn.init.normal_(p, std=0.3)
        torch.manual_seed(5)
        fit(module, batches(5))
        return weights(module), torch.rand(1)

    (one, after), (two, later) = run(SPSA(1e-5)), run(ForwardGradient())
    assert (one - two).abs().max() < 1e-7
    assert torch.equal(after, later)


OPTIMIZERS = {name: partial(create, name) for name in list_optimizers()}
OPTIMIZERS["Estimated"] = lambda params: Estimated(AdamW(params), SPSA())


PARTS = {"accumulate_grad_batches": 2}  # some methods compare parts of a batch


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resume_is_bit_exact(fit, tmp_path, name):
    """With dropout: half the steps, a checkpoint, and the rest in a new process's objects."""

    def module():
        layers = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, 3))
        return Net(OPTIMIZERS[name], layers)

    data = batches(10, dtype=torch.float32)
    torch.manual_seed(1)
    whole = module()
    fit(whole, data, RandomState(), max_epochs=2, **PARTS)
    torch.manual_seed(1)
    half = module()
    t = fit(half, data, RandomState(), max_epochs=1, **PARTS)
    t.save_checkpoint(tmp_path / "half.ckpt")
    torch.manual_seed(99)
    rest = module()
    t = fit(rest, data, RandomState(), max_epochs=2, ckpt_path=tmp_path / "half.ckpt", **PARTS)
    assert t.global_step == 10
    assert torch.equal(weights(whole), weights(rest))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_untouched_module_trains(trainer, name):
    """Lightning's own model falls far; so does a small transformer."""

    class Boring(BoringModel):
        def configure_optimizers(self):
            return OPTIMIZERS[name](self.parameters())

    class Words(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Transformer(vocabulary=7, context=5, width=16, depth=1, heads=2, dropout=0.1)

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.net(batch).flatten(0, 1), batch.flatten())

        def configure_optimizers(self):
            return OPTIMIZERS[name](self.parameters())

    for module, data in (
        (Boring(), torch.randn(8, 4, 32)),
        (Words(), torch.randint(0, 7, (4, 3, 5))),
    ):
        before = weights(module)
        t = trainer(callbacks=[Oracles()], max_epochs=1, limit_val_batches=0, **PARTS)
        t.fit(module, torch.utils.data.DataLoader(data, batch_size=None))
        assert t.global_step == len(data) / 2
        assert weights(module).isfinite().all() and not torch.equal(weights(module), before)


# ---- two processes are one


def test_two_processes_are_one_on_the_union_batch(two_processes):
    """DDP over gloo; a method of values sends numbers, not gradients."""
    (first, here), (second, there) = two_processes("_ddp.py")
    for plain, sam in (here, there):  # each process has the statistics that SGD leaves it
        assert torch.allclose(plain, sam, rtol=0, atol=1e-9)
    assert not torch.equal(here[0], there[0])
    alone = runpy.run_path(str(Path(__file__).with_name("_ddp.py")))["run"](world=1)
    for key, (weights, _) in alone.items():
        assert torch.equal(first[key][0], second[key][0]), key
        assert (first[key][0] - weights).abs().max() < 1e-9, key
        name, largest = key[0], first[key][1]
        if name in ("MeZO", "Estimated"):
            assert largest == 1, name
        elif name != "AdamW":  # whose gradients torch sends itself
            assert largest > len(weights), name


# ---- weights to evaluate with


class Averaging(torch.optim.SGD):
    """Trains at the last iterate, evaluates at the mean of all; there and back it rounds."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr=lr)
        self.modes = []

    def step(self, closure=None):
        loss = super().step(closure)
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            state["n"] = state.get("n", 0) + 1
            mean = state.setdefault("mean", torch.zeros_like(p))
            mean += (p.detach() - mean) / state["n"]
        return loss

    @torch.no_grad()
    def eval(self):
        self.modes.append("eval")
        for p in self.param_groups[0]["params"]:
            if "mean" in self.state[p]:
                self.state[p]["shift"] = p - self.state[p]["mean"]
                p.sub_(self.state[p]["shift"])

    @torch.no_grad()
    def train(self):
        self.modes.append("train")
        for p in self.param_groups[0]["params"]:
            if "shift" in self.state[p]:
                p.add_(self.state[p].pop("shift")).add_(1e-3)  # as a careless one would


class Validated(Net):
    def validation_step(self, batch, batch_idx):
        self.validated = weights(self)


@pytest.mark.parametrize("wrap", [lambda opt: opt, lambda opt: SAM(opt, rho=0.0)])
def test_validation_test_and_checkpoint_are_at_the_weights_to_evaluate_with(
    trainer, tmp_path, wrap
):
    data = batches(4)

    def run(max_epochs, ckpt_path=None, **options):
        module = Validated(lambda params: wrap(Averaging(params))).double()
        t = trainer(callbacks=[Oracles()], max_epochs=max_epochs, **options)
        t.fit(module, loader(data), loader(data[:1]), ckpt_path=ckpt_path)
        return module, t

    net = Net(None).double().net
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    path = []
    for batch in data + data:
        opt.zero_grad()
        loss_of(net, batch).backward()
        opt.step()
        path.append(weights(net))
    mean = torch.stack(path).mean(0)

    module, t = run(2)
    assert torch.allclose(module.validated, mean, atol=1e-12)
    assert torch.allclose(weights(module), mean, atol=1e-12)

    _, t = run(1)
    t.save_checkpoint(tmp_path / "half.ckpt")
    saved = torch.load(tmp_path / "half.ckpt", weights_only=True)["state_dict"]
    first = torch.cat([v.flatten() for k, v in saved.items() if k.startswith("net")])
    assert torch.allclose(first, torch.stack(path[:4]).mean(0), atol=1e-12)
    rest, _ = run(2, ckpt_path=tmp_path / "half.ckpt")
    assert torch.equal(weights(rest), weights(module))


def test_a_checkpoint_within_the_fit_has_the_weights_to_evaluate_with(trainer, tmp_path):
    """Also one without the optimizer, for which Lightning asks no callback; the run goes on."""

    class Save(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            state = trainer.optimizers[0].state
            self.mean = torch.cat([state[p]["mean"].flatten() for p in module.net.parameters()])
            self.before = weights(module)
            trainer.save_checkpoint(tmp_path / f"{batch_idx}.ckpt", weights_only=True)
            self.after = weights(module)

    save = Save()
    module = Net(lambda params: Averaging(params)).double()
    trainer(callbacks=[Oracles(), save], max_epochs=1).fit(module, loader(batches(3)))
    saved = torch.load(tmp_path / "2.ckpt", weights_only=True)["state_dict"]
    found = torch.cat([v.flatten() for k, v in saved.items() if k.startswith("net")])
    assert torch.allclose(found, save.mean, atol=1e-12)
    assert not torch.allclose(found, save.before, atol=1e-3)
    assert torch.equal(save.before, save.after)


# ---- what cannot be done is refused, and nothing is lost


def refused(fit, module, error, message, data=None, **options):
    before = weights(module)
    with pytest.raises(error, match=message):
        fit(module, data or batches(2), **options)
    assert torch.allclose(weights(module), before, atol=1e-6)
    assert "backward" not in vars(module) and "log" not in vars(module)


def test_gradient_scaling_is_refused(fit):
    plugin = MixedPrecision("16-mixed", "cpu")
    refused(
        fit,
        Net(**SAM_OPT).double(),
        RuntimeError,
        "SAM cannot train with precision='16-mixed'.*bf16",
        plugins=[plugin],
    )


def test_clipping_without_a_gradient_is_refused(fit):
    refused(
        fit,
        Net(**MEZO_OPT).double(),
        RuntimeError,
        "MeZO has no gradient in memory",
        gradient_clip_val=1.0,
    )


@pytest.mark.parametrize("made", [SAM_OPT, MEZO_OPT])
def test_a_pass_without_a_loss_is_refused(fit, made):
    class Silent(Net):
        def training_step(self, batch, batch_idx):
            return None

    refused(fit, Silent(**made), TypeError, "training_step returned no loss: .* asks for the loss")


def test_a_frozen_model_is_refused(fit):
    refused(fit, Net(**SAM_OPT).double().requires_grad_(False), ValueError, "requires_grad_")


@pytest.mark.parametrize("made", [SAM_OPT, MEZO_OPT, HESSIAN_OPT])
def test_a_missing_callback_is_named(trainer, made):
    module = Net(**made).double()
    before = weights(module)
    with pytest.raises(RuntimeError, match=r"queries the .* oracle.*add the callback"):
        trainer(max_epochs=1).fit(module, loader(batches(2)))
    assert torch.allclose(weights(module), before, atol=1e-6)


def test_an_optimizer_step_that_keeps_its_closure_is_refused(fit):
    class Keeps(Net):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
            optimizer.step()

    refused(fit, Keeps(**SAM_OPT).double(), RuntimeError, "must hand on what it gets")


class Counting(Net):
    """Its loss reads a buffer that each pass moves on, as a warm-up of the loss would."""

    def __init__(self, make):
        super().__init__(make)
        self.register_buffer("seen", torch.zeros(()))

    def training_step(self, batch, batch_idx):
        self.seen += 1
        return super().training_step(batch, batch_idx) * self.seen / 10


def test_all_passes_of_a_step_read_the_same_buffers(fit):
    ends = []
    for estimator in (SPSA(1e-5), ForwardGradient()):
        module = Counting(lambda params, e=estimator: Estimated(SGDW(params, lr=0.1), e)).double()
        fit(module, batches(4), accumulate_grad_batches=2)
        assert module.seen == 4
        ends.append(weights(module))
    assert (ends[0] - ends[1]).abs().max() < 1e-7


def test_a_window_that_was_given_up_is_forgotten(fit):
    """A step that is skipped by its own module leaves nothing for the next one."""

    class Every(Net):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            if batch_idx % 2:
                optimizer.step(closure=optimizer_closure)
            else:
                optimizer_closure()

    plain, asking = (
        Every(make).double()
        for make in (
            lambda params: torch.optim.SGD(params, lr=0.3),
            lambda params: SAM(torch.optim.SGD(params, lr=0.3), rho=0.0),
        )
    )
    for module in (plain, asking):
        fit(module, batches(4))
    assert torch.equal(weights(plain), weights(asking))


def test_a_copy_that_is_made_while_training_trains_by_itself(fit):
    class Best(Callback):
        def on_train_batch_end(self, trainer, module, *_):
            self.module = copy.deepcopy(module)

    class Plain(Net):
        def training_step(self, batch, batch_idx):
            return loss_of(self.net, batch)

    best = Best()
    fit(Plain(**SAM_OPT).double(), batches(2), best)
    module, before = best.module, weights(best.module)
    module.make = lambda params: torch.optim.SGD(params, lr=0.1)
    fit(module, batches(2))
    assert not torch.equal(weights(module), before)


def test_metrics_that_keep_lists(fit):
    class Curves(Net):
        def __init__(self, make):
            super().__init__(make)
            self.area = MulticlassAUROC(3)

        def training_step(self, batch, batch_idx):
            self.area.update(self.net(batch[0]).softmax(-1), batch[1])
            return super().training_step(batch, batch_idx)

    module = Curves(**SAM_OPT).double()
    fit(module, batches(3))
    assert sum(len(p) for p in module.area.preds) == 24


def test_manual_optimization_is_for_one_process(fit):
    class Manual(Net):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            return self.optimizers().step(closure=lambda: loss_of(self.net, batch))

    module = Manual(**SAM_OPT).double()
    twin = copy.deepcopy(module.net)
    fit(module, batches(3))
    sam_by_hand(twin, batches(3))
    assert (weights(module) - weights(twin)).abs().max() < 1e-9
    two = SimpleNamespace(world_size=2, optimizers=[SAM(SGDW(module.parameters()))])
    with pytest.raises(RuntimeError, match="SAM under manual optimization would learn"):
        Oracles().on_train_start(two, module)


def test_first_order_optimizers_are_left_alone(fit):
    module = Net(lambda params: AdamW(params)).double()
    twin = copy.deepcopy(module.net)
    fit(module, batches(5))
    opt = AdamW(twin.parameters())
    for batch in batches(5):
        opt.zero_grad()
        loss_of(twin, batch).backward()
        opt.step()
    assert torch.equal(weights(module), weights(twin))
