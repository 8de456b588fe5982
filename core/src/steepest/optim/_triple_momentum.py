r"""Triple momentum, and the two it generalizes: a heavy ball and Nesterov's method."""

from __future__ import annotations

import math
from typing import Any, ClassVar, final

import torch

from steepest._registry import method
from steepest.kernels import Rule, rule
from steepest.optim._base import Elementwise, Group, Params, Slot


@rule
def triple_momentum(p, g, m, *, lr, inertia, lookahead):
    # $\xi \leftarrow \theta - \gamma\, m$
    p = p - lookahead * m
    # $m \leftarrow \beta\, m - \eta\, g$
    m = inertia * m - lr * g
    # $\theta \leftarrow \xi + (1 + \gamma)\, m$
    p = p + (1 + lookahead) * m
    return p, m


def tuned_momenta(smoothness: float, convexity: float, kind: str = "triple") -> dict[str, Any]:
    r"""Learning rate and momenta for a loss between two parabolas.

    With :math:`\kappa = L/\mu` and :math:`\rho = 1 - 1/\sqrt\kappa`, :math:`b = \rho/(2-\rho)`:

    .. math::

        \begin{array}{lcccc}
            & \eta & \beta & \gamma & \delta \\
            \text{triple} & \frac{1+\rho}{L} & \frac{\rho^2}{2-\rho} &
                \frac{\rho^2}{(1+\rho)(2-\rho)} & \frac{\rho^2}{1-\rho^2} \\
            \text{nesterov} & \frac{1}{L} & b & b & 0 \\
            \text{heavy-ball} & \frac{4}{L(2-\rho)^2} & b^2 & 0 & 0
        \end{array}

    Args:
        smoothness: Largest curvature :math:`L`, in units of loss per parameter squared.
        convexity: Smallest curvature :math:`\mu`, with :math:`0 < \mu \le L`.
        kind: ``triple``, ``nesterov`` or ``heavy-ball``.

    Returns:
        ``lr`` and ``momenta``, the arguments of :class:`TripleMomentum`.

    Raises:
        ValueError: If the curvatures are not in order, or there is no such kind.

    Example:
        >>> tuned_momenta(4.0, 1.0, "nesterov")
        {'lr': 0.25, 'momenta': (0.3333333333333333, 0.3333333333333333, 0.0)}

    Reference:
        :cite:t:`vanscoy2018fastest`; the heavy ball's are best for quadratics.
    """
    if not 0 < convexity <= smoothness < math.inf:
        raise ValueError(
            f"smoothness={smoothness!r} and convexity={convexity!r} are the largest and the "
            "smallest curvature: give 0 < convexity <= smoothness"
        )
    r = 1 - math.sqrt(convexity / smoothness)
    b = r / (2 - r)
    choices = {
        "triple": (1 + r, (b * r, b * r / (1 + r), r * r / (1 - r * r))),
        "nesterov": (1.0, (b, b, 0.0)),
        "heavy-ball": (4 / (2 - r) ** 2, (b * b, 0.0, 0.0)),
    }
    if kind not in choices:
        raise ValueError(f"kind={kind!r}: choose {', '.join(choices)}")
    step, momenta = choices[kind]
    return {"lr": step / smoothness, "momenta": momenta}


