r"""Curvature against the learning rate: how far a run is from the edge of stability."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from steepest._registry import method
from steepest.oracles import Objective
from steepest.probes._lanczos import lanczos

PAPER = "gilmer2021loss"
TITLE = "A Loss Curvature Perspective on Training Instability in Deep Learning"


class Stability(NamedTuple):
    """Answer of :func:`stability`."""

    curvature: float
    r"""Largest eigenvalue :math:`\lambda_1` of the Hessian, preconditioned if the method is."""
    edge: float
    """The curvature at which this optimizer's steps begin to grow."""

    @property
    def ratio(self) -> float:
        """Curvature over edge: above 1, steps along the steepest direction grow."""
        return self.curvature / self.edge


@method(paper=PAPER, title=TITLE, oracle="hvp", forward=20, backward=40)
def stability(
    objective: Objective, optimizer: Optimizer, *, steps: int = 20, seed: int = 0
) -> Stability:
    r"""Measure how close an optimizer is to the edge of stability, where the run is now.

    .. math::

        \lambda_1\bigl(P^{-1/2} H P^{-1/2}\bigr) \quad\text{against}\quad
        \text{edge} = \frac{\text{threshold}}{\eta},

    with :math:`P = I` for methods with one scale, and for Adam with
    :math:`P = (1 - \beta_1^t) \bigl(\sqrt{\hat v} + \epsilon\bigr)`, the scale of its next step.
    A ratio above 1 means that the loss will rise along the steepest direction, until curvature
    gives way or the run does. Warm-up keeps it near 1 while the rate grows.

    Args:
        objective: The loss over the optimizer's parameters, on one fixed batch, the larger the
            better: on a small one curvature is larger. Nothing changes.
        optimizer: An SGD (``momentum`` and ``nesterov`` in its groups) or an Adam (``betas``,
            ``eps``, state ``exp_avg_sq``), of torch or of this package. Groups share their
            rate and momentum.
        steps: Lanczos' steps, one forward and two backward passes each.
        seed: Seed of their start.

    Returns:
        :class:`Stability`.

    Raises:
        ValueError: If groups differ in rate or momentum, or an Adam has made no step yet.
        FloatingPointError: If curvature is not finite.

    Example:
        Curvatures 1 and 10 at a learning rate of 0.1: half of what is stable.

        >>> p = torch.ones(2, dtype=torch.float64, requires_grad=True)
        >>> f = Objective(lambda: 0.5 * p[0] ** 2 + 5 * p[1] ** 2, [p])
        >>> result = stability(f, torch.optim.SGD([p], lr=0.1))
        >>> round(result.curvature, 6), result.edge, round(result.ratio, 6)
        (10.0, 20.0, 0.5)

    Reference:
        :cite:t:`gilmer2021loss`.

    Deviations:
        Lanczos' method in place of power iteration, which would return a negative eigenvalue if
        that is the largest in size.

    When not to use it:
        At every step: it costs as much as 60 passes.
    """
    groups = optimizer.param_groups
    facts = {(float(g["lr"]), _momentum(g), bool(g.get("nesterov"))) for g in groups}
    if len(facts) > 1:
        raise ValueError("groups differ in rate or momentum: there is no one edge for all")
    ((lr, momentum, nesterov),) = facts
    if "betas" in groups[0]:
        places = {p: g for g in groups for p in g["params"]}
        scale = [_scale(optimizer.state.get(p, {}), places.get(p)) for p in objective.params]
        threshold = stability_threshold("adam", momentum)
    else:
        scale = None
        threshold = stability_threshold("nesterov" if nesterov else "heavy-ball", momentum)
    spectrum = lanczos(objective, steps, seed, scale=scale)
    return Stability(float(spectrum.values[-1]), threshold / lr if lr else math.inf)


