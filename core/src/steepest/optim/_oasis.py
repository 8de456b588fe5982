r"""OASIS: curvature scales the gradient, and measures the step in the same metric."""

from __future__ import annotations

from typing import Any, ClassVar, final

import torch
from torch import Tensor

from steepest._registry import method
from steepest.estimators import hutchinson
from steepest.kernels import Rule, apply, reduction, rule, xp
from steepest.kernels._apply import compute_dtype
from steepest.optim._base import Coefficients, Elementwise, Group, Measured, Params, Slot
from steepest.optim._checks import check_hyperparameters
from steepest.optim._oracle import Answer, OracleDriven
from steepest.oracles import Objective


@reduction
def secant(p, y, h, diag, old, *, beta, truncation):
    # $D \leftarrow \beta D + (1 - \beta)\, z \odot H z$
    diag = diag + (h - diag) * (1 - beta)
    # $\hat D = \max(|D|, \alpha)$
    scale = xp.maximum(xp.abs(diag), truncation)
    # $\lVert \theta - \theta^- \rVert^2_{\hat D}$
    moved = xp.sum(scale * (p - old) * (p - old))
    # $\lVert g - g^- \rVert^2_{\hat D^{-1}}$
    changed = xp.sum(y * y / scale)
    return moved, changed


@rule
def oasis(p, g, h, diag, old, *, lr, eta, beta, truncation):
    # $D \leftarrow \beta D + (1 - \beta)\, z \odot H z$
    diag = diag + (h - diag) * (1 - beta)
    # $\hat D = \max(|D|, \alpha)$
    scale = xp.maximum(xp.abs(diag), truncation)
    # $\theta^- \leftarrow \theta$
    old = p * 1.0
    # $\theta \leftarrow \theta - \eta\, \hat D^{-1} g$
    p = p - lr * eta * g / scale
    return p, diag, old


