# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Inertia and acceleration
#
# ## Overview
#
# Gradient descent forgets. At every step it looks at the slope, moves, and starts again. A ball that rolls down the same slope remembers how fast it was, crosses long shallow stretches in a fraction of the time, and then swings to and fro at the bottom. This chapter is about keeping the first and losing the second. All its methods discretize one equation of motion,
#
# $$
# \ddot x + a\,\dot x + b\,\nabla^2 f(x)\,\dot x + c\,\nabla f(x) = 0,
# $$
#
# a ball on the surface $f$ with two frictions. Air resistance $a$ slows every motion alike. The term with $b$ acts only where motion changes the slope: it lets the ball run along a valley and brakes it across. No Hessian is needed for it, because $\nabla^2 f(x)\,\dot x$ is the rate at which the gradient changes on the way, and gradients are what we have.
#
# | method | how it gets the second friction |
# |:--|:--|
# | heavy ball | it has none |
# | **Triple momentum** (and Nesterov's method) | asks for the gradient a little ahead |
# | **INNA** and **INNAprop** | keeps an average of where it has been |
# | **XGrad** | asks for the gradient where *any* optimizer is about to be |
#
# After this chapter you can choose momentum coefficients from two curvatures, say why a tuned heavy ball may go in circles for ever, train with curvature-aware friction at the price of AdamW, and make any optimizer look ahead, which repairs late gradients. You need gradients and the idea of [Adam](adam-and-its-repairs.ipynb).

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
import matplotlib.pyplot as plt
import torch
from plotting import BLUE, GRAY, GREEN, PINK, RED, set_style
from sklearn.datasets import load_breast_cancer
from torch.nn import functional as F

from steepest import listing
from steepest.kernels import RULES
from steepest.lightning import Classifier, DigitsData
from steepest.optim import (
    INNA,
    AdamW,
    INNAprop,
    TripleMomentum,
    XGrad,
    tuned_momenta,
)

set_style()
COLORS = {
    "heavy-ball": GRAY,
    "nesterov": BLUE,
    "triple": RED,
    "AdamW": BLUE,
    "INNA": GREEN,
    "INNAprop": GREEN,
    "XGrad": PINK,
}
KINDS = ("heavy-ball", "nesterov", "triple")


def descend(make, gradient, start, steps):
    """Path of the parameters under an optimizer, shape (steps + 1, dimension)."""
    p = torch.nn.Parameter(torch.as_tensor(start, dtype=torch.float64).clone())
    opt, path = make([p]), [p.detach().clone()]
    for _ in range(steps):
        p.grad = gradient(p.detach())
        opt.step()
        path.append(p.detach().clone())
    return torch.stack(path)


def tuned(kind, smoothness, convexity):
    """A method with the momenta for these curvatures."""
    return lambda ps: TripleMomentum(
        ps, **tuned_momenta(smoothness, convexity, kind)
    )


# %% [markdown]
# (triplemomentum)=
# ## Triple momentum: a ball that looks ahead
#
# **The idea.** Let $\xi$ be the ball and $m$ its last step. It keeps a part $\beta$ of that step; the gradient is asked for at $\theta$, which is $\gamma$ steps ahead; and the answer is read at $x$, which is $\delta$ steps ahead:
#
# $$
# m \leftarrow \beta m - \eta\,\nabla f(\theta), \qquad \xi \leftarrow \xi + m, \qquad \theta = \xi + \gamma m, \qquad x = \xi + \delta m.
# $$
#
# With $\gamma = 0$ this is the heavy ball, a discretization with $b = 0$. With $\gamma > 0$, $\nabla f(\xi + \gamma m) \approx \nabla f(\xi) + \gamma\,\nabla^2 f(\xi)\,m$: looking ahead *is* the second friction. (With a time step $h$: $m = h\dot x$, $\beta = 1 - ah$, $\eta = ch^2$ and $\gamma = b/(ch)$.) $\gamma = \beta$ is Nesterov's method. Triple momentum {cite:p}`vanscoy2018fastest` looks about half a step ahead, and picks all three for losses that lie between two parabolas of curvature $\mu$ and $L$.
#
# **The rule.** The optimizer keeps $\theta$, where the next gradient is taken, and one buffer.

# %%
RULES["triple_momentum"]

