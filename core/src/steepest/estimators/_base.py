"""What an estimator is: an oracle's cheap answers, to a guess of a dearer one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from steepest.kernels import add_noise_, check_kind, split_seed
from steepest.oracles import Objective
from steepest.oracles._objective import Gradient


class GradientEstimator(ABC):
    """Abstract estimator of a gradient, from an oracle that is not the gradient.

    The estimate is a function of the objective's answers and a seed: the same seed gives the
    same estimate. Directions are numbered by element, over the objective's parameters in their
    order, so they depend neither on how elements are cut into tensors nor on the machine.

    Args:
        samples: Directions that an estimate averages.
        kind: Distribution of the directions, ``gaussian`` or ``rademacher``.

    Raises:
        ValueError: If an argument is out of its range.
    """

    oracle: ClassVar[str]
    """Name of the oracle that is queried, such as ``value``."""

    def __init__(self, samples: int, kind: str) -> None:
        if not isinstance(samples, int) or samples < 1:
            raise ValueError(f"samples={samples!r} is not valid: give a whole number >= 1")
        check_kind(kind)
        self.samples = samples
        self.kind = kind

    @abstractmethod
    def __call__(self, objective: Objective, seed: int) -> Gradient:
        """Estimate the gradient at the current parameters, which end as they were."""

    @property
    @abstractmethod
    def forward(self) -> int:
        """Forward passes of one estimate."""

    def combine(
        self, objective: Objective, seed: int, weights: Mapping[int, float]
    ) -> list[Tensor]:
        r"""The sum :math:`\sum_i w_i z_i` of the seed's directions, a tensor a parameter."""
        total = [torch.zeros_like(p, requires_grad=False) for p in objective.params]
        self.accumulate_(total, seed, weights)
        return total

    def accumulate_(
        self, tensors: Sequence[Tensor], seed: int, weights: Mapping[int, float]
    ) -> None:
        r"""Add :math:`\sum_i w_i z_i` to the tensors, in place."""
        for i, weight in weights.items():
            add_noise_(tensors, split_seed(seed, i), weight, kind=self.kind)
