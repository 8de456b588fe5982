# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Finite differences in high dimension
#
# ## Overview
#
# A difference of two values tells one slope, and a gradient has $d$ of them. There are two ways to spend $q$ values on it: along coordinates, which gives some entries exactly and nothing about the others, or [along random directions](../start/oracles), which gives a little about all. Which is better, and by how much? And when is $d$ not the number that matters? Three papers answer.
#
# | method | it saves | by |
# |:--|:--|:--|
# | **Coordinates** | values | probing each weight once, a random subset of them at a time |
# | **FeatureReuse** | layers of a forward pass | restarting at the layer that has changed |
# | **zo_grasp** | coordinates | measuring which layers deserve them |
# | **MeZO** | memory, and the dimension | [making noise from a seed](../start/asking-more); here: what sets its rate |
# | **SharedRandomness** | network traffic | sending a slope in one byte, and no direction |
#
# After this chapter you can train a small residual network without a backward pass, say what a step costs in values and how far it goes, choose what to train when values are all that you have, and run one fine-tuning on several machines that send each other one byte a step. Notation is on the [part's first page](../../book/parts/zeroth-order.md).

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
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial

import matplotlib.pyplot as plt
import torch
from IPython.display import display
from plotting import BLUE, GRAY, GREEN, PINK, RED, set_style
from torch import nn
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_f1_score

from steepest import listing
from steepest.estimators import SPSA, Coordinates, FeatureReuse, zo_grasp
from steepest.lightning import Classifier, DigitsData, SharedRandomness
from steepest.optim import Estimated, MeZO
from steepest.oracles import Objective
from steepest.probes import lanczos

set_style()

data = DigitsData()
data.setup()
train, test = data.splits["train"], data.splits["test"]


def flat(tensors):
    """Tensors as one vector."""
    return torch.cat([t.detach().flatten() for t in tensors])


# %% [markdown]
# (coordinates)=
# ## Coordinates: one weight after the other
#
# **The idea** {cite:p}`chen2024deepzero`. The oldest estimate of all. Move one weight by $\epsilon$, look, put it back:
#
# $$
# \hat g_j = \frac{f(\theta + \epsilon e_j) - f(\theta)}{\epsilon}, \quad j \in S, \qquad \hat g_j = 0, \quad j \notin S .
# $$
#
# With all $d$ coordinates, nothing is random; what is left is a bias of $\tfrac{\epsilon}{2}\partial_j^2 f$. An average over $q = d$ random directions takes as many values, and has an error as long as the gradient itself. With a subset $S$ of $q$ coordinates, drawn anew for each estimate, the comparison is closer. Take a loss that bends alike in all directions and give each estimate its best step. Then a step takes off, in expectation, the fraction
#
# $$
# \frac qd \ \text{ (coordinates)}, \qquad \frac{q}{d + q + 1} \ \text{ (Gaussian directions)}
# $$
#
# of the loss. Both fractions are also the mean squared cosine between estimate and gradient, and those we can measure.
#
# **The method.** A loop over parameters, and for each the values beside it. The width that is divided by is the one that rounding has left of $\epsilon$.

# %%
display(
    listing(Coordinates.project, start="base =", stop="if not ahead"),
    listing(Coordinates.project, start="slopes =", stop="self.estimates"),
)

# %% [markdown]
# The network is a small ResNet for digits of 8 × 8 pixels: a convolution with stride 2, two residual blocks of four channels, a linear layer. Values of many coordinates do not depend on each other. Given the `module`, the estimator asks for a chunk of them at once by `torch.func.vmap`; what comes before the changed tensor is then computed once for the whole chunk. For a fair race, the function below does the same for random directions.


# %%
class Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.two = nn.Conv2d(4, 4, 3, padding=1, bias=False)

    def forward(self, x):
        return F.relu(x + self.two(F.relu(self.one(x))))


def resnet(seed=0):
    """1,262 weights in five convolutions and a linear layer."""
    torch.manual_seed(seed)
    stem = [nn.Conv2d(1, 4, 3, stride=2, padding=1, bias=False), nn.ReLU()]
    return nn.Sequential(*stem, Block(), Block(), nn.Flatten(), nn.Linear(64, 10))


images, labels = train.inputs.view(-1, 1, 8, 8), train.targets
d = sum(p.numel() for p in resnet().parameters())