# %% [markdown]
# The coefficients follow from $\kappa = L/\mu$, through $\rho = 1 - 1/\sqrt\kappa$. {py:func}`~steepest.optim.tuned_momenta` has them for all three methods.
#
# **The failure.** Here is a loss in one dimension {cite:p}`lessard2016analysis`: curvature 25, then 1 for a short stretch, then 25 again. It is convex and smooth, with one minimum at 0. We start the three methods at 3.3, each with its textbook coefficients for $\mu = 1$, $L = 25$.


# %%
def bent(x):
    """Slope of the loss: 25 x, then flatter between 1 and 2, then steep again."""
    return torch.where(x < 1, 25 * x, torch.where(x < 2, x + 24, 25 * x - 24))


circles = {
    kind: descend(tuned(kind, 25.0, 1.0), bent, [3.3], 120)[:, 0] for kind in KINDS
}

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(8, 2.8))
axis = torch.linspace(-1.4, 3.4, 200, dtype=torch.float64)
axes[0].plot(axis, bent(axis), color="#cccccc", lw=3)
orbit = circles["heavy-ball"][-7:]
axes[0].plot(
    orbit, bent(orbit), "o--", ms=5, lw=0.8, color="k", label="heavy ball, for ever"
)
axes[0].plot(0, 0, "k*", ms=10)
axes[0].set(xlabel="x", ylabel="slope f'(x)", title="three points, again and again")
axes[0].legend(loc="upper left")
for kind, path in circles.items():
    axes[1].semilogy(path.abs().clamp(min=1e-12), color=COLORS[kind], label=kind)
axes[1].set(xlabel="step", ylabel="distance to the minimum", ylim=(1e-12, 30))
axes[1].legend()
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
last = circles["heavy-ball"][-6:]
assert torch.allclose(last[:3], last[3:]) and last.abs().min() > 0.1
assert max(circles[kind][-1].abs() for kind in ("nesterov", "triple")) < 1e-6
print("the heavy ball repeats", [round(x, 2) for x in sorted(last[:3].tolist())])
print("Nesterov and triple momentum have converged: True")

# %% [markdown]
# (Nesterov's method is home in a few steps because its step, $1/L$, is exact where the curvature is $L$.) The heavy ball is not badly tuned. Its coefficients are the best there are for *quadratics*, and on a quadratic they beat the other two, as we see next. But it feels the slope only where it is, so a change of curvature catches it with the wrong speed.
#
# **Rates, measured.** On a parabola of curvature $h$ a step is a $2\times2$ matrix on $(\theta, m)$, and its spectral radius is the factor by which the error shrinks. Left: that radius for every $h$ between 1 and 100. Middle: errors on a quadratic in 20 dimensions. Right: parabolas that are *bent at the minimum*, with curvature 99 on one side and $h$ on the other; the rule is elementwise, so all of them run at once, one a coordinate.


# %%
def radius(kind, h, smoothness=100.0, convexity=1.0):
    """Spectral radius of a step on a parabola of curvature h."""
    setting = tuned_momenta(smoothness, convexity, kind)
    lr, (beta, gamma, _) = setting["lr"], setting["momenta"]
    rows = [
        [1 - (1 + gamma) * lr * h, (1 + gamma) * beta - gamma],
        [-lr * h, beta],
    ]
    return (
        torch.linalg.eigvals(torch.tensor(rows, dtype=torch.float64))
        .abs()
        .max()
        .item()
    )


spread = torch.logspace(0, 2, 61, dtype=torch.float64)
radii = {kind: [radius(kind, h) for h in spread.tolist()] for kind in KINDS}
curvature = torch.logspace(0, 2, 20, dtype=torch.float64)
errors = {
    kind: descend(
        tuned(kind, 100.0, 1.0), lambda p: curvature * p, torch.ones(20), 250
    ).norm(dim=1)
    for kind in KINDS
}


def factor(kind):
    """Mean factor a step on parabolas with curvature 99 left of 0, and another right."""
    p = torch.nn.Parameter(torch.ones(61, dtype=torch.float64))
    opt, total = tuned(kind, 100.0, 1.0)([p]), 0.0
    for k in range(1, 1201):
        p.grad = torch.where(p.detach() < 0, 99.0, spread) * p.detach()
        opt.step()
        if k % 20 == 0:  # the motion has no scale: make it of size one again
            m = opt.state[p]["last_step"]
            size = p.detach().abs() + m.abs() + 1e-300
            p.data /= size
            m /= size
            total = total + size.log() if k > 200 else 0.0
    return (total / 1000).exp()


