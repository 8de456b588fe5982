# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Polyak steps and steps from models
#
# ## Overview
#
# A gradient says which way is down and how steep it is. It does not say how far to go, so we tune a learning rate. But a training loop knows more than the gradient: it has just computed the *loss*, and it can ask for the loss or the gradient at a second point. Each of the methods here makes a small model of the loss from such an extra number, and takes the step that the model asks for:
#
# | method | what it asks beyond the gradient | the model | a step costs |
# |:--|:--|:--|:--|
# | **SANIA** {cite:p}`abdukhakimov2023sania` | the loss, which is there already | a quadratic that should come down to a known $f^*$ | 1 forward, 1 backward |
# | **OASIS** {cite:p}`jahani2021doubly` | a Hessian product, the gradient at the last point | the smoothness that the last step met | 2 forward, 3 backward |
# | **SMB** {cite:p}`birbil2021bolstering` | the loss after a trial step; the gradient there if the trial fails | a quadratic through both ends of the trial | 2 or 3 forward, 1 or 2 backward |
#
# The first two have no learning rate. The third has one, and forgives a bad choice of it. After this chapter you know what each assumes in exchange, you can tell from your problem which assumption is harmless, and you have seen each fail where its assumption is wrong. You need the notation of the [part's first page](../../book/parts/step-sizes.md); how an optimizer gets to ask questions is told in [Steps that ask for more](../start/asking-more).

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
import torch
from IPython.display import Markdown, display
from plotting import BLUE, GRAY, GREEN, RED, SKY, set_style
from sklearn.datasets import load_breast_cancer, load_diabetes
from torch.nn import functional as F

from steepest import listing
from steepest.kernels import REDUCTIONS, RULES
from steepest.optim import OASIS, SANIA, SMB, AdaHessian, Adam, OracleDriven
from steepest.oracles import Objective

set_style()

cancer, diabetes = load_breast_cancer(), load_diabetes()


def standardized(x):
    x = torch.tensor(x)
    return (x - x.mean(0)) / x.std(0)


columns = standardized(cancer.data)
columns = torch.cat([columns, torch.ones_like(columns[:, :1])], 1)  # an intercept
malignant = torch.tensor(cancer.target).double()


def units(low, high, seed):
    """Factors 10^U(low, high), one for each column: the data in other units."""
    rng = torch.Generator().manual_seed(seed)
    exponent = torch.rand(columns.shape[1], generator=rng, dtype=torch.float64)
    return 10 ** (low + (high - low) * exponent)


# %% [markdown]
# One loop serves the whole page. It hands every optimizer what it needs, from one objective that counts its passes: a method that asks gets the objective itself, any other the gradient in `.grad` and the loss by a closure.


# %%
def descend(make, loss, size, steps=None, budget=math.inf, rows=None, seed=0):
    """Weights along a run from zero, and the passes (forward and backward) up to each.

    ``loss`` is a function of weights and rows of the data; ``rows`` is (how many there are, how
    many in a batch), or None for all of them in each step.
    """
    rng = torch.Generator().manual_seed(seed)
    p = torch.nn.Parameter(torch.zeros(size, dtype=torch.float64))
    opt, path, passes = make([p]), [p.detach().clone()], [0]
    while len(path) <= (steps or math.inf) and passes[-1] < budget:
        batch = slice(None) if rows is None else torch.randint(*rows, generator=rng)
        objective = Objective(partial(loss, p, batch), [p])

        def closure(ask=objective):
            value, (p.grad,) = ask.gradient()
            return value

        opt.step(objective if isinstance(opt, OracleDriven) else closure)
        path.append(p.detach().clone())
        counts = objective.counts
        passes.append(passes[-1] + counts["forward"] + counts["backward"])
    return torch.stack(path), torch.tensor(passes)


def logistic(x, y, l2=0.0):
    """Logistic loss of weights on some rows, and its largest possible curvature."""

    def loss(p, rows=slice(None)):
        fit = F.binary_cross_entropy_with_logits(x[rows] @ p, y[rows])
        return fit + 0.5 * l2 * p.square().sum()

    return loss, torch.linalg.eigvalsh(x.T @ x / len(y)).max().item() / 4 + l2


