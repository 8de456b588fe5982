# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What can you ask a loss?
#
# ## Overview
#
# A training loop calls `backward` and takes what comes. But a loss can be asked more than one thing, and each thing has its price. Optimization theory makes this its unit of cost: it does not count seconds, it counts queries to an *oracle*, a box that answers questions about the loss $f$ at the point $\theta$.
#
# | question | answer | forward passes | backward passes |
# |:--|:--|--:|--:|
# | value | $f(\theta)$ | 1 | 0 |
# | ranking of $k$ points | the order of $f(\theta + d_1), \dots, f(\theta + d_k)$ | $k$ | 0 |
# | directional derivative | $\langle \nabla f(\theta), v \rangle$ | 1 | 0 |
# | gradient | $\nabla f(\theta)$ | 1 | 1 |
# | Hessian product | $\nabla^2 f(\theta)\, v$ | 1 | 2 |
# | per-sample gradients | $\nabla f_1(\theta), \dots, \nabla f_N(\theta)$ | 1 | 1 |
#
# Everything in this book has one of five roles ([the picture](../../book/index.md) shows how they connect). A **problem** is a loss with data. An **oracle** answers a query about it exactly. An **estimator** turns cheap answers into a guess of a dearer one. An **optimizer** turns answers into an update. The **parameters** move. *Probes* read along the way, and change nothing.
#
# After this chapter you can ask all six questions of a model of your own, say what each costs in time and in memory, guess a gradient from forward passes alone and know how wrong the guess is, and drive any optimizer with it, in a plain loop and in Lightning. You need to know what a gradient is.

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
import math
import statistics
import time
import weakref
from functools import partial
from itertools import pairwise, product

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import display
from plotting import BLUE, GRAY, GREEN, PINK, RED, SKY, set_style
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from steepest import listing
from steepest.estimators import SPSA, ForwardGradient, hutchinson
from steepest.lightning import DigitsData
from steepest.optim import AdamW, Estimated, OptAMSGrad
from steepest.oracles import Composite, Objective

set_style()
COLORS = {
    "value": GRAY,
    "rank": SKY,
    "derivative": BLUE,
    "gradient": RED,
    "hvp": PINK,
    "per sample": GREEN,
}


# %% [markdown]
# ## One loss, six questions
#
# The problem: 400 images of digits, and a perceptron with four hidden layers. An {py:class}`~steepest.oracles.Objective` is made from a callable that returns the loss and does nothing else, and from what to differentiate in. The last of the six questions is about the samples behind the loss, so its oracle, {py:class}`~steepest.oracles.Composite`, is told the parts: model, criterion, inputs, targets.

# %%
data = DigitsData()
data.setup()
train = data.splits["train"]
x, y = train.inputs[:400], train.targets[:400]


def network(depth, width=64):
    """A perceptron with so many hidden layers, always the same one."""
    torch.manual_seed(0)
    sizes = [64] + depth * [width]
    hidden = [
        layer
        for pair in pairwise(sizes)
        for layer in (torch.nn.Linear(*pair), torch.nn.Tanh())
    ]
    return torch.nn.Sequential(*hidden, torch.nn.Linear(sizes[-1], 10))


def noise(params, seed):
    """A random direction: one tensor for each parameter."""
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, generator=rng) for p in params]


def dot(a, b):
    return sum((s * t).sum().item() for s, t in zip(a, b))


net = network(depth=4)
f = Objective(lambda: F.cross_entropy(net(x), y), net)
u, v = noise(f.params, 1), noise(f.params, 2)
moves = [[0.05 * t for t in noise(f.params, seed)] for seed in range(4)]

value = f.value()  # 1. how high?
order = f.rank(moves)  # 2. which of these moves is best?
slope = f.derivative(v).slope  # 3. how steep in this direction?
gradient = f.gradient().gradient  # 4. how steep in every direction?
bend = f.hvp(v).product  # 5. how does the gradient change in this direction?
samples = Composite(net, torch.nn.CrossEntropyLoss(), x, y)
rows = samples.per_sample_gradients()  # 6. what does each image ask for?

