# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Black-box oracles: people, clients and classifiers
#
# ## Overview
#
# The last chapters gave up the gradient by choice. Here it is not to be had, because who answers is not a program of yours. A person says which of some pictures is best, and not by how much. A hospital evaluates your parameters on data that it keeps, and bills you for each evaluation. A classifier answers over a network and shows nothing of its insides. Each answers another question, and each method makes the most of one kind of answer:
#
# | method | who answers | what is asked | the idea |
# |:--|:--|:--|:--|
# | **ZO-RankSGD** | a person | the order of some points | compare all pairs that the order decides |
# | **FZooS** | several clients | values, few | the past is data: fit a model, use its slope, send its weights |
# | **ZO-AE-DS** | a classifier behind an interface | scores, many | put an autoencoder in front, and query in its code |
#
# After this chapter you can descend on an order alone, let several processes share what they know of a loss without sharing data, train a network in front of a program that has no gradient, and certify that a classifier does not change its mind within a radius. Estimates from two values, and what they cost, are in [Oracles](../start/oracles.ipynb) and [Asking for more](../start/asking-more.ipynb); notation is on the [part's first page](../../book/parts/zeroth-order.md).

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
import tempfile
import warnings
from functools import partial
from itertools import pairwise

import matplotlib.pyplot as plt
import torch
from IPython.display import display
from plotting import BLUE, GRAY, GREEN, RED, set_style
from sklearn.neural_network import MLPClassifier
from torch import nn
from torch.nn import functional as F

from steepest import listing
from steepest.estimators import (
    NoisyJudge,
    RankGradient,
    TrajectoryGradient,
    rank_weights,
)
from steepest.lightning import DigitsData, FZooS
from steepest.nn import BlackBox, Smoothed
from steepest.optim import Estimated
from steepest.oracles import Objective

set_style()

# %% [markdown]
# (rankgradient)=
# ## ZO-RankSGD: descend on an order
#
# **The failure.** Ask a person to rate a picture from 0 to 10 and you get noise: today's 7 is tomorrow's 5. Ask which of two is better and the answer is steady. But a finite difference needs numbers to subtract.
#
# **The idea** {cite:p}`tang2023zeroth`. Put $m$ points around the current one, $\theta + \epsilon z_i$ with $z_i \sim \mathcal N(0, I)$, and ask for the best $k$, in order. Wherever the answer says that $i$ is better than $j$, the loss grows from $z_i$ towards $z_j$; average that over all pairs that it decides,
#
# $$
# \hat g = \frac{1}{|E|} \sum_{(i, j) \in E} (z_j - z_i), \qquad |E| = \tfrac{k(k-1)}{2} + k\,(m-k).
# $$
#
# Pairs among the $m-k$ points that were not named decide nothing, and are not in $E$. Counting how often each point occurs, with which sign, turns the sum over pairs into a sum over points:

# %%
listing(rank_weights)

# %% [markdown]
# The place $r_i$ counts from zero, so the best of $m$ points beats $m-1$ others and has the weight $-(m-1)/|E|$; a point that was not named has lost $k$ times. The estimator {py:class}`~steepest.estimators.RankGradient` asks for the order and hands these weights to any optimizer. Two things follow from reading only an order. An increasing function of the loss, its logarithm or its exponential, changes nothing at all. And $\hat g$ does not know how steep the loss is: it has about the same length on a cliff and on a plain. So the learning rate is a distance, and somebody has to choose it. An order can do that, too: with `steps`, points along the estimate are ranked, and the best one, or staying, is the step.
#
# **See it work, 1: how much an order tells.** On a linear loss in 20 dimensions, we draw many sets of points at once and measure the cosine between $\hat g$ and the gradient.


# %%
def cosines(m, k, runs=800, d=20):
    """Cosine of the estimate with the gradient of a linear loss, mean over many draws."""
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(runs, m, d, generator=rng)
    orders = (
        z[..., 0].argsort(1)[:, :k].tolist()
    )  # the loss is the first coordinate
    w = torch.tensor([rank_weights(order, m) for order in orders])
    g = (w[..., None] * z).sum(1)
    return (g[:, 0] / g.norm(dim=1)).mean().item()


points = [2, 3, 5, 10, 20, 40]
told = {
    "the best one": [cosines(m, 1) for m in points],
    "the best three": [cosines(m, min(m, 3)) for m in points],
    "all in order": [cosines(m, m) for m in points],
}

