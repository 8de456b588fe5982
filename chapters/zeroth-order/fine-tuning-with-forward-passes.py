# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Fine-tuning with forward passes
#
# ## Overview
#
# MeZO ([here](../start/oracles.ipynb)) fine-tunes a model with the memory of inference: it probes the weights along a direction made from a seed, reads two values, and steps along the same direction. Two things are left to complain about. Its estimate is as noisy as the model is large. And inference itself may not fit. Four methods start from there, and none of them is a new update rule: each changes *what is probed*, or *where it lies*.
#
# | method | it probes | because |
# |:--|:--|:--|
# | **Sparse MeZO** | the small weights | noise grows with the number of weights that are probed |
# | **QZO** | the scales of a quantized network | integers have no neighbors to probe, their scales do |
# | **ZO2** | all weights, three blocks at a time | a block has to be there only while it computes |
# | **Subspace gradient** | one token of a diffusion model | few parameters need few values, at the right noise levels |
#
# After this chapter you can fine-tune a network of 4-bit integers without ever holding its weights in floating point, train a model of which the device holds three blocks, and say what a mask or a projection must do to pay for itself. All notation is on the [part's first page](../../book/parts/zeroth-order.md).

# %% tags=["remove-cell"]
# Where the book's plotting module is. On Colab, first fetch the book and install its package.
import os
import sys

if "google.colab" in sys.modules:
    os.system("git clone -q --depth 1 https://github.com/steepest-ml/steepest")
    os.system("pip install -q './steepest/core[cpu]'")
    os.chdir("steepest/chapters/zeroth-order")
sys.path.append("../../book")

# %%
import copy
import math
import time
from contextlib import contextmanager
from unittest.mock import patch

import matplotlib.pyplot as plt
import torch
from IPython.display import display
from plotting import BLUE, GRAY, GREEN, PINK, RED, set_style
from torch import nn
from torch.nn import functional as F

from steepest import listing
from steepest.estimators import (
    SPSA,
    SmallWeights,
    SubspaceGradient,
    partial_uniform,
)
from steepest.lightning import ZO2, Classifier, DigitsData, Oracles, quiet
from steepest.nn import QuantizedLinear, quantize
from steepest.optim import Adam, Estimated, MeZO
from steepest.oracles import Objective

set_style()

# %% [markdown]
# The task of the first half: a small network is trained, with gradients, on clean digits. Then the digits come from another scanner, which knows no black: a pixel $x$ arrives as $0.3 + 0.7x$. Fine-tuning the first layer, 4,096 weights, has to repair that, from values alone.

# %%
data = DigitsData()
data.setup()
train, val = data.splits["train"], data.splits["val"]


def scan(x):
    """The other scanner."""
    return 0.3 + 0.7 * x


def accuracy(net, through=scan):
    """Share of validation digits that are read correctly."""
    with torch.no_grad():
        return (
            (net(through(val.inputs)).argmax(1) == val.targets)
            .float()
            .mean()
            .item()
        )


torch.manual_seed(0)
pretrained = nn.Sequential(
    nn.Linear(64, 64, bias=False), nn.Tanh(), nn.Linear(64, 10, bias=False)
)
adam = Adam(pretrained.parameters(), lr=1e-2)
for _ in range(150):
    adam.zero_grad()
    F.cross_entropy(pretrained(train.inputs), train.targets).backward()
    adam.step()


def tune(net, opt, steps=120, seed=0, shock=0.0, watch=None):
    """Fine-tune on the other scanner; the losses along the way, infinite once it diverges.

    A share ``shock`` of the batches has a loss a hundred times too large.
    """
    x, y = scan(train.inputs), train.targets
    rng, losses = torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        rows = torch.randint(len(y), (128,), generator=rng)
        factor = 100.0 if torch.rand((), generator=rng) < shock else 1.0

        def loss(rows=rows, factor=factor):
            return factor * F.cross_entropy(net(x[rows]), y[rows])

        value = opt.step(loss)
        losses.append(value.item() / factor)
        if watch is not None:
            watch()
    return losses


