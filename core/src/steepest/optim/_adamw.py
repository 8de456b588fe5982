r"""Decoupled weight decay: AdamW and SGDW."""

from __future__ import annotations

from typing import ClassVar

from steepest._registry import method
from steepest.kernels import Rule, rule, xp
from steepest.optim._adam import MOMENTS, amsgrad, moment_numbers, refuse
from steepest.optim._base import Elementwise, Group, Params, Slot


@rule
def adamw(p, g, m, v, *, lr, beta1, beta2, eps, wd, c1, c2):
    # $\theta \leftarrow (1 - \eta\lambda)\,\theta$
    p = p * (1 - lr * wd)
    # $m \leftarrow \beta_1 m + (1 - \beta_1)\, g$
    m = m + (g - m) * (1 - beta1)
    # $v \leftarrow \beta_2 v + (1 - \beta_2)\, g^2$
    v = v + (g * g - v) * (1 - beta2)
    # $\theta \leftarrow \theta - \eta\, \hat m / (\sqrt{\hat v} + \epsilon)$
    p = p - lr / c1 * m / (xp.sqrt(v) / c2 + eps)
    return p, m, v


@rule
def sgdw(p, g, m, *, lr, momentum, wd):
    # $m \leftarrow \mu\, m + \eta\, g$
    m = momentum * m + lr * g
    # $\theta \leftarrow (1 - \eta\lambda)\,\theta - m$
    p = p * (1 - lr * wd) - m
    return p, m


def decay(group: Group) -> float:
    r"""The coefficient :math:`\lambda` of the product :math:`\eta\lambda` in a step."""
    return float(group["weight_decay"]) / (float(group["base_lr"]) if group["decouple_lr"] else 1.0)


@method(
    paper="loshchilov2019decoupled",
    title="Decoupled Weight Decay Regularization",
    oracle="gradient",
    state_bytes=8,
    claims={"scale_invariant", "bounded_update", "descends_quadratic", "uniform_decay"},
)
class AdamW(Elementwise):
    r"""AdamW: Adam that shrinks weights directly, not through the gradient.

    .. math::

        \theta_t = (1 - \eta\lambda)\, \theta_{t-1} - \eta\,
            \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}.

    Put an L2 penalty into Adam's gradient, and its pull :math:`\lambda\theta` is divided by the
    root mean square gradient like everything else: weights with large gradients hardly decay.
    Here every weight shrinks by the same factor a step, whatever its gradients were, and the
    best :math:`\lambda` depends less on the learning rate.

    A drop-in replacement for ``torch.optim.AdamW``: same arguments, same trajectory, and
    checkpoints load both ways.

    Args:
        params: Parameters or groups of parameters, of any shape. It is usual to give biases and
            normalization gains a group of their own with ``weight_decay=0``.
        lr: Step :math:`\eta`, in the parameters' units.
        betas: Decay rates of the two moments; memories of about :math:`1/(1-\beta)` steps.
        eps: Added to the root, in the gradient's units.
        weight_decay: :math:`\lambda`, in units of 1/(lr x steps): a weight without gradients
            halves in about :math:`0.7/(\eta\lambda)` steps.
        amsgrad: Divide by the largest second moment so far :cite:p:`reddi2018convergence`.
        foreach: Accepted for compatibility; ``backend`` decides how a step runs.
        maximize: Ascend.
        capturable: Not available.
        differentiable: Not available.
        fused: Accepted for compatibility, like ``foreach``.
        decouple_lr: Take ``weight_decay`` as the paper writes it: the fraction by which weights
            shrink in a step at the initial learning rate. A schedule scales both.
        backend: ``auto``, ``torch``, ``cpu`` or ``triton``.
        nonfinite: What to do about NaN in a gradient: ``propagate``, ``raise`` or ``skip``.

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        RuntimeError: If the forced backend is missing.

    Example:
        Without a gradient's pull, ten steps multiply a weight by 0.99 to the tenth.

        >>> import torch
        >>> p = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
        >>> opt = AdamW([p], lr=0.1, weight_decay=0.1)
        >>> for _ in range(10):
        ...     p.grad = torch.zeros_like(p)
        ...     opt.step()
        >>> abs(p.item() - 0.99**10) < 1e-15
        True

    Reference:
        :cite:t:`loshchilov2019decoupled`.

    Deviations:
        The product :math:`\eta\lambda` is PyTorch's convention; ``decouple_lr=True`` is the
        paper's. The schedules that the paper goes with are ``torch.optim.lr_scheduler``'s.

    When not to use it:
        Without weight decay it is :class:`Adam`. A model whose layers are all followed by a
        normalization ignores the weights' norm; decay then only sets the effective step.
    """

    slots: ClassVar = {**MOMENTS, "vmax": Slot("max_exp_avg_sq")}

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decouple_lr: bool = False,
        backend: str = "auto",
        nonfinite: str = "propagate",
    ) -> None:
        refuse("AdamW", capturable=capturable, differentiable=differentiable)
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "decouple_lr": decouple_lr,
        }
        super().__init__(params, defaults, backend=backend, nonfinite=nonfinite)

    def rule(self, group: Group) -> Rule:
        """AdamW's rule, or AMSGrad's."""
        return amsgrad if group["amsgrad"] else adamw

    def numbers(self, group: Group, step: int) -> dict[str, float]:
        """Adam's numbers, with the decay's coefficient."""
        return {
            **moment_numbers(group, step),
            "eps": float(group["eps"]),
            "l2": 0.0,
            "wd": decay(group),
        }