print("value     ", round(value.item(), 4))
print("order     ", order)
print("slope     ", round(slope.item(), 4))
print("gradient  ", len(gradient), "tensors, the first", tuple(gradient[0].shape))
print("product   ", len(bend), "tensors, the first", tuple(bend[0].shape))
print("per sample", len(rows), "tensors, the first", tuple(rows[0].shape))

# %% [markdown]
# A number, an order, a number, and three times something of the size of the parameters, or 400 times that. The answers belong together, and the oracle has counted what they took.

# %%
# NBVAL_CHECK_OUTPUT
assert f.counts["forward"] == 1 + 4 + 1 + 1 + 1 and f.counts["backward"] == 1 + 2
assert samples.counts["forward"] == samples.counts["backward"] == 1
print("six questions:", f.counts["forward"] + 1, "forward passes and", end=" ")
print(f.counts["backward"] + 1, "backward passes")

scale = math.sqrt(dot(gradient, gradient) * dot(v, v))
assert abs(slope.item() - dot(gradient, v)) < 1e-5 * scale
print("the slope is the gradient's product with the direction: True")

left, right = dot(u, bend), dot(f.hvp(u).product, v)
assert abs(left - right) < 1e-5 * math.sqrt(dot(u, u) * dot(bend, bend))
print("the Hessian is symmetric, <u, Hv> = <v, Hu>: True")

assert all(torch.allclose(r.mean(0), g, atol=1e-6) for r, g in zip(rows, gradient))
print("the mean of the samples' gradients is the gradient: True")

heights = []
for move in moves:
    moved = [p.detach() + d for p, d in zip(f.params, move)]
    names = [name for name, _ in net.named_parameters()]
    z = torch.func.functional_call(net, dict(zip(names, moved)), x)
    heights.append(F.cross_entropy(z, y).item())
assert order == sorted(range(4), key=heights.__getitem__)
print("the ranking is the order of the values: True")

# %% [markdown]
# **What does an answer cost?** Time is the median of 15 queries. Memory needs care: the processor has no counter of peak memory as a GPU has. So we watch every operation, add the bytes of each tensor that it makes, and subtract them when the tensor is freed. The highest sum is the peak. It includes the answer, but not the scratch space inside an operation, nor what was there before: weights, data, directions.


# %%
def milliseconds(query, repeats=15):
    """Median time of a query."""
    query()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        query()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


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
    leaves = [t for t in tree_leaves(tree) if isinstance(t, torch.Tensor)]
    return [t for t in leaves if not t._is_zerotensor()]  # those have no memory


def peak(query):
    """Most bytes that the tensors made by a query hold at a time, answer included."""
    with Live() as live:
        query()
    return live.most


def queries(net):
    """The six questions, about a network."""
    batch = Composite(net, torch.nn.CrossEntropyLoss(), x, y)
    f = batch.objective()
    v = noise(f.params, 2)
    moves = [noise(f.params, seed) for seed in range(4)]
    return {
        "value": f.value,
        "rank": lambda: f.rank(moves),
        "derivative": lambda: f.derivative(v),
        "gradient": f.gradient,
        "hvp": lambda: f.hvp(v),
        "per sample": batch.per_sample_gradients,
    }