clean = accuracy(pretrained, lambda x: x)
print(f"clean digits {clean:.2f}, the other scanner's {accuracy(pretrained):.2f}")

# %% [markdown]
# (smallweights)=
# ## Sparse MeZO: probe a part
#
# **The idea** {cite:p}`liu2024sparse`. Probe along $m \odot z$ instead of $z$, with a mask $m$ of zeros and ones. The estimate is then about $m \odot \nabla f$, and its second moment, for Gaussian directions,
#
# $$
# \mathrm E \lVert \hat g \rVert^2 = (\lVert m \rVert_0 + 2)\, \lVert m \odot \nabla f \rVert^2 ,
# $$
#
# counts only the elements that are probed. What limits a learning rate of MeZO is this noise, so a mask of a quarter bears a rate about four times as high. Which quarter? The paper takes the smallest weights of each tensor. The large ones carry what was learned, and noise on them does the damage. Thresholds $h$ are set before training; the mask is made anew in each step, from the weights as they are before they are probed.
#
# **The rule.** A mask is a function of the parameters, and `MeZO(..., mask=...)` asks it once a step. The whole method is the function:

# %%
listing(SmallWeights.__call__, start="return")

# %% [markdown]
# **See it work.** First the moment, on the pretrained network; then 120 steps of fine-tuning, for three learning rates each. Beside the paper's mask stands the same mask, made once and kept.


# %%
def kept(mask):
    """The mask of the first time, ever after."""
    made = []
    return lambda params: made or made.extend(mask(params)) or made


def fine_tuned(lr, mask=None):
    """Loss at the end, and the mask's share of all weights along the way."""
    net, share = copy.deepcopy(pretrained), []
    opt = MeZO(net[0].parameters(), lr=lr, kind="rademacher", mask=mask)

    def watch():
        if mask is not None:
            (bits,) = mask([net[0].weight.detach()])
            share.append(bits.float().mean().item())

    tune(net, opt, watch=watch)
    with torch.no_grad():
        loss = F.cross_entropy(net(scan(train.inputs)), train.targets).item()
    return loss, share


rates = [0.01, 0.03, 0.09]
rivals = {
    "all weights": (lambda: None, GRAY),
    "small weights (paper)": (SmallWeights, BLUE),
    "small at the start": (lambda: kept(SmallWeights()), GREEN),
}
runs = {
    name: [fine_tuned(lr, make()) for lr in rates]
    for name, (make, _) in rivals.items()
}

x, y = scan(train.inputs), train.targets
f = Objective(lambda: F.cross_entropy(pretrained(x), y), pretrained[0].parameters())
(bits,) = SmallWeights()([pretrained[0].weight.detach()])
inside = (bits * f.gradient().gradient[0]).square().sum()
estimator = SPSA(mask=SmallWeights())
seconds = [estimator(f, seed).gradient[0].square().sum() for seed in range(100)]
factor = (torch.stack(seconds).mean() / inside).item()
probed = bits.sum().item()

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(8, 2.8))
for name, (_, color) in rivals.items():
    axes[0].loglog(
        rates, [loss for loss, _ in runs[name]], "o-", ms=4, color=color, label=name
    )
axes[0].set(xlabel="learning rate", ylabel="loss after 120 steps")
axes[0].set_xticks(rates, [str(lr) for lr in rates])
axes[0].set_yticks([0.2, 0.5, 1, 2], ["0.2", "0.5", "1", "2"])
axes[0].minorticks_off()
axes[0].set_ylim(0.12, 12)
axes[0].legend(loc="upper left")
for lr, (_, share), style in zip(
    rates, runs["small weights (paper)"], ("-", "--", ":")
):
    axes[1].plot(share, style, color=BLUE, label=f"paper, lr {lr}")
