# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Filtering the gradient
#
# ## Overview
#
# Between the backward pass and the optimizer there is a place where nothing is decided yet. The gradient has been computed, no parameter has moved, and the optimizer will believe whatever it is given. Four papers put something there, or change the loss to the same end. Each has its own trouble in mind:
#
# | method | what it does to a gradient | the trouble |
# |:--|:--|:--|
# | **Grokfast** | amplifies its slow part | a network memorizes long before it generalizes |
# | **perpGrad** | removes the part along the weights | the loss falls by scaling logits, and nothing is learned |
# | **StableMax** | (a loss) replaces the exponential | float32 rounds the rest of the gradient to zero |
# | **gradient noise** | adds noise that fades | all units start the same, or dead |
# | **norm clipping** | shortens it | it is a thousand times too long, once |
# | **vanishing penalty** | (a loss) keeps its length through time | it is a thousand times too short, always |
#
# After this chapter you can read a filter's frequency response, tell a network that cannot learn from one whose gradient has been rounded away, stack filters around any optimizer, and say what each of them costs. You need gradient descent, momentum and [Adam](adam-and-its-repairs.ipynb).

# %% tags=["remove-cell"]
# Where the book's plotting module is. On Colab, first fetch the book and install its package.
import os
import sys

if "google.colab" in sys.modules:
    os.system("git clone -q --depth 1 https://github.com/steepest-ml/steepest")
    os.system("pip install -q './steepest/core[cpu]'")
    os.chdir("steepest/chapters/first-order")
sys.path.append("../../book")

# %%
import math
from functools import partial

import matplotlib.pyplot as plt
import torch
from IPython.display import display
from plotting import BLUE, GRAY, GREEN, RED, set_style
from torch.nn import functional as F

from steepest import listing
from steepest.kernels import RULES
from steepest.lightning import DigitsData
from steepest.objectives import stablemax_cross_entropy, vanishing_penalty
from steepest.optim import AdamW, ClipNorm, GradientNoise, Grokfast, PerpGrad

set_style()

# %% [markdown]
# In the package a filter is an optimizer that wraps another one. `Grokfast(PerpGrad(AdamW(...)))` hands a gradient from the outside in, and `.grad` is afterwards what it was.
#
# (grokfast)=
# ## Grokfast: a gradient is a signal
#
# **The failure.** Teach a network to add modulo 23 from some of the 529 sums. In a few dozen steps it has the training set by heart, and knows nothing about the others. Much later, with the training loss long near zero, it suddenly gets them all right. This is *grokking* {cite:p}`power2022grokking`, and the wait is what we would like to shorten.
#
# **The idea** {cite:p}`lee2024grokfast`. Write down the gradients that one weight receives, step by step: a signal in time. The authors' hypothesis is that its fast part memorizes and its slow part generalizes. So find the slow part with a low-pass filter, a running mean, and add it again, $\lambda$ times:
#
# $$
# h_t = \beta h_{t-1} + (1-\beta)\, g_t, \qquad \tilde g_t = g_t + \lambda h_t .
# $$
#
# What that does is known exactly. Feed in a sinusoid of frequency $\omega$ (radians a step), and out comes the same sinusoid, shifted, times the *gain* $|G(\omega)|$ with
#
# $$
# G(\omega) = 1 + \lambda\, \frac{1-\beta}{1-\beta e^{-i\omega}} .
# $$
#
# A constant is amplified $1+\lambda$ times; an alternating sign, $\omega = \pi$, hardly. The paper's other filter takes the mean of the last $w$ gradients (`kind="ma"`). It keeps all of them, and passes gradients through unchanged until it has $w$.
#
# **The rule.** The exponential filter is elementwise, a rule as an optimizer's is. Around an optimizer of this package both run in one launch, and the changed gradient is never in memory.

# %%
RULES["grokfast"]


# %% [markdown]
# **See it work, 1: the gain.** Gradient descent with $\eta = 1$ moves by minus whatever it is given. So we can listen to a filter: feed cosines of 20 frequencies at once, one for each of 20 parameters, and measure what arrives. Momentum is a filter too, with $G(\omega) = 1/(1-\mu e^{-i\omega})$.


# %%
def gains(make, frequencies, steps=1200):
    """Gain of an optimizer with lr = 1 at frequencies that have whole periods in 400 steps."""
    p = torch.nn.Parameter(torch.zeros(len(frequencies), dtype=torch.float64))
    opt, heard = make([p]), torch.zeros(len(frequencies), dtype=torch.complex128)
    for t in range(steps):
        p.grad = torch.cos(frequencies * t)
        before = p.detach().clone()
        opt.step()
        if t >= steps - 400:
            heard += (before - p.detach()) * torch.exp(-1j * frequencies * t)
    ends = (frequencies == 0) | (frequencies == math.pi)
    return (heard / torch.where(ends, 400, 200)).abs()


unit_rate = partial(torch.optim.SGD, lr=1.0)
periods = torch.tensor(
    [0, 1, 2, 3, 5, 7, 10, 14, 20, 28, 40, 57, 80, 113, 160, 200]
)
dots = 2 * math.pi * periods.double() / 400
curve = torch.linspace(0, math.pi, 2000, dtype=torch.float64)


