r"""A gradient from forward passes that carry a derivative along."""

from __future__ import annotations

from typing import ClassVar, final

import torch

from steepest.estimators._base import Mask, Projection, RandomEstimator, check_slope
from steepest.oracles import Objective


@final
class ForwardGradient(RandomEstimator):
    r"""Forward gradient: the exact slope along a random direction, times that direction.

    .. math::

        \hat g = \frac1n \sum_{i=1}^n \langle \nabla f(\theta), z_i \rangle\, z_i,
        \qquad \mathrm E[\hat g] = \mathrm E[z z^\top]\, \nabla f = \nabla f.

    Forward-mode differentiation gives the slope in one pass, without a graph. It is SPSA's limit
    for a vanishing radius: the same variance, and no bias at all.

    Args:
        samples: Directions :math:`n` that an estimate averages; one forward pass each.
        kind: ``gaussian``, ``rademacher`` or ``sphere`` directions.
        mask: Which elements to probe, as a function of the parameters; all by default.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> p = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
        >>> f = Objective(lambda: (p**2).sum(), [p])
        >>> ForwardGradient(kind="rademacher")(f, seed=0).gradient[0]
        tensor([4.], dtype=torch.float64)
        >>> f.counts["forward"], f.counts["backward"]
        (1, 0)

    Reference:
        Baydin, Pearlmutter, Syme, Wood and Torr, "Gradients without backpropagation", 2022.

    When not to use it:
        As for :class:`SPSA`; and where torch has no forward derivative of an operation.
    """

    oracle: ClassVar = "jvp"

    def __init__(
        self, samples: int = 1, kind: str = "gaussian", *, mask: Mask | None = None
    ) -> None:
        super().__init__(samples, kind, mask)

    @property
    def forward(self) -> int:
        """One pass a direction."""
        return self.samples

    @torch.no_grad()
    def ask(self, objective: Objective, seed: int) -> Projection:
        """The slopes along the directions; the value is exact, the mean over the passes."""
        slopes, values = {}, []
        for i in range(self.samples):
            stretch = self.stretch(objective, seed, i)
            # $\langle \nabla f, z_i \rangle$
            answer = objective.derivative(self.combine(objective, seed, {i: stretch}))
            # $w_i = \langle \nabla f, z_i \rangle / n$
            slopes[i] = (answer.slope / self.samples).item() * stretch
            check_slope(slopes[i])
            values.append(answer.value)
        return Projection(torch.stack(values).mean(), slopes)
