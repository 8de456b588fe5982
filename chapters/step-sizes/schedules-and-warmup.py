# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Schedules and warm-up
#
# ## Overview
#
# No constant learning rate is right for a whole run. At the start the loss is more curved than it will ever be again, and a rate that is fine later makes the first steps explode. At the end the noise of the batches is all that is left, and a rate that was fine before keeps the weights shaking. So the rate moves. This chapter is about four ways to decide how:
#
# | method | decides the rate by | needs |
# |:--|:--|:--|
# | **One cycle** and its range test | a fixed shape, and one short run for its height | the number of steps |
# | **Curvature and warm-up** | the edge of stability, measured | a few Hessian products |
# | **A learned policy** | what loss and gradient did in the last step | many similar problems |
# | **The Step Law** | a power of model and data size | many runs, once |
#
# After this chapter you can find the largest rate that a model takes in one short run, put it at the top of a cycle, tell from a measurement whether a run needs warm-up, and fit a law to your own tuning runs with honest error bars. What the symbols mean is on the [part's first page](../../book/parts/step-sizes.md).

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
import copy
import math
import random
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import display
from plotting import BLUE, GRAY, GREEN, PINK, RED, SKY, set_style
from torch.nn import functional as F
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    MultiStepLR,
)

from steepest import listing
from steepest.lightning import (
    Classifier,
    DigitsData,
    GrammarData,
    LRRangeTest,
    quiet,
)
from steepest.optim import SGDW, AdamW
from steepest.oracles import Objective
from steepest.probes import lanczos, stability, stability_threshold
from steepest.schedules import (
    OneCycle,
    QController,
    QuadraticDescent,
    SigmoidTracking,
    constant,
    fit_bowl,
    fit_power_law,
    play,
    step_law,
)

quiet()  # no tips and no hardware report
set_style()
data = DigitsData()
data.setup()
train, val, test = (data.splits[name] for name in ("train", "val", "test"))

# %% [markdown]
# (onecycle)=
# ## One cycle: up, down, and out
#
# **The idea** {cite:p}`smith2018disciplined`. Let the rate climb linearly to a peak that would be too high for a constant one, come back as slowly, and in the last tenth of the run fall to almost nothing. With $h_t$ the height of that triangle and $r_t$ what is left of the last phase,
#
# $$
# \eta_t = \eta_{\min} \bigl(\tfrac1c + (1 - \tfrac1c)\, r_t\bigr) + (\eta_{\max} - \eta_{\min})\, h_t,
# \qquad \mu_t = \mu_{\max} - (\mu_{\max} - \mu_{\min})\, h_t.
# $$
#
# The climb is a warm-up. The top is meant to regularize: large steps cannot settle in narrow places. The last phase averages noise out. Momentum runs *against* the rate, from 0.95 down to 0.85 and back, since both lengthen the steps. The paper calls what it sees super-convergence: the accuracy of a long schedule in a fraction of its epochs.
#
# **The rule.** A function of the step, so a resumed run goes on exactly. It moves once a *batch*.

# %%
display(listing("schedules.cycle"), listing(OneCycle.get_lr))

# %% [markdown]
# **See it work.** A perceptron with batch normalization learns the digits in 8 epochs, with the same peak rates under five schedules, and with a step decay for 24. All networks of a schedule, four rates times five seeds, train side by side: each rate has a parameter group of one optimizer, and schedulers move every group by its own rate.

# %%
RATES, SEEDS, BATCH = [0.03, 0.1, 0.3, 1.0], 5, 64
EPOCH = len(train) // BATCH