def ema(w, lamb=2.0, beta=0.98):
    return (1 + lamb * (1 - beta) / (1 - beta * torch.exp(-1j * w))).abs()


def ma(w, lamb=5.0, window=100):
    mean = torch.exp(-1j * w[:, None] * torch.arange(window)).mean(1)
    return (1 + lamb * mean).abs()


def momentum(w, mu=0.9):
    return (1 / (1 - mu * torch.exp(-1j * w))).abs()


filters = {
    r"Grokfast, EMA, $\lambda=2$, $\beta=0.98$": (
        lambda ps: Grokfast(unit_rate(ps)),
        ema,
        BLUE,
    ),
    r"Grokfast, MA, $\lambda=5$, 100 steps": (
        lambda ps: Grokfast(unit_rate(ps), kind="ma", lamb=5.0),
        ma,
        RED,
    ),
    r"momentum, $\mu=0.9$": (
        lambda ps: unit_rate(ps, momentum=0.9),
        momentum,
        GRAY,
    ),
}
measured = {name: gains(make, dots) for name, (make, *_) in filters.items()}

# %% tags=["hide-input"]
fig, ax = plt.subplots(figsize=(6.4, 3))
for name, (_, formula, color) in filters.items():
    ax.plot(curve / (2 * math.pi), formula(curve), color=color, lw=1.2, label=name)
    ax.plot(dots / (2 * math.pi), measured[name], "o", ms=4, color=color)
ax.axhline(1, color="k", lw=0.6, ls=":")
ax.set_xscale("symlog", linthresh=2.5e-3, linscale=0.4)
ax.set_xticks(
    [0, 0.0025, 0.01, 0.05, 0.1, 0.5],
    ["0", "1/400", "1/100", "1/20", "1/10", "1/2"],
)
ax.set(
    xlabel="frequency, periods a step",
    ylabel="gain",
    yscale="log",
    xlim=(0, 0.5),
    title="lines: formula; dots: measured",
)
ax.legend()
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
for name, (_, formula, _) in filters.items():
    off = (measured[name] / formula(dots) - 1).abs().max().item()
    assert off < 1e-6
grokfast = measured[r"Grokfast, EMA, $\lambda=2$, $\beta=0.98$"]
print("measured gains are the formulas' to a millionth: True")
print(f"Grokfast's at frequency 0: {grokfast[0]:.3f}; at 1/2: {grokfast[-1]:.3f}")


# %% [markdown]
# Note the grey line. Momentum amplifies slow gradients too, tenfold here, and *damps* the fastest; Grokfast leaves those alone.
#
# **See it work, 2: the wait.** The network has one hidden layer of squares, $z = W_2^\top (W_1^\top x)^2$, on one-hot pairs, and is trained on all its examples at once. We stop the clock when it has 90 % of the sums that it never saw. A filter that amplifies is a longer step, so nobody's learning rate may be fixed: each contender gets four, and the figure shows all of them. Weight decay matters as much, so each has the best of three values, found beforehand: `1e-4` for SGD with and without momentum, `5e-4` with Grokfast (the paper, too, strengthens it), 3 for AdamW.


# %%
def sums(p=23):
    """One-hot pairs (a, b) and a + b modulo p, shuffled."""
    a, b = torch.arange(p).repeat_interleave(p), torch.arange(p).repeat(p)
    order = torch.randperm(p * p, generator=torch.Generator().manual_seed(0))
    x = torch.cat([F.one_hot(a, p), F.one_hot(b, p)], 1).float()
    return x[order], ((a + b) % p)[order]


inputs, targets = sums()


def learn(make, loss, *, share, width, steps, scale=1.0, seed=0, stop=2.0):
    """Every ten steps: step, accuracy on known and on new sums, share of losses equal to 0."""
    torch.manual_seed(seed)
    w1 = torch.nn.Parameter(torch.randn(46, width) / 46**0.5)
    w2 = torch.nn.Parameter(torch.randn(width, 23) / width**0.5)
    known = int(share * len(targets))
    x, y, opt, rows = inputs[:known], targets[:known], make([w1, w2]), []
    for t in range(steps + 1):
        opt.zero_grad()
        z = scale * (x @ w1).square() @ w2
        each = loss(z, y)
        each.mean().backward()
        if t % 10 == 0:
            with torch.no_grad():
                new = ((inputs[known:] @ w1).square() @ w2).argmax(1)
            right = [z.argmax(1) == y, new == targets[known:], each == 0]
            rows.append([t, *(r.float().mean().item() for r in right)])
            if rows[-1][2] >= stop or not torch.isfinite(each).all():
                break
        opt.step()
    return torch.tensor(rows)


def squares(z, y):
    return (z - F.one_hot(y, 23)).square().mean(1)


def wait(make, seed):
    """Steps until 90 % of the new sums are right; infinity if that takes more than 600."""
    rows = learn(
        make, squares, share=0.6, width=128, steps=600, seed=seed, stop=0.9
    )
    return rows[-1, 0].item() if rows[-1, 2] >= 0.9 else math.inf


