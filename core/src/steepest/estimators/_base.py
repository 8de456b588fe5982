"""What an estimator is: an oracle's cheap answers, to a guess of a dearer one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from steepest.kernels import add_noise_, check_kind, offsets, split_seed
from steepest.oracles import Objective
from steepest.oracles._objective import Gradient


class Projection(NamedTuple):
    r"""A gradient estimate as the few numbers that it is made of, :math:`\sum_i w_i z_i`."""

    value: Tensor
    """The loss, as it was read, of shape ()."""
    weights: dict[int, float]
    """Index of a direction -> its weight; a seed makes the directions again."""


class GradientEstimator(ABC):
    r"""Abstract estimator of a gradient, from an oracle that is not the gradient.

    It queries along random directions :math:`z_i`, and what it learns is a number for each of
    them (:meth:`project`): the estimate is :math:`\sum_i w_i z_i` (a call). Directions are a
    function of the seed, and their elements of a place: the parameter's name where the objective
    has names, its position in the list otherwise. So the same seed gives the same estimate, on
    any machine, and the order of named parameters does not matter.

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
    def project(self, objective: Objective, seed: int) -> Projection:
        """Query at the current parameters, which end as they were."""

    @property
    @abstractmethod
    def forward(self) -> int:
        """Forward passes of one estimate."""

    @torch.no_grad()
    def __call__(self, objective: Objective, seed: int) -> Gradient:
        """Estimate the gradient at the current parameters, which end as they were."""
        value, weights = self.project(objective, seed)
        return Gradient(value, self.combine(objective, seed, weights))

    def combine(
        self, objective: Objective, seed: int, weights: Mapping[int, float]
    ) -> list[Tensor]:
        r"""The sum :math:`\sum_i w_i z_i` of the seed's directions, a tensor a parameter."""
        total = [torch.zeros_like(p, requires_grad=False) for p in objective.params]
        self.accumulate_(total, seed, weights, self.places(objective))
        return total

    def accumulate_(
        self,
        tensors: Sequence[Tensor],
        seed: int,
        weights: Mapping[int, float],
        places: Sequence[int],
    ) -> None:
        r"""Add :math:`\sum_i w_i z_i` to the tensors in place, in one pass, without temporaries.

        Args:
            tensors: Of the shapes of parameters.
            seed: The seed of the directions.
            weights: Index of a direction -> its weight.
            places: Where each tensor's elements begin in the directions, from :meth:`places`.
        """
        seeds = [split_seed(seed, i) for i in weights]
        add_noise_(tensors, seeds, [*weights.values()], kind=self.kind, start=places)

    def places(self, objective: Objective) -> list[int]:
        """Where the elements of each parameter begin in the directions.

        Raises:
            TypeError: If a parameter is complex.
        """
        for i, p in enumerate(objective.params):
            if p.is_complex():
                raise TypeError(
                    f"parameter {i} is {p.dtype}: directions are real; train torch.view_as_real "
                    "of it, or use exact gradients"
                )
        return offsets(objective.params, objective.names)