bends = {kind: factor(kind) for kind in KINDS}

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 3, figsize=(8.6, 2.8))
styles = {"heavy-ball": "-", "nesterov": "--", "triple": "-"}
for kind in KINDS:
    axes[0].semilogx(
        spread, radii[kind], styles[kind], color=COLORS[kind], label=kind
    )
    axes[1].semilogy(errors[kind], styles[kind], color=COLORS[kind])
    axes[2].semilogx(spread, bends[kind], styles[kind], color=COLORS[kind])
axes[0].axhline(0.9, color="k", lw=0.6, ls=":")
axes[0].set(
    xlabel="curvature h",
    ylabel="spectral radius",
    title="one parabola",
    ylim=(0, 1),
)
axes[0].legend(loc="lower left", fontsize=8)
axes[1].set(xlabel="step", ylabel="error", title="a quadratic in 20 dimensions")
axes[2].axhline(1, color="k", lw=0.6, ls=":")
axes[2].set(
    xlabel="curvature h on one side",
    ylabel="measured factor a step",
    title="parabolas with a bend",
    ylim=(0, 1.1),
)
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
measured = {kind: (e[-1] / e[-101]).item() ** 0.01 for kind, e in errors.items()}
print("measured on the quadratic:", {k: round(r, 3) for k, r in measured.items()})
print("largest spectral radius:  ", {k: round(max(r), 2) for k, r in radii.items()})
assert abs(measured["triple"] - 0.9) < 1e-3
assert measured["heavy-ball"] < measured["triple"] < measured["nesterov"]
assert bends["heavy-ball"].max() > 1.01
assert max(bends[kind].max() for kind in ("nesterov", "triple")) < 0.91
print("on some bent parabolas the heavy ball diverges, the others contract: True")

# %% [markdown]
# Three lessons. On quadratics the heavy ball wins, with $\rho/(2-\rho)$. Nesterov's method and triple momentum have *the same* radius $\rho = 1 - 1/\sqrt\kappa = 0.9$ (dotted); but Nesterov's slowest mode is a double root, its error is $k\rho^k$, and triple momentum's lead grows with $k$ and not with the rate. And on the right there are bends for which the heavy ball's factor exceeds one (the jags are real: what counts is on which side a swing ends). What triple momentum has is a *guarantee*: $\rho$ a step on every loss between the two parabolas, where the classical proof for Nesterov's method gives $\sqrt{1 - 1/\sqrt\kappa}$.
#
# ### Why the second friction steadies the ball
#
# Suppose that the motion is meant to follow $\dot x = -b\,\nabla f(x)$, a gradient flow. Call $\varphi = \dot x + b\,\nabla f(x)$ the distance from that: in the plane of position and velocity, $\varphi = 0$ is a curve. Now ask of a ball that $\dot\varphi = -a\varphi$, whatever the loss. Written out, that demand is our equation with $c = ab$:
#
# $$
# \ddot x + a\,\dot x + b\,\nabla^2 f(x)\,\dot x + ab\,\nabla f(x) = 0.
# $$
#
# This construction is from control theory, where it goes by passivity and immersion: choose a manifold, then make it attract at a rate of your choice. {cite:t}`parimi2025dynamics` build their account of acceleration on it. The Hessian term is what does it. Without it, $\dot\varphi$ contains $b\,\nabla^2 f\,\dot x$, and the ball runs through the manifold. We check it on real data: logistic regression for the breast-cancer set, integrated with the classical Runge-Kutta scheme; and in a plane, on $f(x) = \log\cosh x$.

# %%
table = load_breast_cancer()
rows = torch.tensor(table.data, dtype=torch.float64)
rows = (rows - rows.mean(0)) / rows.std(0)
rows = rows * torch.tensor(2.0 * table.target - 1)[:, None]


def slope(x):
    return -(torch.sigmoid(-rows @ x) @ rows) / len(rows) + 0.01 * x


def stiffness(x, u):
    wrong = torch.sigmoid(-rows @ x)
    return (wrong * (1 - wrong) * (rows @ u)) @ rows / len(rows) + 0.01 * u