# %% [markdown]
# Then a descent, on a quadratic with curvatures from 0.5 to 2. The rival is what one would do without the paper: show the current point and as many others, and go to the best. Its radius is the best of four, of 0.01, 0.03, 0.1 and 0.3.

# %%
curvature = torch.linspace(0.5, 2, 20)
halves = [0.5**i for i in range(9)]


def descend(change=lambda f: f, rounds=50, top=10):
    """Loss after each round of ranking 10 points, then 9 steps and staying."""
    p = nn.Parameter(torch.full((20,), -0.5))
    opt = Estimated(
        torch.optim.SGD([p], lr=1.0), RankGradient(0.01, 10, top, steps=halves)
    )
    trace = [0.5 * (curvature * p**2).sum().item()]
    for _ in range(rounds):
        opt.step(lambda: change(0.5 * (curvature * p**2).sum()))
        trace.append(0.5 * (curvature * p**2).sum().item())
    return trace, p.detach()


def climb(radius, rounds=50):
    """The same, going to the best of 19 random points, or staying."""
    p, rng = nn.Parameter(torch.full((20,), -0.5)), torch.Generator().manual_seed(0)
    f = Objective(lambda: 0.5 * (curvature * p**2).sum(), [p])
    trace = [f.value().item()]
    for _ in range(rounds):
        moves = [[torch.zeros(20)]]
        moves += [[radius * torch.randn(20, generator=rng)] for _ in range(19)]
        p.data += moves[f.rank(moves, top=1)[0]][0]
        trace.append(f.value().item())
    return trace


ranked, end = descend()
named_one, _ = descend(top=1)
climbed = min(
    (climb(radius) for radius in (0.01, 0.03, 0.1, 0.3)), key=lambda t: t[-1]
)
_, bent = descend(change=torch.log1p)

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(7.8, 2.9))
for (name, values), color, mark in zip(told.items(), (GRAY, GREEN, BLUE), "s^o"):
    axes[0].plot(points, values, mark + "-", ms=4, color=color, label=name)
axes[0].set(
    xlabel="points shown, $m$",
    ylabel="mean cosine with the gradient",
    ylim=(0, 0.9),
    title="what an order tells, $d = 20$",
)
axes[0].legend(title="what is named")
for name, values, color, style in (
    ("hill climbing, tuned", climbed, GRAY, ":"),
    ("ZO-RankSGD, best of 10 named", named_one, GREEN, "--"),
    ("ZO-RankSGD, all 10 in order", ranked, BLUE, "-"),
):
    axes[1].semilogy(values, style, color=color, label=name)
axes[1].set(
    xlabel="round (20 points compared in each)",
    ylabel="loss",
    title="descent on orders",
    ylim=(2e-5, 100),
)
axes[1].legend(loc="upper right", fontsize=7)
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
assert all(a < b for values in told.values() for a, b in pairwise(values))
assert all(a <= b for a, b in zip(told["the best one"], told["all in order"]))
assert ranked[-1] < 1e-3 * ranked[0] and ranked[-1] < 0.1 * climbed[-1]
assert torch.equal(end, bent)
print("more points and longer orders point closer to the gradient: True")
print("below a thousandth of the start, and a tenth of tuned hill climbing: True")
print("on log(1 + loss) the end is the same, bit for bit: True")

# %% [markdown]
# To name one of $m$ points is worth little more when $m$ doubles; to order them all is worth a great deal. On the right all compare as many points in a round. Hill climbing keeps one of them and forgets the others; in 20 dimensions a random point is hardly ever much better.
#
# Not everything is won so easily. On Rosenbrock's valley in 20 dimensions the same settings fall quickly to the floor, at about a fiftieth of the start, and then crawl: an order says nothing of curvature either (exercise 2).
#
# **See it work, 2: a simulated person.** Someone has a digit in mind and cannot draw it. We have an autoencoder of digits with a code of 12 numbers, and show eight variations of the current picture at a time. {py:class}`~steepest.estimators.NoisyJudge` plays the person: it compares distances to the picture in mind, with Gumbel noise on each, so that it prefers $i$ to $j$ with probability $1 / (1 + e^{(f_i - f_j)/s})$ (the model of Bradley and Terry, which for rankings is that of Plackett and Luce).

