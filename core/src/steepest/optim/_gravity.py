r"""Gravity: a response to the gradient that falls again where the gradient is large."""

from __future__ import annotations

from typing import Any, ClassVar, final

import torch
from torch import Tensor

from steepest._registry import method
from steepest.kernels import Rule, add_noise_, offsets, rule
from steepest.optim._base import Coefficients, Elementwise, Group, Measured, Params, Slot


@rule
def gravity(p, g, v, *, lr, beta, peak):
    # $r \leftarrow g \cdot \max|G|$
    r = g * peak
    # $\zeta \leftarrow g / (1 + r^2)$
    zeta = g / (1 + r * r)
    # $V \leftarrow \hat\beta\, V + (1 - \hat\beta)\, \zeta$
    v = v + (zeta - v) * (1 - beta)
    # $\theta \leftarrow \theta - \eta\, V$
    p = p - lr * v
    return p, v


@final
@method(
    paper="bahrami2021gravity",
    title="Gravity Optimizer: a Kinematic Approach on Optimization in Deep Learning",
    oracle="gradient",
    scope="tensor",
    state_bytes=4,
    claims={"descends_quadratic"},
)
class Gravity(Elementwise):
    r"""Gravity: momentum on a bounded response, linear in small gradients, damping large ones.

    With :math:`G` the gradient of a whole tensor and :math:`g` one element of it:

    .. math::

        \zeta_t &= \frac{g_t}{1 + (g_t \max|G_t|)^2}, \qquad
        V_t = \hat\beta_t V_{t-1} + (1 - \hat\beta_t)\, \zeta_t, \qquad
        \hat\beta_t = \frac{\beta t + 1}{t + 2}, \\
        \theta_t &= \theta_{t-1} - \eta\, V_t, \qquad
        V_0 \sim \mathcal{N}\bigl(0, (\alpha / \eta)^2\bigr).

    The response has slope 1 at zero, its peak at :math:`|g| = 1 / \max|G|`, and is never above
    :math:`1 / (2 \max|G|)`: the larger a tensor's largest gradient, the *shorter* its step. An
    exploding batch changes next to nothing. The picture is a ball on an incline, whose motion
    along the ground is fastest at 45 degrees. :math:`\hat\beta` rises from
    :math:`(1 + \beta) / 3` to :math:`\beta`, in place of a bias correction.

    Args:
        params: Parameters, named parameters, or groups. The maximum is over each tensor. With
            names, an element's initial velocity belongs to the tensor's name; without, to its
            place in the group.
        lr: Step :math:`\eta`, in units of parameter per gradient.
        alpha: Scale :math:`\alpha` of the initial velocity, in the parameters' units: the first
            displacement that is not the gradient's is :math:`\hat\beta_1 \alpha` in root mean
            square, whatever ``lr``.
        beta: Limit :math:`\beta` of the decay rate.
        seed: Seed of the initial velocity, which is a function of it and of the element.
        maximize: Ascend.
        backend: ``auto``, ``torch``, ``cpu`` or ``triton``.
        nonfinite: What to do about NaN in a gradient: ``propagate``, ``raise`` or ``skip``.

    Raises:
        ValueError: If a hyper-parameter is out of its range, or ``lr`` is 0 at the start and
            ``alpha`` is not.
        RuntimeError: If the forced backend is missing.

    Example:
        Two tensors alike but for their scale: the larger gradient makes the shorter step.

        >>> import torch
        >>> p, q = (torch.nn.Parameter(torch.zeros(1, dtype=torch.float64)) for _ in range(2))
        >>> p.grad, q.grad = torch.ones_like(p), 10 * torch.ones_like(q)
        >>> Gravity([p, q], lr=1.0, alpha=0.0, beta=0.5).step()
        >>> p.data, q.data.round(decimals=5)
        (tensor([-0.2500], dtype=torch.float64), tensor([-0.0005], dtype=torch.float64))

    Reference:
        :cite:t:`bahrami2021gravity`.

    Deviations:
        Steps are counted for each parameter. :math:`V_0` is made at a parameter's first step,
        with the learning rate that its group had at the start.

    When not to use it:
        Where gradients above 1 are usual and no accident: there the response falls, and steep
        directions move slower than flat ones. The loss then has a unit that matters; scale it.
    """

    slots: ClassVar = {"v": Slot("velocity")}

    def __init__(
        self,
        params: Params,
        lr: float = 0.1,
        alpha: float = 0.01,
        beta: float = 0.9,
        seed: int = 0,
        *,
        maximize: bool = False,
        backend: str = "auto",
        nonfinite: str = "propagate",
    ) -> None:
        defaults = {"lr": lr, "alpha": alpha, "beta": beta, "seed": seed, "maximize": maximize}
        super().__init__(params, defaults, backend=backend, nonfinite=nonfinite)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as ``torch.optim``; a bad one changes nothing."""
        group = {**self.defaults, **param_group}
        if group["lr"] == 0 and group["alpha"] != 0:
            raise ValueError("Gravity: an initial velocity of alpha/lr needs an lr above 0")
        super().add_param_group(param_group)

    def rule(self, group: Group) -> Rule:
        """Gravity's rule."""
        return gravity

    def numbers(self, group: Group, step: int) -> dict[str, float]:
        r"""Learning rate, and the decay rate :math:`\hat\beta` of the step."""
        # $\hat\beta = (\beta t + 1) / (t + 2)$
        decay = (float(group["beta"]) * step + 1) / (step + 2)
        return {"lr": float(group["lr"]), "beta": decay}

    def inputs(
        self,
        group: Group,
        params: list[Tensor],
        grads: list[Tensor],
        states: list[dict[str, Any]],
    ) -> dict[str, list[Tensor]]:
        """Nothing to read; before a first step, make the initial velocity."""
        everything = [torch.view_as_real(p) if p.is_complex() else p for p in group["params"]]
        places = offsets(everything, group.get("param_names"))
        place = dict(zip(group["params"], places, strict=True))
        for p, state in zip(params, states, strict=True):
            if state["step"] == 0:
                scale = float(group["alpha"]) / (float(group["base_lr"]) or 1.0)
                add_noise_([state["velocity"].zero_()], group["seed"], scale, start=[place[p]])
        return {}

    def coefficients(self, measured: list[Measured], loss: Tensor | None) -> list[Coefficients]:
        """Largest gradient of each tensor."""
        return [{"peak": torch.stack([peak(g) for g in m.grads])} for m in measured]


def peak(g: Tensor) -> Tensor:
    """Largest magnitude in a tensor, 0 in an empty one."""
    if not g.numel():
        return g.new_zeros((), dtype=torch.float64)
    # $\min G,\ \max G$
    low, high = g.aminmax()
    # $\max|G| = \max(-\min G, \max G)$
    return torch.maximum(-low, high).double()