def fly(slope, stiffness, x, u, a=1.5, b=2.0, brake=True, steps=280, dt=0.025):
    """Positions, velocities and sizes of phi along the motion."""

    def field(x, u):
        return u, -a * u - (b * stiffness(x, u) if brake else 0) - a * b * slope(x)

    trace = []
    for _ in range(steps):
        trace.append((x, u, (u + b * slope(x)).norm()))
        k1 = field(x, u)
        k2 = field(x + dt / 2 * k1[0], u + dt / 2 * k1[1])
        k3 = field(x + dt / 2 * k2[0], u + dt / 2 * k2[1])
        k4 = field(x + dt * k3[0], u + dt * k3[1])
        x, u = (
            z + dt / 6 * (p + 2 * q + 2 * r + s)
            for z, p, q, r, s in zip((x, u), k1, k2, k3, k4)
        )
    return [torch.stack(part) for part in zip(*trace)]


rng = torch.Generator().manual_seed(0)
push = torch.randn(30, generator=rng, dtype=torch.float64)
origin = torch.zeros(30, dtype=torch.float64)
sizes = {
    brake: fly(slope, stiffness, origin, push, brake=brake)[2]
    for brake in (True, False)
}

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(8, 2.9))
axis = torch.linspace(-3, 3, 100)
axes[0].plot(
    axis,
    -2 * axis.tanh(),
    color="k",
    lw=3,
    alpha=0.3,
    label=r"manifold $\varphi=0$",
)
for x, u in (
    (-2.5, -1.0),
    (-2.0, 2.0),
    (0.5, 2.0),
    (2.0, 1.0),
    (2.5, -2.0),
    (-0.5, -2.0),
):
    for brake, color in ((False, COLORS["heavy-ball"]), (True, COLORS["triple"])):
        flown = fly(
            torch.tanh,
            lambda x, u: (1 - x.tanh() ** 2) * u,
            torch.tensor([x]),
            torch.tensor([u]),
            brake=brake,
            steps=300,
        )
        axes[0].plot(
            flown[0], flown[1], color=color, lw=1, ls="-" if brake else "--"
        )
axes[0].set(xlabel="position x", ylabel="velocity", title=r"on $f = \log\cosh x$")
axes[0].legend(loc="upper right")
time = 0.025 * torch.arange(280)
for brake, label in ((True, "with the second friction"), (False, "heavy ball")):
    color = COLORS["triple" if brake else "heavy-ball"]
    axes[1].semilogy(
        time, sizes[brake], color=color, ls="-" if brake else "--", label=label
    )
axes[1].semilogy(
    time[::28],
    sizes[True][0] * torch.exp(-1.5 * time[::28]),
    "k.",
    label=r"$e^{-at}$",
)
axes[1].set(
    xlabel="time", ylabel=r"$\|\varphi\|$", title="logistic regression, 30 weights"
)
axes[1].legend(loc="lower left")
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
fitted = (sizes[True].log().diff() / 0.025).mean().item()
print(f"phi decays like exp({fitted:.3f} t); friction a = 1.5")
assert abs(fitted / -1.5 - 1) < 0.02 and sizes[False][-1] > 10 * sizes[True][-1]

# %% [markdown]
# Solid lines drop onto the manifold and stay; dashed ones, heavy balls of the same friction, run past it. So the second friction makes the motion *predictable*. It does not by itself make it fast: on the manifold nothing is left but a gradient flow. Nesterov's method has the same terms with a larger $c$ than $ab$ {cite:p}`shi2022understanding`, and so keeps some of the ball.
#
# **When to use triple momentum.** On smooth, strongly convex problems with exact gradients, if you know $L$ and $\mu$ within a factor of a few: regularized regression, inner problems. **When not:** with noisy gradients. A large $\beta$ then averages little and amplifies much.
#
# (inna)=
# ## INNA: friction from memory
#
# **The idea** {cite:p}`castera2021inertial`. Take the equation with $c = 1$, $a = \alpha$, $b = \beta$. Since $\nabla^2 f(\theta)\,\dot\theta$ is the time derivative of $\nabla f(\theta)$, integrate that once by hand. What is left has two variables and no Hessian. (The letters are the paper's from here on: $\alpha$ and $\beta$ are the frictions, not what is kept of a step.) With time step $\gamma$, and $\phi$ an average of the past positions:
#
# $$
# d = \theta - \phi, \qquad \phi \leftarrow \phi + \tfrac{\gamma}{\beta}\,d, \qquad \theta \leftarrow \theta + \tfrac{\gamma}{\beta}(1-\alpha\beta)\,d - \gamma\beta\,g.
# $$
#
# A point is pushed away from where it has been: that is the momentum. The gradient enters twice, through the push and at once; the second is the brake. If $\alpha\beta = 1$ the push is zero. That is the case $c = ab$ of the last section: INNA starts *on* the manifold, and is gradient descent.

