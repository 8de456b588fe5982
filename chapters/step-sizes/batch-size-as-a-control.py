# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Batch size as a control
#
# ## Overview
#
# A stochastic gradient is a signal plus noise, and two knobs set how much of the noise reaches the weights: the learning rate and the batch size. Schedules turn the first. This chapter turns the second, and asks how the two are tied:
#
# | method | question | answer |
# |:--|:--|:--|
# | **Norm test**, AdAdaGrad {cite:p}`lau2024adadagrad` | how large must the next batch be? | until its noise is a fraction $\eta$ of its gradient |
# | **Spiked batch Hessian** {cite:p}`granziol2020learning` | how large may the learning rate be at this batch size? | 2 over the curvature *of the batch*, which is more than that of the data |
#
# After this chapter you can read off a batch whether it is too small, let a Lightning run enlarge its own batches and resume it in the middle of an epoch, and say how far a learning rate may grow with the batch size before growth stops. You need gradients, variances and, for the second half, eigenvalues.

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

import matplotlib.pyplot as plt
import torch
from IPython.display import display
from plotting import BLUE, GRAY, GREEN, RED, set_style
from torch.nn import functional as F

from steepest import listing
from steepest.lightning import AdaptiveBatchSize, Classifier, DigitsData
from steepest.oracles import Objective
from steepest.probes import (
    GradientMoments,
    batch_hessian,
    coordinate_norm_test,
    hessian_noise,
    lanczos,
    learn_rates,
    norm_test,
)

set_style()
COLORS = {
    "constant 8": GRAY,
    "constant 512": BLUE,
    "doubling": GREEN,
    "norm test": RED,
}

# %% [markdown]
# (adaptivebatchsize)=
# ## The norm test: batches that grow when they must
#
# **The failure.** Early in training all samples pull the same way, and eight of them say as much as a thousand. Later the mean gradient shrinks while the samples go on disagreeing, so that a batch of eight is mostly noise. A constant batch is too large at first or too small at last.
#
# **The idea.** Ask the batch. Its samples have gradients $g_1, \ldots, g_b$ with mean $g$ and variance $V = \sum_j V_j$ over all coordinates. The mean's own variance is $V/b$, so a batch is large enough if
#
# $$
# \frac{V}{b} \le \eta^2 \lVert g \rVert^2, \qquad\text{and if not, take}\qquad b \leftarrow \left\lceil \frac{V}{\eta^2 \lVert g \rVert^2} \right\rceil
# $$
#
# from the next step on. Sizes never shrink. What passes has a noise that vanishes with the gradient, as in gradient descent; hence the paper's rate, $O(1/K)$ for $\min_k \lVert\nabla f\rVert^2$ on smooth problems. With AdaGrad-Norm as the optimizer the method is AdAdaGrad-Norm; with AdaGrad and the same test for each coordinate, $V_j/b \le \eta^2 g_j^2$ for all $j$, it is AdAdaGrad. An adaptive optimizer suits a growing batch, since it sets its own scale as the noise falls.
#
# **The rule.** A trainer has gradients of *parts* of a batch, not of samples. A part of $n_i$ samples has $1/n_i$ of the variance; weigh its square by $n_i$, and the estimate is that of single samples on average, without bias. The parts come one at a time, so memory is two gradients, the mean and a sum of squares $S$:

# %%
display(
    listing(GradientMoments.add, start="before ="),
    listing(GradientMoments.variance, start="return"),
    listing(norm_test),
)

# %% [markdown]
# **See it work, 1: noise follows signal.** Logistic regression, 16,384 samples in 20 dimensions, where each sample's gradient is a formula and the exact gradient can be had for comparison. `train` is AdaGrad; a *policy* looks at the rows of sample gradients and names the next size.

# %%
rng = torch.Generator().manual_seed(0)
samples, dimension = 16384, 20
inputs = torch.randn(samples, dimension, generator=rng, dtype=torch.float64)
truth = torch.randn(dimension, generator=rng, dtype=torch.float64)
odds = torch.sigmoid(3 * inputs @ truth / math.sqrt(dimension))
labels = (torch.rand(samples, generator=rng, dtype=torch.float64) < odds).double()


def loss(w):
    return F.binary_cross_entropy_with_logits(inputs @ w, labels).item()


def sample_gradients(w, i=slice(None)):
    return inputs[i] * (torch.sigmoid(inputs[i] @ w) - labels[i])[:, None]