@final
@method(
    paper="parimi2025dynamics",
    title="On the Dynamics of Acceleration in First order Gradient Methods",
    oracle="gradient",
    state_bytes=4,
    claims={"descends_quadratic"},
)
class TripleMomentum(Elementwise):
    r"""Triple momentum: keep going, look ahead, and read the answer further ahead still.

    A point :math:`\xi` has inertia :math:`\beta`. The gradient is asked for at
    :math:`\theta`, ahead by :math:`\gamma` of its last steps; the answer is :math:`x`, ahead by
    :math:`\delta` of them:

    .. math::

        m_t &= \beta\, m_{t-1} - \eta\, \nabla f(\theta_{t-1}), \qquad \xi_t = \xi_{t-1} + m_t, \\
        \theta_t &= \xi_t + \gamma\, m_t, \qquad x_t = \xi_t + \delta\, m_t.

    Looking ahead sees the slope that the motion itself will change:
    :math:`\nabla f(\xi + \gamma m) \approx \nabla f(\xi) + \gamma\, \nabla^2 f(\xi)\, m`, a
    friction that acts where there is curvature. :math:`\gamma = 0` is a heavy ball,
    :math:`\gamma = \beta` Nesterov's method. If the loss lies between parabolas of curvature
    :math:`\mu` and :math:`L`, then with the momenta of :func:`tuned_momenta` the distance of
    :math:`x` to the minimum is guaranteed to fall like :math:`(1 - \sqrt{\mu/L})^t`; a heavy ball
    that is tuned for quadratics may go in circles for ever.

    The parameters stand at :math:`\theta` to train. :meth:`eval` moves them to :math:`x`,
    :meth:`train` back; under Lightning, ``steepest.lightning.Oracles`` does that.

    Args:
        params: Parameters or groups of parameters, of any shape.
        lr: Step :math:`\eta`, in units of parameter per gradient; :math:`(2 - 1/\sqrt\kappa)/L`
            if the curvature is known.
        momenta: Inertia :math:`\beta` in [0, 1), look-ahead :math:`\gamma` and read-out
            :math:`\delta`, in steps; the default is for a condition number of 100.
        maximize: Ascend.
        backend: ``auto``, ``torch``, ``cpu`` or ``triton``.
        nonfinite: What to do about NaN in a gradient: ``propagate``, ``raise`` or ``skip``.

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        RuntimeError: If the forced backend is missing, or at a step after :meth:`eval`.

    Example:
        A first step from 1 to :math:`\xi = 0.75`; the next gradient is to be taken one step
        further, and the answer is two steps further.

        >>> p = torch.nn.Parameter(torch.tensor([1.0]))
        >>> opt = TripleMomentum([p], lr=0.25, momenta=(0.5, 1.0, 2.0))
        >>> p.grad = torch.tensor([1.0])
        >>> opt.step()
        >>> p.data
        tensor([0.5000])
        >>> opt.eval()
        >>> p.data
        tensor([0.2500])

    Reference:
        :cite:t:`parimi2025dynamics`, for the dynamics; the method is
        :cite:t:`vanscoy2018fastest`'s.

    Deviations:
        The iterate that is kept is :math:`\theta`, with the last step :math:`m` as the only
        state; the paper's :math:`\xi_t` and :math:`\xi_{t-1}` follow from the two.

    When not to use it:
        When gradients are noisy: a constant step then has a floor, and inertia raises it. Nor
        without an idea of the condition number, on which the momenta depend.
    """

    slots: ClassVar = {"m": Slot("last_step")}

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        momenta: tuple[float, float, float] = (0.7364, 0.3876, 4.2632),
        *,
        maximize: bool = False,
        backend: str = "auto",
        nonfinite: str = "propagate",
    ) -> None:
        defaults = {"lr": lr, "momenta": momenta, "maximize": maximize}
        super().__init__(params, defaults, backend=backend, nonfinite=nonfinite)
        self.evaluating = False

    def rule(self, group: Group) -> Rule:
        """The rule, where the gradient was asked for at the right place."""
        if self.evaluating:
            raise RuntimeError("TripleMomentum is at its weights to evaluate with: call train()")
        return triple_momentum

    def numbers(self, group: Group, step: int) -> dict[str, float]:
        """Learning rate, inertia and look-ahead."""
        inertia, lookahead, _ = map(float, group["momenta"])
        return {"lr": float(group["lr"]), "inertia": inertia, "lookahead": lookahead}

    def eval(self) -> None:
        """Move the parameters to where the answer is; a second call does nothing."""
        if not self.evaluating:
            self._shift(1.0)
            self.evaluating = True

    def train(self) -> None:
        """Move the parameters back, up to rounding; a second call does nothing."""
        if self.evaluating:
            self._shift(-1.0)
            self.evaluating = False

    @torch.no_grad()
    def _shift(self, sign: float) -> None:
        for group in self.param_groups:
            _, lookahead, readout = map(float, group["momenta"])
            for p in group["params"]:
                step = self.state.get(p, {}).get("last_step")
                if step is not None:
                    here = torch.view_as_real(p) if p.is_complex() else p
                    here.add_(step.to(here.dtype), alpha=sign * (readout - lookahead))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "evaluating": self.evaluating}
