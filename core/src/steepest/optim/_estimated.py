"""Any estimator of a gradient drives any optimizer."""

from __future__ import annotations

from typing import final

import torch

from steepest.estimators import GradientEstimator
from steepest.optim._checks import check_hyperparameters
from steepest.optim._oracle import Answer, OracleDriven
from steepest.optim._wrapper import Wrapper
from steepest.oracles import Objective


@final
class Estimated(OracleDriven, Wrapper):
    """An optimizer that is given estimated gradients instead of exact ones.

    The estimate takes the place of ``.grad`` for one step of the inner optimizer, which cannot
    tell the difference; afterwards ``.grad`` is what it was. So any estimator drives any
    optimizer that takes gradients as they come, with its moments, weight decay and schedules::

        opt = Estimated(AdamW(model.parameters(), lr=1e-3), SPSA(samples=8))
        opt.step(lambda: loss_fn(model(x), y))

    Args:
        optimizer: The optimizer that makes the update.
        estimator: The estimator that queries the loss.
        seed: Seed of the directions; each step splits off a seed of its own, and a checkpoint
            remembers how many, so a resumed run goes on with the same ones.

    Raises:
        TypeError: If an argument is of another kind.

    Example:
        In one dimension a forward gradient with signs is exact.

        >>> import torch
        >>> from steepest.estimators import ForwardGradient
        >>> p = torch.nn.Parameter(torch.tensor([3.0]))
        >>> sgd = torch.optim.SGD([p], lr=0.25)
        >>> Estimated(sgd, ForwardGradient(kind="rademacher")).step(lambda: (p**2).sum())
        tensor(9.)
        >>> p.data
        tensor([1.5000])

    Note:
        The estimator's own arguments are not in a checkpoint: make it as it was to go on.

    When not to use it:
        For forward-only fine-tuning of large models: the estimate is held in memory, as a
        gradient would be.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, estimator: GradientEstimator, *, seed: int = 0
    ) -> None:
        if not isinstance(estimator, GradientEstimator):
            raise TypeError(f"the estimator is a {type(estimator).__name__}: pass SPSA(), say")
        check_hyperparameters("Estimated", {"seed": seed})
        super().__init__(optimizer)
        self.estimator = estimator
        self.oracle = estimator.oracle
        self.seed = seed

    def query(self, objective: Objective) -> Answer:
        """Estimate the gradient."""
        return Answer(objective, *self.estimator(objective, self.draw()))

    def update(self, answer: Answer) -> None:
        """Step the optimizer, which reads the estimate in ``.grad``."""
        self.step_inside(answer.value)