def train(policy, lr, seed, epochs=2, watch=False):
    """Weights, and a trace of (samples seen, step, batch size, loss, noise over signal)."""
    draws = torch.Generator().manual_seed(seed)
    w = torch.zeros(dimension, dtype=torch.float64)
    scale, size, seen, step, trace = torch.zeros_like(w), 8, 0, 0, []
    for _ in range(epochs):
        order = torch.randperm(samples, generator=draws)
        while len(order):
            now, order = order[:size], order[size:]
            seen, step = seen + len(now), step + 1
            rows = sample_gradients(w, now)
            size = policy(rows, size, seen)
            if watch:
                exact = sample_gradients(w)
                noise = exact.var(0).sum() / size / exact.mean(0).square().sum()
            if watch or size > 64 or step % 32 == 1 or not len(order):
                trace.append(
                    (seen, step, size, loss(w), float(noise) if watch else 0)
                )
            g = rows.mean(0)
            scale += g * g
            w = w - lr * g / (scale.sqrt() + 1e-10)
    return w, torch.tensor(trace, dtype=torch.float64)


def adaptive(rows, size, seen, eta=0.5):
    if len(rows) < 2:  # the last sample of an epoch
        return size
    return int(max(size, min(norm_test([rows], eta).size, 4096)))


w, trace = train(adaptive, 0.1, seed=1, watch=True)
constant, flat = train(lambda *_: 8, 0.1, seed=1, epochs=1)

# %% tags=["hide-input"]
exact = sample_gradients(torch.zeros(dimension, dtype=torch.float64))
fig, axes = plt.subplots(1, 2, figsize=(8, 2.8))
axes[0].semilogy(
    trace[:, 0], trace[:, 2], ".-", color=COLORS["norm test"], label="norm test"
)
axes[0].axhline(8, color=COLORS["constant 8"], label="constant 8")
axes[0].set(
    xlabel="samples seen", ylabel="batch size", title="the size that is chosen"
)
axes[0].legend()
axes[1].semilogy(
    trace[:, 1],
    trace[:, 4],
    ".-",
    color=COLORS["norm test"],
    label="at the size chosen",
)
axes[1].semilogy(
    trace[:, 1],
    trace[:, 4] * trace[:, 2] / 8,
    "--",
    color=COLORS["constant 8"],
    label="same weights, batches of 8",
)
axes[1].axhline(0.25, color="k", lw=0.7, ls=":", label=r"$\eta^2$")
axes[1].set(
    xlabel="step",
    ylabel="noise / signal, squared",
    title="against the exact gradient",
)
axes[1].legend()
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
sizes, noise = trace[:, 2], trace[:, 4]
assert bool((sizes.diff() >= 0).all()) and sizes[-1] >= 8 * sizes[0]
assert noise[sizes > 8].mean() <= 1.5 * 0.5**2
assert noise[-1] * sizes[-1] / 8 > 10
print("sizes never shrink, and end more than eight times as large: True")
print("noise after an update is below 1.5 eta^2 of the signal on average: True")
print("batches of 8 would end with noise above ten times the signal: True")

# %% [markdown]
# The test uses the batch's own $\lVert g \rVert^2$, which contains the noise it is to detect: with $b$ samples it is $\lVert\nabla f\rVert^2 + V/b$ on average. So a single test on a batch that is far too small multiplies it by $1/\eta^2$ at most, and the size climbs over a few steps. Once it passes, the true ratio is held near $\eta^2/(1-\eta^2)$.
#
# **See it work, 2: equal samples.** Four policies go over the data twice: constant 8, constant 512, a hand-made schedule that doubles eight times at equal intervals, and the norm test with $\eta = 0.5$. Each has the learning rate that ends lowest for seed 0, out of a grid from 0.03 to 3; the curves and the table further down are from four other seeds.

