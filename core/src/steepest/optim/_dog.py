r"""DoG: a learning rate out of the distance travelled and the gradients met."""

from __future__ import annotations

from typing import ClassVar, final

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

PAPER = "ivgi2023dog"
TITLE = "DoG is SGD's Best Friend: A Parameter-Free Dynamic Step Size Schedule"


@reduction
def dog_norms(p, g, start, *, wd):
    # $g \leftarrow g + \lambda\theta$
    g = g + wd * p
    # $\lVert g \rVert^2$
    gg = xp.sum(g * g)
    # $d = \theta - \theta_0$
    d = p - start
    # $\lVert d \rVert^2$
    dd = xp.sum(d * d)
    # $\lVert \theta \rVert^2$
    pp = xp.sum(p * p)
    return gg, dd, pp


@rule
def dog(p, g, *, lr, rate, wd):
    # $g \leftarrow g + \lambda\theta$
    g = g + wd * p
    # $\theta \leftarrow \theta - c\, \eta_t\, g$
    p = p - lr * rate * g
    return p  # noqa: RET504  (a rule returns names)


def dog_rate(gg, dd, pp, reach, total, *, reps_rel):
    """Rate of a group or a tensor, largest distance and sum of squares with this gradient.

    The sum is not from 0, against 0 / 0, as in the authors' code.
    """
    # $r_0 = r_{\mathrm{rel}}\, (1 + \lVert \theta_0 \rVert)$
    first = reps_rel * (1 + xp.sqrt(pp))
    # $\bar r_{t-1}, \quad \bar r_{-1} = r_0$
    reach = xp.where(reach > 0, reach, first)
    # $\bar r_t = \max(\bar r_{t-1}, \lVert \theta_t - \theta_0 \rVert)$
    reach = xp.maximum(reach, xp.sqrt(dd))
    # $G_t = G_{t-1} + \lVert g_t \rVert^2, \quad G_{-1} = 10^{-8}$
    total = xp.maximum(total, 1e-8) + gg
    # $\eta_t = \bar r_t / \sqrt{G_t}$
    rate = reach / xp.sqrt(total)
    return {"rate": rate, "reach": reach, "total": total}


class _Distance(Elementwise):
    """What DoG and LDoG share: everything but what a distance and a norm are taken over."""

    prepass: ClassVar = dog_norms
    summary: ClassVar = staticmethod(dog_rate)
    slots: ClassVar = {"start": Slot("start", "parameter")}

    def __init__(
        self,
        params: Params,
        lr: float = 1.0,
        reps_rel: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        backend: str = "auto",
        nonfinite: str = "propagate",
    ) -> None:
        defaults = {
            "lr": lr,
            "reps_rel": reps_rel,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults, backend=backend, nonfinite=nonfinite)

    def rule(self, group: Group) -> Rule:
        """The step, once its rate is known."""
        return dog

    def numbers(self, group: Group, step: int) -> dict[str, float]:
        """Factor and decay."""
        return {"lr": float(group["lr"]), "wd": float(group["weight_decay"])}