def along(loss, path):
    """The loss on all data at each point of a path."""
    return torch.func.vmap(loss)(path)


# %% [markdown]
# (sania)=
# ## SANIA: down to a known loss
#
# **The idea.** Suppose you know the least value $f^*$ that the loss of a batch can have. For a model that can fit its data it is about 0, for most losses. Then the gap $f_t - f^*$ is a distance in height, the gradient is a slope, and height over slope is a length. Boris Polyak took that step in the 1960s. SANIA takes it in a metric $\|d\|_B^2 = d^\top B d$, with a quadratic term in the model:
#
# $$
# \theta_{t+1} = \arg\min_\theta\; \tfrac12 \|\theta - \theta_t\|_B^2
# \quad\text{such that}\quad
# f_t + \langle g_t, \theta - \theta_t\rangle + \tfrac12 \|\theta - \theta_t\|_B^2 \le f^*.
# $$
#
# The solution is $\theta_{t+1} = \theta_t - \lambda_t B^{-1} g_t$ with
#
# $$
# \lambda_t = 1 - \sqrt{1 - 2\upsilon_t}, \qquad \upsilon_t = \frac{f_t - f^*}{\|g_t\|_{B^{-1}}^2},
# $$
#
# and $\lambda_t = 1$, the model's minimum, if $\upsilon_t > \tfrac12$ and the model cannot get down to $f^*$. When $\upsilon$ is small, $\lambda \approx \upsilon$: that is Polyak's step. When $B$ is the Hessian of a quadratic, $\upsilon = \tfrac12$ and the step is Newton's.
#
# Now choose $B$. AdaGrad's is $\operatorname{diag}(\sqrt{\sum g^2})$. SANIA leaves out the root, and that matters: measure a feature in millimeters in place of meters, and its weight's gradient is 1000 times as large, while the weight should be 1000 times smaller. With $B = \operatorname{diag}(\sum g^2)$ the step $B^{-1}g$ is in the unit of $1/g$: right. With the root it has no unit: wrong by a factor of 1000. And $\|g\|_{B^{-1}}^2$ has no unit at all, so $\lambda$ does not change.
#
# **The rule.** The update, the sum that is taken over the whole model before it, and the $\lambda$ that comes of it:

# %%
display(RULES["sania"], REDUCTIONS["sania_norm"])
listing(SANIA.summary)

# %% [markdown]
# The loss arrives by the closure that `step` is called with, torch's own convention. What looks like a learning rate is a factor of 1, for schedules.
#
# **See it work.** Logistic regression on real data (breast_cancer, 569 patients, 30 features), batches of 64, 400 steps. Then the same with each column multiplied by its own factor between $10^{-3}$ and $10^3$. Nothing about the prediction problem has changed. Adam gets its best of four learning rates, on each of the two by itself.

# %%
plain, ugly = columns, columns * units(-3, 3, seed=1)
SANIAS = {
    "AdaGrad-SQR": SANIA,
    "with the root": partial(SANIA, preconditioner="adagrad"),
    "Adam-SQR": partial(SANIA, preconditioner="adam-sqr"),
}
RATES = [1e-3, 1e-2, 1e-1, 1.0]
traces, best_rate = {}, {}
for data, x in {"plain": plain, "ugly": ugly}.items():
    loss, _ = logistic(x, malignant)
    run = partial(descend, loss=loss, size=31, steps=400, rows=(569, (64,)))
    for name, make in SANIAS.items():
        traces[name, data] = along(loss, run(make)[0])
    adams = {rate: along(loss, run(partial(Adam, lr=rate))[0]) for rate in RATES}
    best_rate[data] = min(RATES, key=lambda rate: adams[rate][-1].item())
    traces["Adam", data] = adams[best_rate[data]]

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 3, figsize=(8.6, 2.9), sharey=True)
panels = [("AdaGrad-SQR", BLUE), ("with the root", RED), ("Adam", GREEN)]
titles = [
    "SANIA, AdaGrad-SQR",
    "SANIA, AdaGrad with the root",
    "Adam, best of 4 rates",
]
for ax, (name, color), title in zip(axes, panels, titles):
    ax.semilogy(
        traces[name, "plain"], color=color, alpha=0.35, lw=4, label="plain units"
    )
    ax.semilogy(traces[name, "ugly"], "k--", lw=1, label="ugly units")
    ax.set(title=title, xlabel="step")
    ax.legend()
