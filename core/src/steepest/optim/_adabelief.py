r"""AdaBelief: long steps where the gradient is as expected, short ones where it surprises."""

from __future__ import annotations

from typing import ClassVar, final

from steepest._registry import method
from steepest.kernels import Rule, rule, xp
from steepest.optim._adam import moment_numbers
from steepest.optim._base import Elementwise, Group, Params, Slot


@rule
def adabelief(p, g, m, s, *, lr, beta1, beta2, eps, wd, c1, c2):
    # $\theta \leftarrow (1 - \eta\lambda)\,\theta$
    p = p * (1 - lr * wd)
    # $m \leftarrow \beta_1 m + (1 - \beta_1)\, g$
    m = m + (g - m) * (1 - beta1)
    # $s \leftarrow \beta_2 s + (1 - \beta_2)\, (g - m)^2 + \epsilon$
    s = s + ((g - m) * (g - m) - s) * (1 - beta2) + eps
    # $\theta \leftarrow \theta - \eta\, \hat m / (\sqrt{\hat s} + \epsilon)$
    p = p - lr / c1 * m / (xp.sqrt(s) / c2 + eps)
    return p, m, s


@final
@method(
    paper="zhuang2020adabelief",
    title="AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients",
    oracle="gradient",
    state_bytes=8,
    claims={"scale_invariant", "descends_quadratic", "uniform_decay"},
)
class AdaBelief(Elementwise):
    r"""AdaBelief: Adam that divides by the gradient's deviation from its mean, not by its size.

    .. math::

        m_t &= \beta_1 m_{t-1} + (1 - \beta_1)\, g_t, \qquad
        s_t = \beta_2 s_{t-1} + (1 - \beta_2)\, (g_t - m_t)^2 + \epsilon, \\
        \theta_t &= (1 - \eta\lambda)\, \theta_{t-1} - \eta\,
            \frac{m_t / (1 - \beta_1^t)}{\sqrt{s_t / (1 - \beta_2^t)} + \epsilon}.

    The mean :math:`m` is a prediction of the gradient. Where it comes true the scale is small
    and steps are long, however large the gradient; where it does not, steps are short. Under a
    constant gradient a step grows from :math:`\eta / \beta_1` towards
    :math:`\eta\,|g| \sqrt{(1 - \beta_2) / \epsilon}`, which :math:`\epsilon` alone limits.

    :math:`\epsilon` enters twice. In :math:`s` it is added at every step, so
    :math:`s / (1 - \beta_2^t)` holds :math:`\epsilon / (1 - \beta_2)` of it: there it has the
    unit of a *squared* gradient, and 1e-16 does about what Adam's 1e-8 does.

    Args:
        params: Parameters or groups of parameters, of any shape.
        lr: Step :math:`\eta`, in the parameters' units.
        betas: Decay rates of the mean and of the squared deviation.
        eps: :math:`\epsilon` above. The authors take 1e-16 where Adam is strong, and 1e-8 where
            SGD is: then :math:`\sqrt{\hat s} \ge 0.003`, and smaller deviations do not count.
        weight_decay: Decoupled decay :math:`\lambda`, as for :class:`AdamW`.
        maximize: Ascend.
        backend: ``auto``, ``torch``, ``cpu`` or ``triton``.
        nonfinite: What to do about NaN in a gradient: ``propagate``, ``raise`` or ``skip``.

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        RuntimeError: If the forced backend is missing.

    Example:
        The first gradient deviates from its mean by :math:`\beta_1 g`.

        >>> import torch
        >>> p = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
        >>> p.grad = torch.tensor([1e3, -1e-3], dtype=torch.float64)
        >>> AdaBelief([p], lr=0.1, betas=(0.8, 0.999)).step()
        >>> p.data
        tensor([-0.1250,  0.1250], dtype=torch.float64)

    Reference:
        :cite:t:`zhuang2020adabelief`, algorithm 2.

    Deviations:
        The authors' package also has a warm-up ("rectify", on by default) and a maximum over
        past scales, neither of which is a part of the algorithm: warm up with a schedule.

    When not to use it:
        Where gradients may agree for hundreds of steps, as on a plateau without noise: steps
        grow far beyond ``lr``. Raise ``eps``, or take :class:`AdamW`, whose steps are bounded.
    """

    slots: ClassVar = {"m": Slot("exp_avg"), "s": Slot("exp_avg_var")}

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-16,
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
        """AdaBelief's rule."""
        return adabelief

    def numbers(self, group: Group, step: int) -> dict[str, float]:
        """Adam's numbers."""
        return {**moment_numbers(group, step), "eps": float(group["eps"])}
