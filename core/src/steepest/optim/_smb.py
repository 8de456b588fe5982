r"""SMB: a step that was too long is repaired by a model, not cut back."""

from __future__ import annotations

from typing import Any, final

import torch

from steepest._registry import method
from steepest.kernels import apply, rule
from steepest.kernels._apply import compute_dtype
from steepest.optim._base import Params, real
from steepest.optim._checks import check_hyperparameters
from steepest.optim._oracle import Answer, OracleDriven
from steepest.oracles import Objective

_RARE, _FACTOR, _LARGEST = 0.05, 0.9, 20.0
"""Of the schedule: a tolerable share of failures, the factor on lr, and its largest value."""


@rule
def model_step(p, g, y, *, norm, change, eta):
    # $a = \frac{\eta\,(G + \eta Y)}{G + 2 \eta Y}$
    a = eta * (norm + eta * change) / (norm + 2 * eta * change)
    # $b = \frac{\eta^2 G}{G + 2 \eta Y}$
    b = eta * eta * norm / (norm + 2 * eta * change)
    # $\tilde g = a\, g + b\, y$
    g = a * g + b * y
    return g  # noqa: RET504  (a rule returns names)


@final
@method(
    paper="birbil2021bolstering",
    title="Bolstering Stochastic Gradient Descent with Model Building",
    oracle="gradient",
    scope="tensor",
    forward=3,
    backward=2,
    claims={"descends_quadratic"},
)
class SMB(OracleDriven):
    r"""SMB (stochastic model building): SGD whose failed steps are repaired.

    With the gradient :math:`g` and the trial step :math:`s = -\alpha g`, on one batch:

    .. math::

        f(\theta + s) \le f(\theta) - c\,\alpha \|g\|^2
        \;\Rightarrow\; \theta \leftarrow \theta + s; \qquad
        \text{else}\quad \theta \leftarrow \theta - \alpha \tilde g,

    .. math::

        \tilde g = \eta\, \frac{(\|g\| + \eta \|y\|)\, g + \eta \|g\|\, y}{\|g\| + 2\eta \|y\|},
        \qquad y = \nabla f(\theta + s) - g,

    the latter for each parameter tensor by itself. A failed trial is not wasted: the gradient
    there says how the slope changes along the step, and :math:`\tilde g` is the minimizer of a
    quadratic model that is built from both ends. It turns the direction and does not only
    shorten it. Two facts hold whatever the loss: :math:`\langle g, \tilde g \rangle > 0`, and
    :math:`\|\tilde g\| \le \eta \|g\|`. So a step costs two gradients at most, where a line
    search tries until it succeeds; the repaired step is not tested again.

    Args:
        params: Parameters, named parameters, or groups, of any shape.
        lr: Step :math:`\alpha` of the trial, in units of parameter per gradient. The test is one
            for all groups, whatever their rates.
        eta: Bound :math:`\eta` on the repaired step, as a fraction of the trial, below 1.
        c: Share of the decrease that the slope promises, which a trial has to bring; in [0, 1).
        period: Steps after which to reschedule ``lr``; 0 for never. The paper does so each
            epoch: by a factor of 0.9 if more than 5 % of the trials failed, else by 1 / 0.9, as
            long as it stays below 20.

    Raises:
        ValueError: If a hyper-parameter is out of its range.

    Example:
        On a parabola of curvature 1 and from 1, the trial with lr = 4 lands at -3. The model
        goes to 0.556: at most half of the way to the minimum, however long the trial.

        >>> p = torch.nn.Parameter(torch.tensor([1.0]))
        >>> _ = SMB([p], lr=4.0, eta=1.0).step(lambda: 0.5 * (p**2).sum())
        >>> p.data
        tensor([0.5556])

    Reference:
        :cite:t:`birbil2021bolstering`.

    Deviations:
        The closed form of :math:`\tilde g` is the paper's step with its coefficients worked out.
        Only failed trials are differentiated. With several groups the paper's code tests each
        in turn, at a point where earlier groups have moved; here there is one test. The
        variant that takes an independent batch for the model (SMBi) is left out.

    When not to use it:
        Where the loss of a batch is not one function: SMB compares two of its values. Or with a
        rate so large that most trials fail: then a step costs five passes, and plain SGD at a
        smaller rate is cheaper.
    """

    oracle = "gradient"

    def __init__(
        self,
        params: Params,
        lr: float = 1.0,
        eta: float = 0.99,
        c: float = 0.1,
        period: int = 0,
    ) -> None:
        defaults = {"lr": lr, "eta": eta, "c": c, "period": period, "failed": 0}
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as ``torch.optim``; a bad one changes nothing."""
        check_hyperparameters("SMB", {**self.defaults, **param_group})
        super().add_param_group(param_group)

    @torch.no_grad()
    def query(self, objective: Objective) -> Answer:
        """The gradient if its step passes the test, else the one that the model makes of it."""
        groups = {p: group for group in self.param_groups for p in group["params"]}
        for group in self.param_groups:
            check_hyperparameters("SMB", group)
        value, gradient = objective.gradient()
        own = [groups[p] for p in objective.params]
        norms = torch.stack([_norm(g) for g in gradient])
        promised = sum(
            float(group["c"]) * float(group["lr"]) * norm.square()
            for group, norm in zip(own, norms, strict=True)
        )
        params = [p.detach() for p in objective.params]
        home = [p.clone() for p in params]
        try:
            for p, g, group in zip(params, gradient, own, strict=True):
                p.add_(g, alpha=-float(group["lr"]))
            trial = objective.value()
            # Of a gradient that is all rounding a test would say nothing.
            passed = bool((trial <= value - promised) | (norms.norm() < 1e-8))
            ahead = gradient if passed else objective.gradient().gradient
        finally:
            for p, start in zip(params, home, strict=True):
                p.copy_(start)
        if not passed:
            types = [compute_dtype(real(g).dtype) for g in gradient]
            change = [
                real(a).to(t) - real(g).to(t)
                for a, g, t in zip(ahead, gradient, types, strict=True)
            ]
            changes = torch.stack([_norm(y) for y in change])
            if not changes.isfinite().all():
                raise RuntimeError(
                    f"SMB: the gradient at the trial point, or here, has NaN or infinity (the loss "
                    f"is {value:.4g} here, {trial:.4g} there); nothing has moved: lower lr"
                )
            # 0 / 0 for a tensor that the loss does not depend on.
            norms = torch.where(norms + changes > 0, norms, 1.0)
            apply(
                model_step,
                [[real(p) for p in params], [real(g) for g in gradient], change],
                [{"eta": float(group["eta"])} for group in own],
                range(len(own)),
                vectors={"norm": norms, "change": changes},
            )
        return Answer(objective, value, gradient, not passed)

    @torch.no_grad()
    def update(self, answer: Answer) -> None:
        """Step along what is in ``.grad``, and reschedule the learning rate."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.add_(p.grad, alpha=-float(group["lr"]))
            group["failed"] += int(answer.rest)
            if group["period"] and (self.steps + 1) % group["period"] == 0:
                if group["failed"] > _RARE * group["period"]:
                    group["lr"] *= _FACTOR
                elif group["lr"] / _FACTOR <= _LARGEST:
                    group["lr"] /= _FACTOR
                group["failed"] = 0


def _norm(t: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(real(t), dtype=torch.float64)
