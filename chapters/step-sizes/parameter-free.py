# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Without a learning rate
#
# ## Overview
#
# The best constant learning rate for a convex loss is known: the distance to the minimum, over the root of the sum of the squared gradients that will be met on the way. Nobody knows the distance, and the gradients are known only afterwards. So people try ten rates and keep one. The methods of this chapter make the rate out of what they see:
#
# | method | distance | gradients | what is left to choose |
# |:--|:--|:--|:--|
# | **AdaGrad-Norm** {cite:p}`attia2023sgd` | guessed, once | summed on the way | a length |
# | **DoG, LDoG** {cite:p}`ivgi2023dog` | the way made so far | summed on the way | a first step, which hardly matters |
# | **U-DoG** {cite:p}`kreisler2024accelerated` | the way made so far | how much they *change* | the same; and it accelerates |
#
# After this chapter you can train without a learning rate, average the weights as these methods want it, and say what such a method gives up against a tuned one. Notation is on the [part's first page](../../book/parts/step-sizes.md).

# %% tags=["remove-cell"]
# Where the book's plotting module is. On Colab, first fetch the book and install its package.
import os
import sys

if "google.colab" in sys.modules:
    os.system("git clone -q --depth 1 https://github.com/steepest-ml/steepest")
    os.system("pip install -q './steepest/core[cpu]'")
    os.chdir("steepest/chapters/step-sizes")
sys.path.append("../../book")

# %%
import math
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import torch
from plotting import BLUE, GRAY, GREEN, PINK, RED, SKY, set_style
from sklearn.datasets import load_breast_cancer
from torch.nn import functional as F

from steepest import listing
from steepest.kernels import REDUCTIONS, RULES
from steepest.lightning import Classifier, DigitsData, Oracles
from steepest.optim import (
    AdaGradNorm,
    AdamW,
    Averaged,
    DoG,
    LDoG,
    OracleDriven,
    UDoG,
)

set_style()

# %% [markdown]
# One problem serves most of the page: logistic regression on real data (569 patients, 30 features, a little L2 so that there is a minimum), batches of 16, the weights in two tensors. `train` runs any optimizer on it and returns the losses on all data, of the last weights and of an average over the run.

# %%
cancer = load_breast_cancer()
x = torch.tensor(cancer.data)
x = (x - x.mean(0)) / x.std(0)
y = 2.0 * torch.tensor(cancer.target) - 1


def loss(w, rows=slice(None)):
    return F.softplus(-y[rows] * (x[rows] @ w)).mean() + 0.005 * (w * w).sum()


def gradient(w, rows):
    pull = torch.sigmoid(-y[rows] * (x[rows] @ w)) * y[rows]
    return 0.01 * w - pull @ x[rows] / len(rows)


def train(make, steps=600, seed=0, unit=1.0, watch=None):
    """Losses of the last weights and of their average; watch is called after each step.

    The weights are two tensors, the second in units of its own.
    """
    parts = [
        torch.nn.Parameter(torch.zeros(15, dtype=torch.float64)) for _ in range(2)
    ]
    opt = make(parts)
    opt = opt if isinstance(opt, OracleDriven) else Averaged(opt)

    def whole(tensors):
        return torch.cat([tensors[0], unit * tensors[1]])

    rng = torch.Generator().manual_seed(seed)
    for rows in torch.randint(len(x), (steps, 16), generator=rng):
        if isinstance(opt, OracleDriven):  # asks for its two gradients itself
            opt.step([lambda r=r: loss(whole(parts), r) / 2 for r in rows.split(8)])
        else:
            g = gradient(whole([p.detach() for p in parts]), rows)
            parts[0].grad, parts[1].grad = g[:15], unit * g[15:]
            opt.step()
        if watch:
            watch(opt)
    last = [p.detach() for p in parts]
    mean = (
        [opt.memory[p]["mean"] for p in parts]
        if isinstance(opt, Averaged)
        else last
    )
    return loss(whole(last)).item(), loss(whole(mean)).item()


best = torch.zeros(30, dtype=torch.float64)
for _ in range(12):  # Newton's method, for the lowest loss there is
    hessian = torch.func.hessian(loss)(best)
    best = best - torch.linalg.solve(hessian, torch.func.grad(loss)(best))
lowest = loss(best).item()