@final
@method(paper=PAPER, title=TITLE, oracle="gradient", scope="model", state_bytes=4)
class DoG(_Distance):
    r"""DoG, distance over gradients: SGD that makes its own learning rate.

    .. math::

        \bar r_t = \max\bigl(\bar r_{t-1}, \lVert \theta_t - \theta_0 \rVert\bigr), \qquad
        \eta_t = \frac{\bar r_t}{\sqrt{\sum_{s \le t} \lVert g_s \rVert^2}}, \qquad
        \theta_{t+1} = \theta_t - \eta_t g_t.

    The best constant rate for a convex loss is the distance to the minimum over the root of the
    sum of squared gradients. The sum is known when it is needed. The distance is not, but the
    distance travelled is a lower bound up to a factor, and it grows by itself: while it is too
    small, steps are too small, they agree, and it grows exponentially; when it is right, the sum
    below grows as fast as the rate would have to fall. What is left to choose is the first step,
    :math:`\bar r_0 = r_{\mathrm{rel}} (1 + \lVert\theta_0\rVert)`, and within many orders of
    magnitude it does not matter.

    The guarantees are for averages of the iterates: wrap it, ``Averaged(DoG(...))``.

    Args:
        params: Parameters, named parameters, or groups, of any shape. Distances and norms are
            over a group: each has a rate of its own.
        lr: A factor :math:`c` on the rate, without a unit, for schedules to move; leave it at 1.
        reps_rel: First distance, relative to the start's norm: 1e-6, or 1e-4 for a network
            without normalization; too large is worse than too small.
        weight_decay: Coefficient of an L2 penalty; its gradient counts as part of the gradient.
        maximize: Ascend.
        backend: ``auto``, ``torch``, ``cpu`` or ``triton``.
        nonfinite: What to do about NaN in a gradient: ``propagate``, ``raise`` or ``skip``.

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        RuntimeError: If the forced backend is missing.

    Example:
        From 1, the first distance is 0.1 (1 + 1), and so is the first step, whatever the slope.

        >>> p = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
        >>> p.grad = torch.full_like(p, 1000.0)
        >>> DoG([p], reps_rel=0.1).step()
        >>> p.data.round(decimals=6)
        tensor([0.8000], dtype=torch.float64)

    Reference:
        :cite:t:`ivgi2023dog`.

    When not to use it:
        Where gradients never shrink and the start is far: with noise and no average the last
        iterate is poor. With momentum or Adam's preconditioner, of which the theory knows nothing.
        The start is kept in memory, and in checkpoints.
    """


@final
@method(paper=PAPER, title=TITLE, oracle="gradient", scope="tensor", state_bytes=4)
class LDoG(_Distance):
    r"""LDoG, layer-wise DoG: each parameter tensor makes a learning rate of its own.

    .. math::

        \eta_t^\ell = \frac{\max_{s \le t} \lVert \theta_s^\ell - \theta_0^\ell \rVert}
                           {\sqrt{\sum_{s \le t} \lVert g_s^\ell \rVert^2}}
        \quad\text{for each tensor } \ell .

    As :class:`DoG`, with distances and norms over a tensor. Layers whose gradients differ in size
    by orders of magnitude each move at their own pace, as under Adam, at the price of one number
    a tensor.

    Args:
        params: Parameters, named parameters, or groups, of any shape.
        lr: A factor :math:`c` on the rates, for schedules to move; leave it at 1.
        reps_rel: First distance, relative to the norm of the tensor's start.
        weight_decay: Coefficient of an L2 penalty; its gradient counts as part of the gradient.
        maximize: Ascend.
        backend: ``auto``, ``torch``, ``cpu`` or ``triton``.
        nonfinite: What to do about NaN in a gradient: ``propagate``, ``raise`` or ``skip``.

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        RuntimeError: If the forced backend is missing.

    Example:
        Two tensors whose gradients differ by a million make the same first step.

        >>> p, q = (torch.nn.Parameter(torch.zeros(1, dtype=torch.float64)) for _ in range(2))
        >>> p.grad, q.grad = torch.full_like(p, 1e6), torch.ones_like(q)
        >>> LDoG([p, q], reps_rel=0.1).step()
        >>> p.data.round(decimals=6), q.data.round(decimals=6)
        (tensor([-0.1000], dtype=torch.float64), tensor([-0.1000], dtype=torch.float64))

    Reference:
        :cite:t:`ivgi2023dog`.

    When not to use it:
        As for :class:`DoG`. How parameters are cut into tensors decides what it does.
    """

    extra_keys: ClassVar = frozenset({"reach", "total"})

    def coefficients(self, measured: list[Measured], loss: Tensor | None) -> list[Coefficients]:
        """Distance over gradients, one for each tensor."""
        made: list[Coefficients] = []
        for m in measured:
            nothing = torch.zeros_like(m.sums["gg"][0])  # of a tensor that joins late
            kept = {
                key: torch.stack([state.get(key, nothing) for state in m.states])
                for key in sorted(self.extra_keys)
            }
            made.append(summarize(self.summary, m.sums, kept, m.group))
            for key, values in kept.items():
                for state, value in zip(m.states, values, strict=True):
                    state[key] = value.clone()
        return made