axes[1].plot(runs["small at the start"][0][1], color=GREEN, label="kept")
axes[1].set(xlabel="step", ylabel="share of weights probed", ylim=(0, 0.3))
axes[1].legend()
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
best = {name: min(loss for loss, _ in runs[name]) for name in runs}
assert abs(factor / (probed + 2) - 1) < 0.3
assert runs["all weights"][2][0] > 3 * runs["small at the start"][2][0]
assert runs["small at the start"][1][0] == best["small at the start"]
assert best["small at the start"] < 1.05 * best["all weights"]
assert best["small weights (paper)"] > 2 * best["all weights"]
print("the second moment is that of the probed weights, within 30 %: True")
print("a kept quarter bears a rate that all weights do not, and ends as low: True")
print("with the mask made anew, a quarter does not get there: True")

# %% [markdown]
# The mechanism is there: a quarter of the weights bears three times the learning rate, and ends as low as all of them. The paper's rule is not the better quarter here, for a reason that the right-hand figure shows. Fine-tuning a network as small as this one moves weights by more than the small ones' size. They outgrow the fixed threshold, and a weight that has is trained no longer: the mask runs dry. In a language model steps are tiny against weights, and hardly any would leave; that regime this page cannot show.
#
# **When to use it.** With MeZO on all weights of a large pretrained model. Watch the share of weights that the mask still has. **When not:** with adapters or new heads, whose sizes mean nothing yet.
#
# (quantizedlinear)=
# ## QZO: train the scales of integers
#
# **The idea** {cite:p}`shang2025finetuning`. A quantized layer stores integers $c$ of four bits, and a scale $s$ for each group of them, $w = s\,c$. Between two integers is nothing to probe. But scales are real numbers, and there are few. QZO is MeZO on the scales:
#
# $$
# d = \frac{f(s + \epsilon z) - f(s - \epsilon z)}{2\epsilon}, \qquad s \leftarrow s - \eta\, \operatorname{clip}(d, -C, C)\, z .
# $$
#
# The codes never change. Neither gradient, nor optimizer state, nor weights in floating point are in memory: training costs what inference costs *after* quantization. With groups of 128 the noise, too, is that of a 128th of the dimensions.
#
# The clip is the second half of the paper. A step of MeZO is one number times a direction, so one bad batch is one arbitrarily long step. Clip that number, and no step is longer than $\eta C \lVert z \rVert$. To clip the norm of an update would do something else, as that depends on $z$.
#
# **The rule.** Two codes of four bits share a byte. The layer decodes when it computes, and forgets:

# %%
display(listing(QuantizedLinear.weight))
four_bits = quantize(copy.deepcopy(pretrained), bits=4, group=16)
for name, tensor in four_bits.state_dict().items():
    print(f"{name:8s} {tensor.dtype!s:14s} {tuple(tensor.shape)}")

# %% [markdown]
# **See it work.** The 4-bit network learns to read the other scanner's digits: on clean batches, and when in 2 % of the batches the loss is a hundred times too large. The bound is the 90 % quantile of $|d|$ over 40 directions at the start.


# %%
def qzo(clip=None, shock=0.0):
    """A tuned 4-bit network, and its losses."""
    net = copy.deepcopy(four_bits)
    scales = net[0].parameters()
    opt = MeZO(scales, lr=1e-4, eps=1e-4, clip=clip, kind="rademacher")
    return net, tune(net, opt, steps=200, shock=shock)


opt = MeZO(four_bits[0].parameters(), eps=1e-4, samples=40)
f = opt.objective(lambda: F.cross_entropy(four_bits(x), y))
slopes = torch.tensor([*opt.query(f).rest.weights.values()]).abs() * 40
bound = slopes.quantile(0.9).item()
tuned = {
    "no outliers": qzo(),
    "outliers": qzo(shock=0.02),
    "outliers, clipped": qzo(clip=bound, shock=0.02),
}

# %% tags=["hide-input"]
fig, ax = plt.subplots(figsize=(6.4, 2.8))
for (name, (_, losses)), color in zip(tuned.items(), (GRAY, RED, BLUE)):
    ax.semilogy(losses, color=color, lw=1, label=name)
