"""The base of filters: what changes gradients on their way to the optimizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from steepest.optim._oracle import lent
from steepest.optim._wrapper import Memory, Wrapper


class Filter(Wrapper, ABC):
    """Abstract wrapper that changes gradients before the optimizer sees them.

    A filter is a function of gradients and of what it remembers (:meth:`filter`), and writes to
    neither: afterwards ``.grad`` is what it was, and if the optimizer's step raises, the filter
    has learned nothing. Filters nest, around each other and inside of what queries the loss::

        opt = Grokfast(AdamW(model.parameters(), lr=1e-3))
        opt = Estimated(Grokfast(AdamW(model.parameters(), lr=1e-3)), SPSA())

    Args:
        optimizer: The optimizer that gets the changed gradients.

    Raises:
        TypeError: If it is not an optimizer, or asks for its gradients itself.

    Attributes:
        steps: Steps made.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(optimizer)
        self.steps = 0

    @abstractmethod
    def filter(
        self, params: list[Tensor], grads: list[Tensor], memories: list[Memory]
    ) -> tuple[list[Tensor], list[Memory]]:
        """Change gradients.

        Args:
            params: The parameters that have a gradient, of all groups.
            grads: Their gradients, not to be written to.
            memories: What was remembered of each, not to be written to; empty at first.

        Returns:
            The new gradients, and what to remember.
        """

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one update.

        Args:
            closure: Optional; clears gradients, computes the loss, calls ``backward`` and
                returns the loss.

        Returns:
            What the closure returned, or None.

        Raises:
            RuntimeError: If a gradient is sparse or cannot be used. Nothing has changed then.
        """
        with torch.enable_grad():
            loss = None if closure is None else closure()
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        grads: list[Tensor] = [p.grad for p in params]
        if any(g.layout != torch.strided for g in grads):
            raise RuntimeError(f"{type(self).__name__} got a sparse gradient: use sparse=False")
        with torch.no_grad():
            changed, memories = self.filter(params, grads, [self.memory.get(p, {}) for p in params])
        with lent(params, changed):
            self.optimizer.step()
        self.memory.update(
            (p, memory) for p, memory in zip(params, memories, strict=True) if memory
        )
        self.steps += 1
        return loss

    def own_state(self) -> dict[str, Any]:
        """The memory, and the number of steps."""
        return {**super().own_state(), "steps": self.steps}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take back memory and number of steps."""
        super().load_own_state(state)
        self.steps = int(state["steps"])
