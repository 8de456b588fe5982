r"""Where is a sequence of gradients going? Extrapolation from its last members."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from steepest._registry import method


@method(
    paper="wang2021optimistic",
    title="An Optimistic Acceleration of AMSGrad for Nonconvex Optimization",
    oracle="none",
    forward=0,
    backward=0,
)
def extrapolate(history: Sequence[Sequence[Tensor]], ridge: float = 1e-8) -> list[Tensor]:
    r"""Extrapolate a vector sequence to its limit (regularized minimal polynomial, RMPE).

    From vectors :math:`x_0, \dots, x_k` form the differences
    :math:`U = (x_1 - x_0, \dots, x_k - x_{k-1})` and return

    .. math::

        \sum_{i=0}^{k-1} c_i x_i, \qquad c = \frac{z}{1^\top z}, \qquad
        \Bigl(\frac{U^\top U}{\|U^\top U\|} + \rho I\Bigr) z = 1.

    The weights sum to one and make the combined difference :math:`Uc` as small as possible. If
    the sequence obeys :math:`x_{i+1} = A x_i + b` with fewer than :math:`k` different
    eigenvalues in play, some combination has none at all, and it is the fixed point.

    Args:
        history: The k + 1 vectors, oldest first, k >= 2; each a list of tensors, all of it one
            vector.
        ridge: :math:`\rho > 0`, relative to the spectral norm of :math:`U^\top U`; keeps the
            weights small where differences are nearly collinear.

    Returns:
        The extrapolated vector, as a list of tensors of the same shapes and dtypes.

    Raises:
        ValueError: If there are fewer than three vectors.

    Example:
        The sequence 1 + 0.5**i has the limit 1.

        >>> import torch
        >>> xs = [[torch.tensor([1 + 0.5**i], dtype=torch.float64)] for i in range(4)]
        >>> extrapolate(xs, ridge=1e-12)[0]
        tensor([1.0000], dtype=torch.float64)

    Reference:
        :cite:t:`scieur2016regularized`; as a prediction of the next gradient,
        :cite:t:`wang2021optimistic`.

    When not to use it:
        On noisy sequences: differences of noise carry no direction, and the weights fit them.
    """
    if len(history) < 3:
        raise ValueError(f"extrapolation needs at least three vectors, not {len(history)}")
    k = len(history) - 1
    gram = torch.zeros(k, k, dtype=torch.float64)
    for parts in zip(*history, strict=True):
        stack = torch.stack([part.flatten() for part in parts])
        u = stack.diff(dim=0)
        gram += (u @ u.T).to(gram)
    norm = torch.linalg.matrix_norm(gram, ord=2)
    if norm > 0 and torch.isfinite(norm):
        system = gram / norm + ridge * torch.eye(k, dtype=gram.dtype)
        z = torch.linalg.solve(system, torch.ones(k, dtype=gram.dtype))
    else:
        z = torch.ones(k, dtype=gram.dtype)
    weights = (z / z.sum()).tolist()
    return [
        torch.stack([w * part for w, part in zip(weights, parts[:-1], strict=True)]).sum(0)
        for parts in zip(*history, strict=True)
    ]