ask = queries(net)
times = {name: milliseconds(query) for name, query in ask.items()}
peaks = {name: peak(query) for name, query in ask.items()}
depths = [1, 2, 4, 8, 16]
grown = {
    name: [peak(queries(network(depth))[name]) for depth in depths]
    for name in ("value", "derivative", "gradient", "hvp")
}
for name in ask:
    print(
        f"{name:10s} {times[name] / times['value']:5.1f} times the time of a value,"
        f" {peaks[name] / 2**20:6.2f} MiB"
    )

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 3, figsize=(8, 2.7))
colors = [COLORS[name] for name in ask]
bars = axes[0].barh(
    list(ask), [times[name] / times["value"] for name in ask], color=colors
)
axes[0].bar_label(bars, fmt="%.1f", padding=2)
axes[0].set(title="time", xlabel="times that of a value")
bars = axes[1].barh(list(ask), [peaks[name] / 2**20 for name in ask], color=colors)
axes[1].bar_label(bars, fmt="%.2f", padding=2)
axes[1].set(title="peak memory", xlabel="MiB", xscale="log", yticklabels=[])
axes[1].set_xlim(right=8 * max(peaks.values()) / 2**20)
axes[0].set_xlim(right=1.2 * max(times.values()) / times["value"])
for ax in axes[:2]:
    ax.invert_yaxis()
for name, sizes in grown.items():
    axes[2].loglog(
        depths,
        [s / 2**20 for s in sizes],
        "o-",
        ms=4,
        color=COLORS[name],
        label=name,
    )
axes[2].set(title="and with depth", xlabel="hidden layers", ylabel="MiB")
axes[2].set_xticks(depths, [str(depth) for depth in depths])
axes[2].set_yticks([0.25, 0.5, 1, 2, 4], ["0.25", "0.5", "1", "2", "4"])
axes[2].set_ylim(top=14)
axes[2].minorticks_off()
axes[2].legend(loc="upper left", ncols=2, fontsize=7)
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
layer = {name: (sizes[-1] - sizes[-2]) / 8 for name, sizes in grown.items()}
outputs, weights = 4 * 400 * 64, 4 * (64 * 64 + 64)  # bytes of a layer's
assert layer["value"] == 0
assert 0.9 * weights < layer["derivative"] < 1.1 * weights
assert 0.8 * outputs < layer["gradient"] < 1.2 * (outputs + weights)
assert layer["hvp"] > 2 * outputs
assert grown["gradient"][0] < grown["derivative"][0]
assert grown["gradient"][-1] > 1.5 * grown["derivative"][-1]
assert peaks["per sample"] > 4 * 400 * sum(p.numel() for p in f.params)
print(f"a layer's outputs take {outputs:,} bytes, its weights {weights:,}")
print("one layer more costs a value nothing: True")
print("a slope pays for a copy of the weights' direction: True")
print("a slope holds more than a gradient at 1 layer, and less at 16: True")
print("a gradient pays for the outputs, a Hessian product more than twice: True")

# %% [markdown]
# What to read from the three panels:
#
# - **A gradient is cheap.** It has thousands of entries, and costs a small multiple of a value. No list of differences comes near, and this is why most training uses it.
# - **A slope saves memory, not time.** Forward mode carries a derivative beside each number, so here a slope takes about as long as a gradient. But it keeps no graph. A gradient must hold every layer's outputs until the backward pass has used them; a slope holds a copy of the direction, and two layers' numbers at a time. In the shallow network the gradient is even the smaller of the two, and in the deep one it is not.
# - **A Hessian product** costs a few gradients, and never forms the Hessian.
# - **Per-sample gradients** count one forward and one backward pass, and the answer alone is 400 times as large as the weights. Counts are a fair price between queries that return alike things; between others, measure.
# - **A ranking** is $k$ values, and a copy of the parameters to return to.
#
# ## Guessing the dearer answer
#
# Suppose that the graph does not fit in memory, or that the loss is a simulator which returns a number. Can cheap answers be turned into a gradient? Take a random direction $z$ whose entries are independent with mean 0 and variance 1, so that $\mathrm E[zz^\top] = I$. Then
#
# $$
# \mathrm E\bigl[\langle \nabla f, z \rangle\, z\bigr] = \mathrm E[z z^\top]\, \nabla f = \nabla f .
# $$
#
# A slope times its direction is an unbiased guess. {py:class}`~steepest.estimators.ForwardGradient` {cite:p}`baydin2022gradients` asks for the slope itself. {py:class}`~steepest.estimators.SPSA` {cite:p}`spall1992multivariate` makes it from two values, $(f(\theta + \epsilon z) - f(\theta - \epsilon z)) / 2\epsilon$, and needs no derivative at all. Both average $n$ directions, $\hat g = \sum_i w_i z_i$, and the weights $w_i$ are all they have to find:

# %%
display(
    listing(ForwardGradient.ask, start="answer = ", stop="check_slope"),
    listing(SPSA.ask, start="first, second", stop="values += "),
)

# %% [markdown]
# **How wrong is it?** With Gaussian directions in $d$ dimensions the mean squared error is $(d+1)\,\|\nabla f\|^2/n$. The relative error is thus $\sqrt{(d+1)/n}$: it falls as $1/\sqrt n$, from a start that grows with the dimension. We measure it on softmax regression, $d = 640$. Both estimators get the same directions, so that whatever differs is SPSA's radius. For that radius we then take a network, whose loss bends, and measure how far SPSA is from its own limit $\epsilon \to 0$, the forward gradient.

# %%
linear = torch.nn.Linear(64, 10, bias=False)
with torch.no_grad():
    for p, t in zip(linear.parameters(), noise(linear.parameters(), 0)):
        p.copy_(0.1 * t)
g = Objective(lambda: F.cross_entropy(linear(x), y), linear)
d = sum(p.numel() for p in g.params)
exact = torch.cat([t.flatten() for t in g.gradient().gradient])


def guess(estimator, objective, seed):
    """An estimate, as one vector."""
    answer = estimator(objective, seed=seed).gradient
    return torch.cat([t.flatten() for t in answer])