# %% [markdown]
# (adagradnorm)=
# ## AdaGrad-Norm: the gradients are known on the way
#
# **The failure.** Gradient descent on a loss of curvature $L$ breaks at $2/L$, and crawls far below it. With noise there is a second limit: near the minimum the rate must fall as $1/\sqrt t$, or the noise keeps the weights away. Without noise it must *not* fall, or a fast method becomes a slow one. Which of the two you have, and where they meet, you do not know.
#
# **The idea.** Let the gradients decide:
#
# $$
# \eta_t = \frac{\eta}{\sqrt{\gamma^2 + \sum_{s \le t} \lVert g_s \rVert^2}} .
# $$
#
# If the rate is too large, the gradients grow, and it falls until it is right; $L$ never enters. If gradients vanish, the sum converges and so does the rate. If they do not, because of noise, the sum grows like $t$ and the rate falls like $1/\sqrt t$. {cite:t}`attia2023sgd` prove both rates for the same untuned method, without a bound on the gradients, and for noise that may grow with the gradient.
#
# **The rule**: the sum that is measured, its root over all steps so far, and the step.

# %%
REDUCTIONS["gradient_square"]

# %%
listing(AdaGradNorm.summary)

# %%
RULES["adagrad_norm"]

# %% [markdown]
# **See it work.** A smooth loss in 20 dimensions that is not convex, $\sum_i x_i^2/(1 + x_i^2)$. Three kinds of noise: none, noise in proportion to the gradient, and noise that stays. The theory's quantity is the mean squared gradient over a run of $T$ steps. One setting for all: $\eta = 1$, $\gamma = 10^{-3}$.


# %%
def mean_squares(stays, grows, steps, runs=4):
    """Mean squared gradient over the first T steps, for each T; each run is a group."""
    rng = torch.Generator().manual_seed(0)
    params = [
        torch.nn.Parameter(torch.ones(20, dtype=torch.float64)) for _ in range(runs)
    ]
    opt = AdaGradNorm([{"params": [p]} for p in params], lr=1.0, backend="torch")
    seen = []
    for _ in range(steps):
        point = torch.stack([p.detach() for p in params])
        slope = 2 * point / (1 + point**2) ** 2
        seen.append((slope**2).sum(1).mean().item())
        noise = torch.randn(2, runs, 20, generator=rng, dtype=torch.float64)
        for p, g in zip(params, slope * (1 + grows * noise[0]) + stays * noise[1]):
            p.grad = g
        opt.step()
    return np.cumsum(seen) / np.arange(1, steps + 1)


kinds = {
    "no noise": (0.0, 0.0, 1024),
    "noise in proportion": (0.0, 1.0, 1024),
    "noise that stays": (1.0, 0.0, 4000),
}
squares = {name: mean_squares(*kind) for name, kind in kinds.items()}


def slope(values, first):
    """Exponent of T, fitted from ``first`` to the end."""
    lengths = np.unique(np.geomspace(first, len(values), 20).astype(int))
    return np.polyfit(np.log(lengths), np.log(values[lengths - 1]), 1)[0]


# %% tags=["hide-input"]
fig, ax = plt.subplots(figsize=(5.6, 3.2))
for (name, values), color in zip(squares.items(), (GRAY, BLUE, RED)):
    ax.loglog(np.arange(1, len(values) + 1), values, color=color, label=name)
t = np.array([30, 1000])
ax.loglog(t, 60 / t, "k:", lw=1)
ax.text(250, 0.4, "$1/T$")
t = np.array([300, 4000])
ax.loglog(t, 60 / np.sqrt(t), "k--", lw=1)
ax.text(1200, 2.2, r"$1/\sqrt{T}$")
ax.set(xlabel="steps $T$", ylabel="mean squared gradient of the run")
ax.legend(frameon=False)
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
rates = {
    name: slope(values, 1000 if name == "noise that stays" else 64)
    for name, values in squares.items()
}
assert rates["no noise"] < -0.85 and rates["noise in proportion"] < -0.85
assert -0.65 < rates["noise that stays"] < -0.35
print("exponent below -0.85 where the noise vanishes with the gradient: True")
print("exponent between -0.65 and -0.35 where it stays: True")