# %%
data = DigitsData()
data.setup()
train, test = data.splits["train"], data.splits["test"]
rng = torch.Generator().manual_seed(0)
torch.manual_seed(0)
encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 12))
decoder = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 64))


def fit(model, target, batch, steps=800):
    """Train a model to map batch(rows) to target(rows)."""
    opt = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(steps):
        rows = torch.randint(len(train.inputs), (128,), generator=rng)
        opt.zero_grad()
        F.mse_loss(model(batch(rows)), target(rows)).backward()
        opt.step()


images = train.inputs.__getitem__
fit(nn.Sequential(encoder, decoder), images, images)
in_mind = test.inputs[30]


def search(noise, rounds=24):
    """Pictures along a search in the code, and their squared distances to the one in mind."""
    code = nn.Parameter(encoder(train.inputs).mean(0).detach())
    estimator = RankGradient(
        0.25, 8, steps=[1, 0.5, 0.25, 0.125], judge=NoisyJudge(noise)
    )
    opt = Estimated(torch.optim.SGD([code], lr=1.0), estimator)
    seen = [decoder(code).detach()]
    for _ in range(rounds):
        opt.step(lambda: (decoder(code) - in_mind).square().sum())
        seen.append(decoder(code).detach())
    return seen, [(image - in_mind).square().sum().item() for image in seen]


sure, unsure = search(0.0), search(0.5)