def fit(schedule, epochs, hidden=64):
    """Accuracy on validation and test data, each of shape (rates, seeds)."""
    first = []
    for seed in range(SEEDS):
        rng = torch.Generator().manual_seed(seed)
        w1 = torch.randn(64, hidden, generator=rng) / 8
        w2 = torch.randn(hidden, 10, generator=rng) / hidden**0.5
        one, no = torch.ones(1, hidden), torch.zeros(1, hidden)
        first.append([w1, one, no, w2, torch.zeros(1, 10)])
    start = [torch.stack(layer) for layer in zip(*first)]  # the seeds side by side
    nets = [[torch.nn.Parameter(t.clone()) for t in start] for _ in RATES]
    opt = SGDW(
        [{"params": net, "lr": lr} for net, lr in zip(nets, RATES)],
        momentum=0.9,
        weight_decay=1e-3,
    )
    moves = schedule(opt, epochs * EPOCH)
    count = len(RATES) * SEEDS
    mean, var = torch.zeros(count, 1, hidden), torch.ones(count, 1, hidden)
    orders = [torch.Generator().manual_seed(100 + s) for s in range(SEEDS)]

    def logits(x, moments=None):
        w1, gain, shift, w2, bias = (torch.cat(layer) for layer in zip(*nets))
        h = x @ w1
        m, v = moments or (h.mean(1, keepdim=True), h.var(1, keepdim=True))
        h = torch.relu((h - m) * (v + 1e-5).rsqrt() * gain + shift)
        return h @ w2 + bias, m.detach(), v.detach()

    for k in range(epochs * EPOCH):
        if k % EPOCH == 0:
            order = [torch.randperm(len(train), generator=rng) for rng in orders]
            batches = torch.stack(order).repeat(len(RATES), 1).split(BATCH, dim=1)
        rows = batches[k % EPOCH]
        opt.zero_grad()
        out, m, v = logits(train.inputs[rows])
        F.cross_entropy(
            out.flatten(0, 1), train.targets[rows].flatten(), reduction="sum"
        ).div(BATCH).backward()
        opt.step()
        if moves:
            moves.step()
        mean.lerp_(m, 0.1)
        var.lerp_(v, 0.1)
    with torch.no_grad():
        return [
            (logits(part.inputs, (mean, var))[0].argmax(-1) == part.targets)
            .float()
            .mean(1)
            .reshape(len(RATES), SEEDS)
            for part in (val, test)
        ]


def trapezoid(opt, steps):
    """Linear warm-up in the first tenth, then linear decay to 0."""
    return LambdaLR(
        opt, lambda t: min((t + 1) / (0.1 * steps), (steps - t) / (0.9 * steps))
    )


