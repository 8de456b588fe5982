r"""A gradient from values alone: simultaneous perturbation."""

from __future__ import annotations

import math
from typing import ClassVar, final

import torch
from torch import Tensor

from steepest.estimators._base import GradientEstimator, Projection
from steepest.oracles import Objective


@final
class SPSA(GradientEstimator):
    r"""SPSA: the slope along a random direction, from two values, times that direction.

    .. math::

        \hat g = \frac1n \sum_{i=1}^n
            \frac{f(\theta + \epsilon z_i) - f(\theta - \epsilon z_i)}{2 \epsilon}\, z_i,
        \qquad \mathrm E[z z^\top] = I.

    To first order the quotient is :math:`\langle \nabla f, z \rangle`, and
    :math:`\mathrm E[z z^\top \nabla f] = \nabla f`. Even orders cancel, so the bias is of order
    :math:`\epsilon^2`, and on a quadratic there is none. The price is variance: with Gaussian
    directions :math:`\mathrm{tr}\,\mathrm{Cov}\,\hat g = (d + 1)\, \|\nabla f\|^2 / n` in
    :math:`d` dimensions, with signs :math:`(d - 1)\, \|\nabla f\|^2 / n`.

    Args:
        eps: Radius :math:`\epsilon`, in the parameters' units: small against the scale on which
            the loss bends, large against its rounding.
        samples: Directions :math:`n` that an estimate averages; two values each.
        kind: ``gaussian`` or ``rademacher`` directions.
        in_place: Put the parameters back by subtracting what was added, to within rounding,
            instead of from a copy, bit for bit. It saves the copy's memory. Parameters of half
            precision are copied in any case.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        On a linear function of one variable any direction gives the slope times its square.

        >>> p = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
        >>> f = Objective(lambda: 3 * p.sum(), [p])
        >>> SPSA(kind="rademacher")(f, seed=0).gradient[0].round(decimals=6)
        tensor([3.], dtype=torch.float64)
        >>> f.counts["forward"], f.counts["backward"]
        (2, 0)

    Reference:
        Spall, "Multivariate stochastic approximation using a simultaneous perturbation gradient
        approximation", IEEE Transactions on Automatic Control 37(3), 1992.

    When not to use it:
        Where a backward pass is to be had: in high dimension one gradient is worth as many values
        as there are parameters.
    """

    oracle: ClassVar = "value"

    def __init__(
        self,
        eps: float = 1e-3,
        samples: int = 1,
        kind: str = "gaussian",
        *,
        in_place: bool = False,
    ) -> None:
        super().__init__(samples, kind)
        if not (math.isfinite(eps) and eps > 0):
            raise ValueError(f"eps={eps!r} is not valid: give a finite number > 0")
        self.eps = eps
        self.in_place = in_place

    @property
    def forward(self) -> int:
        """Two values a direction."""
        return 2 * self.samples

    @torch.no_grad()
    def project(self, objective: Objective, seed: int) -> Projection:
        """The difference quotients; the value is the mean of those that were read."""
        params = [p.detach() for p in objective.params]
        pairs = list(zip(params, self.places(objective), strict=True))
        free = [(p, place) for p, place in pairs if self._returns(p)]
        kept = [(p, place) for p, place in pairs if not self._returns(p)]
        home = [p.clone() for p, _ in kept]
        slopes, values = {}, []
        for i in range(self.samples):
            pair = []
            offset = 0.0
            try:
                for step in (self.eps, -self.eps):
                    self._shift(free, seed, {i: step - offset})
                    offset = step
                    self._return(kept, home)
                    self._shift(kept, seed, {i: step})
                    pair.append(objective.value())
            finally:
                self._shift(free, seed, {i: -offset})
                self._return(kept, home)
            slopes[i] = ((pair[0] - pair[1]) / (2 * self.eps * self.samples)).item()
            values += pair
        return Projection(torch.stack(values).mean(), slopes)

    def _shift(self, pairs: list[tuple[Tensor, int]], seed: int, weights: dict[int, float]) -> None:
        self.accumulate_([p for p, _ in pairs], seed, weights, [place for _, place in pairs])

    @staticmethod
    def _return(pairs: list[tuple[Tensor, int]], home: list[Tensor]) -> None:
        for (p, _), start in zip(pairs, home, strict=True):
            p.copy_(start)

    def _returns(self, p: Tensor) -> bool:
        """Whether to subtract what was added; in half precision too much would stay behind."""
        return self.in_place and p.element_size() >= 4