ax.set(xlabel="step", ylabel="loss (outliers' factor divided out)")
ax.set_yticks([0.2, 0.5, 1, 2], ["0.2", "0.5", "1", "2"])
ax.minorticks_off()
ax.legend()
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
read = {name: accuracy(net) for name, (net, _) in tuned.items()}
ends = {name: sum(losses[-20:]) / 20 for name, (_, losses) in tuned.items()}
weights = sum(
    m.codes.numel() * 2 for m in four_bits if isinstance(m, QuantizedLinear)
)
stored = sum(m.codes.nbytes for m in four_bits if isinstance(m, QuantizedLinear))
assert read["outliers, clipped"] - accuracy(four_bits) > 0.3
assert ends["outliers"] > 5 * ends["outliers, clipped"]
assert ends["outliers, clipped"] < 2 * ends["no outliers"]
for net, _ in tuned.values():
    assert torch.equal(net[0].codes, four_bits[0].codes)
print(
    "clipped QZO gains more than 30 points of accuracy, in spite of outliers: True"
)
print("without the clip the loss ends more than five times as high: True")
print(f"codes are bit for bit as they were, {stored / weights} bytes a weight")

# %% [markdown]
# Without the clip, one bad batch in fifty is enough to lose the run. With it, the loss ends about where it ends without outliers.
#
# {py:func}`~steepest.nn.quantize` replaces `torch.nn.Linear` and nothing else. A module with parameters of another kind is an error, before anything has changed, unless you name it in `keep`: it is then left as it is, and frozen.
#
# **When to use it.** To adapt a quantized model in the memory that serves it. **When not:** with room for a backward pass through an adapter beside the integers. And here codes are decoded before each product, so it saves memory, not time.
#
# (zo2)=
# ## ZO2: three blocks on the device
#
# **The failure.** Keep a model's $N$ blocks on the host, and bring each to the device when it is its turn. A step of MeZO runs the model twice, and moves weights three times. Naively, all blocks come in and go out for each.
#
# **The idea** {cite:p}`wang2025zo2`. Change the order of the loops. While a block is there, compute *both* passes through it: two activations travel through the model side by side, $x^+$ through $B(\theta + \epsilon z)$, $x^-$ through $B(\theta - \epsilon z)$. Only the update is missing, since its slope needs the last block's answer. Let it wait: until the block comes again, a number and a seed stand for it. So each block comes once and goes once a step, and while one computes, the next arrives and the one before leaves.
#
# **The rule.** What is done to a block while it is there:

# %%
display(
    listing(ZO2.step, start="def dual", stop="self._visit"),
    listing(ZO2.step, start="slope =", stop="self.steps"),
)

# %% [markdown]
# A block is never put back between steps. It stays where its last probe has left it, and the pass that makes the update also brings it back, as in MeZO. Each weight sees the same floating-point operations in the same order, so the outcome is not *close to* MeZO's.
#
# **See it work.** Eight blocks on a CPU: each lies in a file that is mapped into memory, and the "device" is three buffers. To see the schedule we slow things down, every copy to 20 ms and every pass through a block to 8 ms, and note when each begins and ends.

# %%
import steepest.lightning._zo2 as machinery


class Residual(nn.Module):
    """A block that notes when it computes, and can be slow."""

    def __init__(self, width, log, number):
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.log, self.number, self.pause = log, number, 0.0

    def forward(self, x):
        begin = time.perf_counter()
        time.sleep(self.pause)
        out = x + torch.tanh(self.inner(x)) / 4
        self.log.append(("compute", self.number, begin, time.perf_counter()))
        return out


def example(batch):
    """Inputs and targets of a batch."""
    rows = slice(64 * batch, 64 * batch + 64)
    return train.inputs[rows], train.targets[rows]


def head(ys):
    """Outputs of the last block -> the loss."""
    return lambda out: F.cross_entropy(out, ys)


def make(log):
    torch.manual_seed(0)
    blocks = [Residual(64, log, i) for i in range(7)]
    return nn.Sequential(*blocks, nn.Linear(64, 10))


log = []
resident, offloaded = make([]), make(log)
mezo = MeZO(resident.named_parameters(), lr=1e-3, weight_decay=0.01)
zo2 = ZO2(offloaded, lr=1e-3, weight_decay=0.01)
for batch in range(10):
    xs, ys = example(batch)
    mezo.step(lambda xs=xs, ys=ys: F.cross_entropy(resident(xs), ys))
    zo2.step(xs, head(ys))