def random_directions(net, x, y, q, rng, eps=5e-3):
    """The average over q Gaussian directions, one-sided, all values at once."""
    names, params = zip(*net.named_parameters())
    noise = [torch.randn(q, *p.shape, generator=rng) for p in params]

    def value(*z):
        moved = {k: p + eps * each for k, p, each in zip(names, params, z)}
        return F.cross_entropy(torch.func.functional_call(net, moved, (x,)), y)

    with torch.no_grad():
        rise = torch.func.vmap(value, chunk_size=256)(*noise)
        w = (rise - F.cross_entropy(net(x), y)) / (q * eps)
        return [torch.tensordot(w, z, 1) for z in noise]


net, (x, y) = resnet(), (images[:32], labels[:32])
f = Objective(lambda: F.cross_entropy(net(x), y), net)
exact = flat(f.gradient().gradient)
rng = torch.Generator().manual_seed(0)
shares = [1 / 8, 1 / 4, 1 / 2, 1]
cosines = {"coordinates": [], "random": []}
for share in shares:
    pieces = Coordinates(keep=share, module=net)
    guesses = {
        "coordinates": [flat(pieces(f, 0).gradient) for _ in range(4)],
        "random": [
            flat(random_directions(net, x, y, round(share * d), rng))
            for _ in range(2)
        ],
    }
    for name, group in guesses.items():
        squares = [F.cosine_similarity(g, exact, dim=0).item() ** 2 for g in group]
        cosines[name].append(statistics.mean(squares))

f.counts.clear()
start = time.perf_counter()
at_once = flat(Coordinates(module=net)(f, 0).gradient)
middle = time.perf_counter()
in_turn = flat(Coordinates()(f, 0).gradient)
speedup = (time.perf_counter() - middle) / (middle - start)
values = f.counts["value"] // 2

# %% [markdown]
# Then training: SGD with momentum 0.9, a cosine schedule, batches of 32. Four runs have the same number of values, for 20 steps with $q = d$ or 80 with $q = d/4$; two, in gray, have exact gradients for as many steps. Learning rates are the best by mean training loss over three seeds, in runs of 32 and 128 steps: at $q = d$ from 0.2, 0.3, 0.4 (exact gradients also 0.6), at $q = d/4$ from 0.03, 0.05, 0.08 for random directions and from 0.1, 0.15, 0.2 for coordinates, whose rate exact gradients share.


# %%
def race(kind, lr, q, steps, seed=0):
    """Values asked and test accuracy along a run, and its last training loss."""
    net = resnet(seed)
    sgd = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, steps)
    pieces = Coordinates(keep=q / d, module=net)
    rng, trace = torch.Generator().manual_seed(1), []
    for k in range(steps):
        rows = torch.randint(len(labels), (32,), generator=rng)
        x, y = images[rows], labels[rows]
        f = Objective(lambda x=x, y=y: F.cross_entropy(net(x), y), net)
        if kind == "coordinates":
            guess = pieces(f, 0).gradient
        elif kind == "random":
            guess = random_directions(net, x, y, q, rng)
        else:
            guess = f.gradient().gradient
        for p, g in zip(net.parameters(), guess):
            p.grad = g
        sgd.step()
        schedule.step()
        with torch.no_grad():
            right = net(test.inputs.view(-1, 1, 8, 8)).argmax(1) == test.targets
        trace.append(((k + 1) * (q + 1), 100 * right.float().mean().item()))
    with torch.no_grad():
        return trace, F.cross_entropy(net(images), labels).item()


steps, quarter = 20, d // 4
runs = {
    "coordinates, q = d": race("coordinates", 0.4, d, steps),
    "random, q = d": race("random", 0.4, d, steps),
    "coordinates, q = d/4": race("coordinates", 0.2, quarter, 4 * steps),
    "random, q = d/4": race("random", 0.05, quarter, 4 * steps),
    "exact, as many steps as q = d": race("exact", 0.4, d, steps),
    "exact, as many steps as q = d/4": race("exact", 0.2, quarter, 4 * steps),
}

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(8, 3.1))
fine = torch.linspace(0.03, 1, 100)
for name, color, law in (
    ("coordinates", BLUE, fine),
    ("random", RED, fine * d / (d + fine * d + 1)),
):
    axes[0].plot(fine, law, color=color, lw=1)
    axes[0].plot(shares, cosines[name], "o", color=color, label=name)
axes[0].set(
    title="how good is an estimate?",
    xlabel="values, $q/d$",
    ylabel="squared cosine with the gradient",
)
axes[0].legend(title="measured; line: law")
looks = [
    (BLUE, "--"),
    (RED, "--"),
    (BLUE, "-"),
    (RED, "-"),
    (GRAY, "--"),
    (GRAY, "-"),
]
for (name, (trace, _)), (color, style) in zip(runs.items(), looks):
    queries, right = zip(*trace)
    axes[1].plot(
        [k / 1e3 for k in queries], right, style, color=color, lw=1.2, label=name
    )