# %% tags=["hide-input"]
shown = [0, 2, 5, 12, 24]
fig, axes = plt.subplots(2, len(shown) + 1, figsize=(7.6, 3.1))
for row, (who, (seen, far)) in zip(
    axes, (("never errs", sure), ("errs, $s = 0.5$", unsure))
):
    for ax, i in zip(row, shown):
        ax.imshow(seen[i].reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
        ax.set_title(f"round {i}: {far[i]:.1f}", fontsize=8)
    row[-1].imshow(in_mind.reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
    row[-1].set_title("in mind", fontsize=8)
    row[0].set_ylabel(who)
for ax in axes.flat:
    ax.set(xticks=[], yticks=[])
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
assert sure[1][-1] < 0.25 * sure[1][0]
assert sure[1][-1] < unsure[1][-1] < 0.5 * unsure[1][0]
print("after 24 rounds, less than a quarter of the squared distance: True")
print("with a judge who errs, more than that, and less than a half: True")

# %% [markdown]
# The number over each picture is its squared distance to the one in mind. With a judge who errs the search wanders: the direction is a mean over many pairs, where errors cancel, but the step is chosen by one comparison of few points, and a wrong answer there undoes several right ones.
#
# **When to use it.** When an order is all there is: people, tournaments, a reward that is only comparable. **When not:** with values at hand, two of them tell more than two ranks. And an order of points that look alike to the judge is noise, so $\epsilon$ has to be large enough to be seen.
#
# (fzoos)=
# ## FZooS: the past is data, and a model can be sent
#
# **The failure.** Several clients have losses $f_i$ that they evaluate and do not share, and $F = \frac1N \sum_i f_i$ is to be descended. FedZO, the plain way, lets each client make some steps with estimates from random directions, then averages where they end. It wastes twice. Each estimate forgets all values before it. And each client walks towards *its own* minimum, so the average moves less the longer they walk.
#
# **The idea** {cite:p}`shu2023federated`, first half. A client's path is a set of points with known values. Fit a Gaussian process $\mu_i$ to the nearest of them and use its slope. With Matérn's kernel the slope is a combination of directions to past points,
#
# $$
# \nabla \mu_i(\theta) = \sum_j w_j\,(\theta - \theta_j),
# $$
#
# and costs no query at all; the few that are made are put where the model doubts its slope the most ({py:class}`~steepest.estimators.TrajectoryGradient`, which like any estimator drives any first-order optimizer, also with a single client).
#
# Second half. A process is as large as its data, and data stay at home. So each client fits, at the end of a round, a linear model in random features that all clients share ({py:class}`~steepest.estimators.Features`), $\hat\mu_i(\theta) = \langle \nu_i, \varphi(\theta) \rangle$, and sends its weights $\nu_i$. They are linear in the values, so *the mean of the weights is a model of the mean of the losses*. In the next round each client corrects its own slope by what it knows of the others':
#
# $$
# g_i = \nabla\mu_i(\theta) + \gamma_t\, \bigl(\nabla\hat\mu_F(\theta) - \nabla\hat\mu_i(\theta)\bigr), \qquad \nu_F = \tfrac1N \sum_i \nu_i .
# $$
#
# A correction by vectors, as in SCAFFOLD, is right where the round began. This one is a function, evaluated where the client is now. The authors' program lets it fade over the steps $t = 0, 1, \dots$ of a round, $\gamma_t = 1/(t+1)^{\mathtt{fade}}$ with a `fade` of 1, for models that are trusted only where the round began:

# %%
display(
    listing(FZooS._meet, start="for i, trajectory", stop="return Round"),
    listing(FZooS.gradient),
)

# %% [markdown]
# **See it work.** Five clients with quadratics in 20 dimensions, whose minima are a standard deviation of 1 apart. FedZO has ten random directions for each of its ten steps in a round, which makes 110 queries a client; FZooS has six for each step and 51 at the end of a round, which makes 111. FedZO has the best of three learning rates for SGD, of 0.03, 0.1 and 0.3; FZooS has 0.1 and is not tuned. Without correction nothing is asked at the end of a round but the new value, so it gets more rounds.

# %%
clients, d = 5, 20
rng = torch.Generator().manual_seed(0)
bend = 0.5 + torch.rand(clients, d, generator=rng, dtype=torch.float64)
own = 0.5 + torch.randn(clients, d, generator=rng, dtype=torch.float64)
best = (bend * own).sum(0) / bend.sum(0)


def losses(p):
    return [
        lambda i=i: 0.5 * (bend[i] * (p - own[i]) ** 2).sum()
        for i in range(clients)
    ]


def gap(x):
    """How far the mean of the losses is above its minimum."""
    return (0.5 * bend * ((x - own) ** 2 - (best - own) ** 2)).sum(1).mean().item()


def fedzo(lr, rounds, steps=10, directions=10, eps=1e-3):
    """Gap after each round of local descent along random directions."""
    rng = torch.Generator().manual_seed(1)
    p = nn.Parameter(torch.zeros(d, dtype=torch.float64))
    trace = [gap(p.detach())]
    for _ in range(rounds):
        home, ends = p.detach().clone(), []
        for loss in losses(p):
            x = home.clone()
            for _ in range(steps):
                p.data.copy_(x)
                value, g = loss().item(), torch.zeros(d, dtype=torch.float64)
                for _ in range(directions):
                    u = torch.randn(d, generator=rng, dtype=torch.float64)
                    p.data.copy_(x + eps * u)
                    g += (loss().item() - value) / (eps * directions) * u
                x -= lr * g
            ends.append(x)
        p.data.copy_(torch.stack(ends).mean(0))
        trace.append(gap(p.detach()))
    return trace


def federate(lr, rounds, **options):
    """Gap after each round of FZooS, and cosines of slopes with the gradient of the mean."""
    p = nn.Parameter(torch.zeros(d, dtype=torch.float64))
    fleet = FZooS(
        [p],
        losses(p),
        partial(torch.optim.SGD, lr=lr),
        steps=10,
        trajectory=partial(TrajectoryGradient, candidates=10, nearest=50),
        length=5.0,
        **options,
    )
    seen, plain = [], fleet.gradient

    def watch(i, t, x, slope):
        g, exact = plain(i, t, x, slope), (bend * (x - own)).mean(0)
        seen.append(
            [len(fleet.history), t]
            + [F.cosine_similarity(v, exact, dim=0).item() for v in (slope, g)]
        )
        return g

    fleet.gradient = watch
    trace = [gap(p.detach())]
    for _ in range(rounds):
        fleet.round()
        trace.append(gap(p.detach()))
    return trace, torch.tensor(seen), fleet


rounds = 4
plain = min((fedzo(lr, rounds) for lr in (0.03, 0.1, 0.3)), key=lambda t: t[-1])
alone, _, _ = federate(0.1, 6, correct=False)
fading, _, _ = federate(0.1, rounds)
steady, _, fleet = federate(0.1, rounds, fade=0.0)
turned = {}  # step -> its two cosines, in the third round of smaller steps
for fade in (1.0, 0.0):
    seen = federate(0.03, 3, fade=fade)[1]
    turned[fade] = seen[seen[:, 0] == 2].view(clients, 10, 4).mean(0)[:, 2:]

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(7.8, 2.9))
for name, values, color, style, asked in (
    ("FedZO", plain, GRAY, ":", 110),
    ("FZooS, not corrected", alone, GREEN, "-.", 61),
    (r"FZooS, $\gamma_t = 1/(t+1)$", fading, RED, "--", 111),
    (r"FZooS, $\gamma_t = 1$", steady, BLUE, "-", 111),
):
    axes[0].semilogy(
        [asked * r for r in range(len(values))],
        values,
        style,
        marker="o",
        ms=3,
        color=color,
        label=name,
    )
axes[0].set(xlabel="queries of a client", ylabel=r"$F(\theta) - \min F$")
axes[0].legend(fontsize=8)
for name, values, color, style in (
    (r"corrected, $\gamma_t = 1$", turned[0.0][:, 1], BLUE, "-"),
    ("own slope, in that run", turned[0.0][:, 0], BLUE, ":"),
    (r"corrected, $\gamma_t = 1/(t+1)$", turned[1.0][:, 1], RED, "--"),
    ("own slope, in that run", turned[1.0][:, 0], RED, ":"),
):
    axes[1].plot(values, style, marker="o", ms=3, color=color, label=name)
axes[1].set(
    xlabel="local step $t$ of the third round, lr = 0.03",
    ylabel=r"mean cosine with $\nabla F$",
)
axes[1].legend(fontsize=8, loc=(0.4, 0.55))
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
gain = {fade: (c[:, 1] - c[:, 0]).mean().item() for fade, c in turned.items()}
assert fading[-1] < 0.5 * plain[-1] and steady[-1] < 0.05 * plain[-1]
assert gain[1.0] > 0.1 and gain[0.0] > 0.5
assert alone[-1] > 0.9 * alone[-3]  # it has stopped
assert fleet.sent == rounds * (d + 1 + 1000)
print("at equal queries, less than half of FedZO's gap: True")
print("with a correction that does not fade, less than a twentieth: True")
print(
    "the correction raises the cosine by more than 0.1, and by 0.5 without fading: True"
)
print(f"numbers that a client sends in a round: {fleet.sent // rounds}")

# %% [markdown]
# Left: surrogates without correction stop where the clients' disagreement stops them, and so does FedZO, with noise. The correction removes that. Right: as long as it does not fade, corrected slopes point along the mean's gradient at every step of a round, where a client's own have little to do with it. On these smooth losses the model holds, and fading gives much of the gain away. `fade=0.0` keeps it. (The right-hand picture is at a smaller learning rate: at 0.1, corrected clients reach the minimum of the mean within a round, and cosines with a gradient of zero mean nothing.)
#
# **On several processes.** `FZooS` has no network of its own. It adds up tables with `torch.distributed`, and clients may live in any of the processes, one or several in each. Here two processes are forked from this one, and joined by gloo; three clients live in the first, two in the second. They make the same rounds as five clients in one process. In a cluster, `torchrun` or the launcher of Lightning's strategies starts the processes, and the loop is the same.


# %%
# NBVAL_CHECK_OUTPUT
def worker(rank, folder):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    p = nn.Parameter(torch.zeros(d, dtype=torch.float64))
    mine = losses(p)[:3] if rank == 0 else losses(p)[3:]
    fleet = FZooS(
        [p],
        mine,
        partial(torch.optim.SGD, lr=0.1),
        steps=10,
        trajectory=partial(TrajectoryGradient, candidates=10, nearest=50),
        length=5.0,
        fade=0.0,
    )
    for _ in range(2):
        fleet.round()
    torch.save([gap(p.detach()), fleet.sent], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


with tempfile.TemporaryDirectory() as folder:
    torch.multiprocessing.start_processes(
        worker, (folder,), nprocs=2, start_method="fork"
    )
    reports = [torch.load(f"{folder}/{rank}.pt") for rank in range(2)]

assert reports[0] == reports[1]
assert math.isclose(reports[0][0], steady[2], rel_tol=1e-6)
print("two processes are at the point of one after two rounds: True")

# %% [markdown]
# **When to use it.** Few parameters, expensive values, losses that stay the same from step to step and have little noise. **When not:** in thousands of dimensions, where some hundred values say nothing of most directions; with minibatches, since past values are then of other functions; and where the weights of the features would tell too much: they are a model of a client's loss, and not private.
#
# (blackbox)=
# ## ZO-AE-DS: query in the code
#
# **The failure.** Someone else's classifier is accurate and brittle: a little noise on the input, and it errs. A network in front of it, a denoiser, would help, and should be trained for what the classifier makes of its output. Backpropagation would have to pass through the classifier. Random directions in the pixels carry too much variance.
#
# **The idea** {cite:p}`zhang2022robustify`. Put an autoencoder between them. The decoder becomes a part of the black box, and the box's input is now a code $c$ of few numbers. All of its coordinates can be asked,
#
# $$
# \frac{\partial \ell}{\partial c_j} \approx \Bigl\langle \frac{\partial \ell}{\partial y}, \frac{f(\mathrm{dec}(c + \epsilon e_j)) - f(\mathrm{dec}(c))}{\epsilon} \Bigr\rangle, \qquad j = 1, \dots, \dim c,
# $$
#
# and what precedes the code learns by backpropagation as ever. {py:class}`~steepest.nn.BlackBox` is that joint as a module: forward asks once for each sample, backward asks for the rest. In its source $f$ is the whole box, decoder included, $x$ its input and $v = \partial \ell / \partial y$:

# %%
listing(BlackBox.pull_back, start="for first in", stop="if self.directions")

# %% [markdown]
# **See it work, 1: the same queries, in the code and in the pixels.** The black box is a network of scikit-learn; we call `predict_proba` and nothing else. The autoencoder is the one from above. To measure, and only to measure, we also build a copy of the classifier in torch, and compare estimates of the encoder's gradient for single images with the exact one. The box in pixels gets twelve random directions, as many as the code has coordinates.

# %%
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    classifier = MLPClassifier((64,), max_iter=60, random_state=0)
    classifier.fit(train.inputs.numpy(), train.targets.numpy())


def ask(pictures):
    return torch.as_tensor(classifier.predict_proba(pictures.numpy())).float()


def differentiable(pictures):
    """The classifier in torch, to measure with."""
    for i, (w, b) in enumerate(zip(classifier.coefs_, classifier.intercepts_)):
        pictures = pictures @ torch.tensor(w).float() + torch.tensor(b).float()
        pictures = pictures.relu() if i == 0 else pictures.softmax(1)
    return pictures


def slope(before, box, image, label):
    """Gradient of the loss of one image in the encoder's weights."""
    scores = box(before(image[None]))
    loss = F.nll_loss((scores + 1e-6).log(), label[None])
    return torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss, encoder.parameters())]
    )