trained = [p.detach().clone() for p in resident.parameters()]
behind = [p.detach().clone() for p in offloaded.parameters()]
zo2.flush()
flushed = [p.detach().clone() for p in offloaded.parameters()]


@contextmanager
def slow_copies(log, seconds):
    """Copies that take their time, and note when."""
    plain, homes = machinery.copy, [block.home.data_ptr() for block in zo2.blocks]

    def copy_slowly(target, source):
        begin = time.perf_counter()
        time.sleep(seconds)
        plain(target, source)
        way = "down" if target.data_ptr() in homes else "up"
        home = target if way == "down" else source
        log.append((way, homes.index(home.data_ptr()), begin, time.perf_counter()))

    with patch.object(machinery, "copy", copy_slowly):
        yield


for block in offloaded[:-1]:
    block.pause = 0.008
log.clear()
zo2.counts.clear()
with slow_copies(log, 0.02):
    begin = time.perf_counter()
    zo2.step(xs, head(ys))
    span = time.perf_counter() - begin
copies = dict(zo2.counts)

# %% tags=["hide-input"]
fig, ax = plt.subplots(figsize=(7.6, 2.2))
rows = {"up": 2, "compute": 1, "down": 0}
palette = [BLUE, GREEN, RED]
for way, number, start, end in log:
    ax.barh(rows[way], 1e3 * (end - start), left=1e3 * (start - begin), height=0.7,
            color=palette[number % 3], edgecolor="white", lw=0.5)  # fmt: skip
    if way != "compute":
        ax.text(
            1e3 * ((start + end) / 2 - begin),
            rows[way],
            str(number),
            ha="center",
            va="center",
            color="white",
        )
ax.set_yticks([2, 1, 0], ["copy to device", "two passes", "copy to host"])
ax.set(
    xlabel="ms",
    title="one step, blocks 0 to 7 (7 computes too fast to see); colors are buffers",
)
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
serial = sum(end - start for _, _, start, end in log)
assert all(map(torch.equal, trained, flushed))
assert not any(map(torch.equal, trained, behind))
print("after ten steps and a flush, all weights are MeZO's bit for bit: True")
print("before the flush, none of its tensors is: True")
print("copies a step, of eight blocks:", copies)
assert span < 0.75 * serial
print("a step takes less than 75 % of its parts' time, one after the other: True")

# %% [markdown]
# **When to use it.** On a GPU that holds a few layers of the model but not all. Blocks then live in pinned memory, and copies run on streams of their own. Whether they hide behind the computing is a question of batch size: two passes through a block have to take about as long as one copy of it. (This page ran on a CPU. The path for a GPU has a test of its own, which machines without one skip.) **When not:** with a model that fits. And remember {py:meth}`~steepest.lightning.ZO2.flush` before you evaluate or save: without it, weights are a probe off and an update behind.
#
# (subspacegradient)=
# ## One token of a quantized diffusion model
#
# **The problem** {cite:p}`seo2025efficient`. A diffusion model knows what images look like, but has no word for *your* dog. Textual inversion adds one: a token's embedding $e$ is trained so that the denoiser $\epsilon_\theta(x_t, t, e)$ is right on a few images, and all else is frozen. So all else may be quantized, and a few hundred parameters are few enough for values. The paper's two parts make each value worth more.
#
# **Where to ask.** With little noise, $x_t$ itself shows what it is; with nothing but noise, no word helps. In between the token matters. *Partial uniform timestep sampling* draws $t$ from a window.
#
# **What to believe.** Every $\tau$ steps, the last $\tau$ iterates are standardized and their principal components found. The components after the first that explain a share $1-\nu$ of the variance are directions in which training has moved but gets nowhere. The *subspace gradient* has them removed, $g = (I - V^\top V)\, \hat g$. Adam does the rest.

# %%
display(
    listing("estimators.idle_directions", start="centered ="),
    listing(SubspaceGradient.accumulate_, start="total =", stop="sizes ="),
)