def staircase(opt, steps):
    """A tenth of the rate after a half of the steps, and again after three quarters."""
    return MultiStepLR(opt, [steps // 2, 3 * steps // 4])


SCHEDULES = {
    "constant": (lambda opt, steps: None, 8),
    "step decay": (staircase, 8),
    "cosine": (CosineAnnealingLR, 8),
    "warm-up, linear decay": (trapezoid, 8),
    "one cycle": (OneCycle, 8),
    "step decay, 24 epochs": (staircase, 24),
}
accuracy = {name: fit(*given) for name, given in SCHEDULES.items()}
best = {name: v.mean(1).argmax().item() for name, (v, _) in accuracy.items()}

# %% tags=["hide-input"]
COLORS = dict(zip(SCHEDULES, (GRAY, SKY, GREEN, PINK, RED, BLUE)))
fig, axes = plt.subplots(1, 2, figsize=(8, 2.9))
opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
schedule, shape = OneCycle(opt, 1000), []
for _ in range(1000):
    shape.append((opt.param_groups[0]["lr"], opt.param_groups[0]["momentum"]))
    opt.step()
    schedule.step()
rate, momentum = zip(*shape)
axes[0].plot(np.arange(1000) / 1000, rate, color=RED, label="rate / peak")
axes[0].plot(
    np.arange(1000) / 1000, momentum, color=BLUE, ls="--", label="momentum"
)
axes[0].set(xlabel="share of the steps", title="one cycle")
axes[0].legend(loc="lower center")
for name, (_, right) in accuracy.items():
    axes[1].errorbar(
        RATES,
        100 * right.mean(1),
        100 * right.std(1),
        color=COLORS[name],
        ls=":" if "24" in name else "-",
        marker="o",
        ms=3,
        lw=1.2,
        capsize=2,
        label=name,
    )
axes[1].set(
    xscale="log",
    xlabel="peak learning rate",
    ylabel="test accuracy, %",
    title=f"mean and deviation of {SEEDS} seeds",
)
axes[1].legend(fontsize=7, loc="lower left")
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
means = {n: 100 * r.mean(1) for n, (_, r) in accuracy.items()}
tuned = {name: means[name][best[name]].item() for name in means}
assert abs(tuned["one cycle"] - tuned["constant"]) < 1.5
assert tuned["one cycle"] > tuned["step decay, 24 epochs"] - 1.5
lost = {n: tuned[n] - means[n][-1].item() for n in ("constant", "one cycle")}
assert lost["constant"] > 1.5 * lost["one cycle"]
print("tuned, one cycle and constant are within 1.5 points of each other: True")
print("one cycle in 8 epochs is within 1.5 points of step decay in 24: True")
print("at the largest rate the constant loses more than one cycle does: True")

# %% [markdown]
# Read this soberly. With each schedule's rate tuned on the validation set, the schedules differ by less than the spread of their seeds (a test image is 0.4 points): at this scale there is no super-convergence to be seen, also because three times the epochs buy almost nothing either. What the figure does show is tolerance: at the largest rate the constant loses most, and what comes down at the end loses less.
#
# **When to use it.** When you know the number of epochs and want it small. **When not:** when a run may be stopped early or prolonged; before its last tenth, a cycle is nowhere.
#
# (lrrangetest)=
# ### The range test: how high is the peak
#
# Let the rate grow from far too small to far too large in one short run, and watch the loss. Where it is lowest, steps are as long as they can be; what comes after undoes them. The test fits *copies*, and restores the random numbers, so a run afterwards is bit for bit what it would have been.

# %%
display(
    listing(
        "lightning._Sweep.on_train_batch_start", start="self.rate", stop="groups ="
    ),
    listing(LRRangeTest.lr_max, start="smooth ="),
)

# %%
torch.manual_seed(0)
make = partial(SGDW, lr=0.1, momentum=0.9, weight_decay=0.0)
module = Classifier(hidden=[64], optimizer=make)
range_test = LRRangeTest(1e-3, 30.0, steps=120)
lr_max = range_test.run(module, DigitsData(64))


def ends(lr, steps=150):
    """Mean loss of the last 20 steps at a constant rate."""
    net, rng = copy.deepcopy(module.network), torch.Generator().manual_seed(0)
    opt, tail = make(net.parameters(), lr=lr), []
    for _ in range(steps):
        rows = torch.randint(len(train), (64,), generator=rng)
        loss = F.cross_entropy(net(train.inputs[rows]), train.targets[rows])
        opt.zero_grad()
        loss.backward()
        opt.step()
        tail.append(loss.item())
    return sum(tail[-20:]) / 20


scan = [2.0 ** (k / 2) for k in range(-8, 7)]
final = [ends(lr) for lr in scan]
stable = max(lr for lr, loss in zip(scan, final) if loss < 0.5 * math.log(10))

# %% tags=["hide-input"]
fig, ax = plt.subplots(figsize=(6, 2.8))
range_test.plot(ax)
ax.plot(
    scan,
    np.minimum(final, 8),
    "s",
    ms=4,
    color=GREEN,
    label="constant: end of a run",
)
ax.set(ylim=(0, 6))
ax.legend(fontsize=8)
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
assert stable / 4 <= lr_max <= 4 * stable
print("the suggestion is within a factor of 4 of the largest stable constant: True")

# %% [markdown]
# One run of 120 steps replaces the grid of green squares. Mind the direction in which it can be wrong: it visits each rate for one step only, so it may call a rate usable that fails later.
#
# (stability)=
# ## Curvature: what warm-up is for
#
# **The idea** {cite:p}`gilmer2021loss`. On a quadratic, gradient descent is stable if $\eta \lambda_1 \le 2$, with $\lambda_1$ the largest eigenvalue of the Hessian. Every optimizer has such an edge. A run that starts beyond it must either find flatter ground or blow up. Warm-up gives it time: as the rate grows, the edge $2/\eta_t$ comes down upon the curvature, and pushes it along.

# %%
listing(stability_threshold, start="thresholds =", stop="if optimizer")

# %% [markdown]
# {py:func}`~steepest.probes.stability` measures $\lambda_1$ by Lanczos' method, which does not take a large negative eigenvalue for a positive one, and compares it with the edge of the optimizer that it is given. For Adam it takes the Hessian preconditioned by the scale of the next step.
#
# **See it work.** Six tanh layers with weights that start too large by 1.41, squared loss on 256 digits, full-batch gradient descent: at four and at twelve times $1/\lambda_1$ of the start, and at twelve times with 300 steps of warm-up.

# %%
inputs = train.inputs[:256]
onehot = F.one_hot(train.targets[:256], 10).float()


def deep(seed=0, width=32, depth=6):
    """A tanh network that starts with too large weights."""
    rng, layers, before = torch.Generator().manual_seed(seed), [], 64
    for after in [width] * (depth - 1) + [10]:
        layers += [torch.nn.Linear(before, after), torch.nn.Tanh()]
        noise = torch.randn(after, before, generator=rng)
        layers[-2].weight.data = 1.41 * noise / before**0.5
        layers[-2].bias.data.zero_()
        before = after
    return torch.nn.Sequential(*layers[:-1])


def squares(net):
    return 0.5 * (net(inputs) - onehot).square().sum(1).mean()


def descend(net, lr, warmup=1, steps=400, every=10):
    """Losses; and steps, curvatures and edges."""
    opt, losses, seen = torch.optim.SGD(net.parameters(), lr), [], []
    moves = LinearLR(opt, 1 / warmup, 1.0, max(warmup - 1, 1))
    objective = Objective(lambda: squares(net), net)
    for k in range(steps):
        loss = squares(net)
        losses.append(loss.item())
        if not losses[-1] < 1e6:
            break
        if k % every == 0:
            found = stability(objective, opt, steps=8)
            seen.append((k, found.curvature, found.edge))
        opt.zero_grad()
        loss.backward()
        opt.step()
        moves.step()
    return losses, np.array(seen)


net = deep()
sharpest = float(lanczos(Objective(lambda: squares(net), net), 15).values[-1])
runs = {
    "4/λ₁, no warm-up": descend(deep(), 4 / sharpest),
    "12/λ₁, no warm-up": descend(deep(), 12 / sharpest),
    "12/λ₁, warm-up": descend(deep(), 12 / sharpest, warmup=300),
}

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(8, 2.9))
for (name, (losses, seen)), color in zip(runs.items(), (GRAY, RED, BLUE)):
    axes[0].semilogy(losses, color=color, label=name)
    if len(seen) > 10:
        axes[1].semilogy(
            seen[:, 0], seen[:, 1], ".-", ms=4, color=color, label=name
        )
edge = runs["12/λ₁, warm-up"][1]
axes[1].plot(
    edge[:, 0], edge[:, 2], "k--", lw=1, label=r"edge $2/\eta_t$ of the warm-up"
)
axes[0].set(xlabel="step", ylabel="loss", ylim=(0.02, 1e4))
axes[1].set(xlabel="step", ylabel=r"curvature $\lambda_1$", ylim=(8, 400))
axes[0].legend()
axes[1].legend(fontsize=8)
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
losses, seen = runs["12/λ₁, warm-up"]
ratio = (seen[:, 1] / seen[:, 2])[:31]
first = int(np.argmax(ratio >= 1))
assert not runs["12/λ₁, no warm-up"][0][-1] <= losses[0]
assert losses[-1] <= 0.3 * losses[0] and seen[-1, 1] <= 0.5 * seen[0, 1]
assert ratio[first:].min() >= 0.7 and ratio[first:].max() <= 1.6
assert runs["4/λ₁, no warm-up"][0][-1] <= 0.3 * losses[0]
print("at 12/λ₁ the run diverges without warm-up, and trains with it: True")
print("from the first touch on, λ₁ is 0.7 to 1.6 times the edge: True")
print("at 4/λ₁, twice the edge, the network survives without warm-up: True")

# %% [markdown]
# The curvature rises with the first steps, meets the edge, and then walks down along it. When warm-up ends it is a fraction of what it was, and the rate that killed the other run is harmless.
#
# The gray curve is worth a second look. A quadratic dies at twice the edge. This network does not: its first steps throw it up, and it lands where the curvature is lower. So $\lambda_1 > 2/\eta$ at the start is a warning, not a verdict; here it took six times the edge to destroy the run.
#
# **When to use it.** When a run fails in its first steps, or spikes: a ratio far above 1 says that the rate is the cause, and that warm-up, normalization or clipping may help. **When not:** for stochastic steps the edge is lower than the formula.
#
# (qcontroller)=
# ## A policy that was learned
#
# **The idea** {cite:p}`adriaensen2022automated`. A schedule is fixed before the run. A *policy* looks at the run and acts. Dynamic algorithm configuration makes of it a decision problem: a state that the algorithm can observe, actions that change its parameter, rewards that add up to its success, and instances drawn from a distribution. The policy that is best on average over training instances is then tried on others. Learning is Q-learning, $Q(s,a) \leftarrow Q(s,a) + \alpha\,(r + \max_{a'} Q(s',a') - Q(s,a))$, in a table.

# %%
listing(QController.train, start="for k in", stop="return")

# %% [markdown]
# **See it work.** First the field's toy problem, to follow a sigmoid of unknown slope and place with three actions, where the best policy is known. Then a real one: gradient descent for 30 steps on quadratics whose largest curvature varies by ten and whose condition by a hundred. After each step the policy may halve, keep or double the rate. It sees in which bins loss and gradient norm changed, its last action, and the third of the budget it is in; not the curvature. The static rate is tuned on the same training instances. Training and test instances are different draws.

# %%
toy = SigmoidTracking()
old, new = toy.draw(300, seed=0), toy.draw(200, seed=1)
agent = QController(toy).train(old, episodes=5000)
kept = max(range(3), key=lambda a: play(toy, old, constant(a)).mean())
toy_return = {
    name: play(toy, new, policy).mean()
    for name, policy in {
        "static": constant(kept),
        "learned": agent,
        "optimal": toy.best,
    }.items()
}

descent = QuadraticDescent()
grid = np.logspace(-2, 1, 61)


def static(lr, instances):
    """Final log-losses at a constant rate."""
    environment = QuadraticDescent(lr)
    play(environment, instances, constant(1))
    return environment.log_loss


results = []
for seed in range(5):
    old, new = descent.draw(50, seed), descent.draw(50, 1000 + seed)
    controller = QController(descent).train(old, episodes=2000, seed=seed)
    lr = min(grid, key=lambda lr: np.median(static(lr, old)))
    own = np.min([static(each, new) for each in grid], axis=0)
    play(descent, new, controller)
    results.append((lr, static(lr, new), descent.log_loss, own))

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(8, 2.9), width_ratios=[1.3, 1])
instance = new[np.argsort(new[:, :10].max(1))[[5, 25, 44]]]
states, played = descent.reset(instance), []
for _ in range(descent.steps):
    states, _ = descent.step(controller(states))
    played.append(descent.rates.copy())