axes[1].set(
    title="what does it train?",
    xlabel="values, thousands",
    ylabel="test accuracy, %",
)
axes[1].legend(fontsize=7)
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
close = F.cosine_similarity(at_once, exact, dim=0).item()
print("values for all coordinates:", values)
assert close > 0.99 and cosines["random"][-1] < 0.85**2
print(
    "cosine above 0.99 along coordinates, below 0.85 along random directions: True"
)
assert torch.allclose(at_once, in_turn, atol=2e-3) and speedup > 2
print("at once they are the same, in less than half the time: True")
for name, law in (
    ("coordinates", lambda s: s),
    ("random", lambda s: s * d / (d + s * d + 1)),
):
    assert all(0.7 < c / law(s) < 1.4 for c, s in zip(cosines[name], shares))
print("squared cosines are those of the law, within 40 %: True")
end = {name: loss for name, (_, loss) in runs.items()}
ratio = end["coordinates, q = d"] / end["exact, as many steps as q = d"]
assert 0.9 < ratio < 1.1
print("with all coordinates it trains as exact gradients do, within 10 %: True")
for share in ("d", "d/4"):
    ratio = end[f"random, q = {share}"] / end[f"coordinates, q = {share}"]
    assert 0.7 < ratio < 1.3
print("at equal values, coordinates and random end within 30 % of each other: True")
assert (
    max(end["random, q = d/4"], end["coordinates, q = d/4"])
    < 0.9 * end["coordinates, q = d"]
)
print("with a quarter a step, both end lower than with all: True")

# %% [markdown]
# What of the paper's claim holds here? That coordinates give the better estimate holds as the law says: all of them are the gradient, and the run is that of backpropagation, for 1,263 passes a step in place of two. That they therefore *train* far better does not show: for the same values the two end close to each other, and which is ahead changed with the seed and the length of the run. The paper, with a much larger network on CIFAR-10, reports a wide gap. The law above would give a factor of two at $q = d$; it is for a loss that bends alike in all directions, and this one does not (the section on MeZO measures it). More instructive is another comparison. *Both* do better with a quarter of the values a step and four times the steps. A value is better spent on moving than on knowing exactly where to.
#
# **When to use it.** Where one is patient and the model small: a black box with some hundred to some thousand parameters, values without noise, many at once. **When not.** Where values are noisy: over a distance of $\epsilon$, noise is divided by $\epsilon$. Dropout and batch statistics must be fixed, and all values of an estimate be those of one batch.
#
# (featurereuse)=
# ### Feature reuse: half of each pass was done before
#
# To probe a weight of layer $l$ of $L$, layers before it do again what they have done. {py:class}`~steepest.estimators.FeatureReuse` wraps a `Sequential`, keeps its layers' inputs and restarts where a weight has changed: $\sum_l d_l (L - l + 1)$ evaluations of layers instead of $d L$. Networks with their weights at the end gain most.

# %%
display(listing(FeatureReuse.forward))
stack = FeatureReuse(resnet())
f = Objective(lambda: F.cross_entropy(stack(x), y), stack)
reused = flat(Coordinates(reuse=stack)(f, 0).gradient)

# %%
# NBVAL_CHECK_OUTPUT
sizes = [sum(p.numel() for p in layer.parameters()) for layer in stack.layers]
law = 6 + sum(n * (6 - depth) for depth, n in enumerate(sizes))
assert stack.evaluations == law and torch.allclose(in_turn, reused, atol=1e-4)
print(
    f"layers evaluated: {law} in place of {6 * (d + 1)}, the gradient the same to 1e-4"
)

# %% [markdown]
# (zo_grasp)=
# ### ZO-GraSP: which layers deserve coordinates
#
# GraSP is a rule for pruning before training. To remove weight $\theta_j$ changes the gradient's squared norm by $-2\theta_j (Hg)_j$ to first order, so the weights with the largest score $s = -\theta \odot Hg$ can go. Both $g$ and $Hg$ can be had from values alone: an average over random directions, and its difference a small step along itself,
#
# $$
# \widehat{Hg} = \frac{\hat g(\theta + \epsilon \hat g) - \hat g(\theta)}{\epsilon} .
# $$
#
# A mask made of this would be mostly noise. What {py:func}`~steepest.estimators.zo_grasp` takes from it is only the *share* that each tensor keeps, for the `keep` of {py:class}`~steepest.estimators.Coordinates`, and inside a tensor coordinates are drawn at random. We compare these shares with those of exact Hessian products, on a network of 30 weights whose second layer is larger, and on the ResNet.

