r"""Composite stochastic mirror descent: gradient steps in a geometry, with an exact penalty."""

from __future__ import annotations

from typing import Any, ClassVar, final

import torch
from torch import Tensor

from steepest._registry import method
from steepest.kernels import Rule, apply, reduction, rule, xp
from steepest.optim._base import Coefficients, Elementwise, Group, Measured, Params


@rule
def proximal_gradient(p, g, *, lr, l1, l2):
    # $y = \theta - \eta\, g$
    y = p - lr * g
    # $\theta \leftarrow \operatorname{sign}(y) \max(|y| - \eta\lambda_1, 0)$
    p = xp.sign(y) * xp.maximum(xp.abs(y) - lr * l1, 0.0)
    # $\theta \leftarrow \theta / (1 + \eta\lambda_2)$
    p = p / (1 + lr * l2)
    return p  # noqa: RET504  (a rule returns names)


@reduction
def mass(p, g, *, lr, low):
    # $w_i = \theta_i\, e^{-\eta (g_i - \min g)}$
    w = p * xp.exp(-lr * (g - low))
    # $Z = \sum_i w_i$
    total = xp.sum(w)
    return total  # noqa: RET504


@rule
def exponentiated_gradient(p, g, *, lr, low, total):
    # $w_i = \theta_i\, e^{-\eta (g_i - \min g)}$
    w = p * xp.exp(-lr * (g - low))
    # $\theta_i \leftarrow w_i / Z$
    p = w / total
    return p  # noqa: RET504


@final
@method(
    paper="liu2024revisiting",
    title="Revisiting the Last-Iterate Convergence of Stochastic Gradient Methods",
    oracle="gradient",
    claims={"descends_quadratic"},
)
class MirrorDescent(Elementwise):
    r"""Composite stochastic mirror descent (CSMD).

    .. math::

        \theta_{t+1} = \arg\min_\theta\;
        h(\theta) + \langle g_t, \theta \rangle + \frac{1}{\eta_t} D_\psi(\theta, \theta_t).

    A gradient step stays near the last point because of the divergence :math:`D_\psi`, and that
    need not be the squared distance. The loss is linearized; the penalty :math:`h` is not. So
    each step is exact in :math:`h`, and solves in closed form:

    - ``euclidean``: :math:`D = \tfrac12 \lVert \theta - \theta_t \rVert^2`, with
      :math:`h = \lambda_1 \lVert\theta\rVert_1 + \tfrac12 \lambda_2 \lVert\theta\rVert^2`: a
      gradient step, then soft thresholding and shrinking. Weights become zero, not small.
    - ``simplex``: each tensor is a probability vector, and :math:`D` the Kullback-Leibler
      divergence: the exponentiated gradient. It depends on the number of elements :math:`n` as
      :math:`\log n`, where a Euclidean step depends on it as :math:`\sqrt n`.

    Args:
        params: Parameters, named parameters, or groups. For the simplex each tensor is positive
            with sum 1.
        lr: Step :math:`\eta`, in units of parameter per gradient (1 per gradient on the simplex).
            With a schedule that falls linearly to zero the last iterate attains the optimal rate.
        l1: :math:`\lambda_1`, in units of the gradient.
        l2: :math:`\lambda_2`, in units of gradient per parameter.
        geometry: ``euclidean`` or ``simplex``; there is no penalty on the simplex.
        maximize: Ascend in the loss; the penalty is still subtracted.
        backend: ``auto``, ``torch``, ``cpu`` or ``triton``.
        nonfinite: What to do about NaN in a gradient: ``propagate``, ``raise`` or ``skip``.

    Raises:
        ValueError: If a hyper-parameter is out of its range, there is a penalty on the simplex,
            or, at the first step, a parameter is not on it.
        RuntimeError: If the forced backend is missing.

    Example:
        A gradient step to 0.9 and 0.05, then 0.1 nearer to zero.

        >>> p = torch.nn.Parameter(torch.tensor([1.0, -0.05], dtype=torch.float64))
        >>> p.grad = torch.tensor([1.0, -1.0], dtype=torch.float64)
        >>> MirrorDescent([p], lr=0.1, l1=1.0).step()
        >>> p.data
        tensor([0.8000, 0.0000], dtype=torch.float64)

    Reference:
        :cite:t:`liu2024revisiting`, who prove rates of its last iterate.

    Deviations:
        Two geometries of the many that the paper allows, and these penalties.

    When not to use it:
        With neither penalty nor simplex: then it is SGD, and momentum is worth having.
    """

    slots: ClassVar = {}

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        l1: float = 0.0,
        l2: float = 0.0,
        geometry: str = "euclidean",
        *,
        maximize: bool = False,
        backend: str = "auto",
        nonfinite: str = "propagate",
    ) -> None:
        defaults = {"lr": lr, "l1": l1, "l2": l2, "geometry": geometry, "maximize": maximize}
        super().__init__(params, defaults, backend=backend, nonfinite=nonfinite)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as ``torch.optim``; a bad one changes nothing."""
        group = {**self.defaults, **param_group}
        if group["geometry"] not in ("euclidean", "simplex"):
            raise ValueError(
                f"MirrorDescent: geometry={group['geometry']!r}: choose euclidean or simplex"
            )
        if group["geometry"] == "simplex" and (group["l1"] or group["l2"]):
            raise ValueError("MirrorDescent: on the simplex there is no penalty: set l1=0, l2=0")
        super().add_param_group(param_group)

    def rule(self, group: Group) -> Rule:
        """Rule of the group's geometry."""
        return exponentiated_gradient if group["geometry"] == "simplex" else proximal_gradient

    def numbers(self, group: Group, step: int) -> dict[str, float]:
        """Learning rate and penalties."""
        return {name: float(group[name]) for name in ("lr", "l1", "l2")}

    def coefficients(self, measured: list[Measured], loss: Tensor | None) -> list[Coefficients]:
        """On the simplex, what makes the sum one, and the exponents at most zero."""
        return [self._simplex(m) if m.group["geometry"] == "simplex" else {} for m in measured]

    def _simplex(self, m: Measured) -> Coefficients:
        for p, state in zip(m.params, m.states, strict=True):
            if state["step"] == 0 and not _is_distribution(p):
                raise ValueError(
                    f"MirrorDescent: a parameter of shape {tuple(p.shape)} is not on the simplex: "
                    "start from positive numbers with sum 1, such as torch.full((n,), 1 / n)"
                )
        scale = -1.0 if m.group["maximize"] else 1.0
        low = torch.stack([(scale * g).amin().double() for g in m.grads])
        sums = apply(
            mass,
            [m.params, m.grads],
            [{"lr": float(m.group["lr"])}],
            vectors={"low": low},
            grad_scale=scale,
            backend=self.backend,
        )
        return {"low": low, **sums}


def _is_distribution(p: Tensor) -> bool:
    tolerance = 10 * torch.finfo(p.dtype).eps ** 0.5 if p.is_floating_point() else 0.0
    return not p.is_complex() and bool((p > 0).all()) and bool((p.sum() - 1).abs() <= tolerance)