counts = [4**k for k in range(6)]  # directions; 16 guesses of one, 4 of four
cosine, error = {}, {}
for name, make in {
    "SPSA": partial(SPSA, eps=1e-3),
    "forward gradient": ForwardGradient,
}.items():
    cosine[name], error[name] = [], []
    for n in counts:
        repeats = range(max(1, 16 // n))
        guesses = torch.stack([guess(make(samples=n), g, seed) for seed in repeats])
        square = (guesses - exact).square().sum(1).mean() / exact.square().sum()
        cosine[name].append(F.cosine_similarity(guesses, exact, dim=1).mean())
        error[name].append(square.sqrt())

radii = torch.logspace(-7, 0.5, 26).tolist()
deep = {kind: network(1).to(kind) for kind in (torch.float32, torch.float64)}
off = {}
for kind, copy in deep.items():
    f = Objective(
        lambda copy=copy, kind=kind: F.cross_entropy(copy(x.to(kind)), y), copy
    )
    limit = guess(ForwardGradient(samples=1), f, 0)
    off[kind] = [
        ((guess(SPSA(eps, samples=1), f, 0) - limit).norm() / limit.norm()).item()
        for eps in radii
    ]

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 3, figsize=(8, 2.8))
tint = {"SPSA": BLUE, "forward gradient": RED}
law = [math.sqrt((d + 1) / n) for n in counts]
axes[0].loglog(counts, law, "k--", lw=1, label=r"$\sqrt{(d+1)/n}$")
axes[1].semilogx(
    counts,
    [math.sqrt(n / (n + d + 1)) for n in counts],
    "k--",
    lw=1,
    label=r"$\sqrt{n/(n+d+1)}$",
)
for (name, color), mark in zip(tint.items(), "ox"):
    axes[0].loglog(counts, error[name], mark, ms=5, color=color, label=name)
    axes[1].semilogx(counts, cosine[name], mark, ms=5, color=color, label=name)
axes[0].axhline(1, color="#cccccc", lw=0.8)
axes[0].set(
    title="relative error", xlabel="directions $n$", ylabel="error / |gradient|"
)
axes[1].set(title="cosine with the gradient", xlabel="directions $n$", ylim=(0, 1))
axes[0].legend(handles=axes[0].lines[:1], loc="lower left")
axes[1].legend(loc="upper left")
for kind, color in ((torch.float32, GREEN), (torch.float64, PINK)):
    axes[2].loglog(
        radii,
        [max(o, 1e-12) for o in off[kind]],
        ".-",
        ms=4,
        lw=1,
        color=color,
        label=str(kind).removeprefix("torch."),
    )
axes[2].set(
    title="SPSA and its radius",
    xlabel=r"$\epsilon$",
    ylabel=r"relative to $\epsilon \to 0$",
)
axes[2].legend()
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
for errors in error.values():
    ratio = torch.tensor(errors) / torch.tensor(law)
    assert ((ratio > 0.8) & (ratio < 1.25)).all()
print("both errors follow the law within 25 %, over three decades of n: True")

A = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
p = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
bowl = Objective(lambda: 0.5 * p @ A @ p, [p])
for make in (partial(SPSA, eps=0.5), ForwardGradient):
    draws = torch.stack([guess(make(), bowl, seed) for seed in range(400)])
    distance = draws.mean(0) - bowl.gradient().gradient[0]
    assert (distance.abs() < 5 * draws.std(0) / math.sqrt(400)).all()
print("on a quadratic, both means are within 5 standard errors: True")

single, double = off[torch.float32], off[torch.float64]
best = min(zip(single, radii))[1]
i, j = (
    min(range(len(radii)), key=lambda k: abs(radii[k] - e)) for e in (1e-4, 1e-2)
)
power = math.log(double[j] / double[i]) / math.log(radii[j] / radii[i])
assert 1.9 < power < 2.1 and 1e-4 < best < 1e-2
assert single[0] > 30 * min(single) < single[-1]
print(f"truncation grows as the radius to the power {power:.1f}")
print("in float32 the best radius lies between 0.0001 and 0.01: True")

# %% [markdown]
# With one direction the guess is 25 times as long as what it guesses, and nearly orthogonal to it. It takes about $d$ directions to bring the error down to the size of the gradient. That is the whole trouble with these methods. What they have going for them is that the guess is right on average, and optimizers average too.
#
# The right-hand panel says how to choose $\epsilon$. From the right, the error falls as $\epsilon^2$: that is truncation, the loss's third derivative, as even orders cancel. From the left it falls as $1/\epsilon$: that is rounding, as the difference of two nearly equal values keeps few digits. In float32 the two meet near $10^{-3}$, the default.
#
# **Curvature can be guessed too.** The diagonal of the Hessian would take $d$ products, one for each coordinate. {py:func}`~steepest.estimators.hutchinson` {cite:p}`bekas2007estimator` multiplies by a vector of random signs instead, and then again elementwise:
#
# $$
# \mathrm E\bigl[z \odot (Hz)\bigr]_j = \sum_k H_{jk}\, \mathrm E[z_j z_k] = H_{jj}.
# $$
#
# The off-diagonal terms vanish because the signs are *independent*. A popular library once shipped them all equal; nothing crashed, and its tests passed. But with equal signs $z \odot (Hz)$ is the vector of row sums.

# %%
listing(hutchinson, start="for i in range", stop="return Curvature")

# %%
shapes = [p.shape for p in g.params]
sizes = [s.numel() for s in shapes]


def unflatten(vector):
    return [t.view(s) for t, s in zip(vector.split(sizes), shapes)]


def flatten(tensors):
    return torch.cat([t.flatten() for t in tensors])


unit = torch.eye(d)
true = torch.stack(
    [flatten(g.hvp(unflatten(e)).product)[k] for k, e in enumerate(unit)]
)
signs = {n: flatten(hutchinson(g, seed=0, samples=n).diagonal) for n in (1, 100)}
same = flatten(g.hvp(unflatten(torch.ones(d))).product)

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 3, figsize=(8, 2.8), sharex=True, sharey=True)
for ax, (title, answer), color in zip(
    axes,
    {
        "1 product": signs[1],
        "100 products": signs[100],
        "1 product, equal signs": same,
    }.items(),
    (SKY, BLUE, RED),
):
    ax.plot(true, true, "k", lw=0.8)
    ax.plot(true, answer, ".", ms=3, color=color)
    ax.set(title=title, xlabel="diagonal of the Hessian")