# %%
listing(zo_grasp, start="estimator =", stop="return")


# %%
def grasp(f, keep):
    """Shares by the definition, from Hessian products."""
    g = f.gradient().gradient
    product = f.hvp(g).product
    scores = [-(p * h).detach() for p, h in zip(f.params, product) if p.dim() > 1]
    last = flat(scores).sort().values[round(keep * flat(scores).numel()) - 1]
    return [(s <= last).double().mean().item() for s in scores]


torch.manual_seed(0)
small = nn.Sequential(
    nn.Linear(6, 3, bias=False), nn.Tanh(), nn.Linear(3, 4, bias=False)
)
with torch.no_grad():
    small[2].weight *= 3
small, inputs, targets = (
    small.double(),
    torch.randn(50, 6).double(),
    torch.arange(50) % 4,
)
networks = {
    "30 weights": Objective(lambda: F.cross_entropy(small(inputs), targets), small),
    "ResNet": Objective(lambda: F.cross_entropy(net(x), y), net),
}
ratios = {
    "30 weights": [zo_grasp(networks["30 weights"], 0.4, samples=120, eps=1e-4)],
    "ResNet": [
        zo_grasp(networks["ResNet"], 0.4, samples=24, seed=s)[:6] for s in (0, 1)
    ],
}

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(8, 2.4), width_ratios=[1, 3], sharey=True)
for ax, (name, f) in zip(axes, networks.items()):
    target = grasp(f, 0.4)
    for k, r in enumerate(target):
        ax.plot(
            [k - 0.3, k + 0.3], [r, r], color="k", label="exact" if k == 0 else None
        )
    for s, each in enumerate(ratios[name]):
        ax.plot(each, "os"[s], color=[BLUE, RED][s], label=f"from values, seed {s}")
    ax.axhline(0.4, color=GRAY, lw=0.6, ls=":")
    ax.set(title=name, xlabel="tensor", ylim=(0, 1), xlim=(-0.6, len(target) - 0.4))
    ax.set_xticks(range(len(target)))
axes[0].set_ylabel("share that is kept")
axes[1].legend(ncols=3, loc="upper center")
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
first, second = ratios["30 weights"][0]
target = grasp(networks["30 weights"], 0.4)
assert target[1] - target[0] > 0.3 and second - first > 0.2
print("30 weights: by values, too, the second layer keeps the larger share: True")
target = grasp(networks["ResNet"], 0.4)
gaps = [
    statistics.mean(abs(a - b) for a, b in zip(guess, target))
    for guess in (*ratios["ResNet"], [0.4] * 6)
]
assert min(gaps[:2]) > 0.5 * gaps[2]
print(
    "ResNet, 24 directions: at most half of what equal shares miss is found: True"
)

# %% [markdown]
# Where directions are many against weights, it works. On the ResNet 24 directions say little of 1,262 weights, and the exact shares are not far from equal to begin with. (Biases are not ranked, and kept whole.) **When to use it:** when layers differ much in size and role. **When not:** `keep=0.25` for all tensors costs nothing; try that first.
#
# (mezo-in-use)=
# ## MeZO: the dimension that counts
#
# [MeZO](../start/asking-more) {cite:p}`malladi2023finetuning` steps along $n$ random directions that are made from a seed whenever they are needed. That is where the memory of inference comes from; the [benchmarks](../../book/benchmarks.md) measure it. Here we ask how fast it can be. On a quadratic with Hessian $H$ a step with $n$ directions changes the loss by
#
# $$
# \mathrm E\, \Delta f = -\eta \|g\|^2 + \frac{\eta^2}{2}\, \mathrm E\, \hat g^\top H \hat g , \qquad
# \mathrm E\, \hat g^\top H \hat g = \frac{(\operatorname{tr} H)\, \|g\|^2 + (n+1)\, g^\top H g}{n} .
# $$
#
# Let the gradient lie in the steepest direction, and call $r = \operatorname{tr} H / \|H\|$ the *effective rank*. Then $\eta = n / \bigl((r + n + 1)\|H\|\bigr)$ is best, and takes off the fraction $n/(r + n + 1)$. Where all directions bend alike, $r = d$, and this is the law from above. Where few do, the dimension has no part in it. Per value, $1/(2(r+n+1))$, one direction is best: *$n$-SPSA buys parallelism and not values*, until $n$ is as large as $r$.


