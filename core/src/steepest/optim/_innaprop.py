r"""INNA and INNAprop: inertia whose brake is the curvature, from gradients alone."""

from __future__ import annotations

import math
from typing import ClassVar, final

from steepest._registry import method
from steepest.kernels import Rule, rule, xp
from steepest.optim._base import Elementwise, Group, Params, Slot

TITLE = "A second-order-like optimizer with adaptive gradient scaling for deep learning"


@rule
def inna(p, g, a, *, lr, alpha, beta, wd):
    # $\theta \leftarrow (1 - \gamma\lambda)\,\theta$
    p = p * (1 - lr * wd)
    # $d \leftarrow \theta - \phi$
    d = p - a
    # $\phi \leftarrow \phi + \tfrac{\gamma}{\beta}\, d$
    a = a + lr / beta * d
    # $\theta \leftarrow \theta + \tfrac{\gamma}{\beta} (1 - \alpha\beta)\, d - \gamma\beta\, g$
    p = p + lr / beta * (1 - alpha * beta) * d - lr * beta * g
    return p, a


@rule
def innaprop(p, g, a, v, *, lr, alpha, beta, sigma, eps, wd, c2):
    # $\theta \leftarrow (1 - \gamma\lambda)\,\theta$
    p = p * (1 - lr * wd)
    # $v \leftarrow \sigma v + (1 - \sigma)\, g^2$
    v = v + (g * g - v) * (1 - sigma)
    # $s \leftarrow g / (\sqrt{\hat v} + \epsilon)$
    s = g / (xp.sqrt(v) / c2 + eps)
    # $d \leftarrow \theta - \phi$
    d = p - a
    # $\phi \leftarrow \phi + \tfrac{\gamma}{\beta}\, d$
    a = a + lr / beta * d
    # $\theta \leftarrow \theta + \tfrac{\gamma}{\beta} (1 - \alpha\beta)\, d - \gamma\beta\, s$
    p = p + lr / beta * (1 - alpha * beta) * d - lr * beta * s
    return p, a, v


def check_step(name: str, group: Group) -> None:
    """Refuse a step that is not shorter than ``damping``.

    Raises:
        ValueError: If it is not; the message says what to do.
    """
    if float(group["lr"]) >= float(group["damping"]):
        raise ValueError(
            f"{name}: lr={group['lr']!r} is not below damping={group['damping']!r}: lower lr or "
            "raise damping (beyond it the average of the iterates overshoots them)"
        )


@final
@method(
    paper="bolte2024second",
    title=TITLE,
    oracle="gradient",
    state_bytes=4,
    claims={"descends_quadratic"},
)
class INNA(Elementwise):
    r"""INNA: a heavy ball that the curvature brakes, without a Hessian.

    The ball obeys :math:`\ddot\theta + \alpha\dot\theta + \beta\,\nabla^2 f(\theta)\,\dot\theta
    + \nabla f(\theta) = 0`. Friction :math:`\alpha` slows every motion alike;
    :math:`\beta\,\nabla^2 f` slows those that change the slope, which is where a heavy ball
    swings. The Hessian times the velocity is the gradient's derivative in time, so it drops out
    when one of the two integrations is done by hand. With time step :math:`\gamma`:

    .. math::

        d_t &= \theta_{t-1} - \phi_{t-1}, \qquad
        \phi_t = \phi_{t-1} + \frac{\gamma}{\beta}\, d_t, \qquad \phi_0 = \theta_0, \\
        \theta_t &= \theta_{t-1} + \frac{\gamma}{\beta}\,(1 - \alpha\beta)\, d_t
            - \gamma\beta\, g_t.

    :math:`\phi` is a moving average of the iterates, with a memory of :math:`\beta/\gamma` steps:
    the momentum is that a point is pushed away from where it has been. With
    :math:`\alpha\beta = 1` there is no push, and this is gradient descent with step
    :math:`\gamma\beta`.

    Args:
        params: Parameters or groups of parameters, of any shape.
        lr: Time step :math:`\gamma < \beta`.
        friction: :math:`\alpha \ge 0`, in units of 1/time.
        damping: :math:`\beta > 0`, of the Hessian-driven kind, in units of time.
        weight_decay: Decoupled decay :math:`\lambda`, as for :class:`AdamW`.
        maximize: Ascend.
        backend: ``auto``, ``torch``, ``cpu`` or ``triton``.
        nonfinite: What to do about NaN in a gradient: ``propagate``, ``raise`` or ``skip``.

    Raises:
        ValueError: If a hyper-parameter is out of its range, or ``lr`` is not below ``damping``.
        RuntimeError: If the forced backend is missing.

    Example:
        With :math:`\alpha\beta = 1`, gradient descent with a step of ``lr * damping``.

        >>> import torch
        >>> p = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
        >>> opt = INNA([p], lr=0.25, friction=2.0, damping=0.5)
        >>> for _ in range(2):
        ...     p.grad = torch.ones_like(p)
        ...     opt.step()
        >>> p.data
        tensor([0.7500], dtype=torch.float64)

    Reference:
        :cite:t:`castera2021inertial`; it is :class:`INNAprop` (:cite:t:`bolte2024second`) without
        the scale, and has its defaults here.

    Deviations:
        As for :class:`INNAprop`; the time step is constant unless a schedule moves it, where the
        paper's decays.

    When not to use it:
        Where coordinates differ in scale by orders of magnitude: take :class:`INNAprop`.
    """

    slots: ClassVar = {"a": Slot("average", start="parameter")}

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        friction: float = 0.1,
        damping: float = 0.9,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        backend: str = "auto",
        nonfinite: str = "propagate",
    ) -> None:
        defaults = {
            "lr": lr,
            "friction": friction,
            "damping": damping,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults, backend=backend, nonfinite=nonfinite)
        for group in self.param_groups:
            check_step("INNA", group)

    def rule(self, group: Group) -> Rule:
        """INNA's rule, for a step that it can make."""
        check_step("INNA", group)
        return inna

    def numbers(self, group: Group, step: int) -> dict[str, float]:
        """Time step, friction, damping and decay."""
        return {
            "lr": float(group["lr"]),
            "alpha": float(group["friction"]),
            "beta": float(group["damping"]),
            "wd": float(group["weight_decay"]),
        }