axes[0].set_ylabel("loss on all data")
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
apart = {
    name: (traces[name, "plain"] - traces[name, "ugly"]).abs()
    for name in [*SANIAS, "Adam"]
}
assert apart["AdaGrad-SQR"].max() < 1e-6
assert apart["with the root"][-1] > 0.1
assert traces["AdaGrad-SQR", "ugly"][-1] < traces["Adam", "ugly"][-1]
print(
    "without the root, the losses in both units agree to 1e-6 in every step: True"
)
print("with it, they end more than 0.1 apart: True")
print("in ugly units it ends below Adam at the best of four rates: True")

# %% [markdown]
# On the left there are two curves, and you see one. That is the paper's claim, and it is exact. There is no rate behind it that somebody has tuned.
#
# The paper has a second variant, **Adam-SQR**: $B = \operatorname{diag}(\hat v)$ with Adam's moving averages, and $\hat m$ in place of $g$. It is as invariant on paper. Here it does not settle:

# %%
# NBVAL_CHECK_OUTPUT
adam_sqr = traces["Adam-SQR", "plain"]
assert apart["Adam-SQR"][:10].max() < 1e-9
assert adam_sqr[-1] > 10 * traces["AdaGrad-SQR", "plain"][-1]
assert apart["Adam-SQR"].max() > 0.1
print("Adam-SQR agrees in both units for ten steps, to 1e-9: True")
print("after 400 steps its loss is over ten times that of AdaGrad-SQR: True")
print("and rounding has grown to a difference of more than 0.1: True")

# %% [markdown]
# AdaGrad's sum only grows, so its steps shrink. Adam's average can fall: once the gradients are small, $B$ is small too, and $1/\hat v$ makes a huge step of the next gradient that is not. A chaotic run multiplies rounding errors, so even the exact invariance is lost to the eye.
#
# **When to use it.** Linear models and others of their size, on features whose scales you do not control, when the model can fit the data nearly perfectly. **When not:** if the least loss is not near $f^*$. Then $f_t - f^*$ never becomes small, and neither does the step; the table at the end of this page shows what that costs. And networks: the invariance says that a weight with tiny gradients takes huge steps, and a network has such weights. Its guard is `eps`, the least value of $B$. The default, $10^{-10}$, only avoids $0/0$. The authors' own code has 0.1, and we need the same for the network below; where `eps` acts, the invariance is gone.
#
# (oasis)=
# ## OASIS: the last step measures the next one
#
# **The idea.** Divide each gradient by the curvature of its coordinate, and it becomes a distance. [Adam's relatives](../first-order/adam-and-its-repairs) guess that scale from gradients; AdaHessian and OASIS estimate it from Hessian products, $D \approx \operatorname{diag}(\nabla^2 f)$, by Hutchinson's $z \odot Hz$ with random signs $z$. That leaves one number, which fraction of that distance to go. AdaHessian calls it the learning rate. OASIS measures it. Between the last two points the gradient has changed by $\|\nabla f(\theta_k) - \nabla f(\theta_{k-1})\|$ over a way of $\|\theta_k - \theta_{k-1}\|$. Their ratio is the smoothness of the loss, just here, and half of its inverse is a safe step:
#
# $$
# \eta_k = \min\left(\sqrt{1 + \frac{\eta_{k-1}}{\eta_{k-2}}}\;\eta_{k-1},\;
# \frac{\|\theta_k - \theta_{k-1}\|_{\hat D}}{2\,\|\nabla f(\theta_k) - \nabla f(\theta_{k-1})\|_{\hat D^{-1}}}\right),
# \qquad \hat D = \max(|D|, \alpha).
# $$
#
# The first term only limits growth, in case a step crossed a flat place. The absolute value comes *after* the average over steps, so that the noise of single estimates, which has both signs, cancels first. If the batches differ, both gradients have to be of the same batch; otherwise the difference between the batches passes for curvature. That costs one more gradient a step.
#
# **The rule.** The sums that measure, then the update:

# %%
display(REDUCTIONS["secant"], RULES["oasis"])

# %% [markdown]
# **See it work.** The same data with columns times $10^{U(-1, 1)}$ and a little L2, all of the data in each step, so that the last gradient can be remembered (`stochastic=False`). The diagonal starts from the mean of 30 products. The baselines are gradient descent at $1/L$, where $L$ is computed from the data, and AdaHessian at the best of five learning rates for this very problem. OASIS gets three first steps $\eta_0$, a million apart.

# %%
scaled, curvature = logistic(columns * units(-1, 1, seed=0), malignant, l2=1e-3)
run = partial(descend, loss=scaled, size=31)
best = torch.zeros(31, dtype=torch.float64)
for _ in range(30):  # Newton's method, for the least loss
    hessian = torch.autograd.functional.hessian(scaled, best)
    best -= torch.linalg.solve(hessian, torch.func.grad(scaled)(best))
least = scaled(best)


def gaps(make, steps):
    path, passes = run(make, steps=steps)
    return passes, along(scaled, path) - least


runs = {"GD, 1/L": gaps(partial(torch.optim.SGD, lr=1 / curvature), 200)}
tuned = {
    rate: gaps(partial(AdaHessian, lr=rate), 130)
    for rate in (0.15, 0.5, 1.0, 2.0, 4.0)
}
adahessian_rate = min(tuned, key=lambda rate: tuned[rate][1][100].item())
runs["AdaHessian, tuned"] = tuned[adahessian_rate]
FIRST = (1e-6, 1e-3, 1.0)
oasis_sizes = {}
for eta0 in FIRST:
    sizes = oasis_sizes[eta0] = []

    def make(params, eta0=eta0, sizes=sizes):
        opt = OASIS(params, eta0=eta0, warm=30, stochastic=False)
        opt.register_step_post_hook(
            lambda opt, *_: sizes.append(float(opt.param_groups[0]["step_size"]))
        )
        return opt

    runs[f"OASIS, first step {eta0:g}"] = gaps(make, 103)

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(8.4, 3.0))
styles = [(GRAY, "-"), (GREEN, "-"), (BLUE, "-"), (SKY, "--"), (RED, ":")]
for (name, (passes, gap)), (color, style) in zip(runs.items(), styles):
    axes[0].semilogy(passes, gap, style, color=color, lw=1.6, label=name)
axes[0].set(
    xlabel="passes, forward and backward",
    ylabel="loss above its minimum",
    xlim=(-10, 400),
)
axes[0].legend(fontsize=7.5)
for (eta0, sizes), (color, style) in zip(oasis_sizes.items(), styles[2:]):
    axes[1].semilogy(
        sizes, style, color=color, lw=1.6, label=f"first step {eta0:g}"
    )
axes[1].set(xlabel="step", ylabel=r"step size $\eta_k$ of OASIS")
axes[1].legend()
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
ends = [runs[f"OASIS, first step {eta0:g}"][1][100].item() for eta0 in FIRST]
gd, ada = (runs[name][1][100].item() for name in ("GD, 1/L", "AdaHessian, tuned"))
assert max(ends) < 0.05 * gd
assert max(ends) < 2 * min(ends)
print(
    "after 100 steps OASIS is below a twentieth of the gap of gradient descent: True"
)
signs = [
    gaps(partial(OASIS, warm=30, stochastic=False, seed=seed), 100)[1][-1] / gd
    for seed in range(5)
]
assert max(signs) < 0.05 and 0.5 < max(ends) / ada < 2
assert 0.15 < adahessian_rate < 4  # neither end of the grid
print("and so it is with each of five seeds of the signs: True")
print("first steps a million apart end within a factor of 2: True")
print(
    f"AdaHessian at its best rate, {adahessian_rate:g}, is within a factor of 2: True"
)

