"""Any estimator of a gradient drives any optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor

from steepest.estimators import GradientEstimator
from steepest.kernels import split_seed
from steepest.optim._wrapper import Wrapper
from steepest.oracles import Objective


@final
class Estimated(Wrapper):
    """An optimizer that is given estimated gradients instead of exact ones.

    The estimate takes the place of ``.grad`` for one step of the inner optimizer, which cannot
    tell the difference; afterwards ``.grad`` is what it was. So any estimator drives any
    optimizer, with its moments, its weight decay and its schedules::

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

    When not to use it:
        For forward-only fine-tuning of large models: the estimate is held in memory, as a
        gradient would be.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, estimator: GradientEstimator, *, seed: int = 0
    ) -> None:
        if not isinstance(estimator, GradientEstimator):
            raise TypeError(f"the estimator is a {type(estimator).__name__}: pass SPSA(), say")
        super().__init__(optimizer)
        self.estimator = estimator
        self.seed = seed
        self.steps = 0

    def own_state(self) -> dict[str, Any]:
        """Seed and number of steps."""
        return {"seed": self.seed, "steps": self.steps}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take back seed and number of steps."""
        self.seed, self.steps = int(state["seed"]), int(state["steps"])

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one update.

        Args:
            closure: An objective: a callable that returns the loss and nothing else (no
                ``zero_grad``, no ``backward``), or an :class:`~steepest.oracles.Objective`.

        Returns:
            The loss, as the estimator read it, of shape ().

        Raises:
            RuntimeError: If there is no objective, or it calls ``backward``. Nothing has changed
                then.
        """
        if closure is None:
            raise RuntimeError(
                f"this optimizer queries the {self.estimator.oracle} oracle: pass the loss, "
                "step(lambda: loss_fn(model(x), y))"
            )
        everything: list[Tensor] = [p for group in self.param_groups for p in group["params"]]
        objective = closure if isinstance(closure, Objective) else Objective(closure, everything)
        value, gradient = self.estimator(objective, split_seed(self.seed, self.steps))
        held = [(p, p.grad) for p in everything]
        try:
            for p in everything:
                p.grad = None
            for p, g in zip(objective.params, gradient, strict=True):
                p.grad = g
            self.optimizer.step()
        finally:
            for p, grad in held:
                p.grad = grad
        self.steps += 1
        return value
