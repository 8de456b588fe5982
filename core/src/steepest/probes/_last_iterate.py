r"""What a schedule of learning rates guarantees of the last iterate."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from steepest._registry import method


@method(
    paper="liu2024revisiting",
    title="Revisiting the Last-Iterate Convergence of Stochastic Gradient Methods",
    oracle="none",
    forward=0,
    backward=0,
)
def last_iterate_bound(
    rates: Iterable[float],
    divergence: float,
    lipschitz: float = 0.0,
    noise: float = 0.0,
    smoothness: float = 0.0,
) -> float:
    r"""Bound on the expected loss of the last iterate of mirror descent, above the minimum.

    .. math::

        \mathrm E\,F(\theta_{T+1}) - F(\theta^*) \le
        \frac{D_\psi(\theta^*, \theta_1)}{\sum_{t=1}^T \eta_t}
        + 2 (M^2 + \sigma^2) \sum_{t=1}^T \frac{\eta_t^2}{\sum_{s=t}^T \eta_s}

    for a convex loss with noisy gradients. The first term is the way to go. In the second each
    step's noise counts in proportion to the square of the step, over the length of path that is
    left to undo it; for an average of the iterates, the whole length would stand below. A
    constant rate makes the last steps dear: the sum grows as :math:`\log T`. With linear decay
    it stays below :math:`2 \eta_1`.

    Args:
        rates: Learning rates :math:`\eta_1, \ldots, \eta_T`.
        divergence: :math:`D_\psi(\theta^*, \theta_1)`: half the squared distance in the
            Euclidean case, the Kullback-Leibler divergence on the simplex.
        lipschitz: Bound on the norm of the subgradients, in the dual of the norm in which
            :math:`\psi` is strongly convex (on the simplex: their largest element); then
            :math:`M` is twice that. 0 for a smooth loss.
        noise: :math:`\sigma`: root of the expected square norm of the gradients' noise, in the
            same norm.
        smoothness: Lipschitz constant :math:`L` of the gradient of the smooth part of the loss.

    Returns:
        The bound, in units of the loss.

    Raises:
        ValueError: If there is no rate, one is negative or the last is 0, or one is above
            :math:`1 / (2L)`, where the theorem says nothing.

    Example:
        Two steps from distance 2: 2 / 1.5, and the noise of each over what is left.

        >>> last_iterate_bound([1.0, 0.5], divergence=2.0, noise=0.5)
        1.9166666666666665

    Reference:
        :cite:t:`liu2024revisiting`, for a convex loss without strong convexity.
    """
    eta = torch.tensor([*rates], dtype=torch.float64)
    if not len(eta) or eta.min() < 0 or not eta[-1] > 0 or not eta.isfinite().all():
        raise ValueError("the rates have to be finite and not negative, and the last above 0")
    if smoothness and eta.max() > 0.5 / smoothness * (1 + 1e-12):
        raise ValueError(
            f"the largest rate is {eta.max().item():.3g}, above 1 / (2 L) = {0.5 / smoothness:.3g}:"
            " the bound does not hold there"
        )
    # $\sum_{s \ge t} \eta_s$
    left = eta.flip(0).cumsum(0).flip(0)
    # $M^2 + \sigma^2, \quad M = 2G$
    variance = 4 * lipschitz**2 + noise**2
    # $\sum_t \eta_t^2 / \sum_{s \ge t} \eta_s$
    price = (eta.square() / left).sum()
    # $D / \sum_t \eta_t + 2 (M^2 + \sigma^2) \sum_t \dots$
    return float(divergence / left[0] + 2 * variance * price)