# %%
def fall(h, n, runs):
    """What a best step takes off, on average, when all of the loss is in the first direction."""
    r, p, left = (h.sum() / h[0]).item(), nn.Parameter(torch.zeros_like(h)), []
    for seed in range(runs):
        with torch.no_grad():
            p.zero_()[0] = 1.0
        opt = MeZO([p], lr=n / (r + n + 1), samples=n, seed=seed)
        opt.step(lambda: 0.5 * (h * p.square()).sum())
        left.append((h * p.detach().square()).sum().item())
    return r, 1 - statistics.mean(left)


place = torch.arange(1, 257, dtype=torch.float64)
by_rank = [fall(place**-power, 1, 60) for power in (0.0, 0.5, 1.0, 2.0)]
counts = (1, 4, 16)
by_count = [fall(place**-0.5, n, 60 // n + 8) for n in counts]


def effective_rank(f, steps=20):
    """tr |H| / |H| from Lanczos' quadrature; the Hessian of a network has both signs."""
    values, weights = lanczos(f, steps)
    size = sum(p.numel() for p in f.params)
    return (size * (weights @ values.abs()) / values.abs().max()).item()


net, ranks = resnet(), []
f = Objective(lambda: F.cross_entropy(net(images[:256]), labels[:256]), net)
sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
for _ in range(3):
    ranks.append(effective_rank(f))
    for _ in range(20):
        for p, g in zip(net.parameters(), f.gradient().gradient):
            p.grad = g
        sgd.step()

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 3, figsize=(8, 2.6))
line = torch.logspace(0.1, 2.6, 50)
axes[0].loglog(line, 1 / (line + 2), "k", lw=0.8, label="law")
axes[0].loglog(*zip(*by_rank), "o", color=BLUE, label="MeZO, d = 256")
axes[0].set(
    title="one direction", xlabel="effective rank $r$", ylabel="taken off by a step"
)
axes[0].legend()
r = by_count[0][0]
line = torch.linspace(1, 16, 50)
axes[1].plot(line, line / (r + line + 1), "k", lw=0.8, label="law")
axes[1].plot(counts, [each for _, each in by_count], "o", color=BLUE)
axes[1].set(title=f"n-SPSA, $r$ = {r:.0f}", xlabel="directions $n$")
axes[2].bar(["start", "20 steps", "40 steps"], ranks, color=GREEN)
axes[2].axhline(d, color="k", lw=0.8, ls="--")
axes[2].text(2.4, 0.75 * d, "d", ha="right", va="top")
axes[2].set(
    title="the ResNet", ylabel="effective rank", yscale="log", ylim=(1, 2000)
)
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
assert all(0.6 < gain * (r + 2) < 1.5 for r, gain in by_rank)
assert all(
    0.6 < gain * (r + n + 1) / n < 1.5 for n, (r, gain) in zip(counts, by_count)
)
print("a step takes off what the law says, for r from 1.6 to 256: True")
assert max(ranks) < d / 20
print("the ResNet's effective rank is less than a twentieth of d: True")

# %% [markdown]
# So the ResNet, for all its weights, is a problem of a few dozen dimensions. That fits with random directions keeping up with coordinates above, and it is the paper's explanation of why a language model can be fine-tuned this way at all.
#
# **A score, and a part of the parameters.** A perceptron has learned the digits; then the camera changes, and a fixed pattern lies over every image. MeZO maximizes the *macro-averaged F1 score* on 400 images, which has no gradient, and trains one of three things: all weights; a low-rank correction of the first layer, as in LoRA; or 64 numbers that are added to the input, as in prefix tuning. The others stay frozen: they are not in the list that the optimizer is given. Learning rate and radius are for each the best, by score on the 400 images, of two to four rates by two radii, in runs of 60 steps.

# %%
torch.manual_seed(0)
judge = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
adam = torch.optim.AdamW(judge.parameters(), lr=0.01)
for _ in range(100):
    adam.zero_grad()
    F.cross_entropy(judge(train.inputs), train.targets).backward()
    adam.step()
judge.requires_grad_(False)
pattern = 0.6 * torch.randn(64, generator=torch.Generator().manual_seed(5))
few, answers = train.inputs[:400] + pattern, train.targets[:400]


def whole(p, x):
    return torch.func.functional_call(judge, p, (x,))


def adapter(p, x):
    return judge[2](torch.tanh(judge[0](x) + x @ p["down"].T @ p["up"].T))


def prefix(p, x):
    return judge(x + p["offset"])


def measure(model, p, x=few, y=answers):
    return multiclass_f1_score(model(p, x), y, num_classes=10)


kinds = {
    "all weights": (
        whole,
        {k: v.clone() for k, v in judge.named_parameters()},
        0.1,
        0.1,
    ),
    "low rank": (
        adapter,
        {"down": torch.randn(4, 64) / 4, "up": torch.zeros(32, 4)},
        0.3,
        0.3,
    ),
    "prefix": (prefix, {"offset": torch.zeros(64)}, 0.3, 0.1),
}
scores = {}
for name, (model, tensors, lr, eps) in kinds.items():
    params = {k: nn.Parameter(v) for k, v in tensors.items()}
    opt = MeZO(list(params.items()), lr=lr, eps=eps, samples=4, maximize=True)
    path = []
    for _ in range(32):
        path.append(opt.step(partial(measure, model, params)).item())
    with torch.no_grad():
        last = measure(model, params, test.inputs + pattern, test.targets).item()
    scores[name] = (sum(p.numel() for p in params.values()), path, last)
before = measure(
    lambda p, x: judge(x), {}, test.inputs + pattern, test.targets
).item()

# %% tags=["hide-input"]
fig, ax = plt.subplots(figsize=(7, 2.6))
for (name, (size, path, last)), color, spot in zip(
    scores.items(), (GRAY, PINK, BLUE), (33, 34, 35)
):
    ax.plot(path, color=color, lw=1.2, label=f"{name}, d = {size:,}")
    ax.plot(spot, last, "o", color=color)
ax.set(
    title="MeZO maximizes F1 (dots: on test images)",
    xlabel="step, of eight values",
    ylabel="macro F1, at the probes",
    ylim=(0, 1),
)
ax.legend()
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
gains = {name: last - before for name, (*_, last) in scores.items()}
assert min(gains.values()) > 0.3
print("F1 of unseen images rises by more than 0.3 for each of the three: True")
assert scores["prefix"][2] > 0.85
print("64 numbers repair it to above 0.85: True")

# %% [markdown]
# The prefix is 64 numbers and ends about where all 2,410 weights do: it can express the repair exactly, and a part that cannot (the correction of rank four) ends lower. (Its curve is lower still than its dot, as probes of a larger radius score worse than the point between them.) A small part saves memory for what is stored and sent, and time for noise. It does not save steps by its size as such: again, what counts is how many directions bend.
#
# **When to use it:** [as before](../start/asking-more), where memory is that of inference or the score has no derivative. Give it the part that you can name, and one direction unless values come in parallel. **When not:** where a gradient can be had.
#
# (sharedrandomness)=
# ## SharedRandomness: a step that fits in a byte
#
# **The idea** {cite:p}`zelikman2023just`. If a step of MeZO is a seed and a slope, then machines that know each other's seeds need send only slopes. Machine $m$ probes a direction $z_m$ of its own, made from (seed, step, $m$), on data of its own. It rounds its slope to a byte,
#
# $$
# q_m = \mathrm{round}\Bigl(\frac{127\, w_m}{\Delta}\Bigr), \qquad
# \theta \leftarrow \theta - \frac{\eta}{M} \sum_{m=1}^{M} \frac{\Delta\, q_m}{127}\, z_m ,
# $$
#
# up or down at random, so that the mean is right. The scale $\Delta$ follows the largest slopes that were exchanged: everybody knows it, nobody sends it. All make all directions again, and add them in the same order.

# %%
display(
    listing("lightning.encode"),
    listing(SharedRandomness.query, start="own =", stop="except"),
    listing(SharedRandomness._apply, start="scales =", stop="self.log"),
)

# %% [markdown]
# **See it work.** Two processes on `torch.distributed`: this notebook is machine 0, and a second Python is machine 1. Each sees half of the digits. They train softmax regression twice, with slopes of one byte and of four, and once more the notebook trains alone on all the data. The learning rate is the best of 0.02, 0.04, 0.08, 0.16 for one machine and, as it happens, for two (in runs of 150 steps).

# %%
MACHINE = """
from datetime import timedelta

import torch
from torch.nn import functional as F
from steepest.lightning import DigitsData, SharedRandomness


def descend(rank, machines, **options):
    data = DigitsData()
    data.setup()
    digits = data.splits["train"]
    x, y = digits.inputs[rank::machines], digits.targets[rank::machines]
    torch.manual_seed(0)
    net = torch.nn.Linear(64, 10)
    opt = SharedRandomness(net.named_parameters(), lr=0.08, **options)
    rng = torch.Generator().manual_seed(1 + rank)
    for _ in range(100):
        rows = torch.randint(len(y), (32,), generator=rng)
        opt.step(lambda: F.cross_entropy(net(x[rows]), y[rows]))
    return net, opt


def meet(rank, folder):
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=120),
    )
    runs = [descend(rank, 2, exact=exact) for exact in (False, True)]
    torch.distributed.destroy_process_group()
    torch.save([net.state_dict() for net, _ in runs], f"{folder}/{rank}.pt")
    return runs
"""
machine: dict = {}
exec(MACHINE, machine)
with tempfile.TemporaryDirectory() as folder:
    second = subprocess.Popen(
        [sys.executable, "-c", f"{MACHINE}\nmeet(1, {folder!r})"]
    )
    (byte_net, byte_opt), (float_net, float_opt) = machine["meet"](0, folder)
    assert second.wait() == 0
    mine, theirs = (torch.load(f"{folder}/{rank}.pt") for rank in (0, 1))
alone, _ = machine["descend"](0, 1)

# %% tags=["hide-input"]
slopes = {
    "four bytes": torch.stack([entry.codes for entry in float_opt.log]),
    "one byte": torch.stack(
        [entry.codes * entry.scale / 127 for entry in byte_opt.log]
    ),
}
scale = [entry.scale for entry in byte_opt.log]
fig, ax = plt.subplots(figsize=(7, 2.6))
ax.fill_between(range(100), [-v for v in scale], scale, color=GRAY, alpha=0.2, lw=0)
ax.plot(
    slopes["four bytes"][:, 0, 0],
    color=RED,
    lw=2.5,
    alpha=0.6,
    label="four bytes",
)
ax.plot(slopes["one byte"][:, 0, 0], color=BLUE, lw=0.9, label="one byte")
ax.set(
    title=r"what machine 0 sends (gray: the range $\pm\Delta$ of the byte)",
    xlabel="step",
    ylabel="slope",
)
ax.legend(loc="upper right")
plt.show()


# %%
# NBVAL_CHECK_OUTPUT
def height(net):
    """Loss of all training digits."""
    with torch.no_grad():
        return F.cross_entropy(net(train.inputs), train.targets).item()


assert all(torch.equal(a[k], b[k]) for a, b in zip(mine, theirs) for k in a)
print("two processes end with the same weights, bit for bit: True")
sent = sum(entry.codes[0].nbytes for entry in byte_opt.log)
print(
    f"bytes that a machine has sent in 100 steps: {sent}; its gradients: {100 * 4 * 650}"
)
assert height(byte_net) < 1.1 * height(float_net)
assert height(byte_net) < 0.95 * height(alone)
print("a byte trains as well as a float, and two machines better than one: True")
late = nn.Linear(64, 10)
torch.manual_seed(0)
late.reset_parameters()
joins = SharedRandomness(late.named_parameters(), lr=0.08)
for entry in byte_opt.log:
    joins.replay(entry)
assert torch.equal(late.weight, byte_net.weight) and torch.equal(
    late.bias, byte_net.bias
)
print("a third machine catches up from the log, without data: True")

# %% [markdown]
# The log is the run. A machine that joins late replays it; one that drops out is absent from the sum for as long. Bit-identical weights ask for one care: parameters return from a probe from a copy. Returning by subtraction, as MeZO does, leaves rounding behind, and each machine's would be its own.
#
# **When to use it.** Over slow links, or where data may not leave a machine. **When not.** In a data center: a gradient says more than a slope, and the network is fast. On machines of different kinds, floating-point sums differ, and weights have to be sent now and then.
#
# ## In your project
#
# Under Lightning all of this is [the callback `Oracles`](../start/asking-more) and an optimizer; the module stays as it is. With `Trainer(strategy="ddp")` {py:class}`~steepest.lightning.SharedRandomness` sends its bytes instead of gradients.

# %%
from lightning.pytorch import Trainer

from steepest.lightning import Oracles, quiet

quiet()  # no tips and no hardware report


def some(params):
    """Momentum on a tenth of the coordinates."""
    sgd = torch.optim.SGD(params, lr=3.0, momentum=0.9)
    return Estimated(sgd, Coordinates(keep=0.1))


results = {}
for name, make, steps in (
    ("Coordinates", some, 20),
    ("SharedRandomness", partial(SharedRandomness, lr=0.08, samples=4), 40),
):
    torch.manual_seed(0)
    module = Classifier(hidden=[], optimizer=make)
    trainer = Trainer(
        max_steps=steps,
        callbacks=[Oracles()],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(module, DigitsData())
    done = trainer.test(module, DigitsData(), verbose=False)
    results[name] = done[0]["test_accuracy"]
    print(f"{name:16s} {100 * results[name]:.1f} % of the test digits")

# %%
# NBVAL_CHECK_OUTPUT
assert results["Coordinates"] > 0.5 and results["SharedRandomness"] > 0.25
print("both train an untouched module: True")

# %% [markdown]
# That is no race. A step of the first took 67 values, one of the second 8, and neither learning rate was tuned.
#
# ## Which one, when
#
# | you have | take | values a step |
# |:--|:--|--:|
# | a small black box, values without noise | {py:class}`~steepest.estimators.Coordinates` | $q + 1$ |
# | weights in late layers of a `Sequential` | the same with {py:class}`~steepest.estimators.FeatureReuse` | parts of them |
# | a large model, memory for inference | {py:class}`~steepest.optim.MeZO` | $2n$ |
# | that, on several machines and slow links | {py:class}`~steepest.lightning.SharedRandomness` | $2n$ each |
#
# ## Exercises
#
# **1. Which radius?** Values in float32 carry a relative rounding error of about $10^{-7}$. A one-sided difference then has an error of about $10^{-7} f/\epsilon$ from rounding, and $\epsilon f''/2$ from bias. Find the best $\epsilon$ for $f = \sum_j e^{\theta_j}$ with five weights near 0, and compare it with the paper's $5 \cdot 10^{-3}$.

# %% tags=["hide-cell"]
# NBVAL_CHECK_OUTPUT
# The sum is least at the root of 2e-7 * f / f'', about 1e-3 for f = 5 and f'' = 1.
p = nn.Parameter(torch.linspace(-0.1, 0.1, 5))
f = Objective(lambda: p.exp().sum(), [p])
errors = {
    eps: (Coordinates(eps)(f, 0).gradient[0] - p.exp()).norm().item()
    for eps in (1e-6, 1e-5, 1e-4, 1e-3, 5e-3, 1e-1)
}
assert min(errors, key=errors.get) in (1e-4, 1e-3)
assert errors[1e-6] > 10 * errors[5e-3] and errors[1e-1] > 10 * errors[5e-3]
print(
    "best near 1e-3; 5e-3 is on the safe side, and 1e-6 is lost in rounding: True"
)

# %% [markdown]
# **2. Exact on both sides.** Show that central differences along all coordinates are exact on any quadratic, whatever $\epsilon$, and what a single Gaussian direction has for a variance there. Check both.

# %% tags=["hide-cell"]
# NBVAL_CHECK_OUTPUT
# Even orders cancel, and a quadratic has no odd one but the first: the slope is exact.
# Then E |wz - g|^2 = E <g, z>^2 |z|^2 - |g|^2 = (d + 1) |g|^2.
p = nn.Parameter(torch.linspace(-1, 1, 8, dtype=torch.float64))
bend = torch.arange(1.0, 9.0, dtype=torch.float64)
f = Objective(lambda: 0.5 * (bend * p.square()).sum(), [p])
g = f.gradient().gradient[0]
wide = Coordinates(10.0, one_sided=False)(f, 0).gradient[0]
assert torch.allclose(wide, g)
draws = torch.stack([SPSA()(f, seed).gradient[0] for seed in range(225)])
squares = (draws - g).square().sum(1)
gap = squares.mean() - 9 * g.square().sum()
assert gap.abs() < 5 * squares.std() / 15
print("exact at a radius of 10; variance 9 |g|^2 within five standard errors: True")

# %% [markdown]
# **3. The byte's price.** By how much does rounding to 127 steps of $\Delta$ raise the variance of a slope, at most? Check it for a slope in the middle between two codes.

# %% tags=["hide-cell"]
# NBVAL_CHECK_OUTPUT
from steepest.lightning._shared_randomness import encode

# Up with probability p, down otherwise: p (1 - p) units squared, at most 1/4.
slope = 10.5 / 127
codes = torch.tensor([encode([slope], 1.0, seed).item() for seed in range(2000)])
assert set(codes.tolist()) == {10, 11}
assert (
    abs(codes.double().mean() - 10.5) < 0.06
    and abs(codes.double().var() - 0.25) < 0.01
)
print("a quarter of a squared unit, a unit being Delta / 127: True")

# %% [markdown]
# ## References
#
# ```{bibliography}
# :filter: docname in docnames
# ```