played = np.array(played)
for k, color in enumerate((SKY, BLUE, GREEN)):
    top = instance[k, :10].max()
    axes[0].step(
        range(1, 31), played[:, k], color=color, label=f"learned, L = {top:.2f}"
    )
    axes[0].axhline(2 / top, color=color, ls=":", lw=1)
axes[0].axhline(lr, color=RED, ls="--", label="best static rate")
axes[0].set(
    yscale="log",
    xlabel="step",
    ylabel="learning rate",
    title="unseen quadratics; dotted: 2/L",
    ylim=(0.01, 25),
)
axes[0].legend(fontsize=7, ncols=2, loc="lower right")
columns = [np.concatenate(column) for column in list(zip(*results))[1:]]
for column, color, name in zip(
    columns,
    (RED, BLUE, GRAY),
    ("best static rate", "learned policy", "own best static"),
):
    axes[1].plot(
        np.sort(column), np.linspace(0, 1, len(column)), color=color, label=name
    )
axes[1].set(
    xlim=(-15, 30),
    xlabel="final log-loss",
    ylabel="share of instances below",
    title="250 unseen instances",
)
axes[1].legend(fontsize=7)
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
assert toy_return["learned"] >= 1.2 * toy_return["static"]
assert toy_return["learned"] >= 0.9 * toy_return["optimal"]
gains = [np.median(fixed) - np.median(moved) for _, fixed, moved, _ in results]
assert min(gains) >= 0.5
print("sigmoids: 20 % above the best static action, 90 % of the optimum: True")
print("quadratics: median log-loss lower by 0.5 or more, for each of 5 seeds: True")