sgd = torch.optim.SGD
adamw = partial(AdamW, betas=(0.9, 0.98), weight_decay=3.0)
contenders = {
    "SGD": (partial(sgd, weight_decay=1e-4), [30, 60, 90, 130], GRAY, "o-"),
    "SGD + Grokfast": (
        lambda ps, lr: Grokfast(
            sgd(ps, lr=lr, weight_decay=5e-4), lamb=5.0, beta=0.9
        ),
        [15, 30, 36, 50],
        BLUE,
        "s-",
    ),
    "SGD + momentum": (
        partial(sgd, momentum=0.9, weight_decay=1e-4),
        [15, 30, 60, 100],
        GREEN,
        "^-",
    ),
    "AdamW": (adamw, [0.005, 0.01, 0.02, 0.04], GRAY, "o--"),
    "AdamW + Grokfast": (
        lambda ps, lr: Grokfast(adamw(ps, lr=lr)),
        [0.005, 0.01, 0.02, 0.04],
        BLUE,
        "s--",
    ),
}
waits = {
    name: [sum(wait(partial(make, lr=lr), s) for s in range(3)) / 3 for lr in lrs]
    for name, (make, lrs, *_) in contenders.items()
}

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(8, 3.1), sharey=True)
for name, (_, lrs, color, style) in contenders.items():
    ax = axes[int("AdamW" in name)]
    shown = [w if math.isfinite(w) else math.nan for w in waits[name]]
    ax.plot(lrs, shown, style, ms=5, color=color, label=name)
    lost = [lr for lr, w in zip(lrs, waits[name]) if not math.isfinite(w)]
    ax.plot(lost, [560] * len(lost), "x", color=color, ms=6)
for ax in axes:
    ax.set(xlabel="learning rate", xscale="log", ylim=(0, 600))
axes[0].set_ylabel("steps to 90 % of the new sums")
axes[0].set_xticks([15, 30, 60, 100], ["15", "30", "60", "100"])
axes[1].set_xticks([0.005, 0.01, 0.02, 0.04], ["0.005", "0.01", "0.02", "0.04"])
for ax in axes:
    ax.minorticks_off()
axes[0].set_title("around SGD (x: not every seed)")
axes[1].set_title("around AdamW")
handles = [
    line for ax in axes for line in ax.lines if line.get_linestyle() != "None"
]
fig.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=8)
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
best = {name: min(each) for name, each in waits.items()}
assert waits["SGD + Grokfast"][1] < 0.5 * waits["SGD"][0] < 0.5 * 600
assert math.isinf(waits["SGD"][-1])
assert best["SGD + Grokfast"] < 0.8 * best["SGD"]
assert best["SGD + momentum"] < 0.7 * best["SGD + Grokfast"]
assert all(w < g for w, g in zip(waits["AdamW"], waits["AdamW + Grokfast"]))
print("at SGD's rate of 30, Grokfast more than halves the wait: True")
print("each at its best rate, it is still more than a fifth shorter: True")
print("momentum, at its best rate, beats both: True")
print("AdamW is faster without Grokfast, at every rate: True")

# %% [markdown]
# Around plain SGD the paper's claim holds, and not only because steps are longer: SGD at 130 no longer trains, and six times 30 is further. A larger rate lengthens every direction's steps, the stiff ones first; Grokfast lengthens the slow ones. But momentum does that as well, for the same one tensor of memory, and tuned it is far ahead. Around AdamW, Grokfast made grokking *slower* at every rate: Adam divides by the size of what it is given, so an amplification cancels, and what remains is the delay of the mean. The paper's speed-up, more than 50-fold, is from larger models under Adam with the decay raised along with the filter. This toy does not show it.
#
# **When to use it.** As a cheap experiment where generalization lags behind training, with the unfiltered optimizer at several rates beside it. **When not:** in place of a momentum that you have not tried. `kind="ma"` with the paper's window keeps 400 bytes a parameter.
#
# (perpgrad)=
# ## perpGrad: turn, do not scale
#
# **The failure.** Train the same task with cross-entropy and no weight decay. The network has its examples right after a few dozen steps, so there is an easy way down: multiply all logits by $c > 1$. No prediction changes, the loss falls, and the weights grow along themselves. The paper calls this *naive loss minimization*. It ends where float32 ends. In $\log(1 + e^{-\text{margin}})$ the exponential is rounded away once the margin passes 17; the loss of that example is then not small but exactly 0. When all are, there is nothing left to learn from: *softmax collapse*.
#
# **The idea** {cite:p}`prieto2025grokking`. Take the easy way out of the gradient. For each weight tensor,
#
# $$
# g_\perp = g - \frac{\langle w, g\rangle}{\langle w, w\rangle}\, w, \qquad \tilde g = \frac{\lVert g \rVert}{\lVert g_\perp \rVert}\, g_\perp .
# $$
#
# What is left turns $w$ and does not stretch it. (The length is restored in the authors' code.)

# %%
RULES["perp_grad"]