# %% [markdown]
# **When to use it, when not.** As a safe SGD for a problem about which you know a length, $\eta$, how far it may be to go, and nothing else. The theory holds for every $\eta$, but with constants that grow as $\eta$ is wrong in either direction: it is forgiving, not free of parameters. And the sum never forgets a burst of large gradients.
#
# (dog)=
# ## DoG: the distance is known on the way, too
#
# **The idea.** Put the largest distance from the start so far in the place of $\eta$:
#
# $$
# \bar r_t = \max_{s \le t}\, \lVert \theta_s - \theta_0 \rVert, \qquad
# \eta_t = \frac{\bar r_t}{\sqrt{\sum_{s \le t} \lVert g_s \rVert^2}} .
# $$
#
# *Distance over gradients.* Say it starts far too small. Steps are tiny, successive gradients agree, and the weights march in one direction: the distance grows, the rate grows with it, exponentially. When the weights come to where the minimum is, gradients begin to disagree, the distance stops growing, and the sum goes on. What one chooses is the first step, $\bar r_0 = r_{\mathrm{rel}}(1 + \lVert\theta_0\rVert)$, and being wrong by a factor of ten costs a few steps of doubling. **LDoG** does the same for each tensor by itself.
#
# Its guarantee is for an average of the iterates. The package's `Averaged` keeps one beside any optimizer, with weights $w_t = (1+\gamma)/(t+\gamma)$: for $\gamma = 8$ about the last tenth of the run counts, however long it is.
#
# **The rule**: the sums, the rate that they make, and the step.

# %%
REDUCTIONS["dog_norms"]

# %%
listing(DoG.summary)

# %%
RULES["dog"]

# %% [markdown]
# **See it work.** SGD with rates over five orders of magnitude, against DoG and LDoG with first steps over six. The loss is that of the average in both, 600 steps each. In the middle the same once more, with the second tensor in other units: its gradients are a hundred times as large.


# %%
def rate(opt):
    """The rate that DoG has made."""
    group = opt.param_groups[0]
    return float(group["reach"] / group["total"].sqrt())


sgd_rates = [4.0**k for k in range(-6, 3)]
firsts = [10.0**k for k in (-8, -6, -4, -2)]
sgd = [train(partial(torch.optim.SGD, lr=lr)) for lr in sgd_rates]
dogs = {
    (cls.__name__, unit): [
        train(partial(cls, reps_rel=r), unit=unit) for r in firsts
    ]
    for cls in (DoG, LDoG)
    for unit in (1.0, 100.0)
}
trace = {first: [] for first in (1e-8, 1e-5, 1e-2)}
for first, seen in trace.items():
    train(
        partial(DoG, reps_rel=first),
        watch=lambda opt, seen=seen: seen.append(rate(opt)),
    )

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 3, figsize=(8.6, 2.9))
axes[0].loglog(sgd_rates, [mean for _, mean in sgd], "o-", color=GRAY, label="SGD")
axes[0].set(xlabel="learning rate", ylabel="loss of the average", title="SGD")
for (name, unit), style in zip(dogs, ("o-", "o--", "s-", "s--")):
    axes[1].loglog(
        firsts,
        [mean for _, mean in dogs[name, unit]],
        style,
        color=BLUE if name == "DoG" else GREEN,
        ms=4,
        label=name if unit == 1 else f"{name}, other units",
    )
axes[1].set(xlabel="first step, relative", title="DoG and LDoG")
for ax in axes[:2]:
    ax.set_ylim(0.09, 1)
axes[1].axhline(min(mean for _, mean in sgd), color=GRAY, ls=":", label="best SGD")
axes[1].legend(frameon=False)
for (first, seen), color in zip(trace.items(), (BLUE, SKY, PINK)):
    axes[2].loglog(
        np.arange(1, len(seen) + 1), seen, color=color, label=f"first {first:g}"
    )
axes[2].set(
    xlabel="step", ylabel=r"rate $\eta_t$ of DoG", title="the rate it makes"
)
axes[2].legend(frameon=False)
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
means = {key: [mean for _, mean in ends] for key, ends in dogs.items()}
best_sgd = min(mean for _, mean in sgd)
for cls in ("DoG", "LDoG"):
    assert max(means[cls, 1.0]) < 1.1 * min(means[cls, 1.0])
    assert max(means[cls, 1.0]) < 1.1 * best_sgd
assert sum(mean > 1.3 * best_sgd for _, mean in sgd) >= 3
apart = [
    (a - lowest) / (b - lowest)
    for a, b in zip(means["DoG", 100.0], means["LDoG", 100.0])
]
assert min(apart[1:]) > 2
settled = [seen[-1] for seen in trace.values()]
assert max(settled) < 4 * min(settled)
print("losses over six orders of magnitude of the first step are within 10 %: True")
print("and within 10 % of the best of nine rates for SGD: True")
print("in other units DoG ends twice as far above the lowest loss as LDoG,")
print("or more, from each first step but the smallest: True")
print("rates from first steps a million apart end within a factor of four: True")