through = nn.Sequential(encoder, decoder)
in_code = BlackBox(lambda c: ask(decoder(c)), eps=0.05)
in_pixels = BlackBox(ask, eps=0.05, directions=12)
noisy = test.inputs + 0.5 * torch.randn(test.inputs.shape, generator=rng)
alike = {"in the code": [], "in the pixels": []}
for image, label in zip(noisy[:60], test.targets[:60]):
    exact = slope(through, differentiable, image, label)
    if (
        exact.norm() > 1e-3
    ):  # where the classifier is sure there is no slope to compare
        for name, before, box in (
            ("in the code", encoder, in_code),
            ("in the pixels", through, in_pixels),
        ):
            estimate = slope(before, box, image, label)
            alike[name].append(F.cosine_similarity(estimate, exact, dim=0).item())

# %%
# NBVAL_CHECK_OUTPUT
mean = {name: sum(values) / len(values) for name, values in alike.items()}
assert mean["in the code"] > 0.95 and mean["in the pixels"] < 0.7
assert in_code.queries == in_pixels.queries
print("mean cosine with the exact gradient above 0.95 in the code: True")
print("and below 0.7 in the pixels, with as many queries: True")

# %% [markdown]
# (smoothed)=
# **See it work, 2: a certificate.** *Randomized smoothing* {cite:p}`cohen2019certified` makes a guarantee out of robustness to noise. Let $g(x)$ be the class that $f$ gives most often to $x + \delta$, $\delta \sim \mathcal N(0, \sigma^2 I)$. If its probability is at least $p > \frac12$, then no perturbation shorter than
#
# $$
# R = \sigma\, \Phi^{-1}(p)
# $$
#
# changes $g$. The probability is bounded from below by counting: {py:class}`~steepest.nn.Smoothed` draws copies of $x$, and if the bound is not above one half it abstains. It holds for whatever $f$ is, also a denoiser, an encoder, a decoder and a black box in a row; noise comes first, before all of them. Some copies choose the class $c$, and $n$ others count it. The bound $p$ is above the truth with probability at most $\alpha$:

# %%
listing(Smoothed.certify, start="chosen = ")

# %% [markdown]
# We pretrain a denoiser on squared error, then train denoiser and encoder through the box for 300 batches.

# %%
sigma = 0.5
torch.manual_seed(0)
denoiser = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))


def blur(rows):
    return train.inputs[rows] + sigma * torch.randn(len(rows), 64, generator=rng)


def defend(network, box, steps=300):
    """Train what is in front of the box, on its answers to noisy images."""
    opt = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(steps):
        rows = torch.randint(len(train.inputs), (64,), generator=rng)
        opt.zero_grad()
        F.nll_loss(
            (box(network(blur(rows))) + 1e-6).log(), train.targets[rows]
        ).backward()
        opt.step()
    return network


fit(denoiser, images, blur)
front = defend(
    nn.Sequential(copy.deepcopy(denoiser), copy.deepcopy(encoder)),
    BlackBox(lambda c: ask(decoder(c)), eps=0.05),
)

radii = torch.linspace(0, 1.25, 26)
some, truth = test.inputs[:150], test.targets[:150]


def certified(f):
    """Share of images that are right, and certified to be, within each radius."""
    found = Smoothed(f, sigma).certify(some, samples=1000)
    right = found.prediction == truth
    return [(right & (found.radius >= r)).float().mean().item() for r in radii]