@final
@method(
    paper="jahani2021doubly",
    title="Doubly Adaptive Scaled Algorithm for Machine Learning Using Second-Order Information",
    oracle="hvp",
    scope="model",
    forward=2,
    backward=3,
    state_bytes=8,
    claims={"descends_quadratic"},
)
class OASIS(OracleDriven, Elementwise):
    r"""OASIS: both the scale of each coordinate and the step size come from curvature.

    .. math::

        D_k &= \beta D_{k-1} + (1 - \beta)\, z \odot \nabla^2 f(\theta_k) z, \quad z_j = \pm 1,
            \qquad \hat D_k = \max(|D_k|, \alpha), \\
        \eta_k &= \min\left( \sqrt{1 + \frac{\eta_{k-1}}{\eta_{k-2}}}\; \eta_{k-1},\;
            \frac{\|\theta_k - \theta_{k-1}\|_{\hat D_k}}
                 {2\, \|\nabla f(\theta_k) - \nabla f(\theta_{k-1})\|_{\hat D_k^{-1}}} \right), \\
        \theta_{k+1} &= \theta_k - \eta_k\, \hat D_k^{-1} \nabla f(\theta_k).

    Divided by the Hessian's diagonal, a gradient is a distance. What is left to choose is one
    number, a fraction of that distance, and the last step has measured it: how much the gradient
    changed over how far the parameters moved, both in the metric :math:`\hat D`, is the
    smoothness that the next step meets. A step may be half its inverse, and grow no faster than
    by the root. So there is no learning rate: :math:`\eta_0` is forgotten after the first step.

    Both gradients of a difference are of the same batch. That costs one more gradient a step, at
    the last point; without it the difference of two batches would pass for curvature.

    Args:
        params: Parameters, named parameters, or groups, of any shape.
        lr: A factor on the steps, without a unit, for schedules to move. The paper has none: 1.
        eta0: The first step, a fraction of the distance :math:`\hat D^{-1} g`. Make it small.
        beta: Decay rate of the diagonal; the paper uses 0.95 to 0.999.
        truncation: Least curvature :math:`\alpha` to divide by, in the unit of curvature; the
            paper uses 1e-5 to 1e-1.
        warm: Hessian products to average for :math:`D_0`, all in the first step. One is noisy,
            and :math:`\beta` keeps it for long: on a fixed problem 10 to 100 are well spent.
        stochastic: False if the loss is the same function in all steps (full batches). Then the
            last gradient is remembered, not asked for: the same steps, with one forward and one
            backward pass less and 4 bytes a parameter more.
        seed: Seed of the signs.
        backend: ``auto``, ``torch``, ``cpu`` or ``triton``.
        nonfinite: What to do about NaN in a gradient or curvature: ``propagate``, ``raise`` or
            ``skip``.

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        RuntimeError: If the forced backend is missing.

    Attributes:
        param_groups: Beside the usual, each has the ``step_size`` :math:`\eta_k` of the last
            step and its ``growth``, for your logs.

    Example:
        Curvatures 1 and 100: the first step is a tenth of the distance in both. It shows that
        the diagonal is right, and the second is half of what is left.

        >>> import torch
        >>> p = torch.nn.Parameter(torch.ones(2))
        >>> h = torch.tensor([1.0, 100.0])
        >>> opt = OASIS([p], eta0=0.1)
        >>> for _ in range(2):
        ...     _ = opt.step(lambda: 0.5 * (h * p**2).sum())
        ...     p.data
        tensor([0.9000, 0.9000])
        tensor([0.4500, 0.4500])

    Reference:
        :cite:t:`jahani2021doubly`.

    Deviations:
        Where nothing moved, or the first difference of gradients is zero, the step size stays as
        it was: the formula is 0 / 0, or infinite. The signs are a function of seed, step and
        place. The paper's variants with momentum and a fixed rate are left out.

    When not to use it:
        Where five passes a step are too many, or the loss has no second derivative worth the
        name. With small noisy batches the step size follows the batch that is most curved.
    """

    oracle = "hvp"
    slots: ClassVar = {
        "diag": Slot("hessian_diagonal"),
        "old": Slot("last_parameter", "parameter"),
    }
    extra_keys: ClassVar = frozenset({"last_gradient"})

    def __init__(
        self,
        params: Params,
        lr: float = 1.0,
        eta0: float = 1e-3,
        beta: float = 0.99,
        truncation: float = 1e-3,
        *,
        warm: int = 1,
        stochastic: bool = True,
        seed: int = 0,
        backend: str = "auto",
        nonfinite: str = "propagate",
    ) -> None:
        defaults = {"lr": lr, "beta": beta, "truncation": truncation, "maximize": False}
        check_hyperparameters("OASIS", {"eta0": eta0, "warm": warm, "seed": seed})
        super().__init__(params, defaults, backend=backend, nonfinite=nonfinite)
        self.seed = seed
        self.eta0 = eta0
        self.warm = warm
        self.stochastic = stochastic
        self._found: dict[Tensor, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def query(self, objective: Objective) -> Answer:
        """Gradient, estimate of the Hessian's diagonal, and change of the gradient."""
        samples = self.warm if self.steps == 0 else 1
        value, gradient, diagonal = hutchinson(objective, self.draw(), samples)
        change = [
            g.to(t) - last.to(t)
            for g, last in zip(gradient, self._last(objective, gradient), strict=True)
            for t in [compute_dtype(g.dtype)]
        ]
        # What is remembered is not what a training loop may clip in .grad.
        keep = None if self.stochastic else [g.clone() for g in gradient]
        return Answer(objective, value, gradient, (diagonal, change, keep))

    def _last(self, objective: Objective, gradient: list[Tensor]) -> list[Tensor]:
        """The gradient at the last point; before there is one, the gradient here."""
        states = [self.state.get(p, {}) for p in objective.params]
        if not self.stochastic:
            return [s.get("last_gradient", g) for s, g in zip(states, gradient, strict=True)]
        params = [p.detach() for p in objective.params]
        home = [p.clone() for p in params]
        try:
            for p, state in zip(params, states, strict=True):
                p.copy_(state.get("last_parameter", p))
            return objective.gradient().gradient
        finally:
            for p, start in zip(params, home, strict=True):
                p.copy_(start)

    def update(self, answer: Answer) -> None:
        """Make the elementwise step."""
        diagonal, change, keep = answer.rest
        finite = self.nonfinite == "propagate" or all(
            t.isfinite().all() for t in (*diagonal, *change)
        )
        if not finite and self.nonfinite == "raise":
            raise RuntimeError("OASIS: curvature or gradient has NaN or infinity; nothing moved")
        if not finite:
            return
        params = answer.objective.params
        self._found = dict(zip(params, zip(diagonal, change, strict=True), strict=True))
        try:
            Elementwise.step(self)
        finally:
            self._found = {}
        for p, g in zip(params, keep or [], strict=False):
            self.state[p]["last_gradient"] = g

    def rule(self, group: Group) -> Rule:
        """The rule of OASIS."""
        return oasis

    def numbers(self, group: Group, step: int) -> dict[str, float]:
        """Factor, truncation, and a decay rate that makes the first estimate the diagonal."""
        return {
            "lr": float(group["lr"]),
            "beta": float(group["beta"]) if step > 1 else 0.0,
            "truncation": float(group["truncation"]),
        }

    def inputs(
        self,
        group: Group,
        params: list[Tensor],
        grads: list[Tensor],
        states: list[dict[str, Any]],
    ) -> dict[str, list[Tensor]]:
        """The estimate of the diagonal."""
        return {"h": [self._found[p][0] for p in params]}

    def coefficients(self, measured: list[Measured], loss: Tensor | None) -> list[Coefficients]:
        """The step size, one for all groups."""
        if not measured:
            return []
        known = [group for group in self.param_groups if "step_size" in group]
        like = torch.zeros((), dtype=torch.float64, device=measured[0].params[0].device)
        if not known:
            eta, growth = like + self.eta0, like + torch.inf
        else:
            before, growth = (known[0][key].to(like) for key in ("step_size", "growth"))
            sums = [self._secant(m) for m in measured]
            moved, changed = (
                torch.cat([s[name].to(like) for s in sums]).sum() for name in ("moved", "changed")
            )
            longest = (1 + growth).sqrt() * before
            eta = torch.minimum(longest, 0.5 * (moved / changed).sqrt())
            eta = torch.where((moved > 0) & ~eta.isinf(), eta, before)
            growth = eta / before
        for group in self.param_groups:
            group["step_size"], group["growth"] = eta, growth
        return [{"eta": eta} for _ in measured]

    def _secant(self, m: Measured) -> dict[str, Tensor]:
        found = [self._found[p] for p in m.params]
        columns = {
            "p": m.params,
            "y": [y for _, y in found],
            "h": [h for h, _ in found],
            **{name: [s[slot.key] for s in m.states] for name, slot in self.slots.items()},
        }
        return apply(
            secant,
            [columns[name] for name in secant.tensors],
            [self.numbers(m.group, state["step"] + 1) for state in m.states],
            range(len(m.params)),
            backend=self.backend,
        )

    def __getstate__(self) -> dict[str, Any]:
        own = {"eta0": self.eta0, "warm": self.warm, "stochastic": self.stochastic}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._found = {}