axes[0].set_ylabel("estimate")
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
wrong = {n: ((s - true).norm() / true.norm()).item() for n, s in signs.items()}
assert 5 < wrong[1] / wrong[100] < 20
print("a hundred products are 5 to 20 times as accurate as one: True")
assert same.abs().max() < 1e-6 < 0.01 < true.max()
print("equal signs give a diagonal of zeros for softmax regression: True")
H = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
q = torch.zeros(2, requires_grad=True)
small = Objective(lambda: 0.5 * q @ H @ q, [q])
print("equal signs on H:", small.hvp([torch.ones(2)]).product[0].tolist())
mean = torch.stack(
    [hutchinson(small, seed=s).diagonal[0] for s in range(500)]
).mean(0)
assert (mean - 2).abs().max() < 5 / math.sqrt(500)
print("independent signs on H: [2, 2] within 5 standard errors: True")

# %% [markdown]
# A hundred products bring the points near the line. Equal signs give nothing at all: adding the same number to all weights of softmax regression raises all ten outputs alike, which changes no probability, so every row of this Hessian sums to zero. An optimizer that divides by that diagonal divides by its own $\epsilon$.
#
# ## One estimator, three optimizers
#
# An estimate has the form of a gradient, so any optimizer can take it. {py:class}`~steepest.optim.Estimated` is the joint: it asks the estimator, hands the answer over for one step, and puts `.grad` back. Here a forward gradient of eight directions drives SGD, AdamW and OptAMSGrad ([Adam and its repairs](../first-order/adam-and-its-repairs) explains the last two) on softmax regression. Beside them runs AdamW on the exact gradient, at the same learning rate as its estimated twin.
#
# To compare, we need one unit. Each run's cost is counted by its objective; a forward pass counts one, and a backward pass two, since it multiplies matrices twice where the forward pass does so once. An exact step costs three, an estimated one eight. (This flatters the estimate: a pass that carries a derivative takes longer than a plain one, as measured above.)


# %%
def race(make, budget, estimator=None):
    """Cost so far and loss, step by step; costs count forward passes."""
    model = torch.nn.Linear(64, 10, bias=False)
    for p in model.parameters():
        torch.nn.init.zeros_(p)
    f = Objective(lambda: F.cross_entropy(model(x), y), model)
    opt = make(model.parameters())
    opt = Estimated(opt, estimator) if estimator else opt
    cost, loss = [], []
    while not cost or cost[-1] < budget:
        if estimator:
            answer = opt.step(f)
        else:
            answer, grads = f.gradient()
            for p, grad in zip(f.params, grads):
                p.grad = grad
            opt.step()
        cost.append(f.counts["forward"] + 2 * f.counts["backward"])
        loss.append(answer.item())
    return cost, loss


rivals = {
    "SGD": partial(torch.optim.SGD, lr=0.4),
    "AdamW": partial(AdamW, lr=0.06),
    "OptAMSGrad": partial(OptAMSGrad, lr=0.03),
}
runs = {
    name: race(make, 1000, ForwardGradient(samples=8))
    for name, make in rivals.items()
}
backprop = race(rivals["AdamW"], 1000)

# %% tags=["hide-input"]
fig, ax = plt.subplots(figsize=(6, 2.9))
shades = {"SGD": GRAY, "AdamW": GREEN, "OptAMSGrad": PINK}
for name, (cost, loss) in runs.items():
    ax.loglog(cost, loss, color=shades[name], lw=1, label=f"{name}, estimated")