# %% [markdown]
# **See it work.** Data in the plane: seven clusters on a circle. A denoiser is trained on all of them, with a word for six, then quantized to 8 bits. The seventh gets its word from values alone.

# %%
LEVELS, WIDTH = 1000, 64
signal = (1 - torch.linspace(1e-4, 0.02, LEVELS)).cumprod(0)
turns = torch.arange(7) * 2 * math.pi / 7
centers = 2 * torch.stack([turns.cos(), turns.sin()], 1)


class Denoiser(nn.Module):
    """Noisy points, their levels, embeddings of a word -> the noise."""

    def __init__(self):
        super().__init__()
        self.point, self.word = nn.Linear(2 + 16, 128), nn.Linear(WIDTH, 128)
        self.hidden, self.out = nn.Linear(128, 128), nn.Linear(128, 2)

    def forward(self, x, t, e):
        phase = t[:, None] / LEVELS * 2 ** torch.arange(8) * math.pi / 2
        h = self.point(torch.cat([x, phase.sin(), phase.cos()], 1)) + self.word(e)
        return self.out(F.silu(self.hidden(F.silu(h))))


def noisy(cluster, t, rng):
    """Points of a cluster at noise levels t, and the noise in them."""
    noise = torch.randn(len(t), 2, generator=rng)
    points = centers[cluster] + 0.1 * torch.randn(len(t), 2, generator=rng)
    a = signal[t][:, None]
    return a.sqrt() * points + (1 - a).sqrt() * noise, noise


rng = torch.Generator().manual_seed(0)
torch.manual_seed(0)
denoiser, words = Denoiser(), nn.Parameter(torch.randn(6, WIDTH, generator=rng) / 8)
silence = torch.zeros(1, WIDTH)
adam = torch.optim.Adam([*denoiser.parameters(), words], lr=2e-3)
for _ in range(1000):
    cluster = torch.randint(7, (256,), generator=rng)
    t = torch.randint(LEVELS, (256,), generator=rng)
    unnamed = (cluster == 6) | (torch.rand(256, generator=rng) < 0.3)
    e = torch.cat([words, silence])[torch.where(unnamed, 6, cluster)]
    xt, noise = noisy(cluster, t, rng)
    adam.zero_grad()
    F.mse_loss(denoiser(xt, t, e), noise).backward()
    adam.step()
quantize(denoiser, bits=8).requires_grad_(False)


def denoising(e, t, rng):
    """The loss of a word for the seventh cluster at levels t, as a function of the word."""
    xt, noise = noisy(torch.tensor(6), t, rng)
    return lambda: F.mse_loss(denoiser(xt, t, e.expand(len(t), -1)), noise)


def strength(low):
    """Length of the mean gradient by the word at 100 levels, and root mean square of single ones."""
    t = torch.randint(low, low + 100, (512,), generator=rng)
    xt, noise = noisy(torch.tensor(6), t, rng)
    e = torch.zeros(512, WIDTH, requires_grad=True)
    F.mse_loss(denoiser(xt, t, e), noise, reduction="none").mean(1).sum().backward()
    return e.grad.mean(0).norm().item(), e.grad.square().sum(1).mean().sqrt().item()


lows = range(0, LEVELS, 100)
mean, single = torch.tensor([strength(low) for low in lows]).T

# %%
exam = denoising(word := torch.zeros(WIDTH), torch.arange(0, LEVELS), rng)


def personalize(window, project, seed, steps=160):
    """The exam's loss every 10 steps; the directions removed and the gradient in them, in shares."""
    rng, e = torch.Generator().manual_seed(seed), nn.Parameter(torch.zeros(WIDTH))
    inner = SPSA(samples=2, one_sided=True, kind="rademacher")
    estimator = SubspaceGradient(inner, tau=32) if project else inner
    opt = Estimated(Adam([e], lr=1e-2, eps=1e-3), estimator, seed=seed)
    losses, shares = [], []
    for step in range(steps):
        f = opt.objective(
            denoising(e, partial_uniform(32, window, LEVELS, rng), rng)
        )
        opt.step(f)
        if step % 10 == 9:
            word.copy_(e.detach())
            losses.append(exam().item())
            if project and estimator.basis is not None:
                g, basis = f.gradient().gradient[0], estimator.basis
                lost = ((basis @ g).square().sum() / g.square().sum()).item()
                shares.append((len(basis) / WIDTH, lost))
    return losses, shares


