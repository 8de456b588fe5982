r"""Adam and AdaMax: one moment for the direction, one for the scale."""

from __future__ import annotations

import math
from typing import ClassVar

from steepest._registry import method
from steepest.kernels import Rule, rule, xp
from steepest.optim._base import Elementwise, Group, Params, Slot

MOMENTS = {"m": Slot("exp_avg"), "v": Slot("exp_avg_sq")}


@rule
def adam(p, g, m, v, *, lr, beta1, beta2, eps, wd, c1, c2):
    # $g \leftarrow g + \lambda\,\theta$
    g = g + wd * p
    # $m \leftarrow \beta_1 m + (1 - \beta_1)\, g$
    m = m + (g - m) * (1 - beta1)
    # $v \leftarrow \beta_2 v + (1 - \beta_2)\, g^2$
    v = v + (g * g - v) * (1 - beta2)
    # $\theta \leftarrow \theta - \eta\, \hat m / (\sqrt{\hat v} + \epsilon)$
    p = p - lr / c1 * m / (xp.sqrt(v) / c2 + eps)
    return p, m, v


@rule
def amsgrad(p, g, m, v, vmax, *, lr, beta1, beta2, eps, l2, wd, c1, c2):
    # $g \leftarrow g + \lambda_2\,\theta$
    g = g + l2 * p
    # $\theta \leftarrow (1 - \eta\lambda)\,\theta$
    p = p * (1 - lr * wd)
    # $m \leftarrow \beta_1 m + (1 - \beta_1)\, g$
    m = m + (g - m) * (1 - beta1)
    # $v \leftarrow \beta_2 v + (1 - \beta_2)\, g^2$
    v = v + (g * g - v) * (1 - beta2)
    # $v^{\max} \leftarrow \max(v^{\max}, v)$
    vmax = xp.maximum(vmax, v)
    # $\theta \leftarrow \theta - \eta\, \hat m / (\sqrt{\hat v^{\max}} + \epsilon)$
    p = p - lr / c1 * m / (xp.sqrt(vmax) / c2 + eps)
    return p, m, v, vmax


@rule
def adamax(p, g, m, u, *, lr, beta1, beta2, wd, c1):
    # $g \leftarrow g + \lambda\,\theta$
    g = g + wd * p
    # $m \leftarrow \beta_1 m + (1 - \beta_1)\, g$
    m = m + (g - m) * (1 - beta1)
    # $u \leftarrow \max(\beta_2 u, |g|)$
    u = xp.maximum(beta2 * u, xp.abs(g))
    # $\theta \leftarrow \theta - \eta\, \hat m / u \quad (0\ \text{where}\ u = 0)$
    p = p - lr / c1 * m / xp.where(u > 0, u, 1)
    return p, m, u


def moment_numbers(group: Group, step: int) -> dict[str, float]:
    r"""Learning rate, decay rates and the bias corrections of Adam.

    ``c1`` is :math:`1 - \beta_1^t` and ``c2`` is :math:`\sqrt{1 - \beta_2^t}`.
    """
    beta1, beta2 = map(float, group["betas"])
    return {
        "lr": float(group["lr"]),
        "beta1": beta1,
        "beta2": beta2,
        "wd": float(group["weight_decay"]),
        "c1": 1 - beta1**step,
        "c2": math.sqrt(1 - beta2**step),
    }


def refuse(name: str, **options: bool) -> None:
    """Refuse the options of ``torch.optim`` that would need another implementation."""
    for option, wanted in options.items():
        if wanted:
            raise ValueError(
                f"{name} has no {option}=True: leave it out, or use torch.optim.{name}"
            )


