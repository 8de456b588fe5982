# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Steps that ask for more
#
# ## Overview
#
# A first-order optimizer never talks to the loss. Somebody calls `backward`, and it takes what lies in `.grad`. That is enough for most of this book, and too little for some good ideas: one wants to know the loss at two other points, one the gradient somewhere else, one how the gradient changes. For these a step is a short conversation. The optimizer asks, [the loss answers](oracles), and only then do the parameters move.
#
# | method | it asks for | to find out |
# |:--|:--|:--|
# | **MeZO** | two values, at $\theta \pm \epsilon z$ | a slope, with the memory of inference |
# | **SAM** | two gradients, at $\theta$ and uphill of it | how high the loss is nearby |
# | **AdaHessian** | a gradient and a Hessian product, at $\theta$ | how long a step each coordinate can bear |
#
# After this chapter you can say what a step of each costs in passes and memory, use all three in a plain loop, give them to a Lightning project without touching its module, and write a method that asks a question of your own. You need [the chapter on oracles](oracles), which explains the questions.

# %% tags=["remove-cell"]
# Where the book's plotting module is. On Colab, first fetch the book and install its package.
import os
import sys

if "google.colab" in sys.modules:
    os.system("git clone -q --depth 1 https://github.com/steepest-ml/steepest")
    os.system("pip install -q './steepest/core[cpu]'")
    os.chdir("steepest/chapters/start")
sys.path.append("../../book")

# %%
import copy
import math
import statistics
import time
import weakref
from functools import partial
from itertools import pairwise

import matplotlib.pyplot as plt
import torch
from IPython.display import display
from plotting import BLUE, GRAY, PINK, RED, SKY, set_style
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from steepest import listing
from steepest.estimators import SPSA, hutchinson
from steepest.kernels import RULES
from steepest.lightning import Classifier, DigitsData
from steepest.optim import (
    SAM,
    AdaHessian,
    Adam,
    AdamW,
    Answer,
    Estimated,
    MeZO,
    OracleDriven,
)
from steepest.oracles import Objective

set_style()
COLORS = {
    "SGD": GRAY,
    "Adam": SKY,
    "AdamW": GRAY,
    "MeZO": BLUE,
    "SAM": RED,
    "AdaHessian": PINK,
}


# %% [markdown]
# ## Who asks what
#
# Every method here is two functions. `query` puts its questions to an {py:class}`~steepest.oracles.Objective` and moves nothing; `update` makes the step. In between, the gradient that was found lies in `.grad`, where it can be clipped or logged as any other. Both see one batch and one set of random numbers, so that the loss is the same function from the first question to the last.
#
# What does the conversation cost? We take one step of each on a perceptron with four hidden layers and 400 digits, beside AdamW with a closure of the usual kind. The objective counts the passes. Peak memory is watched as in the last chapter: bytes of all tensors that a step makes, less those that it has freed. Each optimizer has made a step before, so its state counts as given.

