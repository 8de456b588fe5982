r"""An estimate without the directions in which training hardly moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from steepest._registry import method
from steepest.estimators._base import GradientEstimator, Projection
from steepest.oracles import Objective


@final
@method(
    paper="seo2025efficient",
    title="Efficient Personalization of Quantized Diffusion Model without Backpropagation",
    oracle="value",
    scope="model",
    forward=3,
    backward=0,
)
class SubspaceGradient(GradientEstimator):
    r"""Subspace gradient: an estimate, projected by what the parameters' own path has shown.

    .. math::

        g = (I - V^\top V)\, \hat g ,

    where the rows of :math:`V` are directions that the last :math:`\tau` iterates span but hardly
    differ in. A component of a zeroth-order estimate along them is mostly noise: training has
    been there, and has found nothing to do. Every :math:`\tau` estimates the iterates are
    standardized, coordinate by coordinate, and their principal components found; :math:`V` are
    those that come after a share :math:`1 - \nu` of the variance is explained. Before the first
    :math:`\tau` there is no :math:`V`. A direction that the iterates do not span stays.

    For few parameters, such as a token's embedding: :math:`\tau` copies of them are kept. The
    paper drives Adam by it, ``Estimated(Adam(params, lr=1e-2, eps=1e-3), SubspaceGradient(SPSA(
    samples=2, one_sided=True)))``.

    Args:
        estimator: The estimator whose estimate is projected.
        tau: Iterates :math:`\tau` that are looked back at, and estimates between two looks; the
            paper takes 128 in 768 dimensions.
        nu: Share :math:`\nu` of the variance that is noise, in [0, 1); the paper takes 1e-3.

    Raises:
        TypeError: If ``estimator`` is none.
        ValueError: If ``tau`` or ``nu`` is out of its range, or the parameters are not those of
            the estimates before.

    Example:
        The iterates move along the first axis, and ten thousand times less along the second.

        >>> from steepest.estimators import ForwardGradient
        >>> p = torch.zeros(3, requires_grad=True)
        >>> f = Objective(lambda: p.sum(), [p])
        >>> g = SubspaceGradient(ForwardGradient(kind="rademacher"), tau=3)
        >>> g.basis = torch.tensor([[0.0, 1.0, 0.0]])  # as if it had been found
        >>> g(f, seed=0).gradient[0] != 0
        tensor([ True, False,  True])

    Reference:
        :cite:t:`seo2025efficient`.

    Deviations:
        The paper divides estimates by :math:`\sqrt{(D' + n - 1)/n}`, with :math:`D'` the
        dimensions that are left and :math:`n` the directions: a factor that Adam divides out
        again, but for its epsilon. The last of :math:`\tau` components, along which centered
        iterates have no variance at all and whose direction is rounding, is not removed. The
        path is not in a checkpoint: a resumed run looks back from where it resumes.

    When not to use it:
        Where training has just begun, or the loss changes: what has hardly moved so far may have
        to. And it removes fewer than :math:`\tau` of :math:`d` dimensions, hence little variance
        if :math:`\tau \ll d`.
    """

    oracle = "value"

    def __init__(self, estimator: GradientEstimator, tau: int = 128, nu: float = 1e-3) -> None:
        if not isinstance(estimator, GradientEstimator):
            raise TypeError(f"the estimator is a {type(estimator).__name__}: pass SPSA(), say")
        if not isinstance(tau, int) or tau < 3:
            raise ValueError(f"tau={tau!r} is not valid: give a whole number >= 3")
        if not 0 <= nu < 1:
            raise ValueError(f"nu={nu!r} is not valid: give a number in [0, 1)")
        self.estimator = estimator
        self.oracle = estimator.oracle  # type: ignore[misc]
        self.tau, self.nu = tau, nu
        self.basis: Tensor | None = None
        """The orthonormal rows of :math:`V`, or None."""
        self._path: list[Tensor] = []
        self._asked = 0

    @property
    def forward(self) -> int:
        """As the estimator within."""
        return self.estimator.forward

    def project(self, objective: Objective, seed: int) -> Projection:
        """Query as the estimator within does, and remember where."""
        here = _flat([p.detach() for p in objective.params])
        if self._path and self._path[0].shape != here.shape:
            raise ValueError(
                f"{here.numel()} parameters, and {self._path[0].numel()} in the estimates before: "
                "make a SubspaceGradient for each model"
            )
        answer = self.estimator.project(objective, seed)
        if self._asked:  # where it all starts is no result of training
            self._path = [*self._path[1 - self.tau :], here]
            if self._asked % self.tau == 0:
                self.basis = idle_directions(torch.stack(self._path), self.nu)
        self._asked += 1
        return answer

    def accumulate_(
        self,
        tensors: Sequence[Tensor],
        seed: int,
        weights: Mapping[int, float],
        places: Sequence[int],
    ) -> None:
        r"""Add :math:`(I - V^\top V) \sum_i w_i z_i` to tensors, which are all parameters'."""
        total = [torch.zeros_like(t) for t in tensors]
        # $\hat g = \sum_i w_i z_i$
        self.estimator.accumulate_(total, seed, weights, places)
        if self.basis is not None:
            g = _flat(total)
            # $g = (I - V^\top V)\, \hat g$
            g = g - (g @ self.basis.T) @ self.basis
            sizes = [t.numel() for t in tensors]
            total = [part.view(t.shape) for part, t in zip(g.split(sizes), tensors, strict=True)]
        for t, added in zip(tensors, total, strict=True):
            t.add_(added.to(t.dtype))


def idle_directions(path: Tensor, nu: float) -> Tensor:
    """Directions that a path spans but hardly moves in.

    Args:
        path: Points, shape (points, dimensions).
        nu: Share of the variance that they may have together, after standardization.

    Returns:
        Orthonormal rows, shape (directions, dimensions); perhaps none.

    Example:
        >>> t = torch.linspace(-1, 1, 9)
        >>> idle_directions(torch.stack([t, t + 1e-4 * t**2, 0 * t], 1), 1e-3).abs()
        tensor([[0.7071, 0.7071, 0.0000]])
    """
    centered = path - path.mean(0)
    # $\operatorname{std}_j$
    scale = centered.square().mean(0).sqrt()
    # $(\theta_{t,j} - \bar\theta_j) / \operatorname{std}_j$
    standard = centered / torch.where(scale > 0, scale, torch.ones_like(scale))
    # $U \operatorname{diag}(\varsigma)\, R$
    _, sizes, rows = torch.linalg.svd(standard, full_matrices=False)
    spanned = int((sizes > sizes[0] * len(path) * torch.finfo(path.dtype).eps).sum())
    # $\sum_{i \le k} \varsigma_i^2 / \sum_i \varsigma_i^2$
    explained = sizes.square().cumsum(0) / sizes.square().sum()
    # $\text{the first that explain } 1 - \nu$
    kept = int((explained <= 1 - nu).sum()) + 1
    # $V$
    return rows[kept:spanned]


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    return torch.cat([t.flatten().to(dtype) for t in tensors])
