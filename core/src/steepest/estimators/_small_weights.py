r"""A mask of the small weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from steepest._registry import method


@final
@method(
    paper="liu2024sparse",
    title=("Sparse MeZO: Less Parameters for Better Performance in Zeroth-Order LLM Fine-Tuning"),
    oracle="value",
    scope="tensor",
    forward=2,
    backward=0,
)
class SmallWeights:
    r"""Mask of a tensor's small weights, for estimators and optimizers that probe a part.

    .. math::

        m_j = \mathbb 1\left[\, |\theta_j| \le h \,\right], \qquad
        h = \text{the } \kappa\text{-quantile of } |\theta^{(0)}| \text{ in each tensor}.

    ``MeZO(params, mask=SmallWeights())`` is Sparse MeZO: it probes and trains the small weights,
    and the large ones, which carry what was learned before, stay as they are. An estimate along
    :math:`m \odot z` has the variance of :math:`\|m\|_0` dimensions, not of :math:`d`, so the step
    may be longer by about :math:`1/\kappa`.

    Thresholds are fixed when the mask is first asked; the mask itself is made anew in each step,
    from the parameters before they are probed, and is not stored. A weight that has grown past
    its threshold is trained no longer.

    Args:
        keep: Share :math:`\kappa` of a tensor's elements that are trained, in (0, 1]; the paper
            takes 0.25 for most tasks. Where that is all, there is no threshold.

    Raises:
        ValueError: If ``keep`` is out of its range, or, when asked, parameters are not those of
            the first time, or hold NaN.

    Example:
        >>> small = SmallWeights(keep=0.5)
        >>> small([torch.tensor([4.0, -1.0, 2.0, -3.0])])
        [tensor([False,  True,  True, False])]
        >>> small([torch.tensor([0.0, -1.0, 2.5, -3.0])])  # the threshold is still 2
        [tensor([ True,  True, False, False])]

    Reference:
        :cite:t:`liu2024sparse`.

    Deviations:
        A mask is held as one byte an element during a step; the paper makes it within each
        layer's forward pass. A tensor of one element is always trained.

    When not to use it:
        With new parameters, of an adapter or a head: their size says nothing yet.
    """

    def __init__(self, keep: float = 0.25) -> None:
        if not 0 < keep <= 1:
            raise ValueError(f"keep={keep!r} is not valid: give a number in (0, 1]")
        self.keep = keep
        self.thresholds: list[float] = []
        """Of each tensor, once asked."""

    @torch.no_grad()
    def __call__(self, params: Sequence[Tensor]) -> list[Tensor]:
        """Which elements are small: for each tensor one of its shape, of bool."""
        if not self.thresholds:
            if any(p.isnan().any() for p in params):
                raise ValueError("a parameter holds NaN: no threshold divides its elements")
            self.thresholds = [self._threshold(p) for p in params]
        if len(params) != len(self.thresholds):
            raise ValueError(
                f"{len(params)} parameters, and {len(self.thresholds)} when the mask was first "
                "asked: make a SmallWeights for each model"
            )
        # $m_j = [\,|\theta_j| \le h\,]$
        return [p.abs() <= h for p, h in zip(params, self.thresholds, strict=True)]

    def _threshold(self, p: Tensor) -> float:
        count = max(1, round(self.keep * p.numel()))
        if count >= p.numel():
            return math.inf
        # By count, as torch.quantile is for small tensors only.
        return p.abs().flatten().kthvalue(count).values.item()