# %%
data = DigitsData()
data.setup()
train, test = data.splits["train"], data.splits["test"]
x, y = train.inputs[:400], train.targets[:400]


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors that come to be, until they are freed."""

    now = most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        old = {t.untyped_storage().data_ptr() for t in tensors((args, kwargs))}
        for t in tensors(out):
            memory = t.untyped_storage()
            if memory.data_ptr() not in old:
                self.add(memory.nbytes())
                weakref.finalize(memory, self.add, -memory.nbytes())
        return out

    def add(self, size):
        self.now += size
        self.most = max(self.most, self.now)


def tensors(tree):
    return [t for t in tree_leaves(tree) if isinstance(t, torch.Tensor)]


def price(make):
    """Forward and backward passes, peak bytes, and milliseconds of a step."""
    torch.manual_seed(0)
    hidden = [
        m for _ in range(4) for m in (torch.nn.Linear(64, 64), torch.nn.Tanh())
    ]
    net = torch.nn.Sequential(*hidden, torch.nn.Linear(64, 10))
    opt = make(net.named_parameters())
    f = Objective(lambda: F.cross_entropy(net(x), y), net)

    def closure():
        opt.zero_grad()
        loss = f.loss()
        loss.backward()
        return loss

    asks = isinstance(opt, OracleDriven)
    step = partial(opt.step, f if asks else closure)
    step()
    opt.zero_grad()
    f.counts.clear()
    with Live() as live:
        step()
    passes = (f.counts["forward"], f.counts["backward"]) if asks else (1, 1)
    times = []
    for _ in range(15):
        start = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - start))
    return *passes, live.most, statistics.median(times)


makers = {
    "AdamW": partial(AdamW, lr=1e-3),
    "MeZO": partial(MeZO, lr=1e-6),
    "SAM": lambda params: SAM(AdamW(params, lr=1e-3)),
    "AdaHessian": partial(AdaHessian, lr=0.15),
}
prices = {name: price(make) for name, make in makers.items()}

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 3, figsize=(8, 2.3), sharey=True)
names = list(prices)
forward, backward, memory, times = zip(*prices.values())
colors = [COLORS[name] for name in names]
axes[0].barh(names, forward, color=colors, label="forward")
axes[0].barh(
    names,
    backward,
    left=forward,
    color=colors,
    alpha=0.55,
    hatch="///",
    ec="w",
    label="backward",
)
for k, (up, down) in enumerate(zip(forward, backward)):
    axes[0].text(up + down + 0.1, k, f"{up} + {down}", va="center")
axes[0].set(title="passes", xlabel="forward + backward (hatched)", xlim=(0, 5.4))
bars = axes[1].barh(names, [m / 2**20 for m in memory], color=colors)
axes[1].bar_label(bars, fmt="%.2f", padding=2)
axes[1].set(title="peak memory of a step", xlabel="MiB")
axes[1].set_xlim(right=1.25 * max(memory) / 2**20)
relative = [t / times[0] for t in times]
bars = axes[2].barh(names, relative, color=colors)
axes[2].bar_label(bars, fmt="%.1f", padding=2)
axes[2].set(title="time of a step", xlabel="times that of AdamW")
axes[2].set_xlim(right=1.25 * max(relative))
axes[0].invert_yaxis()
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
for name, (up, down, *_) in prices.items():
    print(f"{name}: {up} forward, {down} backward")
most = {name: peak for name, (_, _, peak, _) in prices.items()}
assert (
    most["MeZO"] < 0.5 * most["AdamW"] and most["AdaHessian"] > 1.5 * most["AdamW"]
)
assert most["SAM"] < 1.5 * most["AdamW"]
print("a step of MeZO needs less than half of AdamW's memory: True")
print("one of AdaHessian more than one and a half times as much: True")

# %% [markdown]
# MeZO holds two layers' outputs at a time, as inference does. SAM holds one graph at a time, and beside it the first gradient and a copy of the weights. AdaHessian goes back through the backward pass and so keeps its graph, too. Times depend on the machine and the sizes: where matrices are as small as here, making random numbers weighs more than it would in a large model.
#
# (mezo)=
# ## MeZO: a step that is a number
#
# **The idea** {cite:p}`malladi2023finetuning`. [SPSA](oracles) guesses a gradient from the slope along one random direction: $\hat g = w z$ with
#
# $$
# w = \frac{f(\theta + \epsilon z) - f(\theta - \epsilon z)}{2\epsilon}, \qquad
# \theta \leftarrow \theta - \eta\, w z .
# $$
#
# No graph is needed. But $z$ is as large as the model, and so are a gradient and a copy of the weights to return to. MeZO keeps none of them. Noise is a function of (seed, element): it is made again each time that it is needed, added to the weights in place, and subtracted to return. What a step learns is the number $w$. With the seed, it *is* the step.
#
# **The method.** All of the conversation is {py:class}`~steepest.estimators.SPSA`'s; the update makes the directions a last time. Each equation stands beside the line that computes it.

# %%
display(
    listing(SPSA.ask, start="for i in range", stop="return Projection"),
    listing(MeZO.update, start="lr = float"),
)

# %% [markdown]
# **Does it work in high dimension?** The guess has the squared length $(d+2)\,\|\nabla f\|^2$, so its step should have to shrink with $d$. The paper's answer: what limits a step is not the length of $\hat g$ but the curvature that it meets. Take $f = \tfrac12 \theta^\top P \theta$ with $P$ a projector of rank $r$, and follow the part $u = P\theta$ that matters:
#
# $$
# \mathrm E\,\|u - \eta\,(u^\top z) Pz\|^2 = \bigl(1 - 2\eta + (r+2)\,\eta^2\bigr) \|u\|^2 .
# $$
#
# The dimension does not appear. The best step is $\eta = 1/(r+2)$, and each step then takes off a fraction $1/(r+2)$. Gradient descent with $\eta = 1$ is there in one step, whatever $r$. We count the steps to a tenth of the loss, for a subspace of rank 5 in 100 and in 20,000 dimensions, each seed with another subspace, and for the identity in 100.


# %%
def descent(rank, dimension, seed):
    """Losses of MeZO down to a tenth; the Hessian projects on a random subspace."""
    rng = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(dimension, rank, generator=rng))
    p = torch.nn.Parameter(basis.sum(1))
    opt, losses = MeZO([p], lr=1 / (rank + 2), seed=seed), []
    while not losses or losses[-1] > 0.1 * losses[0]:
        losses.append(opt.step(lambda: 0.5 * (p @ basis).square().sum()).item())
    return losses


falls = {
    case: [descent(*case, seed) for seed in range(5)]
    for case in ((5, 100), (5, 20_000), (100, 100))
}

# %% [markdown]
# **Does it need a derivative?** The second experiment asks for what no gradient can give. The *accuracy* of a classifier is flat almost everywhere: its gradient is zero where it exists. But its values differ. We take softmax regression that has learned half of the 400 images by gradients, and let MeZO maximize the accuracy itself (`maximize=True`). The radius is 30 times the usual, so that a probe changes some decisions; at $10^{-3}$ it would hardly change one. But it is less than the weights are large: probes that overwhelm them measure nothing, and steps that do so forget what was learned. Learning rate and radius are among the best of some thirty pairs, by training accuracy.


# %%
def accuracy(model, inputs=x, targets=y):
    """The share of correct answers, a step function of the weights."""
    return (model(inputs).argmax(1) == targets).float().mean()


torch.manual_seed(0)
half = torch.nn.Linear(64, 10)
sgd = torch.optim.SGD(half.parameters(), lr=0.3)
while accuracy(half) < 0.5:
    sgd.zero_grad()
    F.cross_entropy(half(x), y).backward()
    sgd.step()
begun, twin = accuracy(half).item(), copy.deepcopy(half)
opt = MeZO(half.named_parameters(), lr=0.04, eps=0.03, samples=8, maximize=True)
risen = {"training": [], "test": []}
for k in range(81):
    risen["training"].append(100 * accuracy(half).item())
    risen["test"].append(100 * accuracy(half, test.inputs, test.targets).item())
    if k < 80:
        opt.step(lambda: accuracy(half))

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(8, 2.8))
styles = {
    (5, 100): (SKY, "rank 5, d = 100"),
    (5, 20_000): (BLUE, "rank 5, d = 20,000"),
    (100, 100): (RED, "rank 100, d = 100"),
}
for case, (color, label) in styles.items():
    for k, losses in enumerate(falls[case]):
        axes[0].semilogy(
            range(1, len(losses) + 1),
            [each / losses[0] for each in losses],
            color=color,
            lw=1,
            label=label if k == 0 else None,
        )
axes[0].set(
    title="MeZO on a projector, five seeds each",
    xlabel="step (log scale)",
    ylabel="loss, relative",
    xscale="log",
)
axes[0].set_yticks([0.1, 0.2, 0.5, 1], ["0.1", "0.2", "0.5", "1"])
axes[0].minorticks_off()
axes[0].legend()
axes[1].plot(risen["training"], color=COLORS["MeZO"], label="training")
axes[1].plot(risen["test"], "--", color="k", lw=1, label="test")
axes[1].set(
    title="MeZO maximizes the accuracy itself", xlabel="step", ylabel="accuracy, %"
)
axes[1].legend()
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
low, high, full = (statistics.median(map(len, runs)) for runs in falls.values())
assert high < 2 * low and full > 8 * low
print("two hundred times the dimension: less than twice the steps: True")
print("twenty times the rank: more than eight times the steps: True")
assert accuracy(half).item() > begun + 0.2
print("accuracy rises by more than 20 points without a derivative: True")
adam, steps = AdamW(twin.parameters(), lr=0.03), 0
while accuracy(twin) < accuracy(half):
    adam.zero_grad()
    F.cross_entropy(twin(x), y).backward()
    adam.step()
    steps += 1
assert 3 * steps < 80 * 16 / 5
print("gradients of the cross-entropy do it for a fifth of the price: True")
try:
    Objective(lambda: accuracy(half), half).gradient()
except RuntimeError as error:
    print("asked for its gradient:", str(error).split(":")[0])

saved = []
hooks = torch.autograd.graph.saved_tensors_hooks(
    lambda t: saved.append(t) or t, lambda t: t
)
with hooks:
    opt.step(lambda: accuracy(half))
    opt.step(lambda: F.cross_entropy(half(x), y))
assert not saved
print("tensors kept for a backward pass in a step:", len(saved))

# %% [markdown]
# Two things remain to be said. The dimensions that do not matter are not left alone: MeZO wanders in them, and where they matter a little it pays. And the curve on the right is expensive. Each of its steps takes sixteen passes, and gradients of the cross-entropy get as far for a fraction of that.
#
# **When to use it.** To fine-tune a model that fits in memory for inference and not for training, or to improve a number that cannot be differentiated. Pretraining has made the first easy: there are directions that matter, and few. Tune the learning rate first; it is far below the one for gradients, as the guess is far longer than they are. **When not.** Wherever a gradient can be had, and in half precision with a small learning rate, where an update is less than a weight's last digit.
#
# (sam)=
# ## SAM: the gradient where it is worst
#
# **The idea** {cite:p}`foret2021sharpness`. A minimum can be a crevice or a valley, and a network with more weights than data has both. The crevice is where a small disturbance of the weights is costly; another sample of the data disturbs the loss about as much. So look for a point whose whole neighborhood is low, $\min_\theta \max_{\|e\| \le \rho} f(\theta + e)$. To first order, the worst neighbor is one step of length $\rho$ up the gradient:
#
# $$
# e = \rho\, \frac{\nabla f(\theta)}{\|\nabla f(\theta)\|}, \qquad \tilde g = \nabla f(\theta + e),
# $$
#
# and any optimizer takes $\tilde g$ in place of the gradient. On a quadratic this is $\tilde g = g + \rho H g/\|g\|$ exactly: the same descent, with a force added that grows with curvature.
#
# **The method.**

# %%
listing(SAM.query, SAM.update)

# %% [markdown]
# Two details make or break it. The norm is *one* number over all parameters. And both gradients are of the same batch: an implementation that climbs by the previous batch's gradient measures another hill.
#
# **See it work.** Six hundred digits, 40 % of the labels wrong, and a network with enough weights to learn them by heart. Its accuracy is measured on 927 other digits with true labels, and its sharpness is the largest eigenvalue of the Hessian of the training loss, found by power iteration from Hessian products. Rival and base of SAM are the same: SGD with momentum. Each has the same four learning rates, of which the validation digits choose; they also chose $\rho = 0.4$, the best of 0.1, 0.2 and 0.4, before. (The paper's radii go from 0.01 to 0.5.)

# %%
wrong = DigitsData(label_noise=0.4)
wrong.setup()
noisy, val = wrong.splits["train"], wrong.splits["val"]
xn, yn = noisy.inputs[:600], noisy.targets[:600]
clean = (
    torch.cat([train.inputs[600:], test.inputs]),
    torch.cat([train.targets[600:], test.targets]),
)


def sharpness(f, iterations=15):
    """Largest eigenvalue of the Hessian, by power iteration."""
    rng = torch.Generator().manual_seed(0)
    v = [torch.randn(p.shape, generator=rng) for p in f.params]
    for _ in range(iterations):
        v = f.hvp(v).product
        length = math.sqrt(sum(t.square().sum().item() for t in v))
        v = [t / length for t in v]
    return length


def study(lr, rho, seed, epochs=60):
    """Validation and test accuracy at the end and at the best epoch, and sharpness."""
    torch.manual_seed(seed)
    net = torch.nn.Sequential(
        torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10)
    )

    def error(inputs, targets):
        return F.cross_entropy(net(inputs), targets)

    opt = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    sam = SAM(opt, rho=rho) if rho else None
    rng, best = torch.Generator().manual_seed(seed), (0.0, 0.0)
    for epoch in range(1, epochs + 1):
        for rows in torch.randperm(600, generator=rng).split(100):
            batch = xn[rows], yn[rows]
            if sam:
                sam.step(lambda batch=batch: error(*batch))
            else:
                opt.zero_grad()
                error(*batch).backward()
                opt.step()
        if epoch % 3 == 0:
            with torch.no_grad():
                now = accuracy(net, val.inputs, val.targets), accuracy(net, *clean)
            best = max(best, tuple(a.item() for a in now))
    curve = sharpness(Objective(lambda: error(xn, yn), net))
    return torch.tensor([*now, *best, curve])


lrs = [0.01, 0.02, 0.04, 0.08]
settings = [(lr, rho) for rho in (0, 0.4) for lr in lrs]
studies = {
    setting: torch.stack([study(*setting, seed) for seed in range(3)])
    for setting in settings
}
means = {setting: runs.mean(0).tolist() for setting, runs in studies.items()}
tuned = max((s for s in settings if s[1] == 0), key=lambda s: means[s][0])
sam = max((s for s in settings if s[1] > 0), key=lambda s: means[s][0])
print(f"learning rates chosen on validation: SGD {tuned[0]}, SAM {sam[0]}")

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(8, 2.9))
for rho, name, label in ((0, "SGD", "SGD"), (0.4, "SAM", r"SAM, $\rho = 0.4$")):
    runs = 100 * torch.stack([studies[lr, rho] for lr in lrs])
    for column, style in ((1, "o-"), (3, "s:")):
        mean = runs[:, :, column].mean(1)
        axes[0].plot(
            lrs,
            mean,
            style,
            ms=4,
            lw=1.3,
            color=COLORS[name],
            label=label + (", best epoch" if column == 3 else ", last epoch"),
        )
    axes[0].fill_between(
        lrs,
        runs[:, :, 1].amin(1),
        runs[:, :, 1].amax(1),
        color=COLORS[name],
        alpha=0.15,
        lw=0,
    )
axes[0].set(
    title="accuracy on clean digits (band: three seeds)",
    xlabel="learning rate",
    ylabel="%",
    xscale="log",
)
axes[0].set_xticks(lrs, [str(lr) for lr in lrs])
axes[0].minorticks_off()
axes[0].legend(fontsize=7, loc="lower left")
for rho, name in ((0, "SGD"), (0.4, "SAM")):
    curves = torch.stack([studies[lr, rho][:, 4] for lr in lrs])
    axes[1].plot(lrs, curves.mean(1), "o-", ms=4, color=COLORS[name], label=name)
    axes[1].fill_between(
        lrs, curves.amin(1), curves.amax(1), color=COLORS[name], alpha=0.15, lw=0
    )
axes[1].set(
    title="sharpness (band: three seeds)",
    xlabel="learning rate",
    ylabel=r"$\lambda_{\max}$ of the Hessian",
    xscale="log",
)
axes[1].set_xticks(lrs, [str(lr) for lr in lrs])
axes[1].minorticks_off()
axes[1].legend()
axes[1].set_ylim(bottom=0)
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
gain = studies[sam][:, 1] - studies[tuned][:, 1]
assert gain.mean() > 0.015 and gain.min() > 0
print(
    "SAM is ahead for each of three seeds, by more than 1.5 points on average: True"
)
stopped = max((s for s in settings if s[1] == 0), key=lambda s: means[s][2])
assert means[sam][1] > means[stopped][3] + 0.01
print("and ahead of SGD stopped at its best epoch by more than 1 point: True")
assert means[sam][4] < 0.6 * means[tuned][4]
print("its sharpness is less than 0.6 of SGD's: True")
assert studies[0.08, 0.4][:, 1].mean() > studies[0.08, 0][:, 1].mean() + 0.08
print(
    "where SGD learns the noise (lr = 0.08), it is ahead by more than 8 points: True"
)

rng = torch.Generator().manual_seed(0)
B = torch.randn(6, 6, generator=rng, dtype=torch.float64)
H, p = B @ B.T, torch.nn.Parameter(torch.ones(6, dtype=torch.float64))
f = Objective(lambda: 0.5 * p @ H @ p, [p])
(g,), (worse,) = (
    f.gradient().gradient,
    SAM(torch.optim.SGD([p], lr=0.1), rho=0.3).query(f).gradient,
)
assert torch.allclose(worse, g + 0.3 * H @ g / g.norm(), rtol=1e-6)
print("on a quadratic it is g + rho H g / |g|, to 1e-6: True")

# %% [markdown]
# Be exact about what this shows. At a learning rate at which SGD fits the wrong labels, SAM is ahead by far; that is the robustness that the paper reports. But most of that gap can be had for free: a lower learning rate, or stopping in time, brings SGD back, and what is then left of SAM's advantage is a few points. A few points are what one pays twice the gradients for. That SAM's minima are flatter is beyond doubt. That they generalize better *because* they are flatter is not shown by a figure that has both.
#
# **When to use it.** With label noise, or when a model overfits and twice the time is no obstacle. $\rho$ is in the unit of the weights; tune it together with the learning rate, which may be higher than without. **When not.** Where passes are what you have too few of, or to converge to the last digit: SAM never settles (first exercise).
#
# (adahessian)=
# ## AdaHessian: a step in units of curvature
#
# **The idea** {cite:p}`yao2021adahessian`. [Adam](../first-order/adam-and-its-repairs) divides a gradient by its own size. The unit of the loss cancels, and the step is a length that you choose: $\eta$, for every coordinate. If one coordinate lives on a scale of hundredths and another on one of tens, no $\eta$ is right. Units tell what to divide by instead. A gradient is loss per length, a curvature is loss per length squared, so *gradient over curvature is a length*: on a parabola exactly the distance to its minimum. AdaHessian keeps Adam's form and puts the diagonal of the Hessian where the gradient's size was. The diagonal is [Hutchinson's estimate](oracles) $z \odot Hz$ with random signs $z$: one Hessian product a step, averaged over steps as a root of mean squares, so that signs of curvature and noise of the estimate do less harm.
#
# **The method.** `d` is the size of the estimate; for convolutions it is averaged over the window.

# %%
display(listing(AdaHessian.query), RULES["adahessian"])

# %% [markdown]
# **See it work.** Thirteen coordinates with curvatures $h_j$, evenly spaced on a log scale, each started where it contributes the same to the loss: at $h_j^{-1/2}$. This is a round bowl in which every coordinate has another unit. AdaHessian stays at its default learning rate. Adam and SGD with momentum 0.9 get the best of a grid *for each condition number*. Then the same bowl is turned by a random rotation; there AdaHessian has a grid, too.


# %%
def quadratic(make, H, start, steps=200):
    """Losses of 200 steps on a quadratic."""
    p = torch.nn.Parameter(start.clone())
    opt, losses = make([p]), []

    def loss():
        return 0.5 * p @ (H @ p)

    for _ in range(steps):
        if isinstance(opt, OracleDriven):
            losses.append(opt.step(loss).item())
        else:
            opt.zero_grad()
            value = loss()
            value.backward()
            opt.step()
            losses.append(value.item())
    return [*losses, loss().item()]


def best(make, lrs, H, start):
    """The learning rate that ends lowest, and its losses."""
    runs = [(lr, quadratic(partial(make, lr=lr), H, start)) for lr in lrs]
    return min((r for r in runs if math.isfinite(r[1][-1])), key=lambda r: r[1][-1])


momentum = partial(torch.optim.SGD, momentum=0.9)
rates = [10 ** (k / 4) for k in range(-6, 2)]  # for Adam, 0.03 to 1.8
fractions = [0.03, 0.1, 0.3, 1.0, 2.0, 3.0]  # for SGD, over the largest curvature
conditions = [1.0, 1e2, 1e4, 1e6]
ends, chosen = {"SGD": [], "Adam": [], "AdaHessian": []}, []
for condition in conditions:
    wide = math.log10(condition) / 2
    h = torch.logspace(-wide, wide, 13, dtype=torch.float64)
    H, start = h.diag(), h**-0.5
    slow = [c / h.max().item() for c in fractions]
    ends["SGD"].append(best(momentum, slow, H, start)[1][-1])
    rate, losses = best(Adam, rates, H, start)
    ends["Adam"].append(losses[-1])
    chosen.append(rate)
    ends["AdaHessian"].append(quadratic(AdaHessian, H, start)[-1])

turn = torch.linalg.qr(torch.randn(13, 13, generator=rng, dtype=torch.float64))[0]
dense, away = turn @ H @ turn.T, turn @ start
turned = {
    "SGD": best(momentum, slow, dense, away)[1],
    "Adam": best(Adam, rates, dense, away)[1],
    "AdaHessian": best(AdaHessian, [0.15, 0.5, 1.5, 5.0], dense, away)[1],
}

p = torch.nn.Parameter(away.clone())
f = Objective(lambda: 0.5 * p @ (dense @ p), [p])
tries = [1, 4, 16]
spread = []
for n in tries:
    draws = [hutchinson(f, seed=s, samples=n).diagonal[0] for s in range(40)]
    spread.append(torch.stack(draws).var(0).sum().sqrt().item())
law = (dense - dense.diag().diag()).norm().item()

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 3, figsize=(8, 2.8))
for name, marker in zip(ends, ("o-", "s-", "D-")):
    axes[0].loglog(
        conditions, ends[name], marker, ms=4, lw=1.2, color=COLORS[name], label=name
    )
    axes[1].semilogy(turned[name], lw=1.2, color=COLORS[name], label=name)
axes[0].set(
    title="along the axes",
    xlabel="condition number",
    ylabel="loss after 200 steps",
)
axes[0].set_xticks(conditions)
axes[1].set(title=r"turned, condition $10^6$", xlabel="step", ylabel="loss")
axes[1].set_ylim(0.5, 20)
axes[1].set_yticks([1, 10], ["1", "10"])
axes[1].legend()
axes[2].loglog(tries, spread, "o", color=COLORS["AdaHessian"], label="measured")
axes[2].loglog(tries, [law / n**0.5 for n in tries], "k", lw=0.8, label=r"law")
axes[2].set(
    title="turned: noise of the diagonal",
    xlabel="Hessian products",
    ylabel="standard deviation",
)
axes[2].set_xticks(tries, [str(n) for n in tries])
axes[2].set_yticks([200, 500, 1000], ["200", "500", "1000"])
axes[2].minorticks_off()
axes[2].legend()
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
p = torch.nn.Parameter(start.clone())
f = Objective(lambda: 0.5 * p @ (H @ p), [p])
assert torch.allclose(hutchinson(f, seed=0).diagonal[0], h, rtol=1e-12)
print("along the axes one product gives the diagonal exactly: True")
pure = quadratic(partial(AdaHessian, eps=0.0), H, start)[-1]
assert max(ends["AdaHessian"]) < 1e-8 and 0.8 < pure / ends["AdaHessian"][0] < 1.25
print("without eps, AdaHessian ends as low at 1e6 as at 1, within 25 %: True")
assert ends["AdaHessian"][-1] < 0.01 * ends["Adam"][-1]
assert ends["Adam"][-1] < 1e-3 * ends["SGD"][-1]
stale = quadratic(partial(Adam, lr=chosen[0]), H, start)[-1]
assert stale > 1000 * ends["Adam"][-1]
print("condition 1e6: AdaHessian ends below a hundredth of the best Adam: True")
final = [run[-1] for run in turned.values()]
assert max(final) < 3 * min(final) and min(final) > 0.1 * turned["SGD"][0]
assert final[-1] == max(final)
print("Adam at its best rate for condition 1 ends a thousand times as high: True")
print("turned: the three end within a factor of 3, none below a tenth: True")
assert all(0.8 < s * n**0.5 / law < 1.25 for s, n in zip(spread, tries))
print("the noise falls as one over the root of the products: True")

# %% [markdown]
# Along the axes the condition number is gone, at the default learning rate. (The little that is left of it is $\epsilon = 10^{-4}$, beside a smallest curvature of $10^{-3}$.) Adam comes far, but has to find a learning rate for each bowl: with the best one for condition 1, it is left far above what it can reach at $10^6$. Turned, everything changes: all three crawl, AdaHessian last. The diagonal of a turned bowl says little: each entry is a mixture of all curvatures, dominated by the largest, and the estimate is as noisy as the rest of its row is large. More products make it less noisy, and no more useful. As for Adam, what helps is structure *along the axes*.
#
# **When to use it.** Where parameters have different scales and the loss is smooth: coordinates with units of their own, and layers that differ in scale. Its learning rate is a fraction of a distance and has no unit, so the default is a fair start. **When not.** Where the loss has no second derivative worth the name, where two more passes are too dear, or where curvature is spread over rows.
#
# ## In your project
#
# Lightning hands an optimizer a closure that runs `training_step` and `backward`, once. None of our methods can use that. One callback, {py:class}`~steepest.lightning.Oracles`, makes the loss out of your `training_step` and gives the optimizer that. The module stays as it is: here the book's `Classifier`, whose only argument of interest is the optimizer.

# %%
from lightning.pytorch import Trainer

from steepest.lightning import Oracles, quiet

quiet()  # no tips and no hardware report


def fit(make, batch_size=32, **options):
    """Softmax regression, trained; the same start each time."""
    torch.manual_seed(0)
    module = Classifier(hidden=[], optimizer=make)
    trainer = Trainer(
        callbacks=[Oracles()],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, DigitsData(batch_size=batch_size))
    return module, trainer


results = {}
for name, make in {
    "AdaHessian": partial(AdaHessian, lr=0.15),
    "SAM": lambda params: SAM(AdamW(params, lr=3e-3)),
    "MeZO": partial(MeZO, lr=0.03),
    "SPSA with AdamW": lambda params: Estimated(
        AdamW(params, lr=0.01), SPSA(samples=2)
    ),
}.items():
    module, trainer = fit(make, max_epochs=3)
    score = trainer.test(module, DigitsData(), verbose=False)
    results[name] = score[0]["test_accuracy"]
    print(f"{name:15s} {100 * results[name]:.1f} % of the test digits")

# %% [markdown]
# That is no race: three epochs, one seed, and learning rates that nobody tuned. The first two see gradients, the others guess them, and 120 steps are few for that.
#
# What the callback guarantees: **(1)** every query of a step is about the same batch, with the same random numbers, so dropout drops the same units. **(2)** What your `training_step` leaves behind, it leaves behind once: logs, metrics and the statistics of batch normalization are those of the first pass. **(3)** What Lightning does around a step, it does: gradients lie in `.grad` before the step and are clipped there, batches accumulate, schedules move, checkpoints resume. **(4)** What cannot be done is refused, before anything has moved. With an optimizer that asks nothing, the callback does nothing.

# %%
# NBVAL_CHECK_OUTPUT
assert min(results["AdaHessian"], results["SAM"]) > 0.8
assert min(results["MeZO"], results["SPSA with AdamW"]) > 0.3
print("four kinds of question train one untouched module: True")


def weights(module):
    return torch.nn.utils.parameters_to_vector(module.parameters()).detach()


start = weights(fit(partial(MeZO, lr=0.0), max_steps=1)[0])


def gentle(params):
    return SAM(torch.optim.SGD(params, lr=1.0))


clipped, _ = fit(gentle, max_steps=1, gradient_clip_val=0.1)
assert math.isclose((weights(clipped) - start).norm().item(), 0.1, rel_tol=1e-3)
print("clipped at 0.1, a step of SGD with SAM at lr = 1 is 0.1 long: True")

whole, _ = fit(gentle, batch_size=32, max_steps=5)
parts, run = fit(gentle, batch_size=16, max_steps=5, accumulate_grad_batches=2)
assert torch.allclose(weights(whole), weights(parts), atol=1e-5)
assert run.global_step == 5
print("two batches of 16, accumulated, are one of 32: True")

assert not {"training_step", "backward", "log"} & set(vars(parts))
print("nothing was left on the module: True")

try:
    fit(partial(MeZO, lr=0.03), max_steps=1, gradient_clip_val=0.1)
except RuntimeError as error:
    print("refused:", error)

# %% [markdown]
# In a plain loop no callback is needed: `opt.step(lambda: loss_fn(model(x), y))`, with a callable that returns the loss and does nothing else.
#
# ## Which one, when
#
# | you have | take | forward + backward |
# |:--|:--|--:|
# | memory for inference only, or no derivative | {py:class}`~steepest.optim.MeZO` | 2 + 0 |
# | noisy labels, or a gap between training and test | {py:class}`~steepest.optim.SAM` around what you use | 2 + 2 |
# | parameters of different scales, a smooth loss | {py:class}`~steepest.optim.AdaHessian` | 1 + 2 |
# | none of these | a first-order method | 1 + 1 |
#
# ## Exercises
#
# **1. SAM never settles.** Minimize $\tfrac{h}{2}\theta^2$ by gradient descent with SAM, $\eta h < 1$. Show that it ends by jumping between $\pm\eta h \rho / (2 - \eta h)$, and check it.

# %% tags=["hide-cell"]
# NBVAL_CHECK_OUTPUT
# A step is t - eta h (t + rho sign t). If it jumps from t > 0 to -t, then 2 t is
# eta h (t + rho), which is the distance above.
h, eta, rho = 2.0, 0.3, 0.1
p = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
bouncing = SAM(torch.optim.SGD([p], lr=eta), rho=rho)
path = []
for _ in range(200):
    bouncing.step(lambda: (h / 2 * p**2).sum())
    path.append(p.item())
radius = eta * h * rho / (2 - eta * h)
assert math.isclose(abs(path[-1]), radius, rel_tol=1e-9)
assert math.isclose(path[-1], -path[-2], rel_tol=1e-9)
print(f"it jumps between plus and minus {radius:.4f}")

# %% [markdown]
# **2. A run in a list of numbers.** Train a model with MeZO for 50 steps and write down one number a step. Repeat the run on a fresh copy of the model from these numbers and the seeds alone, without a single pass. (Take the step apart: `query`, then `update`.)

# %% tags=["hide-cell"]
# NBVAL_CHECK_OUTPUT
torch.manual_seed(1)
model = torch.nn.Linear(64, 10)
twin = copy.deepcopy(model)
opt = MeZO(model.named_parameters(), lr=0.01)
f = opt.objective(lambda: F.cross_entropy(model(x), y))
log = []
for _ in range(50):
    answer = opt.query(f)
    log.append((opt.draw(), answer.rest.weights[0]))
    opt.update(answer)
    opt.steps += 1
places = opt.estimator.places(f)
bare = [p.detach() for p in twin.parameters()]
for seed, w in log:
    opt.estimator.accumulate_(bare, seed, {0: -0.01 * w}, places)
assert torch.allclose(weights(model), weights(twin), atol=1e-5)
print("50 numbers give back 650 weights, to 1e-5: True")

# %% [markdown]
# **3. A method of your own.** Steepest descent with the exact step of a quadratic, $\theta \leftarrow \theta - \frac{g^\top g}{g^\top H g}\, g$, asks for a gradient and for the product $Hg$. Write it as an `OracleDriven` with `query` and `update`. Check that on a quadratic of condition $\kappa$ each step multiplies the loss by at most $\bigl(\frac{\kappa-1}{\kappa+1}\bigr)^2$, and that it trains under Lightning.


# %% tags=["hide-cell"]
# NBVAL_CHECK_OUTPUT
class Cauchy(OracleDriven):
    """Steepest descent; no step size is asked for."""

    oracle = "hvp"

    def __init__(self, params):
        super().__init__(params, {})

    def query(self, objective):
        value, gradient = objective.gradient()
        curved = objective.hvp(gradient).product
        square = sum(g.square().sum() for g in gradient)
        bend = sum((g * c).sum() for g, c in zip(gradient, curved))
        return Answer(objective, value, gradient, (square / bend).item())

    @torch.no_grad()
    def update(self, answer):
        for p in answer.objective.params:
            p.sub_(answer.rest * p.grad)


h = torch.tensor([1.0, 3.0, 10.0], dtype=torch.float64)
p = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
own = Cauchy([p])
falling = [own.step(lambda: 0.5 * (h * p**2).sum()).item() for _ in range(20)]
assert all(b <= a * (9 / 11) ** 2 for a, b in pairwise(falling))
print("each step keeps Kantorovich's bound: True")
module, trainer = fit(Cauchy, max_epochs=2)
score = trainer.test(module, DigitsData(), verbose=False)[0]["test_accuracy"]
assert score > 0.6
print("under Lightning it learns the digits, without a learning rate: True")

# %% [markdown]
# ## References
#
# ```{bibliography}
# :filter: docname in docnames
# ```