@final
@method(
    paper="bolte2024second",
    title=TITLE,
    oracle="gradient",
    state_bytes=8,
    claims={"scale_invariant", "descends_quadratic"},
)
class INNAprop(Elementwise):
    r"""INNAprop: the inertia of :class:`INNA` with the scale of RMSprop.

    .. math::

        v_t &= \sigma v_{t-1} + (1 - \sigma)\, g_t^2, \qquad
        s_t = \frac{g_t}{\sqrt{v_t / (1 - \sigma^t)} + \epsilon}, \\
        d_t &= \theta_{t-1} - \phi_{t-1}, \qquad
        \phi_t = \phi_{t-1} + \frac{\gamma}{\beta}\, d_t, \qquad \phi_0 = \theta_0, \\
        \theta_t &= \theta_{t-1} + \frac{\gamma}{\beta}\,(1 - \alpha\beta)\, d_t
            - \gamma\beta\, s_t,

    where :math:`\theta_{t-1}` has been multiplied by :math:`1 - \gamma\lambda` first. There is no
    buffer of gradients: the momentum is the distance :math:`d` from an average of the iterates,
    which obeys :math:`d_{t+1} = (1 - \gamma\alpha)\, d_t - \gamma\beta\, s_t`. So the state is
    that of :class:`AdamW`, two numbers a parameter. A gradient acts twice: at once, with
    :math:`\gamma\beta`, and through the momentum, which is what brakes a swing.

    Args:
        params: Parameters or groups of parameters, of any shape.
        lr: Time step :math:`\gamma < \beta`. A gradient moves a coordinate by about
            :math:`\gamma\beta`; equal ones in a row by up to :math:`\gamma/\alpha` a step, after
            about :math:`1/(\gamma\alpha)` steps.
        friction: :math:`\alpha \ge 0`, in units of 1/time. The paper takes
            :math:`(\alpha, \beta) = (0.1, 0.9)`, and as an alternative (2, 2).
        damping: :math:`\beta > 0`, of the Hessian-driven kind, in units of time.
        sigma: Decay rate of the second moment; a memory of about :math:`1/(1-\sigma)` steps.
        eps: Added to the root, in the gradient's units.
        weight_decay: Decoupled decay :math:`\lambda`. It takes :math:`\theta` away from
            :math:`\phi` and so sets the point in motion: it acts more strongly than the same
            number in :class:`AdamW`.
        maximize: Ascend.
        backend: ``auto``, ``torch``, ``cpu`` or ``triton``.
        nonfinite: What to do about NaN in a gradient: ``propagate``, ``raise`` or ``skip``.

    Raises:
        ValueError: If a hyper-parameter is out of its range, or ``lr`` is not below ``damping``.
        RuntimeError: If the forced backend is missing.

    Example:
        The first step has length ``lr * damping``, whatever the gradient's scale.

        >>> import torch
        >>> p = torch.nn.Parameter(torch.tensor([1.0, 1.0], dtype=torch.float64))
        >>> p.grad = torch.tensor([1e3, -1e-3], dtype=torch.float64)
        >>> INNAprop([p], lr=0.1, damping=0.5, eps=0.0, weight_decay=0.0).step()
        >>> p.data
        tensor([0.9500, 1.0500], dtype=torch.float64)

    Reference:
        :cite:t:`bolte2024second`.

    Deviations:
        The paper keeps :math:`\psi = (1 - \alpha\beta)\,\phi` and writes the push with the new
        :math:`\psi`, over :math:`\beta - \gamma`. That is the same step in exact arithmetic;
        with :math:`\phi` nothing is divided by a difference, and :math:`\alpha\beta = 1` needs no
        care. State of the paper's code does not load.

    When not to use it:
        Where a learning rate that is tuned for AdamW must stay: the two differ in what it means,
        and with :math:`(0.1, 0.9)` long runs of equal gradients make steps up to ten times as long
        as AdamW's.
    """

    slots: ClassVar = {"a": Slot("average", start="parameter"), "v": Slot("exp_avg_sq")}

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        friction: float = 0.1,
        damping: float = 0.9,
        sigma: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        maximize: bool = False,
        backend: str = "auto",
        nonfinite: str = "propagate",
    ) -> None:
        defaults = {
            "lr": lr,
            "friction": friction,
            "damping": damping,
            "sigma": sigma,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults, backend=backend, nonfinite=nonfinite)
        for group in self.param_groups:
            check_step("INNAprop", group)

    def rule(self, group: Group) -> Rule:
        """INNAprop's rule, for a step that it can make."""
        check_step("INNAprop", group)
        return innaprop

    def numbers(self, group: Group, step: int) -> dict[str, float]:
        r"""INNA's numbers, and the scale's; ``c2`` is :math:`\sqrt{1 - \sigma^t}`."""
        return {
            "lr": float(group["lr"]),
            "alpha": float(group["friction"]),
            "beta": float(group["damping"]),
            "sigma": float(group["sigma"]),
            "eps": float(group["eps"]),
            "wd": float(group["weight_decay"]),
            "c2": math.sqrt(1 - float(group["sigma"]) ** step),
        }