cases = {
    "all levels": ((0.0, 1.0), False, GRAY),
    "500 to 900 (paper)": ((0.5, 0.9), False, PINK),
    "100 to 500": ((0.1, 0.5), False, BLUE),
    "100 to 500, projected": ((0.1, 0.5), True, RED),
}
taught = {
    name: [personalize(window, project, seed) for seed in range(2)]
    for name, (window, project, _) in cases.items()
}

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(8, 2.8))
middle = [low + 50 for low in lows]
axes[0].bar(middle, mean, width=90, color=GRAY, label="mean gradient")
axes[0].plot(middle, single, "_", color="k", ms=12, label="single ones (rms)")
axes[0].axvspan(100, 500, color=BLUE, alpha=0.15, lw=0)
axes[0].set(
    xlabel="noise level $t$", ylabel="length", yscale="log", ylim=(3e-3, 30)
)
axes[0].legend(loc="upper right")
for name, (_, _, color) in cases.items():
    curve = torch.tensor([losses for losses, _ in taught[name]]).mean(0)
    axes[1].plot(range(30, 3 * 160 + 1, 30), curve, color=color, label=name)
axes[1].set(
    xlabel="forward passes", ylabel="denoising loss, all levels", ylim=(0, None)
)
axes[1].legend()
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
final = {name: sum(losses[-1] for losses, _ in taught[name]) / 2 for name in cases}
shares = [s for _, shares in taught["100 to 500, projected"] for s in shares]
removed, lost = torch.tensor(shares).mean(0).tolist()
outside = torch.cat([mean[:1], mean[5:]])
assert mean[1:5].mean() > 2 * outside.mean() and single[0] > 5 * mean[0]
assert final["100 to 500"] < 0.75 * final["all levels"]
assert final["100 to 500"] < 0.75 * final["500 to 900 (paper)"]
assert 0.9 < final["100 to 500, projected"] / final["100 to 500"] < 1.5
assert 0.25 < removed < 0.45 and 0.6 < lost / removed < 1.2
print(
    "levels 100 to 500 leave less than 75 % of the loss that all levels leave: True"
)
print("so they do of what the paper's window leaves: True")
print("with the projection the loss ends no lower, to within 10 %: True")
print("what it removes holds nearly its share of the gradient: True")

# %% [markdown]
# A window pays, and where it lies has to be measured. In this plane words matter at levels 100 to 500. Below, single gradients are many times as long as their mean, so an estimate is mostly the batch's accident; above, hardly a word is heard. The paper's 500 to 900 belongs to Stable Diffusion, and is worth little here. (To see the gradients we used backward passes, which a model of this size allows. Training used none. Of the windows that we tried, this was the best.)
#
# The projection does not help here, and one can say why. It pays if the directions that it removes hold less of the gradient than of the estimate's noise, and noise is spread evenly: a third of the dimensions is a third of the noise. Here those directions hold nearly as much of the gradient. In the paper's 768 dimensions, 128 iterates can remove a sixth of the noise at most.
#
# **When to use it.** To personalize a quantized model where it is used. The window first; measure it. The projection costs $\tau$ copies of the token and one decomposition in $\tau$ steps, so try it where a token is most of what there is. **When not:** for many parameters, or to train the denoiser itself.
#
# ## In your project
#
# `quantize` edits the network, and what is left to train is the scales: nothing else about a `LightningModule` changes. {py:class}`~steepest.lightning.Oracles` hands MeZO its loss.

# %%
from lightning.pytorch import LightningModule, Trainer

quiet()  # no tips and no hardware report
silent = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Scanner(nn.Module):
    """The other scanner, as a layer."""

    def forward(self, x):
        return scan(x)


