r"""SANIA: Polyak's step in a metric that follows the units of the parameters."""

from __future__ import annotations

from typing import Any, ClassVar, final

import torch
from torch import Tensor

from steepest._registry import method
from steepest.kernels import Rule, reduction, rule, xp
from steepest.optim._base import (
    Coefficients,
    Elementwise,
    Group,
    Measured,
    Params,
    Slot,
    summarize,
)


@rule
def sania(p, g, v, *, lr, lamb, eps):
    # $v \leftarrow v + g^2$
    v = v + g * g
    # $\theta \leftarrow \theta - \lambda\, B^{-1} g, \quad B = \max(v, \epsilon)$
    p = p - lr * lamb * g / xp.maximum(v, eps)
    return p, v


@reduction
def sania_norm(p, g, v, *, eps):
    # $v = v + g^2$
    v = v + g * g
    # $\lVert g \rVert^2_{B^{-1}}$
    square = xp.sum(g * g / xp.maximum(v, eps))
    return square  # noqa: RET504  (a reduction returns names)


@rule
def sania_root(p, g, v, *, lr, lamb, eps):
    # $v \leftarrow v + g^2$
    v = v + g * g
    # $\theta \leftarrow \theta - \lambda\, B^{-1} g, \quad B = \max(\sqrt v, \epsilon)$
    p = p - lr * lamb * g / xp.maximum(xp.sqrt(v), eps)
    return p, v


@reduction
def sania_root_norm(p, g, v, *, eps):
    # $v = v + g^2$
    v = v + g * g
    # $\lVert g \rVert^2_{B^{-1}}$
    square = xp.sum(g * g / xp.maximum(xp.sqrt(v), eps))
    return square  # noqa: RET504


@rule
def sania_adam(p, g, m, v, *, lr, lamb, beta1, beta2, eps, c1, c2):
    # $m \leftarrow \beta_1 m + (1 - \beta_1)\, g$
    m = m + (g - m) * (1 - beta1)
    # $v \leftarrow \beta_2 v + (1 - \beta_2)\, g^2$
    v = v + (g * g - v) * (1 - beta2)
    # $\theta \leftarrow \theta - \lambda\, B^{-1} \hat m, \quad B = \max(\hat v, \epsilon)$
    p = p - lr * lamb / c1 * m / xp.maximum(v / c2, eps)
    return p, m, v


@reduction
def sania_adam_norm(p, g, m, v, *, beta1, beta2, eps, c1, c2):
    # $\hat m$
    m = (m + (g - m) * (1 - beta1)) / c1
    # $\hat v$
    v = (v + (g * g - v) * (1 - beta2)) / c2
    # $\lVert \hat m \rVert^2_{B^{-1}}$
    square = xp.sum(m * m / xp.maximum(v, eps))
    return square  # noqa: RET504


@rule
def sania_identity(p, g, *, lr, lamb):
    # $s = -\lambda\, g$
    s = -lr * lamb * g
    # $\theta \leftarrow \theta + s$
    p = p + s
    return p  # noqa: RET504


@reduction
def sania_identity_norm(p, g):
    # $g^2$
    s = g * g
    # $\lVert g \rVert^2$
    square = xp.sum(s)
    return square  # noqa: RET504


def polyak(square, loss, *, f_star):
    r"""The step :math:`\lambda` down to a known loss, without a difference of numbers near 1."""
    # $f_t - f^*$
    gap = xp.maximum(loss - f_star, 0.0)
    # $\upsilon_t = (f_t - f^*) / \lVert g_t \rVert^2_{B^{-1}}$
    ratio = xp.where(square > 0, gap / square, 0.0)
    # $\min(\upsilon_t, \tfrac12)$
    ratio = xp.minimum(ratio, 0.5)
    # $\lambda_t = 1 - \sqrt{1 - 2 \upsilon_t} = \frac{2 \upsilon_t}{1 + \sqrt{1 - 2 \upsilon_t}}$
    lamb = 2 * ratio / (1 + xp.sqrt(1 - 2 * ratio))
    return {"lamb": lamb}


_METRICS: dict[str, tuple[Rule, Rule]] = {
    "adagrad-sqr": (sania, sania_norm),
    "adam-sqr": (sania_adam, sania_adam_norm),
    "adagrad": (sania_root, sania_root_norm),
    "identity": (sania_identity, sania_identity_norm),
}
"""Update and squared norm by the name of the preconditioner."""


