"""What an estimator is: an oracle's cheap answers, to a guess of a dearer one."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from steepest.kernels import add_noise_, check_kind, offsets, split_seed
from steepest.kernels._noise import KINDS
from steepest.oracles import Objective
from steepest.oracles._objective import Gradient


class Projection(NamedTuple):
    r"""A gradient estimate as the few numbers that it is made of, :math:`\sum_i w_i z_i`."""

    value: Tensor
    """The loss, as it was read, of shape ()."""
    weights: dict[int, float]
    """Index of a direction -> its weight; a seed makes the directions again."""
    back: dict[int, float] = {}  # noqa: RUF012  (never written to)
    """What is still to be added to the parameters for them to be where they were, by direction;
    nothing, unless the estimator was told to stay."""


class GradientEstimator(ABC):
    r"""Abstract estimator of a gradient, from an oracle that is not the gradient.

    It queries along directions :math:`z_i`, and what it learns is a number for each of them
    (:meth:`project`): the estimate is :math:`\sum_i w_i z_i` (a call). Directions are a function of
    the seed, and their elements of a place: the parameter's name where the objective has names,
    its position in the list otherwise. So the same seed gives the same estimate, on any machine,
    and the order of named parameters does not matter.

    Example:
        What an estimator learns are a few numbers. With the seed, they are the gradient.

        >>> from steepest.estimators import SPSA
        >>> p = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
        >>> f = Objective(lambda: (p * p).sum(), [p])
        >>> value, weights, _ = SPSA(samples=2).project(f, seed=1)
        >>> round(value.item(), 4), len(weights)
        (5.0, 2)
    """

    oracle: ClassVar[str]
    """Name of the oracle that is queried, such as ``value``."""

    @abstractmethod
    def project(self, objective: Objective, seed: int) -> Projection:
        """Query at the current parameters, which end as they were."""

    @property
    @abstractmethod
    def forward(self) -> int:
        """Forward passes of one estimate."""

    @abstractmethod
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

    @torch.no_grad()
    def __call__(self, objective: Objective, seed: int) -> Gradient:
        """Estimate the gradient at the current parameters, which end as they were."""
        answer = self.project(objective, seed)
        return Gradient(answer.value, self.combine(objective, seed, answer.weights))

    def combine(
        self, objective: Objective, seed: int, weights: Mapping[int, float]
    ) -> list[Tensor]:
        r"""The sum :math:`\sum_i w_i z_i` of the seed's directions, a tensor a parameter."""
        total = [torch.zeros_like(p, requires_grad=False) for p in objective.params]
        self.accumulate_(total, seed, weights, self.places(objective))
        return total

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


class NonFiniteLoss(RuntimeError):
    """A value that was read is NaN or infinite; the parameters are as they were."""

    def __init__(self) -> None:
        super().__init__(
            "the loss is NaN or infinite near the parameters, which are as they were: lower the "
            "learning rate if the loss grew, or the radius of the probes if it is fine at the "
            "parameters themselves"
        )


def check_slope(slope: float) -> None:
    """Refuse what came of values that are NaN or infinite.

    Raises:
        NonFiniteLoss: If the slope is not finite.
    """
    if not math.isfinite(slope):
        raise NonFiniteLoss


Mask = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""Parameters -> for each a tensor of its shape, of bool: which elements to probe and train."""


class RandomEstimator(GradientEstimator):
    r"""Abstract estimator along random directions with :math:`\mathrm E[z z^\top] = I`.

    Args:
        samples: Directions that an estimate averages.
        kind: Their distribution: ``gaussian``; ``rademacher``, independent signs; or ``sphere``,
            uniform on the sphere of radius :math:`\sqrt d`.
        mask: Which elements directions have; the others stay as they are, and their gradient is
            estimated as zero. It is asked once an estimate, about the unperturbed parameters.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        The mean of many estimates is the gradient, here (2, 4).

        >>> from steepest.estimators import SPSA
        >>> p = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
        >>> f = Objective(lambda: (p * p).sum(), [p])
        >>> (g,) = SPSA(samples=4000, kind="sphere")(f, seed=1).gradient
        >>> (g - torch.tensor([2.0, 4.0])).abs().max() < 0.2
        tensor(True)
    """

    def __init__(self, samples: int, kind: str, mask: Mask | None = None) -> None:
        if not isinstance(samples, int) or samples < 1:
            raise ValueError(f"samples={samples!r} is not valid: give a whole number >= 1")
        check_kind(kind, (*KINDS, "sphere"))
        self.samples = samples
        self.kind = kind
        self.mask = mask
        self._masks: dict[int, Tensor] = {}

    def project(self, objective: Objective, seed: int) -> Projection:
        """Query at the current parameters, which end as they were."""
        if self.mask is not None:
            made = self.mask([p.detach() for p in objective.params])
            self._masks = dict(zip(self.places(objective), made, strict=True))
        return self.ask(objective, seed)

    @abstractmethod
    def ask(self, objective: Objective, seed: int) -> Projection:
        """Query along the directions."""

    def accumulate_(
        self,
        tensors: Sequence[Tensor],
        seed: int,
        weights: Mapping[int, float],
        places: Sequence[int],
    ) -> None:
        r"""Add :math:`\sum_i w_i z_i`; of a sphere's directions, before they have their length."""
        add_noise_(
            tensors,
            [split_seed(seed, i) for i in weights],
            [*weights.values()],
            kind="gaussian" if self.kind == "sphere" else self.kind,
            start=places,
            masks=None if self.mask is None else [self._masks[place] for place in places],
        )

    def where(self, place: int, factor: float) -> Tensor | float:
        """A factor for the elements of a parameter that are probed, and 1 for the others."""
        if self.mask is None:
            return factor
        return 1 + (factor - 1) * self._masks[place]

    def stretch(self, objective: Objective, seed: int, i: int) -> float:
        r"""Factor that puts direction i on the sphere, :math:`\sqrt d / \|z\|`; else 1."""
        if self.kind != "sphere":
            return 1.0
        square, count = 0.0, 0
        for p, place in zip(objective.params, self.places(objective), strict=True):
            z = torch.zeros_like(p, requires_grad=False, dtype=torch.float64)
            self.accumulate_([z], seed, {i: 1.0}, [place])
            square += z.square().sum().item()
            count += int(self._masks[place].sum()) if self.mask is not None else p.numel()
        return math.sqrt(count / square) if square else 1.0