# %% [markdown]
# The two components and the ratio of lengths are sums over a tensor, measured before. The projection is done twice: where $g$ is almost parallel to $w$, which is the very case, one projection leaves rounding errors along $w$. A gradient that is parallel altogether, as any scalar's is, becomes 0.
#
# (stablemax_cross_entropy)=
# ## StableMax: a softmax that does not saturate
#
# **The idea.** The second repair leaves the gradient alone and changes what the logits go through, from $e^x$ to
#
# $$
# s(x) = \begin{cases} x + 1 & x \ge 0, \\ 1/(1-x) & x < 0, \end{cases} \qquad p_k = \frac{s(x_k)}{\sum_j s(x_j)} .
# $$
#
# Now scaling the logits by $c$ lowers $1 - p_y$ by $1/c^2$ and not exponentially. The package sums $\log(1 + \sum_{k \ne y} s(x_k)/s(x_y))$, which subtracts nothing from 1.

# %%
display(
    listing("objectives.log_stable"),
    listing(stablemax_cross_entropy, start="scores =", stop="losses = losses"),
)

# %% [markdown]
# Here is what a single example with a growing margin sends back to its right logit, in float32.

# %%
margins = torch.logspace(0, 4, 81)
pushes = {}
for name, loss in {
    "softmax": partial(F.cross_entropy, reduction="sum"),
    "StableMax": partial(stablemax_cross_entropy, reduction="sum"),
}.items():
    logits = torch.stack([margins / 2, -margins / 2], 1).requires_grad_()
    loss(logits, torch.zeros(81, dtype=torch.long)).backward()
    pushes[name] = -logits.grad[:, 0]

# %%
# NBVAL_CHECK_OUTPUT
gone = margins[pushes["softmax"] == 0][0].item()
assert 16 < gone < 18 and (pushes["StableMax"] > 0).all()
print("softmax sends back exactly 0 from a margin of about 17 on: True")
print("StableMax sends back something at every margin up to 10,000: True")

# %% [markdown]
# **See both work.** Four fifths of the sums, logits multiplied by 5 (which speeds all of it up), AdamW at 0.01. The baselines are cross-entropy without decay, and with the cure that everyone uses, weight decay, at 10: the best of five values from 0.1 up.

# %%
plain = partial(AdamW, lr=0.01, betas=(0.9, 0.98), weight_decay=0.0)
entropy = partial(F.cross_entropy, reduction="none")
stable = partial(stablemax_cross_entropy, reduction="none")
runs = {
    "cross-entropy": (plain, entropy, 900, GRAY, "-"),
    "cross-entropy, weight decay 10": (
        partial(plain, weight_decay=10.0),
        entropy,
        250,
        GREEN,
        "--",
    ),
    "StableMax": (plain, stable, 650, RED, "-."),
    "perpGrad": (lambda ps: PerpGrad(plain(ps)), entropy, 250, BLUE, "-"),
}
histories = {
    name: learn(make, loss, share=0.8, width=256, steps=steps, scale=5.0)
    for name, (make, loss, steps, *_) in runs.items()
}

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 3, figsize=(9, 2.9))
for name, push in pushes.items():
    axes[0].plot(
        margins,
        push.clamp(min=1e-12),
        color={"softmax": GRAY, "StableMax": RED}[name],
        label=name,
    )
axes[0].set(
    xscale="log",
    yscale="log",
    ylim=(1e-12, 2),
    xlabel="margin of the right logit",
    ylabel="its gradient, float32",
    title="one example",
)
axes[0].legend()
for name, rows in histories.items():
    *_, color, style = runs[name]
    axes[1].plot(rows[:, 0], rows[:, 2], style, color=color, label=name)
    axes[2].plot(rows[:, 0], rows[:, 3], style, color=color)
axes[1].set(xlabel="step", title="new sums that are right", ylim=(-0.04, 1.04))
axes[2].set(xlabel="step", title="losses that are exactly 0", ylim=(-0.04, 1.04))
fig.legend(handles=axes[1].lines, loc="outside lower center", ncols=4, fontsize=8)
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
final = {name: rows[-1].tolist() for name, rows in histories.items()}
arrival = {
    name: rows[rows[:, 2] >= 0.9][0, 0].item()
    for name, rows in histories.items()
    if (rows[:, 2] >= 0.9).any()
}
assert all(row[1] == 1.0 for row in final.values())
assert final["cross-entropy"][2] < 0.3 and final["cross-entropy"][3] > 0.9
assert final["StableMax"][2] > 0.9 and final["StableMax"][3] == 0.0
assert final["perpGrad"][2] > 0.9 and final["perpGrad"][3] < 0.5
assert arrival["perpGrad"] < 0.5 * arrival["StableMax"]
assert arrival["perpGrad"] < 1.5 * arrival["cross-entropy, weight decay 10"]
print("all four know the training set by heart: True")
print(
    "without decay, cross-entropy ends at chance, nearly all losses exactly 0: True"
)
print("StableMax and perpGrad pass 90 % of the new sums without decay: True")
print(
    "perpGrad in less than half of StableMax's steps, and about those of decay: True"
)

