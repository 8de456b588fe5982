r"""diffGrad: Adam with a friction where the gradient stands still."""

from __future__ import annotations

from typing import ClassVar, final

from steepest._registry import method
from steepest.kernels import Rule, rule, xp
from steepest.optim._adam import MOMENTS, moment_numbers
from steepest.optim._base import Elementwise, Group, Params, Slot


@rule
def diffgrad(p, g, m, v, last, *, lr, beta1, beta2, eps, wd, c1, c2):
    # $g \leftarrow g + \lambda\,\theta$
    g = g + wd * p
    # $m \leftarrow \beta_1 m + (1 - \beta_1)\, g$
    m = m + (g - m) * (1 - beta1)
    # $v \leftarrow \beta_2 v + (1 - \beta_2)\, g^2$
    v = v + (g * g - v) * (1 - beta2)
    # $\xi \leftarrow 1 / (1 + e^{-|g - g'|})$
    xi = 1 / (1 + xp.exp(-xp.abs(g - last)))
    # $\theta \leftarrow \theta - \eta\, \xi\, \hat m / (\sqrt{\hat v} + \epsilon)$
    p = p - lr / c1 * xi * m / (xp.sqrt(v) / c2 + eps)
    # $g' \leftarrow g$
    last = g
    return p, m, v, last


@final
@method(
    paper="dubey2019diffgrad",
    title="diffGrad: An Optimization Method for Convolutional Neural Networks",
    oracle="gradient",
    state_bytes=12,
    claims={"bounded_update", "descends_quadratic"},
)
class DiffGrad(Elementwise):
    r"""diffGrad: Adam's step times a friction between 1/2 and 1, by the gradient's last change.

    .. math::

        \xi_t = \frac{1}{1 + e^{-|g_t - g_{t-1}|}}, \qquad
        \theta_t = \theta_{t-1} - \eta\, \xi_t\,
            \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon},

    with Adam's moments :math:`m, v` and :math:`g_0 = 0`. Momentum carries Adam past a minimum at
    full speed. If the gradient hardly changes from step to step, as around a flat minimum, the
    friction halves the step; where it changes much, the step is Adam's. The friction acts on the
    step and not on the moments.

    Args:
        params: Parameters or groups of parameters, of any shape.
        lr: Step :math:`\eta`, in the parameters' units.
        betas: Decay rates of the two moments.
        eps: Added to the root, in the gradient's units.
        weight_decay: Coefficient :math:`\lambda` of an L2 penalty; its gradient enters the
            moments and the difference.
        maximize: Ascend.
        backend: ``auto``, ``torch``, ``cpu`` or ``triton``.
        nonfinite: What to do about NaN in a gradient: ``propagate``, ``raise`` or ``skip``.

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        RuntimeError: If the forced backend is missing.

    Example:
        A gradient that does not change makes half of Adam's step.

        >>> import torch
        >>> p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        >>> opt = DiffGrad([p], lr=0.1)
        >>> path = []
        >>> for _ in range(3):
        ...     p.grad = torch.full_like(p, 100.0)
        ...     opt.step()
        ...     path.append(round(p.item(), 4))
        >>> path
        [-0.1, -0.15, -0.2]

    Reference:
        :cite:t:`dubey2019diffgrad`.

    Deviations:
        None from the paper. The authors' first code kept a reference to the gradient instead of
        a copy, so that the difference was zero; their repository has a second version.

    When not to use it:
        Where gradients are much smaller than 1, as in most networks: the difference has the
        gradient's unit, the friction is 1/2 everywhere, and what remains is Adam with half the
        learning rate and half as much state again.
    """

    slots: ClassVar = {**MOMENTS, "last": Slot("previous_grad")}

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        backend: str = "auto",
        nonfinite: str = "propagate",
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults, backend=backend, nonfinite=nonfinite)

    def rule(self, group: Group) -> Rule:
        """DiffGrad's rule."""
        return diffgrad

    def numbers(self, group: Group, step: int) -> dict[str, float]:
        """Adam's numbers."""
        return {**moment_numbers(group, step), "eps": float(group["eps"])}