# %%
RULES["inna"]

# %% [markdown]
# **See it work.** A ravine of curvatures 0.1 and 10, with the same friction $\alpha = 0.6$ and the same time step for both.

# %%
walls = torch.tensor([0.1, 10.0], dtype=torch.float64)
step, friction = 0.05, 0.6
paths = {
    "heavy-ball": descend(
        lambda ps: torch.optim.SGD(ps, step**2, momentum=1 - friction * step),
        lambda p: walls * p,
        [-4.0, 2.0],
        500,
    ),
    "INNA": descend(
        lambda ps: INNA(ps, step, friction, 0.9),
        lambda p: walls * p,
        [-4.0, 2.0],
        500,
    ),
}

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(8, 2.6))
for name, path in paths.items():
    axes[0].plot(*path.T, color=COLORS[name], lw=1.2, label=name)
    axes[1].plot(step * torch.arange(501), path[:, 1], color=COLORS[name], lw=1.2)
axes[0].plot(0, 0, "k*", ms=9)
axes[0].set(xlabel=r"$\theta_1$, along", ylabel=r"$\theta_2$, across")
axes[0].legend()
axes[1].set(xlabel="time", ylabel=r"$\theta_2$, across")
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
swings = {
    name: int((path[1:, 1].sign() != path[:-1, 1].sign()).sum())
    for name, path in paths.items()
}
print("crossings of the valley's floor in 500 steps:", swings)
assert swings["INNA"] <= 0.5 * swings["heavy-ball"]

# %% [markdown]
# (innaprop)=
# ### INNAprop: with a scale for each coordinate
#
# **The idea** {cite:p}`bolte2024second`. Divide the gradient by its root mean square, as RMSprop does. Adam needs a buffer for the mean and one for the square; here the average of the *iterates* takes the place of the mean gradient, so the memory is Adam's.

# %%
RULES["innaprop"]

# %% [markdown]
# The paper writes this with $\psi = (1-\alpha\beta)\phi$ and a division by $\beta - \gamma$. The two are equal step for step; a time step $\gamma \ge \beta$ is refused in either form.
#
# **See it work.** A small network on digits, cosine schedule, eight learning rates each, mean of three seeds. All networks of a sweep train at once, each with a parameter group of its own. The argument `delay` is for later.

# %%
data = DigitsData()
data.setup()
train, val = data.splits["train"], data.splits["val"]
LRS = [10 ** (-2.75 + k / 4) for k in range(8)]


def sweep(make, seed, delay=0, steps=150, batch=32, hidden=64):
    """Training loss and validation accuracy for each learning rate."""
    rng = torch.Generator().manual_seed(seed)
    first = [
        torch.randn(64, hidden, generator=rng) / 8,
        torch.zeros(1, hidden),
        torch.randn(hidden, 10, generator=rng) / hidden**0.5,
        torch.zeros(1, 10),
    ]
    weights = [torch.nn.Parameter(t.clone()) for _ in LRS for t in first]
    opt = make(
        [
            {"params": weights[4 * k : 4 * k + 4], "lr": lr}
            for k, lr in enumerate(LRS)
        ]
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, steps)

    def logits(x, at):
        w1, b1, w2, b2 = (torch.stack(at[k::4]) for k in range(4))
        return torch.relu(x @ w1 + b1) @ w2 + b2

    past = [[p.detach().clone() for p in weights]] * delay
    for _ in range(steps):
        rows = torch.randint(len(train.targets), (batch,), generator=rng)
        past.append([p.detach().clone() for p in weights])
        at = [p.clone().requires_grad_() for p in past.pop(0)]
        out = logits(train.inputs[rows], at)
        loss = F.cross_entropy(
            out.flatten(0, 1), train.targets[rows].repeat(len(LRS)), reduction="sum"
        )
        for p, g in zip(weights, torch.autograd.grad(loss / batch, at)):
            p.grad = g
        opt.step()
        schedule.step()
    if hasattr(opt, "eval"):
        opt.eval()
    with torch.no_grad():
        losses = [
            F.cross_entropy(out, train.targets)
            for out in logits(train.inputs, weights)
        ]
        right = logits(val.inputs, weights).argmax(-1) == val.targets
    return torch.stack([torch.stack(losses), right.float().mean(1)])