# %% [markdown]
# That is the paper's claim on a convex problem. In other units DoG has one rate for two tensors that want different ones, and LDoG, with one for each, does not notice. The right panel shows how: whatever the first step, within some hundred steps the rate has climbed to about the same place, and stays.
#
# **When to use it, when not.** Where you would use SGD and have no time to tune it, and where weights can be averaged. Not with momentum or Adam's scaling, about which its theory says nothing. The start $\theta_0$ stays in memory, and has to be in the checkpoint; a method that restarts its measuring at each resume would be another one. A first step far too *large* cannot be taken back.
#
# (udog)=
# ## U-DoG: accelerated
#
# **The failure.** Without noise, gradient descent with the best rate needs on the order of $\kappa$ steps for a condition number of $\kappa$; accelerated methods $\sqrt\kappa$. DoG is gradient descent: on the smooth, noiseless quadratics of textbooks it is slow.
#
# **The idea** is a marriage. UniXGrad takes two gradients a step, at weighted averages of the whole past, and puts in the root how much the two *differ*, not how large they are. On a smooth loss without noise they hardly do: the root stays small, and the rate of the averages is the accelerated one. With noise they differ all the time, and the root grows as it must. What UniXGrad needs is the distance, and that comes from DoG. Weights grow with the distances seen so far, $w_t = \sum_{k \le t} \bar r_k$:
#
# $$
# \begin{aligned}
# m_t &= \nabla f\bigl((1-\tau_t)\, \bar x_{t-1} + \tau_t\, y_t\bigr), & x_{t+1} &= y_t - \frac{w_t}{\sqrt{G^x_t}}\, m_t, & \bar x_t &= (1-\tau_t)\, \bar x_{t-1} + \tau_t\, x_{t+1}, \\
# g_t &= \nabla f(\bar x_t), & y_{t+1} &= y_t - \frac{w_t}{\sqrt{G^y_t}}\, g_t, & \tau_t &= w_t / \textstyle\sum_{k \le t} w_k .
# \end{aligned}
# $$
#
# In the package the parameters *are* the average $\bar x$, which is the method's answer, so that there is nothing to swap for evaluation. It asks for its gradients itself, as the methods of [Steps that ask for more](../start/asking-more) do. The roots are the practical form, without the theory's logarithms; that reading is ours. In the code $M_t$ is the largest $\alpha_k^2 \lVert \cdot \rVert^2$ of any gradient so far, and $Q_t$ how much gradients have differed:

# %%
listing(UDoG.query, start="reach = ", stop="return")

# %%
listing(UDoG.update)

# %% [markdown]
# **See it work.** A quadratic in 50 dimensions with curvatures from $10^{-3}$ to 1; on the right with noise of 0.1 in each coordinate of each gradient. The horizontal axis counts *gradients*, of which U-DoG takes two a step.

# %%
curvature = torch.logspace(-3, 0, 50, dtype=torch.float64)


def quadratic(make, steps, noise):
    """Gaps along a run from 0 toward ones: of the last iterate, and of the average."""
    p = torch.nn.Parameter(torch.zeros(50, dtype=torch.float64))
    opt, rng, gaps = make([p]), torch.Generator().manual_seed(0), []

    def gap(point):
        return 0.5 * (curvature * (point - 1) ** 2).sum()

    for _ in range(steps):
        z = noise * torch.randn(2, 50, generator=rng, dtype=torch.float64)
        if isinstance(opt, UDoG):
            opt.step([lambda k=k, z=z: (gap(p) + z[k] @ p) / 2 for k in range(2)])
            gaps.append([gap(p.detach()).item()] * 2)
        else:
            p.grad = curvature * (p.detach() - 1) + z[0]
            opt.step()
            mean = opt.memory[p]["mean"]
            gaps.append([gap(p.detach()).item(), gap(mean).item()])
    return np.array(gaps)