# %% [markdown]
# Look at the tails before you believe the median. The static rate that has the best median diverges on the sharpest instances: that is the flat end of its curve at the upper right. On a few the policy, too, ends no lower than it began. On the whole it comes close to an oracle that knows each instance's own best static rate (gray), without having been told the curvature. On the left one sees how: it does not settle at the edge, it swings about it. Some steps are too long for the steepest direction, and make way along the others; the short ones that follow undo the damage.
#
# **When to use it.** When you solve the same kind of problem thousands of times. **When not:** for one run, and on instances unlike those of its training. {py:class}`~steepest.schedules.Environment` is the interface, two methods as in Gymnasium, if you have a problem of your own.
#
# (step_law)=
# ## The Step Law: a rate from a table of runs
#
# **The idea** {cite:p}`li2025predictable`. Find the best rate and batch for small models by search, and extrapolate. For language models, over 3,700 runs, the optima lie on powers of the parameters $N$ (without embeddings) and the training tokens $D$.

# %%
display(listing(step_law, start="lr ="))
print(step_law(parameters=1e9, tokens=1e11))

# %% [markdown]
# The batch is in *tokens*. The runs behind the law warm up, and come down by a cosine to a *fixed* rate of $10^{-5}$: if the end were a fraction of the peak, a large peak would pay for its end, and the optimum would be found too low.
#
# **See it work, in miniature.** A character model, two hidden layers on eight characters of context, on text from the book's grammar; three widths, three numbers of tokens, six rates each. At every size a parabola is fitted to the loss in $\log_2 \eta$, through the best point, its neighbors and what else is within 0.3 nats of it, and a power law to the bottoms. The batch stays at 32 tokens.