with torch.no_grad():
    curves = {
        "no defense": certified(ask),
        "denoiser and autoencoder, not trained through the box": certified(
            lambda x: ask(decoder(encoder(denoiser(x))))
        ),
        "denoiser, squared error": certified(lambda x: ask(denoiser(x))),
        "ZO-AE-DS": certified(lambda x: ask(decoder(front(x)))),
    }

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(7.8, 2.9), width_ratios=(1, 1.5))
axes[0].boxplot(
    alike.values(), widths=0.5, medianprops={"color": RED}, flierprops={"ms": 3}
)
axes[0].set_xticks([1, 2], alike)
axes[0].set(ylabel="cosine with the exact gradient", title="12 queries and one")
for (name, curve), color, style in zip(
    curves.items(), (GRAY, GREEN, RED, BLUE), (":", "-.", "--", "-")
):
    axes[1].plot(radii, curve, style, color=color, label=name)
axes[1].set(
    xlabel="radius (an image has a norm of about 4)",
    ylabel="certified accuracy",
    ylim=(0, 1.2),
)
axes[1].legend(fontsize=7, loc="upper right")
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
quarter = {name: curve[5] for name, curve in curves.items()}  # at the radius 0.25
ours = quarter["ZO-AE-DS"]
untrained = quarter["denoiser and autoencoder, not trained through the box"]
assert ours > quarter["no defense"] + 0.05
assert ours > untrained
print("certified at 0.25, at least five points above no defense: True")
print("training through the box is worth something: True")

# %% [markdown]
# The box on the left needed no gradient; on the right the defended classifier keeps its decision within radii where the bare one has lost it. Be careful with the third curve. At this size a denoiser that knows nothing of the classifier comes close to ZO-AE-DS: the autoencoder, with its twelve numbers, loses a part of what training through the box brings. *The paper's gain over a denoiser alone, on CIFAR-10, is at most a few points here, and none at large radii,* which on 150 images is hardly more than noise.
#
# **When to use it.** Whenever something without a gradient stands behind something that learns, and a small code fits between: a simulator, an interface, a renderer. **When not:** if the box returns a class and no score, a small step changes nothing. And a differentiable copy, if you can have one, costs no queries.
#
# ## In your project
#
# `BlackBox` is a module, so it is a layer in a `LightningModule`, and training needs nothing special: the optimizer gets ordinary gradients, and only the encoder's weights are parameters. For an order, hand `Estimated(SGD(...), RankGradient(...))` to the Trainer with the callback `steepest.lightning.Oracles()`, as for all that asks for values.

# %%
# NBVAL_CHECK_OUTPUT
from lightning.pytorch import LightningModule, Trainer