paths = {
    noise: {
        "DoG": quadratic(lambda ps: Averaged(DoG(ps, reps_rel=1e-4)), 1000, noise),
        "U-DoG": quadratic(partial(UDoG, split=noise > 0), 500, noise),
    }
    for noise in (0.0, 0.1)
}

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(7.8, 3.0))
for ax, (noise, runs) in zip(axes, paths.items()):
    count = np.arange(1, 1001)
    ax.loglog(count, runs["DoG"][:, 0], color=SKY, label="DoG, last iterate")
    ax.loglog(count, runs["DoG"][:, 1], color=BLUE, label="DoG, average")
    ax.loglog(2 * np.arange(1, 501), runs["U-DoG"][:, 0], color=RED, label="U-DoG")
    ax.set(
        xlabel="gradients",
        title=f"noise {noise:g}" if noise else "no noise",
        ylim=(1e-8, 30) if not noise else None,
    )
axes[0].set_ylabel("loss above its minimum")
axes[0].legend(frameon=False)
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
clean, noisy = paths[0.0], paths[0.1]
assert clean["U-DoG"][-1, 0] < 0.1 * clean["DoG"][-1].min()
assert slope(clean["U-DoG"][:, 0], 50) < -1.7
assert noisy["U-DoG"][-1, 0] > noisy["DoG"][-1, 1]
print("without noise, a tenth of DoG's gap or less at 1,000 gradients: True")
print("the gap falls faster than T to the power -1.7: True")
print("with noise it ends behind the average of DoG: True")

# %% [markdown]
# The acceleration is real. So is its price: with this much noise U-DoG ends behind plain DoG, for two gradients a step. The paper, too, calls its results on networks mixed.
#
# **When to use it, when not.** Smooth convex problems with full or large batches, of which you know nothing. Not where gradients are mostly noise.
#
# (averaged)=
# ## In your project
#
# `Averaged` around any optimizer; the callback {py:class}`~steepest.lightning.Oracles` shows the average to validation, puts it in checkpoints, and leaves it in the module at the end. UDoG needs the callback too, which gives it the loss. The average's rule:

# %%
RULES["average"]

# %%
from lightning.pytorch import Trainer

from steepest.lightning import quiet