ax.loglog(*backprop, "k--", label="AdamW, exact gradient")
ax.set(xlabel="cost in forward passes", ylabel="loss")
ax.legend()
plt.show()


# %%
# NBVAL_CHECK_OUTPUT
def reached(run, goal):
    """Cost at which a run is first below a loss."""
    return next(cost for cost, loss in zip(*run) if loss < goal)


start = runs["SGD"][1][0]
dear = {name: reached(run, start / 4) for name, run in runs.items()}
assert all(
    math.isclose(run[1][0], math.log(10), rel_tol=1e-6) for run in runs.values()
)
assert min(dear.values()) > 6 * reached(backprop, start / 4)
print("one estimate drives all three to a quarter of the initial loss: True")
print("each needs more than 6 times the passes of the exact gradient: True")

# %% [markdown]
# All three learn from the same guess, and none of them knows that it is one. (Each has one learning rate, so read nothing into their order.) But no rule makes up for the estimate: the exact gradient is far ahead at every budget, although the model has only 640 parameters. Estimated gradients cost passes. What they save is the graph, and the need for derivatives at all.
#
# ## In your project
#
# In plain PyTorch, wrap an optimizer and hand `step` the loss itself. It is an objective: no `zero_grad`, no `backward`.

# %%
# NBVAL_CHECK_OUTPUT
model = torch.nn.Linear(64, 10, bias=False)
opt = Estimated(AdamW(model.parameters(), lr=0.03), SPSA(samples=8), seed=0)
with torch.no_grad():
    before = F.cross_entropy(model(x), y).item()
for _ in range(60):
    loss = opt.step(lambda: F.cross_entropy(model(x), y))
assert loss.item() < 0.7 * before
assert model.weight.grad is None
print(
    "60 steps of SPSA take more than 30 % off the loss, and no .grad is left: True"
)

# %% [markdown]
# In Lightning, a callback does the same. {py:class}`~steepest.lightning.Oracles` makes an objective of your `training_step` and hands it to the optimizer; the module is any module, here the book's `Classifier`. What the callback guarantees, and what else a step can ask for, is in [Steps that ask for more](asking-more).

# %%
# NBVAL_CHECK_OUTPUT
from lightning.pytorch import Trainer

from steepest.lightning import Classifier, Oracles, quiet

