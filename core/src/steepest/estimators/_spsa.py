r"""A gradient from values alone: simultaneous perturbation."""

from __future__ import annotations

import math
from typing import ClassVar, final

import torch
from torch import Tensor

from steepest.estimators._base import Mask, Projection, RandomEstimator, check_slope
from steepest.oracles import Objective


@final
class SPSA(RandomEstimator):
    r"""SPSA: the slope along a random direction, from two values, times that direction.

    .. math::

        \hat g = \frac1n \sum_{i=1}^n
            \frac{f(\theta + \epsilon z_i) - f(\theta - \epsilon z_i)}{2 \epsilon}\, z_i,
        \qquad \mathrm E[z z^\top] = I.

    To first order the quotient is :math:`\langle \nabla f, z \rangle`, and
    :math:`\mathrm E[z z^\top \nabla f] = \nabla f`. Even orders cancel, so the bias is of order
    :math:`\epsilon^2`, and on a quadratic there is none. The price is variance: with Gaussian
    directions :math:`\mathrm{tr}\,\mathrm{Cov}\,\hat g = (d + 1)\, \|\nabla f\|^2 / n` in
    :math:`d` dimensions, with signs or on the sphere :math:`(d - 1)\, \|\nabla f\|^2 / n`.

    ``one_sided`` takes :math:`(f(\theta + \epsilon z_i) - f(\theta)) / \epsilon` instead: one value
    a direction and one for all, for a bias of order :math:`\epsilon`.

    Args:
        eps: Radius :math:`\epsilon`, in the parameters' units: small against the scale on which
            the loss bends, large against its rounding.
        samples: Directions :math:`n` that an estimate averages; two values each.
        kind: ``gaussian``, ``rademacher`` or ``sphere`` directions.
        mask: Which elements to probe, as a function of the parameters; all by default.
        one_sided: Compare with the value at the parameters.
        in_place: Put the parameters back by subtracting what was added, to within rounding,
            instead of from a copy, bit for bit. It saves the copy's memory. Parameters of half
            precision are copied in any case.

    Raises:
        ValueError: If an argument is out of its range.
        RuntimeError: At an estimate, if a value is NaN or infinite. Parameters are as they were.

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
        mask: Mask | None = None,
        one_sided: bool = False,
        in_place: bool = False,
    ) -> None:
        super().__init__(samples, kind, mask)
        if not (math.isfinite(eps) and eps > 0):
            raise ValueError(f"eps={eps!r} is not valid: give a finite number > 0")
        self.eps = eps
        self.one_sided = one_sided
        self.in_place = in_place
        self.stay = False
        """Leave the parameters at the last probe, for who is about to move them anyway: one pass
        over them less. Those that return from a copy do so in any case."""

    @property
    def forward(self) -> int:
        """Two values a direction; one-sided, one and the value at the parameters."""
        return self.samples + 1 if self.one_sided else 2 * self.samples

    @torch.no_grad()
    def ask(self, objective: Objective, seed: int) -> Projection:
        """The difference quotients.

        The value is that at the parameters; two-sided, the mean of those that were read.
        """
        params = [p.detach() for p in objective.params]
        pairs = list(zip(params, self.places(objective), strict=True))
        free = [(p, place) for p, place in pairs if self.returns(p)]
        kept = [(p, place) for p, place in pairs if not self.returns(p)]
        home = [p.clone() for p, _ in kept]
        base = [objective.value()] if self.one_sided else []
        slopes, values, back = {}, [], {}
        for i in range(self.samples):
            stretch = self.stretch(objective, seed, i)
            read: list[Tensor] = []
            offset = 0.0
            try:
                for side in (1.0,) if self.one_sided else (1.0, -1.0):
                    step = side * self.eps * stretch
                    # $\theta + \epsilon z_i, \text{ then } \theta - \epsilon z_i$
                    self._shift(free, seed, {i: step - offset})
                    offset = step
                    self._return(kept, home)
                    self._shift(kept, seed, {i: step})
                    read.append(objective.value())
            except BaseException:
                self._shift(free, seed, {i: -offset})
                raise
            finally:
                self._return(kept, home)
            first, second = (*read, *base)
            width = self.eps if self.one_sided else 2 * self.eps
            # $w_i = \frac{f(\theta + \epsilon z_i) - f(\theta - \epsilon z_i)}{2 \epsilon n}$
            slopes[i] = ((first - second) / (width * self.samples)).item() * stretch
            values += read
            if self.stay and i == self.samples - 1 and math.isfinite(slopes[i]):
                back = {i: -offset}
            else:
                # $\theta$
                self._shift(free, seed, {i: -offset})
            check_slope(slopes[i])
        return Projection(base[0] if base else torch.stack(values).mean(), slopes, back)

    def _shift(self, pairs: list[tuple[Tensor, int]], seed: int, weights: dict[int, float]) -> None:
        self.accumulate_([p for p, _ in pairs], seed, weights, [place for _, place in pairs])

    @staticmethod
    def _return(pairs: list[tuple[Tensor, int]], home: list[Tensor]) -> None:
        for (p, _), start in zip(pairs, home, strict=True):
            p.copy_(start)

    def returns(self, p: Tensor) -> bool:
        """Whether to subtract what was added; in half precision too much would stay behind."""
        return self.in_place and p.element_size() >= 4
