r"""Adam-atan2: Adam without an epsilon."""

from __future__ import annotations

from typing import ClassVar

from steepest._registry import method
from steepest.kernels import Rule, rule, xp
from steepest.optim._adam import MOMENTS, moment_numbers
from steepest.optim._base import Elementwise, Group, Params


@rule
def adam_atan2(p, g, m, v, *, lr, beta1, beta2, wd, a, b, c1, c2):
    # $\theta \leftarrow (1 - \eta\lambda)\,\theta$
    p = p * (1 - lr * wd)
    # $m \leftarrow \beta_1 m + (1 - \beta_1)\, g$
    m = m + (g - m) * (1 - beta1)
    # $v \leftarrow \beta_2 v + (1 - \beta_2)\, g^2$
    v = v + (g * g - v) * (1 - beta2)
    # $\theta \leftarrow \theta - \eta\, a \mathrm{atan2}(\hat m,\; b \sqrt{\hat v})$
    p = p - lr * a * xp.atan2(m / c1, b / c2 * xp.sqrt(v))
    return p, m, v


@method(
    paper="everett2024scaling",
    title="Scaling Exponents Across Parameterizations and Optimizers",
    oracle="gradient",
    state_bytes=8,
    claims={"scale_invariant", "bounded_update", "descends_quadratic", "uniform_decay"},
)
class AdamAtan2(Elementwise):
    r"""Adam-atan2: the ratio of Adam's moments taken as an angle, so that nothing is added to it.

    .. math::

        \theta_t = (1 - \eta\lambda)\, \theta_{t-1}
            - \eta\, a \mathrm{atan2}\bigl(\hat m_t,\; b \sqrt{\hat v_t}\bigr).

    Adam's :math:`\epsilon` has the gradient's unit. In a wide model gradients shrink with width,
    fall below any fixed :math:`\epsilon`, and learning stops. For a small ratio
    :math:`\mathrm{atan2}(\hat m, \sqrt{\hat v}) \approx \hat m / \sqrt{\hat v}`; it is
    defined at 0/0, never above :math:`\pi/2`, and exactly independent of the gradient's scale.

    Args:
        params: Parameters or groups of parameters, of any shape.
        lr: Step :math:`\eta`, in the parameters' units.
        betas: Decay rates of the two moments; memories of about :math:`1/(1-\beta)` steps.
        weight_decay: Decoupled decay :math:`\lambda`, as for :class:`AdamW`.
        a: Factor on the angle. The paper takes 1; :math:`4/\pi` makes a first step as long as
            Adam's.
        b: Factor on the scale; a larger one keeps more ratios in the linear range.
        maximize: Ascend.
        backend: ``auto``, ``torch``, ``cpu`` or ``triton``.
        nonfinite: What to do about NaN in a gradient: ``propagate``, ``raise`` or ``skip``.

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        RuntimeError: If the forced backend is missing.

    Example:
        Gradients far below Adam's epsilon still make a full step.

        >>> import torch
        >>> p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        >>> p.grad = torch.full_like(p, 1e-30)
        >>> AdamAtan2([p], lr=0.1, a=4 / torch.pi).step()
        >>> p.data
        tensor([-0.1000], dtype=torch.float64)

    Reference:
        :cite:t:`everett2024scaling`, the section on epsilon underflow.

    Deviations:
        The paper's exponents, which set a learning rate for each layer by its width, are not
        part of the optimizer: give each layer its group.

    When not to use it:
        Where a coordinate's gradient is pure rounding noise, Adam's epsilon would have kept it
        still; here it takes full steps.
    """

    slots: ClassVar = MOMENTS

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        *,
        a: float = 1.0,
        b: float = 1.0,
        maximize: bool = False,
        backend: str = "auto",
        nonfinite: str = "propagate",
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "weight_decay": weight_decay,
            "a": a,
            "b": b,
            "maximize": maximize,
        }
        super().__init__(params, defaults, backend=backend, nonfinite=nonfinite)

    def rule(self, group: Group) -> Rule:
        """Adam-atan2's rule."""
        return adam_atan2

    def numbers(self, group: Group, step: int) -> dict[str, float]:
        """Adam's numbers with the two factors."""
        return {**moment_numbers(group, step), "a": float(group["a"]), "b": float(group["b"])}