# %%
source_text = GrammarData()
letters = {c: i for i, c in enumerate(source_text.vocabulary)}


def windows(count, seed, context=8):
    """Text of the grammar, as rows of a context and the character after it."""
    text = source_text.grammar.text(count + context, random.Random(seed))
    return torch.tensor([letters[c] for c in text]).unfold(0, context + 1, 1)


corpus, held_out = windows(16000, seed=0), windows(4000, seed=1)
PEAKS = [2.0**k for k in range(-7, -1)]


def pretrain(width, tokens, batch=32, embed=8, end=1e-5):
    """Parameters without embeddings, and held-out losses for each peak rate."""
    rng, v = torch.Generator().manual_seed(0), len(letters)
    sizes = [(v, embed), (8 * embed, width), (width, width), (width, v)]
    scales = [1.0, (2 / (8 * embed)) ** 0.5, (2 / width) ** 0.5, width**-0.5]
    first = [s * torch.randn(n, generator=rng) for n, s in zip(sizes, scales)]
    nets = [[torch.nn.Parameter(t.clone()) for t in first] for _ in PEAKS]
    opt = AdamW(
        [{"params": net} for net in nets], betas=(0.9, 0.95), weight_decay=0.1
    )

    def logits(x):
        e, w1, w2, w3 = (torch.stack(layer) for layer in zip(*nets))
        return torch.relu(torch.relu(e[:, x].flatten(2) @ w1) @ w2) @ w3

    steps = tokens // batch
    for k in range(steps):
        warm, fall = (
            (k + 1) / (0.1 * steps),
            0.5 + 0.5 * math.cos(math.pi * k / steps),
        )
        for group, peak in zip(opt.param_groups, PEAKS):
            group["lr"] = min(1.0, warm) * (end + (peak - end) * fall)
        rows = corpus[torch.randint(tokens, (batch,), generator=rng)]
        opt.zero_grad()
        F.cross_entropy(
            logits(rows[:, :8]).flatten(0, 1),
            rows[:, 8].repeat(len(nets)),
            reduction="sum",
        ).div(batch).backward()
        opt.step()
    with torch.no_grad():
        out = logits(held_out[:, :8])
    losses = [F.cross_entropy(net, held_out[:, 8]).item() for net in out]
    return 8 * embed * width + width**2, losses