# %% [markdown]
# On the right you see why there is nothing to tune: the second step measures, and the first is forgotten. The flat start of OASIS on the left is the price of its 30 products before the first step. After the same number of steps AdaHessian is about level, and without that price it is ahead at the same number of passes; but it took five runs to find its rate, and the best one is more than ten times its default of 0.15. The metric is a rough one: these features are strongly correlated, and what is off the Hessian's diagonal is unknown to $\hat D$ and noise to its estimate. So the step size swings: it grows while the loss ahead looks flat, and falls when a step meets a steep direction.
#
# **When to use it.** Smooth problems whose coordinates have very different curvatures, and where tuning runs are not affordable. **When not:** on small noisy batches. There the smoothness that it measures is that of one batch, the most curved batches set the step, and five passes a step are many. It also needs second derivatives: under ReLUs the Hessian says little about kinks.
#
# (smb)=
# ## SMB: repair a failed step
#
# **The idea.** Take the SGD step $s = -\alpha g$ on trial, and look at the loss there, on the same batch. If it has fallen by at least a share $c$ of what the slope promised (Armijo's condition), keep it: that was SGD. A line search would otherwise halve $\alpha$ and try again. SMB asks instead for the gradient at the failed trial. It then knows the gradient at both ends of a step, and from $y = \nabla f(\theta + s) - g$ it builds a quadratic model for each parameter tensor by itself. The minimizer, with the paper's coefficients worked out, is $-\alpha\tilde g$ with
#
# $$
# \tilde g = \eta\,\frac{(\|g\| + \eta\|y\|)\, g + \eta\|g\|\, y}{\|g\| + 2\eta\|y\|}.
# $$
#
# Read its limits. Without a change of gradient it is $\eta g$, an ordinary step. In one dimension with curvature $h$ it is $g\,\eta/(1 + 2\alpha\eta h)$: however large $\alpha$, at most half of the way to the minimum. In more dimensions $y$ points against the steep directions, so adding it turns the step into the valley. Always $\langle g, \tilde g\rangle > 0$ and $\|\tilde g\| \le \eta\|g\|$.
#
# **The rule**, where `norm` is $\|g\|$ and `change` is $\|y\|$, of a tensor:

# %%
RULES["model_step"]

# %% [markdown]
# **See it work.** Least squares on the diabetes data, where SGD diverges at every rate above $2/L$. Armijo backtracking is the honest rival: it halves until the condition holds, and starts the next search from twice the last rate, at most $\alpha$. All are given the same $\alpha$, from $1/L$ to $50/L$, and 100 steps on all data.

# %%
features = standardized(diabetes.data)
target = standardized(diabetes.target[:, None])[:, 0]
steepest_curvature = torch.linalg.eigvalsh(features.T @ features / 442).max().item()
solution = torch.linalg.lstsq(features, target[:, None]).solution[:, 0]


def squares(p, rows=slice(None)):
    return 0.5 * (features[rows] @ p - target[rows]).square().mean()


class Armijo(OracleDriven):
    """Gradient descent by backtracking line search."""

    oracle = "gradient"

    def __init__(self, params, lr, c=0.1):
        super().__init__(params, {"lr": lr})
        self.now, self.c = lr, c

    def query(self, objective):
        return objective

    @torch.no_grad()
    def step(self, objective):
        (value, (g,)), (p,) = objective.gradient(), self.param_groups[0]["params"]
        home, self.now = p.clone(), min(2 * self.now, self.param_groups[0]["lr"])
        p.copy_(home - self.now * g)
        while objective.value() > value - self.c * self.now * g.square().sum():
            self.now /= 2
            p.copy_(home - self.now * g)

    def update(self, answer):
        pass