from steepest.lightning import quiet

quiet()  # no tips and no hardware report


class Defense(LightningModule):
    def __init__(self):
        super().__init__()
        self.front = nn.Sequential(copy.deepcopy(denoiser), copy.deepcopy(encoder))
        self.box = BlackBox(lambda c: ask(decoder(c)), eps=0.05)

    def training_step(self, batch, index):
        x, y = batch
        scores = self.box(self.front(x + sigma * torch.randn_like(x)))
        return F.nll_loss((scores + 1e-6).log(), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


torch.manual_seed(0)
module = Defense()
before = [p.detach().clone() for p in decoder.parameters()]
trainer = Trainer(
    max_epochs=2,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
batches = DigitsData(batch_size=64)
batches.setup()
trainer.fit(module, batches.train_dataloader())
assert all(map(torch.equal, before, decoder.parameters()))
assert module.box.queries == 2 * len(train.inputs) * 13
print(f"queries, 13 for each image and epoch: {module.box.queries}")

# %% [markdown]
# ## Which one, when
#
# | who answers | take | queries |
# |:--|:--|:--|
# | a person, a tournament | {py:class}`~steepest.estimators.RankGradient` | as many points as can be compared at once |
# | a loss of few parameters, each value dear | {py:class}`~steepest.estimators.TrajectoryGradient` | one a step, and some where the model doubts |
# | several such losses, in several places | {py:class}`~steepest.lightning.FZooS` | the same, and some at the end of a round |
# | a program behind a network | {py:class}`~steepest.nn.BlackBox`, with a code in between | one a sample and coordinate of the code |
#
# ## Exercises
#
# **1. Why count all pairs?** Someone proposes to use only the best and the worst of forty points, $\hat g = z_{\text{worst}} - z_{\text{best}}$. Compare its cosine with that of the full order.

# %% tags=["hide-cell"]
# NBVAL_CHECK_OUTPUT
rng = torch.Generator().manual_seed(0)
z = torch.randn(2000, 40, 20, generator=rng)
order = z[..., 0].argsort(1)
pick = torch.arange(2000)
ends = z[pick, order[:, -1]] - z[pick, order[:, 0]]
extreme = (ends[:, 0] / ends.norm(dim=1)).mean().item()
assert cosines(40, 40) > extreme + 0.15
print("the full order is better by more than 0.15: True")
# The noise of two points does not average out; that of forty does, partly.

# %% [markdown]
# **2. The valley.** Descend on Rosenbrock's function, $\sum_i 100\,(\theta_{i+1} - \theta_i^2)^2 + (1 - \theta_i)^2$ in 20 dimensions, from $-0.5$, with the settings of the quadratic. What is left of the loss after 20 rounds, and what after 40?

# %% tags=["hide-cell"]
# NBVAL_CHECK_OUTPUT
p = nn.Parameter(torch.full((20,), -0.5))
opt = Estimated(torch.optim.SGD([p], lr=1.0), RankGradient(0.01, 10, steps=halves))


def valley():
    return (100 * (p[1:] - p[:-1] ** 2) ** 2 + (1 - p[:-1]) ** 2).sum()


left = [valley().item()]
for _ in range(40):
    opt.step(valley)
    left.append(valley().item())
assert left[20] < 0.05 * left[0] and left[40] > 0.3 * left[20]
print("a twentieth after 20 rounds, and then hardly less: True")

# %% [markdown]
# **3. The best radius.** If all of $n$ copies get the same class, how large a radius can a certificate give for $\sigma = 0.5$ and $\alpha = 0.001$? Check it for $n = 1000$ with a classifier that always says the same.

# %% tags=["hide-cell"]
# NBVAL_CHECK_OUTPUT
# The bound solves p^n = alpha.
share = 0.001 ** (1 / 1000)
radius = (
    sigma * torch.special.ndtri(torch.tensor(share, dtype=torch.float64)).item()
)
constant = Smoothed(lambda x: torch.tensor([[1.0, 0.0]]).expand(len(x), 2), sigma)
found = constant.certify(some[:1], samples=1000, alpha=0.001).radius.item()
assert math.isclose(found, radius, rel_tol=1e-6)
print(f"{radius:.3f}")

# %% [markdown]
# ## References
#
# ```{bibliography}
# :filter: docname in docnames
# ```