@final
@method(
    paper="abdukhakimov2023sania",
    title="SANIA: Polyak-type Optimization Framework Leads to Scale Invariant Stochastic "
    "Algorithms",
    oracle="gradient",
    scope="model",
    state_bytes=4,
)
class SANIA(Elementwise):
    r"""SANIA: the step that brings a local model of the loss down to its known minimum.

    .. math::

        \theta_{t+1} = \arg\min_\theta \tfrac12 \|\theta - \theta_t\|_B^2
        \quad\text{s.t.}\quad
        f_t + \langle g_t, \theta - \theta_t \rangle + \tfrac12 \|\theta - \theta_t\|_B^2 \le f^*,

    .. math::

        \theta_{t+1} = \theta_t - \lambda_t B_t^{-1} g_t, \qquad
        \lambda_t = 1 - \sqrt{1 - 2 \min(\upsilon_t, \tfrac12)}, \qquad
        \upsilon_t = \frac{f_t - f^*}{\|g_t\|^2_{B_t^{-1}}}.

    The loss of a batch says how far down it is, the gradient how steep: their ratio is a step,
    as Polyak saw, and no learning rate is left. If the model cannot get down to :math:`f^*`, the
    step goes to its minimum, :math:`\lambda = 1`. With :math:`B_t = \operatorname{diag}(\sum_s
    g_s^2)`, *without* AdaGrad's root, :math:`B^{-1} g` has the unit of the parameters: multiply
    a coordinate's gradients by :math:`c`, as a rescaled input does, and the step is divided by
    :math:`c`. So all losses, of training and of predictions, are the same in all units.

    ================ =========================== ================== =================
    preconditioner   :math:`B`                   direction          state, bytes
    ================ =========================== ================== =================
    ``adagrad-sqr``  :math:`\sum g^2`            :math:`g`          4, scale-invariant
    ``adam-sqr``     :math:`\hat v`              :math:`\hat m`     8, scale-invariant
    ``adagrad``      :math:`\sqrt{\sum g^2}`     :math:`g`          4
    ``identity``     1                           :math:`g`          0
    ================ =========================== ================== =================

    ``step`` needs the loss, so give it a closure that clears gradients, computes the loss, calls
    ``backward`` and returns it; Lightning does. One :math:`\lambda` is for the whole model, all
    groups included.

    Args:
        params: Parameters, named parameters, or groups, of any shape.
        lr: A factor on the steps, without a unit, for schedules to move. The paper has none: 1.
        preconditioner: Which :math:`B`, of the table.
        f_star: The least value :math:`f^*` of a batch's loss: 0 for a model that can fit it
            (interpolation). A loss below it makes a step of zero.
        betas: Decay rates of the moments of ``adam-sqr``.
        eps: Least element of :math:`B`, against 0 / 0. It has a unit, the gradient's squared, and
            the invariance ends where it acts. A network needs it larger; 0.1 in the authors' code.
        backend: ``auto``, ``torch``, ``cpu`` or ``triton``.
        nonfinite: What to do about NaN in a gradient: ``propagate``, ``raise`` or ``skip``.

    Raises:
        ValueError: If a hyper-parameter is out of its range, or there is no such preconditioner.
        RuntimeError: If the forced backend is missing; in ``step``, without the loss.

    Example:
        Losses of the same parabola in two units: 1 and 1000. The first step is 1 - sqrt(1 - 0.5)
        of the parameter's own unit, the loss 0.25 over a squared norm of 1.

        >>> import torch
        >>> for unit in (1.0, 1000.0):
        ...     p = torch.nn.Parameter(torch.tensor([0.5 * unit]))
        ...     opt = SANIA([p])
        ...     loss = ((p / unit) ** 2).sum()
        ...     loss.backward()
        ...     _ = opt.step(lambda: loss)
        ...     (p.data / unit)
        tensor([0.2071])
        tensor([0.2071])

    Reference:
        :cite:t:`abdukhakimov2023sania`.

    Deviations:
        A loss below :math:`f^*` is taken for :math:`f^*`. ``eps`` is the least value of
        :math:`B`; the authors' code has 0.1 there, which is not small, and takes :math:`g` for
        :math:`\hat m`, as ``betas=(0.0, 0.999)`` does. Preconditioners from Hessians are left
        out.

    When not to use it:
        Where the least loss is not known to be near :math:`f^*`: with label noise and a small
        model the steps never get small. On networks with the default ``eps``: a coordinate whose
        gradients are all tiny makes huge steps, which is what the invariance means. In several
        processes, or with accumulated gradients: each loss is of one part of the batch, and
        :math:`\lambda` is not that of the whole.
    """

    slots: ClassVar = {"m": Slot("exp_avg"), "v": Slot("squares")}
    summary: ClassVar = staticmethod(polyak)
    needs_loss: ClassVar = True

    def __init__(
        self,
        params: Params,
        lr: float = 1.0,
        preconditioner: str = "adagrad-sqr",
        f_star: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-10,
        *,
        backend: str = "auto",
        nonfinite: str = "propagate",
    ) -> None:
        defaults = {
            "lr": lr,
            "preconditioner": preconditioner,
            "f_star": f_star,
            "betas": betas,
            "eps": eps,
            "maximize": False,
        }
        super().__init__(params, defaults, backend=backend, nonfinite=nonfinite)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as ``torch.optim``; a bad one changes nothing."""
        group = {**self.defaults, **param_group}
        if group["preconditioner"] not in _METRICS:
            raise ValueError(
                f"SANIA: preconditioner={group['preconditioner']!r}: choose one of "
                f"{', '.join(_METRICS)}"
            )
        shared = {"preconditioner", "f_star"} & {*param_group}
        if any(param_group[key] != self.defaults[key] for key in shared):
            raise ValueError("SANIA: all groups have one preconditioner and one f_star: the step's")
        super().add_param_group(param_group)

    @property
    def prepass(self) -> Rule:  # type: ignore[override]
        """The squared norm in the metric."""
        return _METRICS[self.param_groups[0]["preconditioner"]][1]

    def rule(self, group: Group) -> Rule:
        """The update in the metric."""
        return _METRICS[group["preconditioner"]][0]

    def numbers(self, group: Group, step: int) -> dict[str, float]:
        """Adam's numbers; most preconditioners use few of them."""
        beta1, beta2 = map(float, group["betas"])
        return {
            "lr": float(group["lr"]),
            "beta1": beta1,
            "beta2": beta2,
            "c1": 1 - beta1**step,
            "c2": 1 - beta2**step,
            "eps": float(group["eps"]),
        }

    def coefficients(self, measured: list[Measured], loss: Tensor | None) -> list[Coefficients]:
        r"""The step :math:`\lambda`, one for all groups."""
        assert loss is not None
        if not measured:
            return []
        device = measured[0].params[0].device
        square = torch.cat([m.sums["square"].to(device) for m in measured]).sum()
        sums = {"square": square, "loss": loss.to(device)}
        lamb = summarize(polyak, sums, {}, measured[0].group)["lamb"]
        return [{"lamb": lamb} for _ in measured]