surfaces = []
for width in (16, 32, 64):
    for tokens in (4000, 8000, 16000):
        size, losses = pretrain(width, tokens)
        low = losses.index(min(losses))
        near = [
            (PEAKS[i], y)
            for i, y in enumerate(losses)
            if abs(i - low) < 2 or y < losses[low] + 0.3
        ]
        surfaces.append((size, tokens, losses, fit_bowl(*zip(*near))))
sizes, tokens = zip(*(row[:2] for row in surfaces))
law = fit_power_law([sizes, tokens], [bowl.lr for *_, bowl in surfaces])

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(8, 3), width_ratios=[1.3, 1])
styles = {4000: ":", 8000: "--", 16000: "-"}
hues = dict(zip(sorted(set(sizes)), (SKY, BLUE, GREEN)))
for size, count, losses, bowl in surfaces:
    axes[0].plot(
        PEAKS, losses, styles[count], color=hues[size], lw=1.2, marker=".", ms=4
    )
    axes[0].plot(bowl.lr, bowl.loss, "o", ms=5, mfc="none", color=RED)
for size, hue in hues.items():
    axes[0].plot([], [], color=hue, label=f"N = {size:,}")
for count, style in styles.items():
    axes[0].plot([], [], "k" + style, lw=1, label=f"D = {count:,}")
axes[0].set(
    xscale="log",
    ylim=(0.4, 2),
    xlabel="peak learning rate",
    ylabel="held-out loss, nats",
    title="circles: bottoms of the parabolas",
)
axes[0].legend(fontsize=7, ncols=2)
for k, theirs in enumerate((-0.713, 0.307)):  # of N, of D
    low, high = law.interval[k + 1]
    ours = law.exponents[k]
    axes[1].errorbar(
        k, ours, [[ours - low], [high - ours]], fmt="o", color=BLUE, capsize=4
    )
    axes[1].plot(k, theirs, "D", color=RED)
axes[1].plot([], [], "o", color=BLUE, label="here, with 95 % interval")
axes[1].plot([], [], "D", color=RED, label="the paper's")
axes[1].axhline(0, color="k", lw=0.6)
axes[1].set(
    xlim=(-0.6, 1.6),
    xticks=[0, 1],
    xticklabels=["of N", "of D"],
    ylabel="exponent of the best rate",
)
axes[1].legend(fontsize=8)
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
convex = sum(bowl.convex for *_, bowl in surfaces)
assert convex >= 0.9 * len(surfaces) and law.interval[1][1] < 0
assert all(PEAKS[0] < bowl.lr < PEAKS[-1] for *_, bowl in surfaces)
assert law.exponents[1] < 0 and law.interval[2][1] < 0.307
print(f"convex around the bottom: {convex} of {len(surfaces)}")
print("the exponent of N is negative, with its whole interval: True")
print(
    "the exponent of D is negative, and its interval below the paper's 0.307: True"
)

# %% [markdown]
# The bowls are there, and wide. Larger models want smaller rates, as in the paper. For the data the sign is *opposite*. That is no refutation: the paper's rate belongs to the best batch, which grows with $D$, and here the batch was kept; its models are a thousand times as large, and of another kind. It is a reason not to extrapolate five decades, in either direction. The intervals come from residuals drawn anew and studentized, and say only how well nine optima fix *this* law.
#
# **When to use it.** As the first guess for a language model of the kind that was fitted. **When not:** with another optimizer, or an end that moves with the peak. Then take `fit_bowl` and `fit_power_law`, and your own runs.
#
# ## In your project
#
# The range test takes your module and your data as they are; the cycle is an ordinary scheduler with `"interval": "step"`.

# %%
from lightning.pytorch import Trainer


class Digits(Classifier):
    lr_max = None

    def configure_optimizers(self):
        opt = SGDW(self.parameters(), lr=self.lr_max or 0.1, momentum=0.9)
        steps = int(self.trainer.estimated_stepping_batches)
        if self.lr_max is None or steps < 1:
            return opt
        cycle = OneCycle(opt, steps, self.lr_max)
        return {
            "optimizer": opt,
            "lr_scheduler": {"scheduler": cycle, "interval": "step"},
        }