def mean(make, **options):
    return torch.stack([sweep(make, seed, **options) for seed in range(3)]).mean(0)


tuning = {
    "AdamW": mean(AdamW),
    "INNAprop": mean(INNAprop),
    "XGrad": mean(lambda groups: XGrad(AdamW(groups))),
}

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(8, 2.7))
labels = {"XGrad": "XGrad(AdamW)"}
for name, (loss, accuracy) in tuning.items():
    axes[0].loglog(
        LRS, loss, "o-", ms=4, color=COLORS[name], label=labels.get(name, name)
    )
    axes[1].semilogx(LRS, 100 * accuracy, "o-", ms=4, color=COLORS[name])
axes[0].set(xlabel="learning rate", ylabel="training loss after 150 steps")
axes[1].set(xlabel="learning rate", ylabel="validation accuracy, %", ylim=(84, 99))
axes[0].legend()
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
best = {
    name: (loss.min().item(), acc.max().item())
    for name, (loss, acc) in tuning.items()
}
middle = slice(1, 6)
assert (tuning["INNAprop"][0, middle] < tuning["AdamW"][0, middle]).all()
assert best["INNAprop"][0] < best["AdamW"][0]
assert -0.02 < best["INNAprop"][1] - best["AdamW"][1] < 0.005
print("at each of five learning rates INNAprop has the lower training loss: True")
print("so it has with each at its best; best accuracies within two points: True")

# %% [markdown]
# INNAprop descends faster at the same learning rate, and a little faster with both tuned. That is a part of the paper's claim, "matches or outperforms AdamW both in training speed and accuracy". In accuracy there is no gain here: the best are within two points, on 270 images. Note the scale of `lr`: a single gradient moves a coordinate by $\gamma\beta$, and equal ones in a long row by up to $\gamma/\alpha$ a step, ten times Adam's with $(\alpha, \beta) = (0.1, 0.9)$; but it takes about $1/(\gamma\alpha)$ steps to get there, so a low learning rate never does.
#
# **When to use it.** Where you would use AdamW and count steps. The paper's alternative to $(0.1, 0.9)$ is $(2, 2)$, more friction of both kinds. **When not:** where a learning rate tuned for AdamW must be kept.
#
# (xgrad)=
# ## XGrad: any optimizer, a step ahead
#
# **The idea** {cite:p}`guan2023xgrad`. Nesterov's method takes the gradient where the ball is about to be. Do it for *any* optimizer: predict the weights $s$ steps on, take the gradient there, and apply it here. The paper predicts with the optimizer's own update, computed from its state: $-\eta\,m$ for SGD with momentum, $-\eta\,\hat m/(\sqrt{\hat v}+\epsilon)$ for Adam. But that update is the step that was made last. So no formula is needed:
#
# $$
# \hat\theta_t = \theta_t + s\,(\theta_t - \theta_{t-1}).
# $$
#
# Between steps the parameters stand at $\hat\theta$, where the next gradient is taken; `eval()` and `train()` swap the two. Here is what a step does:

# %%
listing(XGrad.step, start="asked =", stop="return loss")

# %% [markdown]
# Around SGD with momentum this *is* the rule of the first section with $\gamma = s$ (exercise 1), and the paper's claim holds there: same optimizer, same learning rate, fewer steps. On the quadratic in 20 dimensions, with $\eta = 1/L$:

# %%
# NBVAL_CHECK_OUTPUT
ahead = {}
for s in (0, 1):
    ends = descend(
        lambda ps, s=s: XGrad(torch.optim.SGD(ps, 0.01, momentum=0.9), lookahead=s),
        lambda p: curvature * p,
        torch.ones(20),
        60,
    )
    ahead[s] = ends.norm(dim=1)[-1].item()