# %%
policies = {
    "constant 8": lambda rows, size, seen: 8,
    "constant 512": lambda rows, size, seen: 512,
    "doubling": lambda rows, size, seen: 8 * 2 ** min(8, 9 * seen // (2 * samples)),
    "norm test": adaptive,
}
rates = [0.03, 0.1, 0.3, 1.0, 3.0]
tuned = {
    name: min(rates, key=lambda lr: loss(train(policy, lr, 0)[0]))
    for name, policy in policies.items()
}
runs = {
    name: [train(policies[name], tuned[name], seed) for seed in range(1, 5)]
    for name in policies
}
best = torch.zeros(dimension, dtype=torch.float64)
for _ in range(20):  # Newton's method, for the lowest loss there is
    p = torch.sigmoid(inputs @ best)
    hessian = (inputs * (p * (1 - p))[:, None]).T @ inputs / samples
    best -= torch.linalg.solve(hessian, inputs.T @ (p - labels) / samples)

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(8, 2.9), sharey=True)
for name, color in COLORS.items():
    for k, (_, path) in enumerate(runs[name]):
        for ax, column in zip(axes, (0, 1)):
            ax.loglog(
                path[:, column],
                path[:, 3] - loss(best),
                color=color,
                lw=1.4,
                alpha=0.8,
                label=f"{name}, lr {tuned[name]}" if k == 0 else None,
            )
axes[0].set(xlabel="samples seen", ylabel="loss above the lowest")
axes[1].set(xlabel="steps")
axes[0].legend()
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
final = {name: torch.tensor([loss(w) for w, _ in runs[name]]) for name in runs}
steps = {name: max(int(path[-1, 1]) for _, path in runs[name]) for name in runs}
assert final["norm test"].mean() <= 1.1 * final["constant 8"].mean()
assert steps["norm test"] <= 0.05 * steps["constant 8"]
assert steps["norm test"] < steps["constant 512"]
excess = {name: (f - loss(best)).mean().item() for name, f in final.items()}
assert excess["doubling"] < min(excess["norm test"], excess["constant 8"])
print("the norm test ends within 10 % of constant 8's loss: True")
print(
    "in less than a twentieth of its steps, and fewer than constant 512 takes: True"
)
print("nearest to the lowest loss is the hand-made schedule: True")

# %% [markdown]
# The claim holds: at equal samples about the same loss, in far fewer steps, and a step is what takes time on parallel hardware. Now read the axes again. Measured by loss above the lowest possible, the hand-made schedule wins, with tens of times the steps. It was told how long the run would be, and the norm test was not. And the test spends samples on a *direction* that is precise to $\eta$ at each step, where many imprecise steps that average out would be the better bargain on a problem as easy as this.
#
# **The coordinate-wise test has a sharp edge.** It takes the largest answer over coordinates. Where one coordinate's gradient happens to be near zero, it asks for everything. The package holds no coordinate to a signal below `floor` times the mean square; `floor=0` is the paper's test.

# %%
# NBVAL_CHECK_OUTPUT
asked = {"norm": [], "floor 1": [], "floor 0": []}
for seed in range(200):
    draws = torch.Generator().manual_seed(seed)
    i = torch.randint(samples, (256,), generator=draws)
    rows = sample_gradients(torch.zeros(dimension, dtype=torch.float64), i)
    asked["norm"].append(norm_test([rows]).size)
    asked["floor 1"].append(coordinate_norm_test([rows]).size)
    asked["floor 0"].append(coordinate_norm_test([rows], floor=0).size)
asked = {name: torch.tensor(sizes) for name, sizes in asked.items()}
medians = {name: sizes.median() for name, sizes in asked.items()}
assert medians["norm"] < medians["floor 1"] < 40 * medians["norm"]
assert medians["floor 0"] > 20 * medians["floor 1"]
assert asked["floor 0"].quantile(0.9) > 10 * medians["floor 0"]
print(
    "without the guard the coordinate test asks for 20 times more, in the median: True"
)
print("and in one batch of ten for ten times that again: True")

