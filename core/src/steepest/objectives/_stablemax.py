r"""StableMax: a softmax that grows linearly."""

from __future__ import annotations

import torch
from torch import Tensor

from steepest._registry import method


def log_stable(x: Tensor) -> Tensor:
    r"""Logarithm of what StableMax has in place of the exponential.

    .. math::

        s(x) = \begin{cases} x + 1 & x \ge 0 \\ 1 / (1 - x) & x < 0 \end{cases}, \qquad
        \log s(x) = \operatorname{sign}(x) \log(1 + |x|).

    Example:
        >>> log_stable(torch.tensor([-3.0, 0.0, 3.0])).exp()
        tensor([0.2500, 1.0000, 4.0000])
    """
    # Clamped, as torch.where differentiates the branch not taken too.
    # $\log(1 + \max(x, 0))$
    above = torch.log1p(x.clamp(min=0))
    # $\log(1 - \min(x, 0))$
    below = torch.log1p(-x.clamp(max=0))
    # $\log s(x) = \operatorname{sign}(x) \log(1 + |x|)$
    return torch.where(x < 0, -below, above)


@method(
    paper="prieto2025grokking",
    title="Grokking at the Edge of Numerical Stability",
    oracle="none",
    forward=0,
    backward=0,
)
def stablemax_cross_entropy(
    logits: Tensor, targets: Tensor, *, reduction: str = "mean", ignore_index: int = -100
) -> Tensor:
    r"""Cross-entropy with StableMax for softmax.

    .. math::

        p_k = \frac{s(x_k)}{\sum_j s(x_j)}, \qquad
        s(x) = \begin{cases} x + 1 & x \ge 0 \\ 1 / (1 - x) & x < 0 \end{cases}, \qquad
        \ell = -\log p_y = \log\Bigl(1 + \sum_{k \ne y} \frac{s(x_k)}{s(x_y)}\Bigr).

    With softmax, a margin of 17 between the right logit and the others rounds :math:`p_y` to 1 in
    float32: the loss is 0, and so is the gradient of the right logit. The paper calls it softmax
    collapse; a network that has its training set right runs into it by scaling its logits up, and
    learns no more. Here :math:`s` grows linearly, and :math:`1 - p_y` falls with the inverse
    square of the scale. It is summed in the last form above, which subtracts nothing from 1: the
    gradient does not round to 0 at any margin that the logits can have.

    Args:
        logits: Tensor :math:`x`, shape ``(..., classes)``; half precision is computed in float32.
        targets: Classes :math:`y`, integers, shape ``(...)``.
        reduction: ``mean`` or ``sum`` over the samples, or ``none``.
        ignore_index: Class of samples to leave out.

    Returns:
        Loss in nats, shape ``()``; with ``none``, shape ``(...)``, 0 where left out.

    Raises:
        ValueError: If the shapes do not fit, or the reduction is unknown.
        TypeError: If the targets are not integers.

    Example:
        s = (4, 1/2): the loss is log(1 + 1/8).

        >>> x, y = torch.tensor([[3.0, -1.0]]), torch.tensor([0])
        >>> stablemax_cross_entropy(x, y).exp()
        tensor(1.1250)

    Reference:
        :cite:t:`prieto2025grokking`.

    Deviations:
        The authors' code divides in float64; this form keeps the precision of the logits.

    When not to use it:
        For calibrated probabilities, or where training is regularized and stops early: there
        softmax does not collapse. Its tails are heavy: a loss near 0 takes logits in the
        thousands.
    """
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise TypeError(f"targets are classes, integers, not {targets.dtype}")
    if logits.ndim == 0 or logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} need targets of shape "
            f"{tuple(logits.shape[:-1])}, not {tuple(targets.shape)}"
        )
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction={reduction!r}: choose mean, sum or none")
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    kept = targets != ignore_index
    index = targets.where(kept, 0).long().unsqueeze(-1)
    # $\log s(x_k)$
    scores = log_stable(logits)
    # $\log s(x_y)$
    right = scores.gather(-1, index)
    # $z_k = \log s(x_k) - \log s(x_y), \ z_y = -\infty$
    others = (scores - right).scatter(-1, index, -torch.inf)
    # $z = \log \sum_k e^{z_k}$
    odds = torch.logsumexp(others, -1)
    # This keeps its digits where 1 + e^z would round to 1.
    # $\ell = \log(1 + e^z)$
    losses = torch.logaddexp(odds, torch.zeros_like(odds))
    losses = losses.where(kept, 0)
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / kept.sum()