RIVALS = {
    "SGD": (torch.optim.SGD, GRAY),
    "SMB": (SMB, BLUE),
    "Armijo backtracking": (Armijo, RED),
}
multiples = [1, 2, 3, 5, 10, 15, 20, 30, 50]
excess, passes_used, curves = {}, {}, {}
for name, (make, _) in RIVALS.items():
    for k in multiples:
        path, passes = descend(
            partial(make, lr=k / steepest_curvature), squares, 10, steps=100
        )
        gap = (
            (along(squares, path) - squares(solution))
            .nan_to_num(1e9, 1e9)
            .clamp(max=1e9)
        )
        excess[name, k], passes_used[name, k] = gap[-1].item(), passes[-1].item()
        curves[name, k] = (passes, gap)

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(8.4, 3.0))
for name, (_, color) in RIVALS.items():
    axes[0].semilogy(*curves[name, 10], color=color, label=name)
    axes[1].loglog(
        multiples,
        [excess[name, k] for k in multiples],
        "o-",
        ms=4,
        color=color,
        label=name,
    )
axes[0].set(
    xlabel="passes, forward and backward",
    ylabel="loss above its minimum",
    title=r"$\alpha = 10/L$",
    ylim=(3e-5, 10),
)
axes[0].legend()
axes[1].set(
    xlabel=r"$\alpha L$",
    ylabel="loss above its minimum, 100 steps",
    title="too large by how much?",
    ylim=(3e-5, 10),
)
axes[1].set_xticks(multiples, [f"{k}" for k in multiples], minor=False)
axes[1].minorticks_off()
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
start = (squares(0 * solution) - squares(solution)).item()
assert excess["SGD", 3] > 1e6 * start and excess["SGD", 10] > 1e6 * start
assert excess["SMB", 10] < 0.5 * excess["Armijo backtracking", 10]
assert all(excess["SMB", k] < 0.02 * start for k in multiples if k <= 10)
assert excess["SMB", 50] > start
assert all(excess["Armijo backtracking", k] < 0.02 * start for k in multiples)
print(
    "SGD diverges at 3 / L and 10 / L; SMB is below 2 % of its start up to 10 / L: True"
)
print("at 10 / L it gets to less than half of the excess of backtracking: True")
print("SMB diverges at 50 / L; backtracking does not: True")
per_step = [passes_used[name, 10] / 100 for name in ("SMB", "Armijo backtracking")]
print(
    "passes a step at 10 / L, SMB and backtracking: {:.1f}, {:.1f}".format(
        *per_step
    )
)

# %% [markdown]
# The claim holds, with an end. At five times the rate where SGD breaks, SMB converges, and at equal steps goes farther than backtracking, since its steps turn. But at $10/L$ *every* trial fails, and each step costs five passes. Backtracking needs fewer, and it has a guarantee that SMB lacks: the repaired step is not tested, and with $\alpha$ large enough it grows as $\alpha$ does, in the directions that $y$ says nothing about. So the rate is forgiven by a factor, not for ever. The paper's schedule acts on that: `period=n` lowers $\alpha$ by a tenth when more than 5 % of the last $n$ trials failed, and raises it otherwise.
#
# **When to use it.** In place of SGD, with a rate at which few trials fail: insurance for one forward pass a step. **When not:** where the loss of a batch is not the same function twice, or where most trials fail.
#
# ## In your project
#
# SANIA needs the loss, and Lightning's closure returns it: no callback. OASIS and SMB ask, so the trainer gets {py:class}`~steepest.lightning.Oracles`, which may always be there. Here a perceptron with ReLUs learns the digits, six epochs each; SANIA once as it comes and once with a floor under $B$.

# %%
from lightning.pytorch import Trainer

from steepest.lightning import Classifier, DigitsData, Oracles, quiet