# %% [markdown]
# **When to use it.** Where steps cost more than samples: several devices, or a device that a small batch leaves idle. Where you do not know how long the run will be, so that no schedule can be laid out. The test costs one more pass over a batch each time it is made; test every ten steps, and that is a tenth. **When not:** plain SGD takes steps of the same length whatever the batch, and gains little from a cleaner gradient unless its rate grows too, which is the next section. Batch normalization gives each part statistics of its own. And where small batches help generalization, growth removes the help; this page does not test that.
#
# (batch_learning_rate)=
# ## The batch's Hessian: how far a rate may grow
#
# **The failure.** "Double the batch, double the learning rate" works, until suddenly it does not. Both halves follow from one fact: a step is taken on the surface of *its batch*, and that surface is sharper than the data's.
#
# **The idea.** The Hessian of a batch of $B$ out of $N$ samples is the true one plus a fluctuation. Model it as a symmetric matrix of independent entries with variance $\sigma^2/b$, $1/b = 1/B - 1/N$. With $P$ parameters its eigenvalues fill $\pm 2s$, $s = \sigma\sqrt{P/b}$, and a true eigenvalue $\lambda$ is pushed outwards:
#
# $$
# \lambda' = \lambda + \frac{s^2}{\lambda} = \lambda + \frac{P\sigma^2}{b\,\lambda} \quad (\lambda > s), \qquad \lambda' = 2s \quad (\lambda \le s).
# $$
#
# Above the transition the batch's top eigenvector still points along the true one, with squared cosine $1 - s^2/\lambda^2$; below it, the top eigenvector is noise. The largest stable rate of SGD is $2/\lambda'$, with momentum $2(1+\beta)/\lambda'$, so rates may grow with the batch until $\lambda' \approx \lambda$, and no further.

# %%
listing(batch_hessian, start="share =")

# %% [markdown]
# **See it work.** On the left the model itself: a matrix with one eigenvalue 1 and noise, $P = 400$. On the right a network on the digits, trained for 60 steps, whose batch Hessian we measure with eight products each ({py:func}`~steepest.probes.lanczos`), 30 batches a size.

# %%
data = DigitsData()
data.setup()
digits, targets = data.splits["train"].inputs, data.splits["train"].targets
spike, measured_tops, measured_overlaps = [], [], []
ratios = [0.25, 0.5, 1, 2, 4, 8, 16]
for ratio in ratios:
    noise = torch.randn(400, 400, generator=rng, dtype=torch.float64)
    matrix = (noise + noise.T) / math.sqrt(2) / math.sqrt(400 * ratio)
    matrix[0, 0] += 1
    values, vectors = torch.linalg.eigh(matrix)
    spike.append(batch_hessian(1.0, int(400 * ratio), sigma=1.0, params=400))
    measured_tops.append(values[-1].item())
    measured_overlaps.append(vectors[0, -1].item() ** 2)


def network(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(64, 16), torch.nn.Tanh(), torch.nn.Linear(16, 10)
    )


def descend(net, lr, momentum, steps, batch=None, seed=0):
    opt = torch.optim.SGD(net.parameters(), lr=lr, momentum=momentum)
    draws = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        i = torch.randperm(len(digits), generator=draws)[:batch]
        opt.zero_grad()
        F.cross_entropy(net(digits[i]), targets[i]).backward()
        opt.step()
    return F.cross_entropy(net(digits), targets).item()


def objective(net, i=slice(None)):
    return Objective(lambda: F.cross_entropy(net(digits[i]), targets[i]), net)


def some(size, draws):
    return torch.randperm(len(digits), generator=draws)[:size]


net = network()
descend(net, 0.1, 0.9, 60)
batch_sizes = [8, 16, 32, 64, 128]
tops = torch.tensor(
    [
        [
            lanczos(objective(net, some(size, rng)), 8, seed=k).values[-1]
            for k in range(30)
        ]
        for size in batch_sizes
    ]
)
whole = lanczos(objective(net), 15).values[-1].item()
sigma = hessian_noise(
    [objective(net, some(32, rng)) for _ in range(5)],
    objective(net),
    32,
    samples=len(digits),
)
inverse = 1 / torch.tensor(batch_sizes, dtype=torch.float64) - 1 / len(digits)
design = torch.stack([torch.ones_like(inverse), inverse], 1)
intercept, a = (
    torch.linalg.lstsq(design, tops.mean(1)[:, None]).solution[:, 0].tolist()
)

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(8, 2.9))
fine = torch.logspace(math.log10(0.25), math.log10(16), 100).tolist()
curve = [batch_hessian(1.0, round(400 * k), sigma=1.0, params=400) for k in fine]
for values, dots, color, mark, name in (
    ([c.largest for c in curve], measured_tops, BLUE, "o", "top"),
    ([c.overlap for c in curve], measured_overlaps, RED, "s", "overlap"),
):
    axes[0].semilogx(fine, values, color=color, label=f"{name}, predicted")
    axes[0].semilogx(
        ratios, dots, mark, ms=5, color=color, label=f"{name}, measured"
    )