# %% [markdown]
# The claim reproduces. Cross-entropy without decay ends collapsed and at chance; both repairs generalize without decay, and perpGrad as soon as the best decay, with nothing to tune. Look closely at the grey line, though. Its losses vanish only late, and in the hundreds of steps before, gradients are there and nothing is learned from them either. Collapse comes at the end; the scaling goes on all the way. That may be why perpGrad, which forbids scaling, helps so much sooner than StableMax, which only makes it harmless.
#
# One detail is easy to miss: the *gradient* is orthogonal to the weights, but AdamW rescales it coordinate by coordinate, and its step is not. Only under plain SGD are norms kept to first order.
#
# **When to use them.** perpGrad where you would regularize with weight decay only to hold the norm. Not for tensors whose scale is the point: gains of normalization layers, temperatures, an output layer that starts at almost nothing. StableMax where training must go on long after the training set is right. Not for calibrated probabilities: its tails are heavy.
#
# (gradientnoise)=
# ## Gradient noise: first shake, then settle
#
# **The failure.** Set all weights of a network to zero. Hidden units put out zero, no gradient gets past them, and only the last bias learns. This is a caricature of a bad initialization, and plain SGD never leaves it.
#
# **The idea** {cite:p}`neelakantan2015adding`. Add Gaussian noise to every gradient, and let it fade: $\tilde g_t = g_t + \sigma_t z_t$ with
#
# $$
# \sigma_t^2 = \frac{\eta}{(1+t)^{\gamma}}, \qquad \gamma = 0.55, \quad t = 0, 1, 2, \dots
# $$
#
# It is the variance that falls with power $\gamma$. Clip first, then add noise, or a long gradient shortens the noise with it; a filter's gradient travels inwards, so this is `ClipNorm(GradientNoise(...))`.

# %%
display(
    listing(GradientNoise.variance),
    listing(GradientNoise.filter, start="flat =", stop="parts ="),
)

# %% [markdown]
# The noise is a function of seed, step and element. A run that is interrupted goes on with the noise that it would have had.
#
# **See it work.** The paper's experiment on the digits: three hidden layers of 50 units, SGD at 0.1, clipped at 10. From zeros without noise, with noise of a variance that stays at 0.3, and that falls from there. And what a good initialization does by itself.

# %%
digits = DigitsData()
digits.setup()
train, held = digits.splits["train"], digits.splits["val"]


def classify(eta, gamma, start, steps=450, seed=0):
    """Training accuracy every ten steps, and at the end that on digits held out."""
    torch.manual_seed(seed)
    layers = [
        torch.nn.Linear(a, b) for a, b in [(64, 50), (50, 50), (50, 50), (50, 10)]
    ]
    for layer in layers:
        if start == "zeros":
            torch.nn.init.zeros_(layer.weight)
        else:
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        torch.nn.init.zeros_(layer.bias)
    one, two, three, last = layers
    relu = torch.nn.ReLU()
    net = torch.nn.Sequential(one, relu, two, relu, three, relu, last)
    descent = torch.optim.SGD(net.parameters(), lr=0.1)
    opt = ClipNorm(GradientNoise(descent, eta=eta, gamma=gamma), max_norm=10.0)
    trace = []
    for t in range(steps):
        rows = torch.randint(len(train.targets), (64,))
        opt.zero_grad()
        F.cross_entropy(net(train.inputs[rows]), train.targets[rows]).backward()
        opt.step()
        if t % 10 == 9:
            trace.append(
                (net(train.inputs).argmax(1) == train.targets).float().mean().item()
            )
    return trace, (net(held.inputs).argmax(1) == held.targets).float().mean().item()


settings = {
    "zeros": (0.0, 0.55, "zeros", GRAY, "-"),
    "zeros, noise that stays": (0.3, 0.0, "zeros", RED, "-"),
    "zeros, noise that fades": (0.3, 0.55, "zeros", BLUE, "-"),
    "He": (0.0, 0.55, "he", GRAY, "--"),
    "He, noise that fades": (0.3, 0.55, "he", BLUE, "--"),
}
traces = {
    name: classify(eta, gamma, start)
    for name, (eta, gamma, start, *_) in settings.items()
}

# %% tags=["hide-input"]
fig, ax = plt.subplots(figsize=(6.6, 2.8))
for name, (trace, _) in traces.items():
    *_, color, style = settings[name]
    ax.plot(range(10, 451, 10), trace, style, color=color, label=name)
ax.set(xlabel="step", ylabel="training accuracy", ylim=(0, 1.02))
fig.legend(loc="outside right upper", fontsize=8)
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
end = {name: sum(trace[-5:]) / 5 for name, (trace, _) in traces.items()}
assert end["zeros"] < 0.15 and end["zeros, noise that fades"] > 0.9
assert end["zeros, noise that stays"] < end["zeros, noise that fades"] - 0.1
assert traces["He"][1] > traces["He, noise that fades"][1]
print("from zeros: at chance without noise, above 90 % with noise that fades: True")
print("noise that stays is worse by more than ten points: True")
print("from He's initialization, digits held out are better without noise: True")


# %% [markdown]
# The claim holds, and so does its limit. Noise repairs the initialization; it does not replace a good one, which is faster and ends higher, and to which this much noise only does harm.
#
# **When to use it.** When you cannot choose the initialization, or the units of a model are tied by a symmetry. **When not:** with mini-batch noise that already does the job, or around Adam with an $\eta$ far above the squared gradients. Adam would take the noise for the signal and walk at full speed.
#
# (clipnorm)=
# ## Clipping: no step over the cliff
#
# **The failure.** A recurrent network applies one map many times, $x_{k+1} = W\sigma(x_k) + U u_k + b$, so its gradient is a sum of products of Jacobians $W \operatorname{diag}\sigma'(x_k)$. Products of many factors do one of two things. Where they grow, the loss has a wall: one unit is enough to see it.
#
# **The idea** {cite:p}`pascanu2013difficulty`. If a gradient is longer than $\tau$, shorten it to $\tau$, with one norm over all parameters so that its direction stays: $\tilde g = \min(1, \tau/\lVert g\rVert)\, g$. Gradient descent then never moves by more than $\eta\tau$.

