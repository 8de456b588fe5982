r"""Optimistic AMSGrad: take the step that the next gradient will probably ask for."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from steepest._registry import method
from steepest.estimators import extrapolate
from steepest.kernels import Rule, rule, xp
from steepest.optim._base import Elementwise, Group, Params, Slot


@rule
def opt_amsgrad(p, g, w, m, v, vmax, hint, guess, *, lr, beta1, beta2, eps, wd):
    # $w \leftarrow (1 - \eta\lambda)\, w$
    w = w * (1 - lr * wd)
    # $h \leftarrow \beta_1 m + (1 - \beta_1)\, \tilde g_{t+1}$
    h = beta1 * m + (1 - beta1) * guess
    # $m \leftarrow \beta_1 m + (1 - \beta_1)\, g$
    m = m + (g - m) * (1 - beta1)
    # $v \leftarrow \beta_2 v + (1 - \beta_2)\, (g - \tilde g_t)^2$
    v = v + ((g - hint) * (g - hint) - v) * (1 - beta2)
    # $v^{\max} \leftarrow \max(v^{\max}, v)$
    vmax = xp.maximum(vmax, v)
    # $w \leftarrow w - \eta\, m / (\sqrt{v^{\max}} + \epsilon)$
    w = w - lr * m / (xp.sqrt(vmax) + eps)
    # $\theta \leftarrow w - \eta\, h / (\sqrt{v^{\max}} + \epsilon)$
    p = w - lr * h / (xp.sqrt(vmax) + eps)
    # $\tilde g_t \leftarrow \tilde g_{t+1}$
    hint = guess
    return p, w, m, v, vmax, hint


@method(
    paper="wang2021optimistic",
    title="An Optimistic Acceleration of AMSGrad for Nonconvex Optimization",
    oracle="gradient",
    state_bytes=20,
    claims={"descends_quadratic"},
)
class OptAMSGrad(Elementwise):
    r"""Optimistic AMSGrad: AMSGrad that acts now on a guess of the next gradient.

    With :math:`\tilde g_t` the guess that was made of :math:`g_t`, and :math:`\tilde g_{t+1}` the
    one made now:

    .. math::

        m_t &= \beta_1 m_{t-1} + (1 - \beta_1)\, g_t, \qquad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2)\, (g_t - \tilde g_t)^2, \qquad
        v^{\max}_t = \max(v^{\max}_{t-1}, v_t), \\
        w_t &= w_{t-1} - \eta\, \frac{m_t}{\sqrt{v^{\max}_t} + \epsilon}, \\
        \theta_{t+1} &= w_t - \eta\, \frac{h_t}{\sqrt{v^{\max}_t} + \epsilon}, \qquad
        h_t = \beta_1 m_{t-1} + (1 - \beta_1)\, \tilde g_{t+1}.

    The scale measures *surprise*, not size: where guesses are right, :math:`v` stays small and
    steps are long. Each guess is spent once: the next step starts again from :math:`w`, so a
    wrong one is not carried along.

    Args:
        params: Parameters or groups of parameters, of any shape.
        lr: Step :math:`\eta`, in the parameters' units.
        betas: Decay rates of the mean and of the squared surprise.
        eps: Added to the root, in the gradient's units.
        weight_decay: Decoupled decay :math:`\lambda` of :math:`w`, as for ``AdamW``.
        window: Gradients that a guess is made from. With 1 the guess is the last gradient; with
            more, the sequence is extrapolated (:func:`steepest.estimators.extrapolate`) once
            three are there, at the price of ``window`` more tensors of state. The paper takes 5.
        ridge: Regularization of the extrapolation, relative.
        maximize: Ascend.
        backend: ``auto``, ``torch``, ``cpu`` or ``triton``.
        nonfinite: What to do about NaN in a gradient: ``propagate``, ``raise`` or ``skip``.

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        RuntimeError: If the forced backend is missing.

    Example:
        Equal gradients surprise once, then never again: the scale decays, steps grow.

        >>> import torch
        >>> p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        >>> opt = OptAMSGrad([p], lr=0.1, betas=(0.0, 0.5))
        >>> for _ in range(3):
        ...     p.grad = torch.ones_like(p)
        ...     opt.step()
        >>> opt.state[p]["max_surprise_sq"]
        tensor([0.5000], dtype=torch.float64)

    Reference:
        :cite:t:`wang2021optimistic`; AMSGrad is :cite:t:`reddi2018convergence`'s.

    Deviations:
        ``eps`` is added to the root, where the paper starts :math:`v` at it. By default the guess
        is the last gradient, as usual in optimistic methods; the paper extrapolates.

    When not to use it:
        When gradients are mostly noise the last one predicts nothing, and guessing adds noise.
    """

    slots: ClassVar = {
        "w": Slot("iterate", start="parameter"),
        "m": Slot("exp_avg"),
        "v": Slot("surprise_sq"),
        "vmax": Slot("max_surprise_sq"),
        "hint": Slot("guess"),
    }
    extra_keys = frozenset({"history"})

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        window: int = 1,
        ridge: float = 1e-8,
        maximize: bool = False,
        backend: str = "auto",
        nonfinite: str = "propagate",
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "window": window,
            "ridge": ridge,
            "maximize": maximize,
        }
        super().__init__(params, defaults, backend=backend, nonfinite=nonfinite)

    def rule(self, group: Group) -> Rule:
        """Optimistic AMSGrad's rule."""
        return opt_amsgrad

    def numbers(self, group: Group, step: int) -> dict[str, float]:
        """Learning rate, decay rates and epsilon; there is no bias correction."""
        beta1, beta2 = map(float, group["betas"])
        return {
            "lr": float(group["lr"]),
            "beta1": beta1,
            "beta2": beta2,
            "eps": float(group["eps"]),
            "wd": float(group["weight_decay"]),
        }

    def inputs(
        self,
        group: Group,
        params: list[Tensor],
        grads: list[Tensor],
        states: list[dict[str, Any]],
    ) -> dict[str, list[Tensor]]:
        """Guesses of the next gradients; all tensors of a group are one vector."""
        window = group["window"]
        last = [-g for g in grads] if group["maximize"] else grads
        if window == 1:
            return {"guess": last}
        for g, state in zip(last, states, strict=True):
            new = g.to(state["guess"].dtype)[None]
            past = state.get("history", new[:0])
            state["history"] = torch.cat([past, new])[-window:]
        length = min(len(state["history"]) for state in states)
        if length < 3:
            return {"guess": last}
        history = [[state["history"][-length + i] for state in states] for i in range(length)]
        return {"guess": extrapolate(history, group["ridge"])}