axes[0].axhline(1, color="k", lw=0.6, ls=":")
axes[0].set(
    xlabel=r"$b / (P\sigma^2/\lambda^2)$", title="spike and noise", ylim=(-0.1, 4.3)
)
axes[0].legend()
params = sum(p.numel() for p in net.parameters())
predicted = [
    batch_hessian(
        whole, size, sigma=sigma, params=params, samples=len(digits)
    ).largest
    for size in batch_sizes
]
axes[1].errorbar(
    batch_sizes,
    tops.mean(1),
    tops.std(1),
    fmt="o",
    color=BLUE,
    capsize=3,
    label="measured, 30 batches",
)
axes[1].plot(
    batch_sizes,
    (design @ torch.tensor([intercept, a], dtype=torch.float64)),
    color=GREEN,
    label=r"fit $\lambda + a/b$",
)
axes[1].plot(
    batch_sizes, predicted, "--", color=RED, label=r"predicted from $\sigma$"
)
axes[1].axhline(whole, color="k", lw=0.6, ls=":", label="all the data")
axes[1].set(
    xlabel="batch size",
    ylabel="top eigenvalue",
    title="digits",
    xscale="log",
    ylim=(0, None),
)
axes[1].legend(fontsize=8)
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
errors = [abs(m / s.largest - 1) for m, s in zip(measured_tops, spike)]
mean = tops.mean(1).double()
unexplained = (
    (mean - design @ torch.tensor([intercept, a], dtype=torch.float64))
    .square()
    .sum()
)
assert max(errors) < 0.05
assert a > 0 and 1 - unexplained / (mean - mean.mean()).square().sum() > 0.9
assert mean[0] > 1.5 * whole and predicted[0] < 1.1 * whole
print(
    "spike and noise: the top is within 5 % of the prediction at every size: True"
)
print("digits: lambda + a/b fits with R^2 above 0.9: True")
print(
    "digits: sigma alone predicts less than 10 % of inflation; more than 50 % is seen: True"
)

# %% [markdown]
# The law has the right *form* on a real network, and the wrong *constant*. Batches of 8 are far sharper than the data, and $\lambda + a/b$ fits. But $a$ computed from $\sigma$, the noise spread evenly over $P^2$ entries, all but vanishes. A network's noise is concentrated where its curvature is. So trust the form, and measure $a$: two batch sizes suffice.
#
# **See it work, 2: rates that diverge.** Least squares on the digits, where divergence is unmistakable. In the plain pixels one direction dominates the curvature. In the *whitened* ones (the 40 leading components, each scaled to unit variance) none does, and a small batch's curvature is mostly noise. For each batch size we raise the rate by 10 % at a time until one of three runs of 200 steps ends above its start.

# %%
onehot = F.one_hot(targets, 10).double()
onehot -= onehot.mean(0)
plain = digits.double() - digits.double().mean(0)
white = plain @ torch.linalg.svd(plain, full_matrices=False)[2][:40].T
white /= white.std(0)


def diverges(x, size, lr, seed):
    w, draws = (
        torch.zeros(x.shape[1], 10, dtype=torch.float64),
        torch.Generator().manual_seed(seed),
    )
    for _ in range(200):
        i = torch.randint(len(x), (size,), generator=draws)
        w -= lr / size * x[i].T @ (x[i] @ w - onehot[i])
    return not (x @ w - onehot).square().sum() < onehot.square().sum()


def largest_rate(x, size, guess):
    lr = guess / 4
    while not any(diverges(x, size, 1.1 * lr, seed) for seed in range(3)):
        lr *= 1.1
    return lr


def sharpness(x, size):
    draws = torch.Generator().manual_seed(0)
    picks = [torch.randint(len(x), (size,), generator=draws) for _ in range(20)]
    return sum(
        torch.linalg.eigvalsh(x[i].T @ x[i] / size)[-1].item() for i in picks
    ) / len(picks)