module = Classifier(
    nn.Sequential(Scanner(), quantize(copy.deepcopy(pretrained), bits=4, group=16)),
    optimizer=lambda ps: MeZO(ps, lr=1e-4, eps=1e-4, clip=bound, kind="rademacher"),
)
torch.manual_seed(0)
trainer = Trainer(max_epochs=20, callbacks=[Oracles()], **silent)
trainer.fit(module, DigitsData(batch_size=128))
reached = trainer.test(module, DigitsData(), verbose=False)[0]["test_accuracy"]

# %%
# NBVAL_CHECK_OUTPUT
assert reached > 0.8
print(
    "a 4-bit network, tuned under Trainer, reads more than 80 % of the test digits: True"
)

# %% [markdown]
# ZO2 decides itself where weights are and in which order to compute, so it takes the place of the training step, under manual optimization. As the model is no submodule, Lightning leaves it where it is.


# %%
class Offloaded(LightningModule):
    """A model of which three blocks are in memory."""

    def __init__(self, model):
        super().__init__()
        self.automatic_optimization = False
        self.zo2 = ZO2(model, lr=3e-3, kind="rademacher")

    def training_step(self, batch):
        x, y = batch
        self.log(
            "train_loss", self.zo2.step(x, lambda out: F.cross_entropy(out, y))
        )

    def on_train_end(self):
        self.zo2.flush()

    def configure_optimizers(self):
        return []


module = Offloaded(make([]))
trainer = Trainer(max_epochs=1, **silent)
trainer.fit(module, data.train_dataloader())
print(module.zo2.steps, "steps,", module.zo2.counts["up"], "copies to the device")

# %% [markdown]
# ## Which one, when
#
# | you have | take |
# |:--|:--|
# | a model that fits, all of it to train | {py:class}`~steepest.optim.MeZO`, perhaps with a mask |
# | a model that fits only quantized | {py:func}`~steepest.nn.quantize` and `MeZO(clip=...)` |
# | a model that does not fit at all | {py:class}`~steepest.lightning.ZO2` |
# | a few hundred parameters of a frozen model | {py:class}`~steepest.optim.Estimated` around Adam and SPSA |
# | room for a backward pass | the gradient |
#
# ## Exercises
#
# **1. The memory of training.** For a model of seven billion weights, what do Adam in mixed precision (16 bytes a weight), MeZO in bfloat16 and QZO with 4 bits, groups of 128 and 2-byte scales hold, in GB, activations aside?

# %% tags=["hide-cell"]
# NBVAL_CHECK_OUTPUT
per_weight = {"Adam": 16, "MeZO": 2, "QZO": 0.5 + 2 / 128}
print({name: round(7 * size, 1) for name, size in per_weight.items()})

# %% [markdown]
# **2. The longest step of a clipped run.** With signs as directions, how far can a scale move in a step of QZO? Check it on batches of which half are outliers.

# %% tags=["hide-cell"]
# NBVAL_CHECK_OUTPUT
net = copy.deepcopy(four_bits)
scale, path = net[0].scale, []
opt = MeZO([scale], lr=1e-4, eps=1e-4, clip=bound, kind="rademacher")
tune(
    net, opt, steps=30, shock=0.5, watch=lambda: path.append(scale.detach().clone())
)
longest = torch.stack(path).diff(dim=0).abs().max().item()
assert 0.99 < longest / (1e-4 * bound) < 1.01
print("the longest step of any scale is lr times the bound: True")

# %% [markdown]
# **3. What waiting saves.** Make ZO2 update at once, by a flush after each step. How many copies does a step take now? Are the weights others?

# %% tags=["hide-cell"]
# NBVAL_CHECK_OUTPUT
# The probes of a step and its update are two visits now, of one copy up and one down each.
eager = make([])
impatient = ZO2(eager, lr=1e-3, weight_decay=0.01)
for batch in range(10):
    xs, ys = example(batch)
    impatient.step(xs, head(ys))
    impatient.flush()
assert all(map(torch.equal, trained, eager.parameters()))
print(
    impatient.counts["up"] // 10,
    "up and",
    impatient.counts["down"] // 10,
    "down a step, and the same weights",
)

# %% [markdown]
# ## References
#
# ```{bibliography}
# :filter: docname in docnames
# ```