assert ahead[1] < 0.4 * ahead[0]
print("after 60 steps, less than 40 % of the error of SGD with momentum: True")

# %% [markdown]
# What does it do around AdamW, for a network? You have seen it in the last figure. In training loss XGrad is a hair ahead at small learning rates, and behind at the largest two; with both tuned, AdamW alone is as good. On minibatches of 32 there seems to be no swing left to brake.
#
# **Where looking ahead matters.** In pipelines and asynchronous training, gradients arrive *late*: the weights have moved on by $\tau$ steps since they were asked for. There a forecast has something to repair. We let every gradient be four steps late, and look four steps ahead.

# %%
late = {
    s: mean(lambda groups, s=s: XGrad(AdamW(groups), lookahead=s), delay=4)
    for s in (0, 4)
}

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(8, 2.7))
for s, (loss, accuracy) in late.items():
    color = COLORS["XGrad" if s else "AdamW"]
    label = "XGrad(AdamW), s = 4" if s else "AdamW"
    axes[0].loglog(
        LRS, loss, "o-", ms=4, color=color, label=f"{label}, 4 steps late"
    )
    axes[1].semilogx(LRS, 100 * accuracy, "o-", ms=4, color=color)
axes[0].loglog(
    LRS, tuning["AdamW"][0], ":", color=COLORS["AdamW"], label="AdamW, on time"
)
axes[1].semilogx(LRS, 100 * tuning["AdamW"][1], ":", color=COLORS["AdamW"])
axes[0].set(
    xlabel="learning rate", ylabel="training loss after 150 steps", ylim=(0.04, 4)
)
axes[1].set(xlabel="learning rate", ylabel="validation accuracy, %", ylim=(70, 99))
axes[0].legend(loc="upper left", fontsize=8)
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
lowest = {s: loss.min().item() for s, (loss, _) in late.items()}
assert lowest[4] < 0.85 * lowest[0] and lowest[4] > best["AdamW"][0]
assert 0.8 < best["XGrad"][0] / best["AdamW"][0] < 1.4
assert (tuning["XGrad"][0, -2:] > tuning["AdamW"][0, -2:]).all()
print(
    "late gradients: the look-ahead takes 15 % or more off the best training loss: True"
)
print("gradients on time: no such gain, each at its best learning rate: True")

# %% [markdown]
# It repairs a part of the damage, and not all of it: four steps ahead is a long way to extrapolate from one.
#
# **When to use it.** With late gradients, $s = \tau$; or full batches and a momentum method that swings. **When not:** with small batches on time. It costs a copy of the weights, and statistics of batch normalization are those of the predicted weights.
#
# ## In your project
#
# INNAprop is an ordinary optimizer. XGrad and triple momentum train at other weights than those that you want to validate and keep: add the callback `Oracles`, which calls `eval()` and `train()` for validation and checkpoints and does nothing for an optimizer without them.

# %%
from lightning.pytorch import Trainer

from steepest.lightning import Oracles, quiet

