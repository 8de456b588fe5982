r"""perpGrad: the part of a gradient that turns the weights and does not scale them."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from steepest._registry import method
from steepest.kernels import Rule, apply, reduction, rule, xp
from steepest.kernels._apply import compute_dtype
from steepest.optim._base import real
from steepest.optim._filter import Filter


@reduction
def products(p, g):
    # $\langle w, g \rangle$
    pg = xp.sum(p * g)
    # $\langle w, w \rangle$
    pp = xp.sum(p * p)
    # $\langle g, g \rangle$
    gg = xp.sum(g * g)
    return pg, pp, gg


@reduction
def remainder(p, g, *, along):
    # $g_\perp = g - \alpha w$
    perp = g - along * p
    # $\langle w, g_\perp \rangle$
    left = xp.sum(p * perp)
    # $\langle g_\perp, g_\perp \rangle$
    square = xp.sum(perp * perp)
    return left, square


@rule
def perp_grad(p, g, *, along, again, ratio):
    # $g_\perp = g - \alpha w$
    perp = g - along * p
    # $g_\perp \leftarrow g_\perp - \alpha' w$
    perp = perp - again * p
    # $\tilde g = \frac{\lVert g \rVert}{\lVert g_\perp \rVert}\, g_\perp$
    g = ratio * perp
    return g  # noqa: RET504  (a rule returns names)


@final
@method(
    paper="prieto2025grokking",
    title="Grokking at the Edge of Numerical Stability",
    oracle="gradient",
    scope="tensor",
)
class PerpGrad(Filter):
    r"""perpGrad: remove from each gradient its component along the weights.

    .. math::

        g_\perp = g - \frac{\langle w, g \rangle}{\langle w, w \rangle}\, w, \qquad
        \tilde g = \frac{\|g\|}{\|g_\perp\|}\, g_\perp,

    for each parameter tensor by itself. Once a classifier has all its examples right, there is a
    cheap way to a lower cross-entropy: scale the logits, by scaling the weights. The predictions
    stay what they are, and in float32 the loss soon rounds to 0. Without that component only
    directions are left that change what the network computes, and no weight decay is needed to
    hold the norm.

    Args:
        optimizer: The optimizer that gets the orthogonal gradients; give it no weight decay,
            which pulls along the weights.

    Raises:
        TypeError: If ``optimizer`` is not one, or queries the loss itself.

    Example:
        The weight points along the second axis: the first takes the whole length, 5.

        >>> p = torch.nn.Parameter(torch.tensor([0.0, 2.0]))
        >>> opt = PerpGrad(torch.optim.SGD([p], lr=1.0))
        >>> p.grad = torch.tensor([3.0, 4.0])
        >>> opt.step()
        >>> p.data
        tensor([-5.,  2.])

    Reference:
        :cite:t:`prieto2025grokking`.

    Deviations:
        The restored length is that of the authors' code, and not in the paper's formula. A
        gradient that is parallel to its weight up to rounding becomes 0; to restore its length
        would amplify the rounding, and does so for every scalar parameter.

    When not to use it:
        Where the scale of a weight matters and nothing else sets it: norms can only grow, by the
        step's second order. Gains of normalization layers, a temperature, or an output layer
        that starts too small cannot be learned.
    """

    def rule(self) -> Rule | None:
        """The rule of perpGrad."""
        return perp_grad

    def numbers(self, params: list[Tensor], grads: list[Tensor]) -> dict[str, float | Tensor]:
        """Components along the weights, and the ratio of lengths; no wait for the device."""
        if not params:
            return {}
        tensors = [[real(p) for p in params], [real(g) for g in grads]]
        eps = torch.stack(
            [torch.tensor(torch.finfo(compute_dtype(p.dtype)).eps) for p in tensors[0]]
        ).to(params[0].device, torch.float64, non_blocking=True)
        pg, pp, gg = apply(products, tensors, [{}]).values()
        pp = pp.clamp_min(1e-60)
        along = pg / pp
        # Where a gradient is nearly parallel, rounding leaves something along the weight.
        left, square = apply(remainder, tensors, [{}], vectors={"along": along}).values()
        again = left / pp
        rest = (square - again * left).clamp_min(0).sqrt()
        # Of a parallel gradient only rounding is left: 0 for it.
        ratio = torch.where(rest > 8 * eps * gg.sqrt(), gg.sqrt() / rest, 0.0)
        return {"along": along, "again": again, "ratio": ratio}