quiet()  # no tips and no hardware report
accuracy = {}
for name, make in {
    "SANIA": SANIA,
    "SANIA, eps=0.1": partial(SANIA, eps=0.1),
    "OASIS": partial(OASIS, truncation=0.1, warm=10),
    "SMB": SMB,
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
    (result,) = trainer.test(module, DigitsData(), verbose=False)
    accuracy[name] = result["test_accuracy"]
    print(f"{name:15s} {100 * accuracy[name]:.0f} % of the test digits")

# %%
# NBVAL_CHECK_OUTPUT
assert accuracy["SANIA"] < 0.8
assert min(accuracy[name] for name in ("SANIA, eps=0.1", "OASIS", "SMB")) > 0.88
print("SANIA with its default eps fails on this network: True")
print("the other three reach 88 % in six epochs without a tuned rate: True")

# %% [markdown]
# Many of the digits' pixels are nearly always black. Their weights see tiny gradients, and SANIA without a floor throws them far away.
#
# ## What to pick
#
# One comparison, with everything counted. Logistic regression in bad units ($10^{U(-1,1)}$), batches of 64, and 400 passes for each method, so that who asks more makes fewer steps. Once with the labels as they are, which a linear model can nearly fit, and once with a fifth of them flipped, which nothing can. SGD and Adam have their rates chosen on a sixth seed, SGD from five multiples of $1/L$, Adam from the four above; the others come as they are, and SMB gets $10/L$, as does SGD once more. Loss on all data, mean and standard deviation over five seeds.

# %%
BUDGET, SEEDS = 400, range(5)
rng = torch.Generator().manual_seed(0)
flip = torch.rand(569, generator=rng, dtype=torch.float64) < 0.2
mixed = columns * units(-1, 1, seed=0)


def final(loss, make, seed):
    """Last loss on all data, and the steps that the budget was good for."""
    path, _ = descend(make, loss, 31, budget=BUDGET, rows=(569, (64,)), seed=seed)
    return loss(path[-1]).item(), len(path) - 1


problems = {
    "clean labels": logistic(mixed, malignant),
    "a fifth flipped": logistic(mixed, torch.where(flip, 1 - malignant, malignant)),
}
scores, steps_made = {}, {}
for problem, (loss, top) in problems.items():
    entries = {
        "SANIA": SANIA,
        "OASIS": partial(OASIS, warm=10),
        "SMB, 10/L": partial(SMB, lr=10 / top),
        "SGD, 10/L": partial(torch.optim.SGD, lr=10 / top),
    }
    for name, make, rates in (
        ("SGD, tuned", torch.optim.SGD, [k / top for k in (1, 3, 10, 30, 100)]),
        ("Adam, tuned", Adam, RATES),
    ):
        tried = {rate: final(loss, partial(make, lr=rate), 99)[0] for rate in rates}
        entries[name] = partial(make, lr=min(rates, key=tried.get))
    for name, make in entries.items():
        values = [final(loss, make, seed) for seed in SEEDS]
        scores[name, problem] = torch.tensor([value for value, _ in values])
        steps_made[name, problem] = sum(n for _, n in values) / len(values)

# %% tags=["hide-input"]
head = [f"{problem}: loss | steps" for problem in problems]
lines = ["| method | " + " | ".join(head) + " |", "|:--|" + "--:|" * 4]
for name in entries:
    cells = [
        f"{scores[name, problem].mean():.3f} ± {scores[name, problem].std():.3f} | "
        f"{steps_made[name, problem]:.0f}"
        for problem in problems
    ]
    lines.append(f"| {name} | " + " | ".join(cells) + " |")
Markdown("\n".join(lines))

# %%
# NBVAL_CHECK_OUTPUT
mean = {key: value.mean().item() for key, value in scores.items()}
clean, noisy = problems
assert mean["SANIA", clean] < min(mean[n, clean] for n in entries if n != "SANIA")
assert mean["SANIA", noisy] > mean["Adam, tuned", noisy]
assert mean["OASIS", noisy] < mean["SANIA", noisy]
assert mean["SMB, 10/L", noisy] < 0.75 * mean["SGD, 10/L", noisy]
assert mean["SMB, 10/L", noisy] > mean["SGD, tuned", noisy]
print("clean labels: SANIA, untuned, has the lowest mean of all: True")
print("flipped labels: SANIA is behind tuned Adam and behind OASIS: True")
print(
    "flipped labels: SMB is well below SGD at its rate; SGD, tuned, is better: True"
)

# %% [markdown]
# Read the spread before the order. On clean labels SANIA leads tuned Adam by about one standard deviation of Adam's runs. OASIS makes the fewest steps by far; on flipped labels it is level with the tuned methods all the same. On clean labels SMB at $10/L$ is nothing but SGD at $10/L$ with fewer steps: no trial needs repair, and each costs a forward pass. On flipped labels that rate is a mistake. SMB saves most of it, and a tuned rate saves all.
#
# | you have | take |
# |:--|:--|
# | a model that can fit its data, features in any units, no time to tune | {py:class}`~steepest.optim.SANIA` |
# | a smooth loss, full or large batches, curvatures far apart, no time to tune | {py:class}`~steepest.optim.OASIS` |
# | a rate for SGD that you do not quite trust | {py:class}`~steepest.optim.SMB` |
# | noise that no model can fit, and a few runs to spend | {py:class}`~steepest.optim.AdamW`, tuned |
#
# ## Race them
#
# In the book, the rules of SANIA run here, in your browser: drag the start, turn the factors, add noise. (A notebook shows the request only; the [playground](../../book/playground.md) has more optimizers.) Polyak's step is SANIA with the identity for $B$; both are told the lowest value, and start from a factor of 1 on every surface. With $B = \sum g^2$ no coordinate goes farther in a step than one over its slope: look for the surfaces where that is too short, and for those where it is far too long.
#
# ```{playground}
# :surface: ravine
# :optimizers: gradient descent, Polyak's step, SANIA
# ```
#
# ## Exercises
#
# **1. Where does the model of SMB stop?** Show that in one dimension, with curvature $h$ and $\eta = 1$, a failed step multiplies the distance to the minimum by a factor between $\tfrac12$ and 1, whatever the rate. Check it on rates over six orders of magnitude.

# %% tags=["hide-cell"]
# NBVAL_CHECK_OUTPUT
# theta <- theta - a h theta / (1 + 2 a h): the factor is (1 + a h) / (1 + 2 a h).
for rate in (3.0, 1e2, 1e4, 1e6):
    p = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    SMB([p], lr=rate, eta=1.0).step(lambda p=p: 0.5 * (p**2).sum())
    assert abs(p.item() - (1 + rate) / (1 + 2 * rate)) < 1e-9 and 0.5 < p.item() < 1
print("the factor is (1 + a h) / (1 + 2 a h): True")

# %% [markdown]
# **2. Two batches are not one.** Run OASIS on batches of 64 from the clean problem with `stochastic=False`, so that the two gradients of a difference are of two batches. What happens to $\eta_k$?

# %% tags=["hide-cell"]
# NBVAL_CHECK_OUTPUT
loss, _ = problems[clean]
middle = {}
for same_batch in (True, False):
    sizes = []

    def make(params, same_batch=same_batch, sizes=sizes):
        opt = OASIS(params, warm=10, stochastic=same_batch)
        opt.register_step_post_hook(
            lambda opt, *_: sizes.append(float(opt.param_groups[0]["step_size"]))
        )
        return opt

    descend(make, loss, 31, steps=100, rows=(569, (64,)))
    middle[same_batch] = sorted(sizes)[50]
# The difference of the batches passes for curvature, and the steps shrink.
assert middle[False] < 0.2 * middle[True]
print("the median step is less than a fifth of what it should be: True")

# %% [markdown]
# **3. Tell SANIA the truth.** With a fifth of the labels flipped the loss cannot reach 0. Give SANIA the least loss on all data as $f^*$, and compare the last losses over the five seeds.

# %% tags=["hide-cell"]
# NBVAL_CHECK_OUTPUT
loss, _ = problems[noisy]
p = torch.zeros(31, dtype=torch.float64, requires_grad=True)
newton = torch.optim.LBFGS([p], max_iter=500, line_search_fn="strong_wolfe")


def closure():
    newton.zero_grad()
    value = loss(p)
    value.backward()
    return value


newton.step(closure)
told = []
for seed in SEEDS:
    path, _ = descend(
        partial(SANIA, f_star=loss(p).item()),
        loss,
        31,
        budget=BUDGET,
        rows=(569, (64,)),
        seed=seed,
    )
    told.append(loss(path[-1]).item())
assert sum(told) / 5 < mean["SANIA", noisy]
print("with a true f* the mean loss is lower: True")

# %% [markdown]
# ## References
#
# ```{bibliography}
# :filter: docname in docnames
# ```