grid = [4, 8, 16, 32, 64, 128, 256]
limits = {
    name: [
        (largest_rate(x, size, 2 / sharpness(x, size)), 2 / sharpness(x, size))
        for size in grid
    ]
    for name, x in {"pixels": plain, "whitened": white}.items()
}

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(8, 2.8))
for ax, (name, x) in zip(axes, {"pixels": plain, "whitened": white}.items()):
    seen, expected = zip(*limits[name])
    limit = 2 / torch.linalg.eigvalsh(x.T @ x / len(x))[-1].item()
    ax.loglog(grid, seen, "o", color=BLUE, label="largest stable rate")
    ax.loglog(grid, expected, "-", color=RED, label=r"$2/\lambda'$, from batches")
    ax.loglog(
        grid,
        [seen[0] * size / grid[0] for size in grid],
        ":",
        color=GRAY,
        label="linear scaling",
    )
    ax.axhline(
        limit, color="k", lw=0.6, ls="--", label=r"$2/\lambda$, all the data"
    )
    ax.set(title=name, xlabel="batch size", ylim=(0.5 * min(seen), 3 * limit))
axes[0].set_ylabel("learning rate")
axes[0].legend(fontsize=8)
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
growth = {name: pairs[4][0] / pairs[1][0] for name, pairs in limits.items()}
off = [m / e for pairs in limits.values() for m, e in pairs]
assert growth["whitened"] >= 3 and 1.5 < growth["pixels"] < 3
assert min(off) > 0.5 and max(off) < 2
print("from batches of 8 to 64 the rate grows threefold on whitened digits: True")
print("on plain pixels by less than three: True")
print("everywhere within a factor of two of 2 over the batch's curvature: True")

# %% [markdown]
# Linear scaling is the slope at the left of the right-hand picture, where noise is most of a batch's curvature. It bends where the data's own curvature takes over, and on plain pixels that is nearly at once: from 8 to 64, eight times the batch buys about twice the rate there, and even on whitened digits less than the eight times of the linear law. *Which regime you are in is a matter of measurement, not of rules.*
#
# For methods that divide by curvature plus a damping, such as Adam, the model gives a square root instead ({py:func}`~steepest.probes.batch_learning_rate` with `optimizer="adam"`): their longest steps are where the true curvature is nil, and there the noise is the bulk's edge, $2s \propto 1/\sqrt b$. We show no experiment for that law.
#
# **A learner of rates.** Twenty products of a batch's Hessian give both ends of its spectrum. Heavy ball's best pair for these follows ({py:func}`~steepest.probes.learn_rates`), with the negative end, the mirror of the bulk's edge, as the flattest curvature worth waiting for:

# %%
display(listing(learn_rates, start="top ="))
spectrum = lanczos(objective(network(), some(64, rng)), 20)
learned = learn_rates(spectrum)
plan = [(lr, m) for lr in (0.03, 0.1, 0.3, 1.0, 3.0) for m in (0.0, 0.5, 0.9)]
outcomes = {pair: descend(network(), *pair, 100, batch=64) for pair in plan}
ours = descend(network(), *learned, 100, batch=64)