# %%
listing(ClipNorm.filter, start="total =")


# %% [markdown]
# **See it work.** The paper's picture: $x_{k+1} = w\,\sigma(x_k) + b$ for 50 steps from $1/2$, with a logistic $\sigma$, and $\sigma(x_{50})$ is to be 0.7. Gradient descent starts in the flat valley to the upper right and goes down to where the solutions are, which is at the foot of the wall.


# %%
def unit(w, b):
    """Squared distance of the unit's output from 0.7 after 50 steps."""
    x = torch.full_like(w, 0.5)
    for _ in range(50):
        x = w * torch.sigmoid(x) + b
    return (torch.sigmoid(x) - 0.7) ** 2


def walk(tau, steps=60, lr=0.3):
    p = torch.nn.Parameter(torch.tensor([5.0, -2.0], dtype=torch.float64))
    opt, path = ClipNorm(torch.optim.SGD([p], lr=lr), max_norm=tau), []
    for _ in range(steps):
        path.append(p.detach().clone())
        opt.zero_grad()
        unit(*p).backward()
        opt.step()
    return torch.stack([*path, p.detach()])


paths = {"plain": walk(math.inf), r"clipped, $\tau=1$": walk(1.0)}

# %% tags=["hide-input"]
ws, bs = torch.linspace(3.2, 6.2, 220), torch.linspace(-3.6, 0.4, 220)
grid = unit(*torch.meshgrid(ws.double(), bs.double(), indexing="xy"))
fig, axes = plt.subplots(1, 2, figsize=(8.4, 3.2), width_ratios=[1.2, 1])
shades = axes[0].contourf(ws, bs, grid, levels=24, cmap="Greys", vmax=0.7)
fig.colorbar(shades, ax=axes[0], label="loss", ticks=[0, 0.2, 0.4])
for (name, path), color, marker in zip(paths.items(), (RED, BLUE), "os"):
    axes[0].plot(*path.T, "-", marker=marker, ms=3, lw=1, color=color, label=name)
    axes[1].semilogy(
        path.diff(dim=0).norm(dim=1), "-", marker=marker, ms=3, color=color
    )
axes[0].set(xlim=(3.2, 6.2), ylim=(-3.6, 0.4), xlabel="$w$", ylabel="$b$")
axes[0].legend(loc="upper left")
axes[1].axhline(0.3, color="k", lw=0.6, ls=":")
axes[1].text(59, 0.32, r"$\eta\tau$", ha="right", va="bottom")
axes[1].set(xlabel="step", ylabel="length of the step")
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
plain_path, clipped_path = paths.values()
longest = [path.diff(dim=0).norm(dim=1).max().item() for path in paths.values()]
assert longest[0] > 3 * 0.3 and longest[1] <= 0.3 * (1 + 1e-9)
assert unit(*clipped_path[-1]) < 0.3 * unit(*plain_path[-1])
print(
    "the longest plain step is over three times lr * tau, the clipped one is not longer: True"
)
print(
    "60 steps on, the clipped run has less than a third of the plain one's loss: True"
)


# %% [markdown]
# Both come down the valley alike. At the wall the plain run takes one step at full gradient and is thrown out of the valley, further than it had come, to where the slope is so small that it hardly moves again. The clipped one stumbles along the edge, where the solutions are.
#
# **When to use it.** In recurrent networks always, and wherever single batches have gradients far longer than usual. Log the norm first: the authors find half to ten times its mean a good $\tau$. **When not:** as a bound on *Adam's* steps, which it is not. With $\tau$ below the usual norm every step is clipped, and what you run is normalized gradient descent.
#
# (vanishing_penalty)=
# ## The vanishing penalty: keep the error's length
#
# **The failure.** Where the products shrink, there is no wall and nothing to clip. The gradient from a loss at the end to an input at the beginning is there, and is a ten-thousandth of the rest.
#
# **The idea.** The same paper asks the *weights* to pass errors on undiminished. With $\delta_k = \partial E/\partial x_k$ and the Jacobian $J_k$ of one step,
#
# $$
# \Omega = \operatorname*{mean}_k \Bigl( \frac{\lVert \delta_{k+1} J_k \rVert}{\lVert \delta_{k+1} \rVert} - 1 \Bigr)^2 ,
# $$
#
# added to the loss with a factor $\lambda$. It does not ask that all directions be kept, only the one that an error is traveling in. States and errors count as constants, so its gradient touches $W$ alone and costs one Jacobian product for all steps at once.

# %%
display(
    listing(vanishing_penalty, start="slopes =", stop="if after.shape"),
    listing(vanishing_penalty, start="(pulled,)"),
)


