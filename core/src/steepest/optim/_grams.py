r"""Grams: the gradient says where to, momentum how far."""

from __future__ import annotations

from typing import ClassVar, final

from steepest._registry import method
from steepest.kernels import Rule, rule, xp
from steepest.optim._adam import MOMENTS, moment_numbers
from steepest.optim._base import Elementwise, Group, Params


@rule
def grams(p, g, m, v, *, lr, beta1, beta2, eps, wd, c1, c2):
    # $\theta \leftarrow (1 - \eta\lambda)\,\theta$
    p = p * (1 - lr * wd)
    # $m \leftarrow \beta_1 m + (1 - \beta_1)\, g$
    m = m + (g - m) * (1 - beta1)
    # $v \leftarrow \beta_2 v + (1 - \beta_2)\, g^2$
    v = v + (g * g - v) * (1 - beta2)
    # $\theta \leftarrow \theta - \eta\, \mathrm{sign}(g)\, |\hat m| / (\sqrt{\hat v} + \epsilon)$
    p = p - lr / c1 * xp.sign(g) * xp.abs(m) / (xp.sqrt(v) / c2 + eps)
    return p, m, v


@final
@method(
    paper="cao2024grams",
    title="Grams: Gradient Descent with Adaptive Momentum Scaling",
    oracle="gradient",
    state_bytes=8,
    claims={"scale_invariant", "bounded_update", "descends_quadratic", "uniform_decay"},
)
class Grams(Elementwise):
    r"""Grams: steps as long as Adam's, in the direction of the current gradient.

    With Adam's moments :math:`m, v` and :math:`\hat m_t = m_t / (1 - \beta_1^t)`,
    :math:`\hat v_t = v_t / (1 - \beta_2^t)`:

    .. math::

        \theta_t = (1 - \eta\lambda)\, \theta_{t-1} - \eta\, \mathrm{sign}(g_t)\,
            \frac{|\hat m_t|}{\sqrt{\hat v_t} + \epsilon}.

    Let :math:`u` be Adam's step. Momentum is old, and where its sign is no longer the gradient's,
    Adam moves uphill in that coordinate. To first order Grams lowers the loss by
    :math:`\sum_i |g_i|\,|u_i|`, which is at least Adam's :math:`\sum_i g_i u_i`, and at least
    that of a cautious mask, which leaves out the terms that disagree.

    Args:
        params: Parameters or groups of parameters, of any shape.
        lr: Step :math:`\eta`, in the parameters' units.
        betas: Decay rates of the two moments.
        eps: Added to the root, in the gradient's units. The authors take 1e-6.
        weight_decay: Decoupled decay :math:`\lambda`, as for :class:`AdamW`.
        maximize: Ascend.
        backend: ``auto``, ``torch``, ``cpu`` or ``triton``.
        nonfinite: What to do about NaN in a gradient: ``propagate``, ``raise`` or ``skip``.

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        RuntimeError: If the forced backend is missing.

    Example:
        The gradient has turned; momentum has not. Grams turns with the gradient.

        >>> import torch
        >>> p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        >>> opt = Grams([p], lr=0.1, betas=(0.5, 0.0), eps=0.0)
        >>> for g in (4.0, -1.0):
        ...     p.grad = torch.full_like(p, g)
        ...     opt.step()
        ...     print(round(p.item(), 4))
        -0.1
        -0.0333

    Reference:
        :cite:t:`cao2024grams`; the mask is :cite:t:`liang2024cautious`'s.

    When not to use it:
        At small batches: the sign of a noisy gradient is noise, which Adam averages out of the
        direction and Grams does not. A coordinate whose gradient is exactly zero stands still.
    """

    slots: ClassVar = MOMENTS

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
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
        """Grams' rule."""
        return grams

    def numbers(self, group: Group, step: int) -> dict[str, float]:
        """Adam's numbers."""
        return {**moment_numbers(group, step), "eps": float(group["eps"])}