quiet()  # no tips and no hardware report
torch.manual_seed(0)
module = Classifier(
    hidden=[],
    optimizer=lambda params: Estimated(
        AdamW(params, lr=0.03), ForwardGradient(samples=8)
    ),
)
trainer = Trainer(
    callbacks=[Oracles()],
    max_epochs=2,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
before = F.cross_entropy(module(x), y).item()
trainer.fit(module, data)
after = F.cross_entropy(module(x), y).item()
assert after < 0.7 * before and trainer.global_step == 80
print("two epochs, 80 steps, and at least 30 % off the loss: True")

# %% [markdown]
# ## Which question, when
#
# | you have | ask for | through |
# |:--|:--|:--|
# | a differentiable loss, and memory for its graph | the gradient | any optimizer |
# | no memory for the graph | slopes | {py:class}`~steepest.estimators.ForwardGradient` |
# | no derivatives: a simulator, a rounded model | values | {py:class}`~steepest.estimators.SPSA` |
# | only comparisons: which of these is better? | a ranking | {py:meth}`~steepest.oracles.Objective.rank` |
# | a badly scaled loss, and time for three gradients | Hessian products | {py:meth}`~steepest.oracles.Objective.hvp`, {py:func}`~steepest.estimators.hutchinson` |
# | a question about the data: which sample pulls where? | per-sample gradients | {py:class}`~steepest.oracles.Composite` |
#
# ## Exercises
#
# **1. Signs or Gaussians?** In two dimensions, with $\nabla f = (1, 2)$, compute the exact mean and the exact total variance of a forward gradient, for random signs and for Gaussian directions. Compare with $(d-1)\,\|\nabla f\|^2$ and $(d+1)\,\|\nabla f\|^2$.

# %% tags=["hide-cell"]
# NBVAL_CHECK_OUTPUT
# Signs: four directions, equally likely. Gaussians: Gauss-Hermite quadrature,
# whose five nodes an axis are exact for the polynomials of degree four at hand.
nodes, weights = np.polynomial.hermite_e.hermegauss(5)
laws = {
    "signs": ([-1.0, 1.0], [0.5, 0.5]),
    "Gaussian": (nodes, weights / weights.sum()),
}
slopes = np.array([1.0, 2.0])
for name, (points, chances) in laws.items():
    z = np.array(list(product(points, repeat=2)))
    w = np.array([a * b for a, b in product(chances, repeat=2)])
    estimate = (z @ slopes)[:, None] * z
    mean = w @ estimate
    variance = w @ ((estimate - mean) ** 2).sum(1)
    assert np.allclose(mean, slopes)
    print(f"{name}: total variance {variance:.3f}")

# %% [markdown]
# **2. Newton's direction.** Add $\tfrac{1}{20}\|\theta\|^2$ to the softmax loss and find $d$ with $\nabla^2 f\, d = -\nabla f$ from Hessian products alone, by conjugate gradients. How many products does a residual of $10^{-6}$ take, against the 640 that the whole Hessian would?

# %% tags=["hide-cell"]
# NBVAL_CHECK_OUTPUT
wide = torch.nn.Linear(64, 10, bias=False).double()
torch.nn.init.zeros_(wide.weight)
ridge = Objective(
    lambda: F.cross_entropy(wide(x.double()), y) + wide.weight.square().sum() / 20,
    wide,
)
r = -ridge.gradient().gradient[0]
step, way, size = torch.zeros_like(r), r.clone(), r.norm()
ridge.counts.clear()
while r.norm() > 1e-6 * size:
    curved = ridge.hvp([way]).product[0]
    length = r.square().sum() / (way * curved).sum()
    step, old, r = step + length * way, r.square().sum(), r - length * curved
    way = r + r.square().sum() / old * way
products = ridge.counts["hvp"]
first = -ridge.gradient().gradient[0]
assert (ridge.hvp([step]).product[0] - first).norm() < 1e-5 * first.norm()
assert products < 64
print("Newton's direction in fewer than a tenth of 640 products: True")

# %% [markdown]
# **3. Only the order.** Write a descent that asks for nothing but rankings: try $\pm d$ for a few random $d$ and staying put, and move to the best. Show that it takes the same path on $f$ and on $\log f$, which a method that uses differences of values cannot do.


# %% tags=["hide-cell"]
# NBVAL_CHECK_OUTPUT
def by_rank(loss, steps=300):
    """Path of a point that is told only which of nine moves is best."""
    rng = torch.Generator().manual_seed(0)
    p = torch.full((5,), 3.0, dtype=torch.float64, requires_grad=True)
    f, path = Objective(lambda: loss(p), [p]), []
    for _ in range(steps):
        draws = 0.3 * torch.randn(4, 5, generator=rng, dtype=torch.float64)
        tries = [*draws, *-draws, torch.zeros(5, dtype=torch.float64)]
        (best,) = f.rank([[t] for t in tries], top=1)
        p.data.add_(tries[best])
        path.append(p.detach().clone())
    return torch.stack(path)


plain = by_rank(lambda p: p.square().sum())
logs = by_rank(lambda p: p.square().sum().log())
assert torch.equal(plain, logs)
assert plain[-1].norm() < 0.1 * plain[0].norm()
print("the same path, to less than a tenth of the distance: True")

# %% [markdown]
# ## References
#
# ```{bibliography}
# :filter: docname in docnames
# ```