# %% [markdown]
# **See it work.** One of four symbols, then 19 steps of noise, then the question which it was. A tanh network of 30 units whose $W$ has spectral radius 0.7, trained by SGD: clipped at 1, with the penalty ($\lambda = 2$), and with both. Nine networks at once for each, three learning rates by three seeds, each with an optimizer of its own.


# %%
def onward(x, w, drive):
    return torch.tanh(x) @ w + drive


def shrunk(w):
    """A matrix scaled to spectral radius 0.7."""
    return 0.7 * w / torch.linalg.eigvals(w).abs().max()


def remember(lamb, tau, rates, first_w=shrunk, steps=160, seeds=3, length=20):
    """Accuracy (steps, rates, seeds); lengths of the errors through time, first and last."""
    units, batch = 30, 32
    nets = []
    for seed in range(len(rates) * seeds):
        rng = torch.Generator().manual_seed(seed % seeds)
        w = torch.randn(units, units, generator=rng)
        first = [
            first_w(w),
            0.5 * torch.randn(5, units, generator=rng),
            torch.zeros(1, units),
            torch.randn(units, 4, generator=rng) / units**0.5,
        ]
        nets.append([torch.nn.Parameter(t) for t in first])
    opts = [
        ClipNorm(torch.optim.SGD(net, lr=rates[i // seeds]), max_norm=tau)
        for i, net in enumerate(nets)
    ]
    trace, lengths = [], []
    for t in range(steps):
        w, u, b, v = (torch.stack(each) for each in zip(*nets))
        symbol = torch.randint(4, (batch,), generator=rng)
        u_k = torch.zeros(length, 1, batch, 5)
        u_k[0, 0, :, :4] = F.one_hot(symbol, 4)
        u_k[1:, 0, :, 4] = 0.3 * torch.randn(length - 1, batch, generator=rng)
        drive = u_k @ u + b
        states = [drive[0]]
        for k in range(1, length):
            states.append(onward(states[-1], w, drive[k]))
        logits = torch.tanh(states[-1]) @ v
        loss = len(nets) * F.cross_entropy(
            logits.flatten(0, 1), symbol.repeat(len(nets))
        )
        if t in (0, steps - 1):
            errors = torch.autograd.grad(loss, states, retain_graph=True)
            lengths.append(torch.stack([e.norm(dim=-1).mean(-1) for e in errors]))
        if lamb:
            steps_on = partial(onward, w=w, drive=drive[1:].detach())
            omega = vanishing_penalty(loss, states, steps_on)
            loss = loss + lamb * len(nets) * omega
        for opt in opts:
            opt.zero_grad()
        loss.backward()
        for opt in opts:
            opt.step()
        trace.append((logits.argmax(-1) == symbol).float().mean(-1))
    shape = steps, len(rates), seeds
    return torch.stack(trace).reshape(shape), [
        each.reshape(length, *shape[1:]) for each in lengths
    ]


trials = {
    "clipping": (0.0, 1.0, [0.05, 0.3, 1.0], GRAY, "-"),
    "penalty": (2.0, math.inf, [0.01, 0.02, 0.05], RED, "-."),
    "both": (2.0, 1.0, [0.02, 0.05, 0.1], BLUE, "-"),
}
memory = {
    name: remember(lamb, tau, rates)
    for name, (lamb, tau, rates, *_) in trials.items()
}
late = {name: trace[-20:].mean((0, 2)) for name, (trace, _) in memory.items()}

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(8.4, 2.9))
steps_back = range(1, 21)
start, end_ = memory["both"][1]
pick = int(late["both"].argmax())
axes[0].semilogy(steps_back, (start / start[-1])[:, pick], color=GRAY, lw=1)
axes[0].semilogy(steps_back, (end_ / end_[-1])[:, pick], color=BLUE, lw=1)
axes[0].plot([], [], color=GRAY, label="before training")
axes[0].plot([], [], color=BLUE, label="after, clipping and penalty")
axes[0].set(
    xlabel="time $k$ in the sequence",
    ylabel=r"length of $\partial E/\partial x_k$, relative",
    xticks=[1, 5, 10, 15, 20],
)
axes[0].legend()
for name, (trace, _) in memory.items():
    *_, rates, color, style = trials[name]
    i = int(late[name].argmax())
    smooth = trace[:, i].mean(1).reshape(16, 10).mean(1)
    axes[1].plot(
        range(5, 160, 10),
        smooth,
        style,
        color=color,
        label=f"{name}, lr {rates[i]}",
    )
axes[1].axhline(0.25, color="k", lw=0.6, ls=":")
axes[1].set(
    xlabel="step",
    ylabel="accuracy, mean of 3 seeds",
    ylim=(0, 1.04),
    title="best rate of three",
)
axes[1].legend(loc="lower right")
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
reach = {
    when: (each[0] / each[-1])[:, pick].median().item()
    for when, each in (("before", start), ("after", end_))
}
top = {name: each.max().item() for name, each in late.items()}
assert reach["after"] > 100 * reach["before"]
assert top["both"] > 0.95 and top["clipping"] < top["both"] - 0.2
assert (late["both"][:2] > late["penalty"][1:] + 0.1).all()
print("the error that reaches the first symbol grew more than a hundredfold: True")
print(
    "with both every seed learns; with clipping alone not, at any of three rates: True"
)
print("at both rates that they share, the penalty does better with clipping: True")

# %% [markdown]
# Clipping alone has nothing to clip: most of its networks still guess. The penalty alone gets most of the way, the further the smaller its rate; with clipping the rate may be several times as large. What no longer vanishes can explode, and the paper recommends the two together.
#
# **When to use it.** In plain recurrent networks with long memory. **When not:** with gated cells, which carry the error on a path of their own. And before any of it, try to *start* with Jacobians that keep lengths: the third exercise.
#
# ## In your project
#
# A filter goes where its optimizer would have gone. Two of them, around AdamW, in the book's `Classifier`: Lightning's loop, schedules and checkpoints do not notice.

# %%
from lightning.pytorch import Trainer

from steepest.lightning import Classifier, quiet

quiet()  # no tips and no hardware report


def filtered(params):
    return ClipNorm(GradientNoise(AdamW(params, lr=3e-3), eta=1e-6), max_norm=1.0)


torch.manual_seed(0)
module = Classifier(hidden=[64], optimizer=filtered)
trainer = Trainer(
    max_epochs=8,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(module, DigitsData())
accuracy = trainer.test(module, DigitsData(), verbose=False)[0]["test_accuracy"]
checkpoint = trainer.optimizers[0].state_dict()

# %%
# NBVAL_CHECK_OUTPUT
assert accuracy > 0.93
print("reaches 93 % of the test digits in eight epochs: True")
print("a checkpoint holds:", ", ".join(checkpoint))
print("steps of the outer filter:", checkpoint["ClipNorm"]["steps"])

# %% [markdown]
# The trainer's own `gradient_clip_val` clips as well, before any filter. `ClipNorm` is for a place in a chain, and for loops without a trainer.
#
# ## Which one, when
#
# | you see | take | state, bytes a parameter |
# |:--|:--|--:|
# | generalization long after training accuracy, under SGD | {py:class}`~steepest.optim.Grokfast`, beside momentum | 4 |
# | losses of exactly 0 and growing weights | {py:class}`~steepest.optim.PerpGrad`, or weight decay | 0 |
# | the same, and the optimizer is not yours to change | {py:func}`~steepest.objectives.stablemax_cross_entropy` | 0 |
# | units that stay the same | {py:class}`~steepest.optim.GradientNoise` | 0 |
# | rare gradients of enormous length | {py:class}`~steepest.optim.ClipNorm` | 0 |
# | a recurrent network that forgets | {py:func}`~steepest.objectives.vanishing_penalty`, with clipping | 0 |
#
# ## Exercises
#
# **1. In which order?** A batch has a gradient of length 1,000. With $\tau = 1$ and noise of variance 1, how long is a step of SGD (at $\eta = 1$, 10,000 parameters) for `ClipNorm(GradientNoise(...))` and for `GradientNoise(ClipNorm(...))`?

# %% tags=["hide-cell"]
# NBVAL_CHECK_OUTPUT
# The outer filter acts first. Noise of variance 1 in 10,000 parameters has length 100.
moved = {}
for name, nest in {
    "clip, then noise": lambda opt: ClipNorm(GradientNoise(opt, eta=1.0)),
    "noise, then clip": lambda opt: GradientNoise(ClipNorm(opt), eta=1.0),
}.items():
    p = torch.nn.Parameter(torch.zeros(10_000))
    opt = nest(torch.optim.SGD([p], lr=1.0))
    p.grad = torch.full((10_000,), 10.0)
    opt.step()
    moved[name] = p.detach().norm().item()
print({name: round(length) for name, length in moved.items()})
assert (
    95 < moved["clip, then noise"] < 105
    and abs(moved["noise, then clip"] - 1) < 1e-3
)

# %% [markdown]
# **2. Momentum as a limit.** Show that Grokfast becomes momentum $\mu$ if $\beta = \mu$, $\lambda \to \infty$ and the learning rate is divided by $\lambda(1-\mu)$.

# %% tags=["hide-cell"]
# NBVAL_CHECK_OUTPUT
# The gain, 1 + lamb (1 - mu) / (1 - mu z), over lamb (1 - mu), tends to 1 / (1 - mu z).
huge = 1e9
heavy = gains(
    lambda ps: Grokfast(
        torch.optim.SGD(ps, lr=1 / (huge * 0.1)), lamb=huge, beta=0.9
    ),
    dots,
)
assert torch.allclose(heavy, momentum(dots), rtol=1e-6)
print("the same gain at every frequency: True")

# %% [markdown]
# **3. A better start.** In the memory task, replace the initial $W$ by an orthogonal matrix, and train with clipping alone. (`remember` takes it as an argument.)

# %% tags=["hide-cell"]
# NBVAL_CHECK_OUTPUT
trace, _ = remember(0.0, 1.0, [0.05, 0.1], first_w=lambda w: torch.linalg.qr(w).Q)
orthogonal = trace[-20:].mean((0, 2)).max().item()
assert orthogonal > 0.95
print("clipping alone, from an orthogonal matrix, learns: True")

# %% [markdown]
# ## References
#
# ```{bibliography}
# :filter: docname in docnames
# ```
