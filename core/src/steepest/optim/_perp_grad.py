r"""perpGrad: the part of a gradient that turns the weights and does not scale them."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from steepest._registry import method
from steepest.kernels._apply import compute_dtype
from steepest.optim._base import real
from steepest.optim._filter import Filter
from steepest.optim._wrapper import Memory


def perpendicular(weights: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
    r"""The part of each gradient that is orthogonal to its weight, at the gradient's length.

    .. math::

        g_\perp = g - \frac{\langle w, g \rangle}{\langle w, w \rangle}\, w, \qquad
        \tilde g = \frac{\|g\|}{\|g_\perp\|}\, g_\perp.

    Args:
        weights: Tensors :math:`w`, float32 or float64.
        grads: Their gradients, of the same shapes and dtypes.

    Returns:
        The :math:`\tilde g`; 0 where a gradient is parallel to its weight up to rounding.

    Example:
        >>> perpendicular([torch.tensor([0.0, 2.0])], [torch.tensor([3.0, 4.0])])
        [tensor([5., 0.])]
    """
    tiny, eps = 1e-30, max(torch.finfo(g.dtype).eps for g in grads)
    squares = torch._foreach_clamp_min(torch._foreach_pow(torch._foreach_norm(weights), 2), tiny)
    perp = grads
    for _ in range(2):  # again for what rounding has left, where a gradient is nearly parallel
        pairs = zip(weights, perp, strict=True)
        along = torch._foreach_div([torch.dot(w.flatten(), g.flatten()) for w, g in pairs], squares)
        perp = list(torch._foreach_addcmul(perp, weights, along, value=-1))
    before, after = torch._foreach_norm(grads), torch._foreach_norm(perp)
    # Of a parallel gradient only rounding is left: 0 for it, 1 for the others.
    above = torch._foreach_sub(after, torch._foreach_mul(before, 8 * eps))
    alive = torch._foreach_clamp_min(torch._foreach_sign(above), 0)
    ratio = torch._foreach_div(before, torch._foreach_clamp_min(after, tiny))
    torch._foreach_mul_(perp, torch._foreach_mul(ratio, alive))
    return perp


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

    def filter(
        self, params: list[Tensor], grads: list[Tensor], memories: list[Memory]
    ) -> tuple[list[Tensor], list[Memory]]:
        """Project."""
        if not grads:
            return [], []
        dtypes = [compute_dtype(real(g).dtype) for g in grads]
        turned = perpendicular(
            [real(p).to(dtype) for p, dtype in zip(params, dtypes, strict=True)],
            [real(g).to(dtype) for g, dtype in zip(grads, dtypes, strict=True)],
        )
        return [
            (torch.view_as_complex(t) if g.is_complex() else t).to(g.dtype)
            for t, g in zip(turned, grads, strict=True)
        ], memories