@method(
    paper="kingma2015adam",
    title="Adam: A Method for Stochastic Optimization",
    oracle="gradient",
    state_bytes=8,
    claims={"scale_invariant", "bounded_update", "descends_quadratic"},
)
class Adam(Elementwise):
    r"""Adam: each coordinate's mean gradient over its root mean square.

    .. math::

        m_t &= \beta_1 m_{t-1} + (1 - \beta_1)\, g_t, \qquad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2)\, g_t^2, \\
        \theta_t &= \theta_{t-1} - \eta\,
            \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}.

    The ratio has no unit: scale a coordinate's gradients by :math:`c` and, up to
    :math:`\epsilon`, nothing changes. A step is therefore about :math:`\eta` long in every
    coordinate, in the parameter's own units. Both moments start at zero; the divisions by
    :math:`1 - \beta^t` undo that bias, and make the first step :math:`-\eta\,\mathrm{sign}(g)`.

    A drop-in replacement for ``torch.optim.Adam``: same arguments, same trajectory, and
    checkpoints load both ways.

    Args:
        params: Parameters or groups of parameters, of any shape.
        lr: Step :math:`\eta`, in the parameters' units. The paper's default is 1e-3.
        betas: Decay rates of the two moments; memories of about :math:`1/(1-\beta)` steps.
        eps: Added to the root, in the gradient's units.
        weight_decay: Coefficient :math:`\lambda` of an L2 penalty; its gradient enters the
            moments. For decay that does not, see :class:`AdamW`.
        amsgrad: Divide by the largest second moment so far :cite:p:`reddi2018convergence`.
        foreach: Accepted for compatibility; ``backend`` decides how a step runs.
        maximize: Ascend.
        capturable: Not available.
        differentiable: Not available.
        fused: Accepted for compatibility, like ``foreach``.
        backend: ``auto``, ``torch``, ``cpu`` or ``triton``.
        nonfinite: What to do about NaN in a gradient: ``propagate``, ``raise`` or ``skip``.

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        RuntimeError: If the forced backend is missing.

    Example:
        The first step has length ``lr``, whatever the gradient's scale.

        >>> import torch
        >>> p = torch.nn.Parameter(torch.tensor([1.0, 1.0], dtype=torch.float64))
        >>> p.grad = torch.tensor([1e3, -1e-3], dtype=torch.float64)
        >>> Adam([p], lr=0.1, eps=0.0).step()
        >>> p.data
        tensor([0.9000, 1.1000], dtype=torch.float64)

    Reference:
        :cite:t:`kingma2015adam`. Its proof of convergence has a gap, found by
        :cite:t:`reddi2018convergence`, whose repair is ``amsgrad=True``.

    When not to use it:
        With weight decay, take :class:`AdamW`. Where gradients are tiny, ``eps`` takes over;
        take :class:`AdamAtan2`. Where memory is short: it keeps two numbers a parameter.
    """

    slots: ClassVar = {**MOMENTS, "vmax": Slot("max_exp_avg_sq")}

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        backend: str = "auto",
        nonfinite: str = "propagate",
    ) -> None:
        refuse("Adam", capturable=capturable, differentiable=differentiable)
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
        }
        super().__init__(params, defaults, backend=backend, nonfinite=nonfinite)

    def rule(self, group: Group) -> Rule:
        """Adam's rule, or AMSGrad's."""
        return amsgrad if group["amsgrad"] else adam

    def numbers(self, group: Group, step: int) -> dict[str, float]:
        """Adam's numbers; for AMSGrad, weight decay is the L2 kind."""
        numbers = {**moment_numbers(group, step), "eps": float(group["eps"])}
        return {**numbers, "l2": numbers["wd"], "wd": 0.0} if group["amsgrad"] else numbers


@method(
    paper="kingma2015adam",
    title="Adam: A Method for Stochastic Optimization",
    oracle="gradient",
    state_bytes=8,
    claims={"scale_invariant", "bounded_update", "descends_quadratic"},
)
class AdaMax(Elementwise):
    r"""AdaMax: Adam with a decaying maximum in place of the root mean square.

    .. math::

        u_t = \max(\beta_2 u_{t-1}, |g_t|), \qquad
        \theta_t = \theta_{t-1} - \frac{\eta}{1 - \beta_1^t}\, \frac{m_t}{u_t}.

    It is Adam with the :math:`p`-norm of past gradients, :math:`p \to \infty`. The maximum is
    not biased towards zero, so it needs no correction, and :math:`|m_t| \le u_t` would bound a
    step by :math:`\eta` if both forgot equally fast.

    Args:
        params: Parameters or groups of parameters, of any shape.
        lr: Step :math:`\eta`, in the parameters' units. The paper's default is 2e-3.
        betas: Decay rates of the mean and of the maximum.
        weight_decay: Coefficient :math:`\lambda` of an L2 penalty.
        maximize: Ascend.
        backend: ``auto``, ``torch``, ``cpu`` or ``triton``.
        nonfinite: What to do about NaN in a gradient: ``propagate``, ``raise`` or ``skip``.

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        RuntimeError: If the forced backend is missing.

    Example:
        >>> import torch
        >>> p = torch.nn.Parameter(torch.tensor([1.0, 1.0], dtype=torch.float64))
        >>> p.grad = torch.tensor([1e3, 0.0], dtype=torch.float64)
        >>> AdaMax([p], lr=0.1).step()
        >>> p.data
        tensor([0.9000, 1.0000], dtype=torch.float64)

    Reference:
        :cite:t:`kingma2015adam`, section 7.1.

    Deviations:
        The paper divides by :math:`u_t`, zero for a coordinate that has had no gradient yet;
        such a coordinate stays where it is. ``torch.optim.Adamax`` adds ``eps`` to
        :math:`|g_t|` instead, which ties the step to the gradient's scale.

    When not to use it:
        One outlier gradient shortens the steps for about :math:`1/(1-\beta_2)` iterations.
    """

    slots: ClassVar = {"m": Slot("exp_avg"), "u": Slot("exp_inf")}

    def __init__(
        self,
        params: Params,
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        backend: str = "auto",
        nonfinite: str = "propagate",
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, defaults, backend=backend, nonfinite=nonfinite)

    def rule(self, group: Group) -> Rule:
        """AdaMax's rule."""
        return adamax

    def numbers(self, group: Group, step: int) -> dict[str, float]:
        """Adam's numbers."""
        return moment_numbers(group, step)