# %%
# NBVAL_CHECK_OUTPUT
ranking = sorted(outcomes.values())
assert ours < sorted(outcomes.values())[len(plan) // 2]
assert ours > ranking[0]
print("the learned pair beats the median of a grid of 15 pairs: True")
print("the best of the grid beats the learned pair: True")

# %% [markdown]
# That is its worth: a safe start without a grid, not the best pair of one. The curvature at the start is not that of the rest of the run.
#
# **When to use it.** To choose how far to raise a rate with a batch size that has changed: measure $\lambda'$ at both sizes, and scale by the ratio. **When not:** with batch normalization or dropout a batch's Hessian is not the model's alone; and stability is a bound, while the best rate may lie well below.
#
# ## In your project
#
# The callback {py:class}`~steepest.lightning.AdaptiveBatchSize` enlarges the batches of your own `DataLoader`, in the middle of an epoch too, and keeps its place in checkpoints. Module and data stay as they are. Here is AdaGrad on the digits for five epochs: batches of 8, a constant 64, and growth from 8 with and without a cap.

# %%
from functools import partial

from lightning.pytorch import Trainer

from steepest.lightning import quiet

quiet()  # no tips and no hardware report
results = {}
for name, size, callbacks in (
    ("constant 8", 8, []),
    ("constant 64", 64, []),
    ("adaptive, up to 64", 8, [AdaptiveBatchSize(every=2, max_batch_size=64)]),
    ("adaptive", 8, [AdaptiveBatchSize(every=2)]),
):
    for seed in range(2):
        torch.manual_seed(seed)
        module = Classifier(
            hidden=[32], optimizer=partial(torch.optim.Adagrad, lr=0.05)
        )
        trainer = Trainer(
            max_epochs=5,
            callbacks=callbacks,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, DigitsData(size, seed=seed))
        accuracy = trainer.test(module, DigitsData(seed=seed), verbose=False)[0]
        results.setdefault(name, []).append(
            (accuracy["test_accuracy"], trainer.global_step)
        )
grown = callbacks[0].batch_size
for name, pairs in results.items():
    print(f"{name:18s}", [f"{100 * acc:.1f} % in {n} steps" for acc, n in pairs])
print("the last batches of the last run had", grown, "samples")

# %%
# NBVAL_CHECK_OUTPUT
mean = {name: sum(acc for acc, _ in pairs) / 2 for name, pairs in results.items()}
longest = {name: max(n for _, n in pairs) for name, pairs in results.items()}
assert longest["adaptive, up to 64"] < 0.25 * longest["constant 8"]
assert mean["adaptive, up to 64"] > mean["constant 8"] - 0.03
assert longest["adaptive"] < 0.1 * longest["constant 8"] and grown > 256
assert mean["adaptive"] < mean["constant 8"] - 0.03
print("up to 64: a quarter of the steps, within three points of batches of 8: True")
print("without a cap: a tenth of the steps, and more than three points lost: True")

# %% [markdown]
# The cap matters. The noise of these gradients is large from the start, so that without `max_batch_size` the test asks for most of the data within an epoch, and some thirty steps are too few to learn from, at a rate that was not tuned for them. *The test knows what a gradient is worth, and not how many steps you need.* Set the cap where your device stops being idle.
#
# With `num_workers` above zero, batches that workers have already drawn keep their size, so that growth comes `num_workers * prefetch_factor` batches later. Epochs get shorter in steps; a learning-rate schedule should count epochs. Under DDP all processes take one size, from the variance over all of them.
#
# ## What to pick
#
# From the runs of the logistic regression above: mean and standard deviation over four seeds, at equal samples, each with its own tuned learning rate.

# %%
print(f"{'policy':14s} {'lr':>5s} {'steps':>6s}   loss above the lowest")
for name in runs:
    gap = final[name] - loss(best)
    print(
        f"{name:14s} {tuned[name]:5.2f} {steps[name]:6d}   {gap.mean():.1e} ± {gap.std():.0e}"
    )

# %% [markdown]
# | you have | take |
# |:--|:--|
# | steps that cost the same at any batch size (a device that idles), length of the run unknown | {py:class}`~steepest.lightning.AdaptiveBatchSize`, `eta=0.5`, with a cap |
# | a run whose length you know, and time for more steps | a doubling schedule laid out in advance |
# | samples that are cheap one at a time, one small device | a constant small batch with a tuned rate |
# | a new batch size and an old learning rate | {py:func}`~steepest.probes.lanczos` at both sizes, and the ratio of the tops |
#
# ## Exercises
#
# **1. A test on eight samples cannot ask for a thousand.** Batches of 8 with no signal at all, only noise: what does the norm test with $\eta = 0.5$ ask for, in the median?

# %% tags=["hide-cell"]
# NBVAL_CHECK_OUTPUT
# The mean of 8 has a squared norm of V / 8 by noise alone, so the answer is near 8 / eta^2 = 32.
noise = torch.randn(500, 8, 200, generator=rng, dtype=torch.float64)
medial = torch.tensor([norm_test([n], 0.5).size for n in noise]).median().item()
assert 30 < medial < 35
print("near 8 / eta^2 = 32: True")

# %% [markdown]
# **2. The transition.** An eigenvalue of 2, $\sigma = 0.1$ and a million parameters. From which batch size on does a batch's Hessian show the eigenvalue at all, and from which with a squared cosine of 0.9?

# %% tags=["hide-cell"]
# NBVAL_CHECK_OUTPUT
# s = lambda at b = P sigma^2 / lambda^2; the cosine asks for s^2 / lambda^2 = 0.1, ten times that.
start = 1e6 * 0.1**2 / 2**2
spiked = [
    batch_hessian(2.0, int(k * start), sigma=0.1, params=10**6).overlap
    for k in (0.99, 1.01, 10)
]
assert spiked[0] == 0 < spiked[1] < 0.02 and abs(spiked[2] - 0.9) < 1e-9
print(f"visible from {start:.0f}, clear from {10 * start:.0f}")

# %% [markdown]
# ## References
#
# ```{bibliography}
# :filter: docname in docnames
# ```
