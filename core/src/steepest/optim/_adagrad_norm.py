r"""AdaGrad-Norm: one AdaGrad step size for all coordinates."""

from __future__ import annotations

from typing import ClassVar, final

from steepest._registry import method
from steepest.kernels import Rule, reduction, rule, xp
from steepest.optim._base import Elementwise, Group, Params


@reduction
def gradient_square(p, g):
    # $s = g^2$
    s = g * g
    # $\lVert g \rVert^2$
    gg = xp.sum(s)
    return gg  # noqa: RET504  (a reduction returns names)


@rule
def adagrad_norm(p, g, *, lr, root):
    # $\eta_t = \eta / \sqrt{\gamma^2 + \sum_s \lVert g_s \rVert^2}$
    rate = lr / root
    # $\theta \leftarrow \theta - \eta_t\, g$
    p = p - rate * g
    return p  # noqa: RET504


def root_of_squares(gg, total, *, gamma):
    """Root of the sum of squares up to this gradient, and the sum; of nothing but zeros, 1."""
    # $G_t = G_{t-1} + \lVert g_t \rVert^2, \quad G_0 = \gamma^2$
    total = xp.maximum(total, gamma * gamma) + gg
    # $\sqrt{G_t}$
    root = xp.where(total > 0, xp.sqrt(total), 1.0)
    return {"root": root, "total": total}


@final
@method(
    paper="attia2023sgd",
    title="SGD with AdaGrad Stepsizes: Full Adaptivity with High Probability to Unknown "
    "Parameters, Unbounded Gradients and Affine Variance",
    oracle="gradient",
    scope="model",
)
class AdaGradNorm(Elementwise):
    r"""AdaGrad-Norm: SGD whose rate falls with the gradients that it has met.

    .. math::

        \eta_t = \frac{\eta}{\sqrt{\gamma^2 + \sum_{s=1}^t \lVert g_s \rVert^2}}, \qquad
        \theta_{t+1} = \theta_t - \eta_t g_t.

    A rate that is too large makes large gradients, and these make the rate smaller until it is
    right: no smoothness constant has to be known. Where gradients vanish, the sum stays finite and
    so does the rate, which gives the fast :math:`1/T` of gradient descent; where noise remains, it
    falls as :math:`1/\sqrt t`, which gives the :math:`1/\sqrt T` of SGD. One number, the present
    gradient included, and no choice between the two.

    Args:
        params: Parameters, named parameters, or groups, of any shape. The norm is over a group:
            each has a rate of its own.
        lr: :math:`\eta`, a length: about how far it is to the minimum. The theory holds for any.
        gamma: :math:`\gamma`, in the gradient's units: a guard of the first steps.
        maximize: Ascend.
        backend: ``auto``, ``torch``, ``cpu`` or ``triton``.
        nonfinite: What to do about NaN in a gradient: ``propagate``, ``raise`` or ``skip``.

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        RuntimeError: If the forced backend is missing.

    Example:
        The first step has length ``lr`` times 3 / 5, then 4 / 5 of what came before.

        >>> import torch
        >>> p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        >>> opt = AdaGradNorm([p], lr=1.0, gamma=4.0)
        >>> p.grad = torch.full_like(p, 3.0)
        >>> opt.step()
        >>> p.data
        tensor([-0.6000], dtype=torch.float64)

    Reference:
        :cite:t:`attia2023sgd`, who analyze it without bounds on gradients.

    When not to use it:
        On long runs that move on: the sum never forgets, and a burst of large gradients early on
        slows all that follows. Where coordinates differ in scale: AdaGrad has a sum for each.
    """

    prepass: ClassVar = gradient_square
    summary: ClassVar = staticmethod(root_of_squares)
    slots: ClassVar = {}

    def __init__(
        self,
        params: Params,
        lr: float = 1.0,
        gamma: float = 1e-3,
        *,
        maximize: bool = False,
        backend: str = "auto",
        nonfinite: str = "propagate",
    ) -> None:
        defaults = {"lr": lr, "gamma": gamma, "maximize": maximize}
        super().__init__(params, defaults, backend=backend, nonfinite=nonfinite)

    def rule(self, group: Group) -> Rule:
        """AdaGrad-Norm's rule."""
        return adagrad_norm

    def numbers(self, group: Group, step: int) -> dict[str, float]:
        """The length."""
        return {"lr": float(group["lr"])}