quiet()  # no tips and no hardware report
results = {}
for name, make in {
    "DoG": lambda ps: Averaged(DoG(ps, reps_rel=1e-4)),
    "LDoG": lambda ps: Averaged(LDoG(ps, reps_rel=1e-4)),
    "AdaGrad-Norm": lambda ps: Averaged(AdaGradNorm(ps)),
    "U-DoG": UDoG,
    "AdamW": AdamW,
}.items():
    torch.manual_seed(0)
    module = Classifier(hidden=[64], optimizer=make)
    trainer = Trainer(
        max_epochs=6,
        accelerator="cpu",
        callbacks=[Oracles()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DigitsData())
    result = trainer.test(module, DigitsData(), verbose=False)[0]
    results[name] = result["test_accuracy"]
    print(f"{name:13s} {100 * results[name]:.0f} % of the test digits")

# %%
# NBVAL_CHECK_OUTPUT
assert min(results["DoG"], results["LDoG"], results["AdaGrad-Norm"]) > 0.9
print("DoG, LDoG and AdaGrad-Norm are above 90 % without a rate: True")

# %% [markdown]
# ## What to pick
#
# The logistic regression of the beginning once more: 600 batches of 16, loss of the average above the lowest there is, mean and standard deviation over five seeds. SGD has the best of the nine rates above, chosen on another seed, and then that rate times and over ten. U-DoG splits each batch in two, so that all see the same number of samples. AdamW comes as it is, with its default rate of $10^{-3}$.

# %%
chosen = sgd_rates[int(np.argmin([mean for _, mean in sgd]))]
rivals = {
    "SGD, tuned": partial(torch.optim.SGD, lr=chosen),
    "SGD, rate x 10": partial(torch.optim.SGD, lr=10 * chosen),
    "SGD, rate / 10": partial(torch.optim.SGD, lr=chosen / 10),
    "DoG": DoG,
    "LDoG": LDoG,
    "AdaGrad-Norm": AdaGradNorm,
    "U-DoG": partial(UDoG, split=True),
    "AdamW": AdamW,
}
table = {
    name: np.array([train(make, seed=seed)[1] - lowest for seed in range(1, 6)])
    for name, make in rivals.items()
}
for name, gap in table.items():
    print(
        f"{name:15s} {1e3 * gap.mean():6.1f} ± {1e3 * gap.std():.1f}  (thousandths)"
    )

# %%
# NBVAL_CHECK_OUTPUT
gaps = {name: gap.mean() for name, gap in table.items()}
assert max(gaps["DoG"], gaps["LDoG"]) < 0.5 * gaps["SGD, rate x 10"]
assert max(gaps["DoG"], gaps["LDoG"]) < 0.2 * gaps["SGD, rate / 10"]
assert gaps["SGD, tuned"] < gaps["DoG"] < gaps["U-DoG"]
assert gaps["AdaGrad-Norm"] < 2 * gaps["SGD, tuned"]
print("DoG and LDoG beat SGD at a rate that is wrong by ten, either way: True")
print("tuned SGD is ahead of DoG, and DoG of U-DoG: True")
print("AdaGrad-Norm, whose length of 1 happens to suit, is near tuned SGD: True")

# %% [markdown]
# | you have | take |
# |:--|:--|
# | no time to tune, and weights that can be averaged | `Averaged(` {py:class}`~steepest.optim.DoG` `)`, or {py:class}`~steepest.optim.LDoG` for layers of different scales |
# | an idea of how far it is to go | {py:class}`~steepest.optim.AdaGradNorm` with that length |
# | smooth, convex, hardly any noise | {py:class}`~steepest.optim.UDoG` |
# | time for ten runs | tuned SGD, and a schedule that ends at zero: [the last iterate](the-last-iterate) |
#
# ## Race them
#
# In the book, the rules from above run here, in your browser: drag the start, move the rates, add noise. (A notebook shows the request only; the [playground](../../book/playground.md) has all optimizers.) The rate of gradient descent is tuned for each surface; AdaGradNorm and DoG start from 1 on all of them. Press *Race* and watch DoG: for fifty steps it hardly comes down, and then it runs.
#
# ```{playground}
# :surface: himmelblau
# :optimizers: gradient descent, AdaGradNorm, DoG
# ```
#
# ## Exercises
#
# **1. How long does it take to forget?** On a straight slope, $f(\theta) = -\theta$, how does the distance that DoG has made grow? Measure how many steps it takes to go from a first step of $10^{-8}$ to a distance of 1.

# %% tags=["hide-cell"]
# NBVAL_CHECK_OUTPUT
# r' = r / sqrt(t): the distance grows as exp(2 sqrt(t)), so log(1e8) = 18.4 takes about (18.4 / 2)^2.
p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
opt, steps = DoG([p], reps_rel=1e-8), 0
while p.item() < 1:
    p.grad = -torch.ones_like(p)
    opt.step()
    steps += 1
print(steps, "steps; the estimate says", round((math.log(1e8) / 2) ** 2))

# %% [markdown]
# **2. Which part of the run counts?** With `Averaged(gamma=8)` after 1000 steps: what share of the weight do the last 100 iterates have, and the first 500?

# %% tags=["hide-cell"]
# NBVAL_CHECK_OUTPUT
t = np.arange(1, 1001)
w = 9 / (t + 8)
share = w * np.append(np.cumprod((1 - w)[::-1])[::-1][1:], 1)
assert abs(share.sum() - 1) < 1e-9
print(
    f"last hundred: {share[-100:].sum():.0%}, first half: {share[:500].sum():.1%}"
)

# %% [markdown]
# **3. A restart forgets.** Stop DoG after 200 steps of the logistic regression, and go on for 200 with a new `DoG` instead of its checkpoint. What is its rate then, against that of the run that was not stopped?


# %% tags=["hide-cell"]
# NBVAL_CHECK_OUTPUT
rng = torch.Generator().manual_seed(0)
w = torch.nn.Parameter(torch.zeros(30, dtype=torch.float64))
opt = DoG([w])
rates = {}
for step, rows in enumerate(torch.randint(len(x), (400, 16), generator=rng)):
    if step == 200:
        again = torch.nn.Parameter(w.detach().clone())
        fresh = DoG([again])
    for each, its in [(w, opt)] + ([(again, fresh)] if step >= 200 else []):
        its.zero_grad()
        loss(each, rows).backward()
        its.step()
    if step == 210:
        rates = {"kept": rate(opt), "new": rate(fresh)}
# It has to grow from 1e-6 of the norm again, and measures from another point.
assert rates["new"] < 0.01 * rates["kept"]
print("ten steps later the new one's rate is below a hundredth: True")

# %% [markdown]
# ## References
#
# ```{bibliography}
# :filter: docname in docnames
# ```