@method(
    paper="loshchilov2019decoupled",
    title="Decoupled Weight Decay Regularization",
    oracle="gradient",
    state_bytes=4,
    claims={"descends_quadratic", "uniform_decay"},
)
class SGDW(Elementwise):
    r"""SGDW: stochastic gradient descent with momentum and decoupled weight decay.

    .. math::

        m_t = \mu\, m_{t-1} + \eta\, g_t, \qquad
        \theta_t = (1 - \eta\lambda)\, \theta_{t-1} - m_t.

    Without momentum this is SGD with an L2 penalty of coefficient :math:`\lambda`. With momentum
    it is not: there a penalty's pull is remembered and amplified, here weights only shrink.

    Args:
        params: Parameters or groups of parameters, of any shape.
        lr: Step :math:`\eta`, in units of parameter per gradient.
        momentum: Decay rate :math:`\mu` of the past steps.
        weight_decay: :math:`\lambda`, as for :class:`AdamW`.
        maximize: Ascend.
        decouple_lr: As for :class:`AdamW`.
        backend: ``auto``, ``torch``, ``cpu`` or ``triton``.
        nonfinite: What to do about NaN in a gradient: ``propagate``, ``raise`` or ``skip``.

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        RuntimeError: If the forced backend is missing.

    Example:
        >>> import torch
        >>> p = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
        >>> p.grad = torch.ones_like(p)
        >>> SGDW([p], lr=0.1, weight_decay=0.5).step()
        >>> p.data
        tensor([0.8500], dtype=torch.float64)

    Reference:
        :cite:t:`loshchilov2019decoupled`, algorithm 1.

    Deviations:
        As for :class:`AdamW`.

    When not to use it:
        On badly scaled problems, where one step size cannot serve all coordinates.
    """

    slots: ClassVar = {"m": Slot("momentum_buffer")}

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        momentum: float = 0.9,
        weight_decay: float = 1e-2,
        *,
        maximize: bool = False,
        decouple_lr: bool = False,
        backend: str = "auto",
        nonfinite: str = "propagate",
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "decouple_lr": decouple_lr,
        }
        super().__init__(params, defaults, backend=backend, nonfinite=nonfinite)

    def rule(self, group: Group) -> Rule:
        """SGDW's rule."""
        return sgdw

    def numbers(self, group: Group, step: int) -> dict[str, float]:
        """Learning rate, momentum and the decay's coefficient."""
        return {
            "lr": float(group["lr"]),
            "momentum": float(group["momentum"]),
            "wd": decay(group),
        }