@method(paper=PAPER, title=TITLE, oracle="none", forward=0, backward=0)
def stability_threshold(optimizer: str = "gd", momentum: float = 0.0) -> float:
    r"""Largest stable :math:`\eta\lambda_1` of an optimizer on a quadratic.

    .. math::

        \begin{array}{ll}
        \text{gradient descent} & 2 \\
        \text{heavy ball} & 2 (1 + \mu) \\
        \text{Nesterov} & 2 (1 + \mu) / (1 + 2\mu) \\
        \text{Adam} & 2 (1 + \beta_1) / (1 - \beta_1)
        \end{array}

    Along an eigenvector each is a linear recursion, which grows if a root of its polynomial is
    outside the unit circle; the first to leave does so at :math:`-1`. Momentum helps heavy ball
    to larger rates, since it damps the oscillation, and Nesterov's to smaller ones. Adam is
    heavy ball with steps :math:`1 - \beta_1` times as long, on the preconditioned Hessian
    :math:`P^{-1} H`; 38 at :math:`\beta_1 = 0.9`.

    Args:
        optimizer: ``gd``, ``heavy-ball``, ``nesterov`` or ``adam``.
        momentum: :math:`\mu` or :math:`\beta_1`, in [0, 1).

    Returns:
        The threshold; divide it by the learning rate for the largest stable curvature.

    Raises:
        ValueError: If the optimizer is not known, or the momentum is out of range.

    Example:
        >>> [round(stability_threshold(m, 0.9), 2) for m in ("heavy-ball", "nesterov", "adam")]
        [3.8, 1.36, 38.0]

    Reference:
        :cite:t:`gilmer2021loss`.

    When not to use it:
        As a limit on stochastic steps: noise lowers it.
    """
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum={momentum!r} is not valid: give a number in [0, 1)")
    thresholds = {
        # $\eta\lambda_1 < 2$
        "gd": 2.0,
        # $2 (1 + \beta)$
        "heavy-ball": 2 * (1 + momentum),
        # $2 (1 + \beta) / (1 + 2\beta)$
        "nesterov": 2 * (1 + momentum) / (1 + 2 * momentum),
        # $2 (1 + \beta_1) / (1 - \beta_1)$
        "adam": 2 * (1 + momentum) / (1 - momentum),
    }
    if optimizer not in thresholds:
        raise ValueError(f"optimizer={optimizer!r} is not known: choose of {', '.join(thresholds)}")
    return thresholds[optimizer]


@method(paper=PAPER, title=TITLE, oracle="none", forward=0, backward=0)
def instability_index(losses: Iterable[float]) -> float:
    r"""How far the loss of a run rose above the lowest it had seen.

    .. math::

        \max_t \frac{L_t}{\min_{s \le t} L_s}.

    1 for a run that never rises, infinity for one that ends in NaN.

    Args:
        losses: Training losses above 0, in their order; at least one.

    Raises:
        ValueError: If there is none, or one is not positive.

    Example:
        >>> instability_index([2.0, 1.0, 3.0, 0.5])
        3.0

    Reference:
        :cite:t:`gilmer2021loss`.

    Deviations:
        The paper speaks of instability as what one sees in a curve; this number is ours.

    When not to use it:
        On losses of small batches, whose noise it would report.
    """
    loss = torch.tensor([*losses], dtype=torch.float64)
    if not len(loss) or (loss <= 0).any():
        raise ValueError("give at least one loss, and only losses above 0")
    if not loss.isfinite().all():
        return math.inf
    return float((loss / loss.cummin(0).values).max())


def _momentum(group: dict[str, Any]) -> float:
    return float(group["betas"][0] if "betas" in group else group.get("momentum", 0.0))


def _scale(state: dict[str, Any], group: dict[str, Any] | None) -> Tensor:
    """The root of a step's scale, with which Adam multiplies each coordinate's gradient."""
    if group is None or "exp_avg_sq" not in state:
        raise ValueError("Adam has no second moment of a parameter yet: measure after a step")
    t = int(state["step"])
    v: Tensor = state.get("max_exp_avg_sq", state["exp_avg_sq"]) / (1 - group["betas"][1] ** t)
    return ((1 - group["betas"][0] ** t) * (v.sqrt() + group["eps"])).rsqrt()