torch.manual_seed(0)
module = Digits(hidden=[64])
module.lr_max = LRRangeTest(1e-3, 10.0).run(module, DigitsData(64))
trainer = Trainer(
    max_epochs=8,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(module, DigitsData(64))
reached = trainer.test(module, DigitsData(64), verbose=False)[0]["test_accuracy"]

# %%
# NBVAL_CHECK_OUTPUT
assert reached > 0.93
print("more than 93 % of the test digits after a range test and one cycle: True")

# %% [markdown]
# ## What to pick
#
# The runs of this chapter, once more: each schedule at the peak that was best on validation data, its test accuracy over five seeds, and what it loses at the largest rate of the grid.

# %%
print(
    f"{'schedule':22s} {'epochs':>6s} {'peak':>5s}  {'test accuracy, %':16s} at {RATES[-1]}"
)
for name, (_, right) in accuracy.items():
    row = 100 * right[best[name]]
    print(
        f"{name:22s} {SCHEDULES[name][1]:6d} {RATES[best[name]]:5g}  "
        f"{row.mean():5.1f} ± {row.std():.1f}      {100 * right[-1].mean():7.1f}"
    )

# %% [markdown]
# | you have | take |
# |:--|:--|
# | a known number of steps, no tuned rate | {py:class}`~steepest.lightning.LRRangeTest`, then {py:class}`~steepest.schedules.OneCycle` |
# | a tuned rate | any schedule that ends near 0: the table does not separate them |
# | a run that fails at its start | {py:func}`~steepest.probes.stability`; warm up if the ratio is far above 1 |
# | thousands of similar problems | {py:class}`~steepest.schedules.QController` on an environment of your own |
# | a language model to pretrain, a rate to guess | {py:func}`~steepest.schedules.step_law` |
# | tuning runs at several sizes | {py:func}`~steepest.schedules.fit_bowl`, {py:func}`~steepest.schedules.fit_power_law` |
#
# ## Exercises
#
# **1. The mean rate.** Which constant rate has the same sum over the run as one cycle with peak 1, ratio 10 and annihilation 100? Work it out, then add up the schedule.

# %% tags=["hide-cell"]
# NBVAL_CHECK_OUTPUT
# Nine tenths at the mean of peak and foot, one tenth at the mean of foot and end.
worked_out = 0.9 * (1 + 0.1) / 2 + 0.1 * (0.1 + 0.001) / 2
assert abs(np.mean(rate) - worked_out) < 1e-3
print(f"half the peak: {worked_out:.4f}")

# %% [markdown]
# **2. Momentum and the edge.** On a quadratic of curvature 1, find a rate at which gradient descent diverges and heavy ball with momentum 0.9 converges, and one at which Nesterov's method with the same momentum diverges and gradient descent converges.


# %% tags=["hide-cell"]
# NBVAL_CHECK_OUTPUT
def distance(lr, steps=400, **options):
    p = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    opt = torch.optim.SGD([p], lr, **options)
    for _ in range(steps):
        p.grad = p.detach().clone()
        opt.step()
    return abs(p.item())


heavy, nesterov = dict(momentum=0.9), dict(momentum=0.9, nesterov=True)
assert distance(3.0) > 1 > distance(3.0, **heavy)  # between 2 and 3.8
assert distance(1.7, **nesterov) > 1 > distance(1.7)  # between 1.36 and 2
print(
    "heavy ball outlives gradient descent, which outlives Nesterov's method: True"
)

# %% [markdown]
# **3. Along a diagonal.** You make a model ten times as large, and train it on ten times as much text. What does the Step Law say about the rate and the batch?

# %% tags=["hide-cell"]
# NBVAL_CHECK_OUTPUT
small, large = step_law(1e8, 2e9), step_law(1e9, 2e10)
assert math.isclose(large.lr / small.lr, 10 ** (0.307 - 0.713))
print(
    f"rate times {large.lr / small.lr:.2f}, "
    f"batch times {large.batch_tokens / small.batch_tokens:.2f}"
)

# %% [markdown]
# ## References
#
# ```{bibliography}
# :filter: docname in docnames
# ```