quiet()  # no tips and no hardware report
results = {}
for name, make in {
    "INNAprop": lambda ps: INNAprop(ps, lr=3e-3),
    "TripleMomentum": lambda ps: TripleMomentum(ps, lr=0.05),
    "XGrad(AdamW)": lambda ps: XGrad(AdamW(ps, lr=3e-3)),
}.items():
    torch.manual_seed(0)
    module = Classifier(hidden=[64], optimizer=make)
    trainer = Trainer(
        max_epochs=10,
        accelerator="cpu",
        callbacks=[Oracles()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DigitsData())
    results[name] = trainer.test(module, DigitsData(), verbose=False)[0][
        "test_accuracy"
    ]
    print(f"{name:14s} {100 * results[name]:.1f} % of the test digits")

# %%
# NBVAL_CHECK_OUTPUT
assert min(results.values()) > 0.93
assert trainer.optimizers[0].predicted is not None
print(
    "all three reach 93 %, and XGrad's module holds the optimizer's own weights: True"
)

# %% [markdown]
# ## Which one, when
#
# | you have | take | state, bytes a parameter |
# |:--|:--|--:|
# | a strongly convex loss with known curvatures | {py:class}`~steepest.optim.TripleMomentum` | 4 |
# | a quadratic, exactly | the same with `tuned_momenta(L, mu, "heavy-ball")` | 4 |
# | a network, and steps that are dear | {py:class}`~steepest.optim.INNAprop` | 8 |
# | gradients that arrive late | {py:class}`~steepest.optim.XGrad` around your optimizer | 4 more |
#
# ## Race them
#
# In the book, the rules from above run here, in your browser: drag the start, move the rates, add noise. (A notebook shows the request only; the [playground](../../book/playground.md) has all optimizers.) All but the first remember where they came from. Turn up the noise, or move the start, and see what memory does.
#
# ```{playground}
# :surface: ravine
# :optimizers: gradient descent, momentum, TripleMomentum, INNA, INNAprop
# ```
#
# ## Exercises
#
# **1. One family.** Show that XGrad with look-ahead $s$ around SGD with momentum $\mu$ is `TripleMomentum` with momenta $(\mu, s, 0)$, and Nesterov's method for $s = \mu$.

# %% tags=["hide-cell"]
# NBVAL_CHECK_OUTPUT
# Both ask for the gradient s last steps ahead of the ball.
quadratic, start = (lambda p: curvature * p), torch.ones(20)
wrapped, triple, nesterov = (
    descend(make, quadratic, start, 100)
    for make in (
        lambda ps: XGrad(torch.optim.SGD(ps, 0.004, momentum=0.9), lookahead=0.9),
        lambda ps: TripleMomentum(ps, 0.004, momenta=(0.9, 0.9, 0.0)),
        lambda ps: torch.optim.SGD(ps, 0.004, momentum=0.9, nesterov=True),
    )
)
assert torch.allclose(wrapped, triple) and torch.allclose(triple, nesterov)
print("three names for one path: True")

# %% [markdown]
# **2. INNA is a momentum method.** Without weight decay, find the recursion of $d = \theta - \phi$ alone, read off how long INNA remembers, and check it.

# %% tags=["hide-cell"]
# NBVAL_CHECK_OUTPUT
# Subtract the update of phi from that of theta: d <- (1 - gamma alpha) d - gamma beta g.
# It remembers 1 / (gamma alpha) steps: a small learning rate means a long memory.
p = torch.nn.Parameter(torch.ones(20, dtype=torch.float64))
opt = INNA([p], lr=0.02, friction=0.1, damping=0.9)
d = torch.zeros_like(p)
for _ in range(50):
    p.grad = quadratic(p.detach())
    d = (1 - 0.02 * 0.1) * d - 0.02 * 0.9 * p.grad
    opt.step()
    assert torch.allclose(d, p - opt.state[p]["average"])
print("d is a buffer of momentum with decay 1 - gamma alpha: True")

# %% [markdown]
# **3. The price of looking ahead.** Keep the heavy ball's $\eta$ and $\beta$ on the bent loss, and add the look-ahead of triple momentum. It gets worse: why? Find the largest stable $\eta$ for any $\beta$ and $\gamma$, and check that half of it breaks the circle.

# %% tags=["hide-cell"]
# NBVAL_CHECK_OUTPUT
# On a parabola, z^2 - (1 + beta - eta h (1 + gamma)) z + beta - eta h gamma has its roots
# inside the circle until one reaches -1: eta h (1 + 2 gamma) = 2 (1 + beta). The brake is
# explicit, and as any explicit friction it must not reverse the motion in one step.
(beta, *_), ball = (
    tuned_momenta(25.0, 1.0, "heavy-ball")["momenta"],
    tuned_momenta(25.0, 1.0, "heavy-ball")["lr"],
)
gamma = tuned_momenta(25.0, 1.0)["momenta"][1]
limit = 2 * (1 + beta) / (25 * (1 + 2 * gamma))
for lr in (ball, 0.5 * limit):
    end = descend(
        lambda ps, lr=lr: TripleMomentum(ps, lr, (beta, gamma, 0.0)),
        bent,
        [3.3],
        300,
    )[-1].abs()
    print(f"{lr / limit:.2f} of the limit: converged {bool(end < 1e-6)}")

# %% [markdown]
# ## References
#
# ```{bibliography}
# :filter: docname in docnames
# ```
