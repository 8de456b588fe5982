"""The base of filters: what changes gradients on their way to the optimizer."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from steepest.kernels import Rule, apply
from steepest.optim._base import Elementwise, Lens, real
from steepest.optim._oracle import lent
from steepest.optim._wrapper import Memory, Wrapper


class Filter(Wrapper, ABC):
    """Abstract wrapper that changes gradients before the optimizer sees them.

    A filter is a function of gradients and of what it remembers: afterwards ``.grad`` is what it
    was, and if the optimizer's step raises, the filter has learned nothing. One that works
    element by element is a :meth:`rule`; around an :class:`Elementwise` optimizer it runs in the
    same launch, and takes no memory for the changed gradient. Any other implements
    :meth:`filter`. Filters nest, around each other and inside of what queries the loss::

        opt = Grokfast(AdamW(model.parameters(), lr=1e-3))
        opt = Estimated(Grokfast(AdamW(model.parameters(), lr=1e-3)), SPSA())

    Args:
        optimizer: The optimizer that gets the changed gradients.

    Raises:
        TypeError: If it is not an optimizer, or asks for its gradients itself.

    Attributes:
        steps: Steps made.

    Example:
        Descent by signs, whatever the optimizer.

        >>> class Signs(Filter):
        ...     def filter(self, params, grads, memories):
        ...         return [g.sign() for g in grads], memories
        >>> p = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
        >>> p.grad = torch.tensor([1e3, -1e-3])
        >>> Signs(torch.optim.SGD([p], lr=0.5)).step()
        >>> p.data
        tensor([ 0.5000, -0.5000])
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(optimizer)
        self.steps = 0

    def rule(self) -> Rule | None:
        """Rule that returns the changed ``g`` and what is remembered; None where there is none."""
        return None

    def numbers(self, params: list[Tensor], grads: list[Tensor]) -> dict[str, float | Tensor]:
        """Numbers of the rule: floats, or float64 of shape (T,) for each of the parameters."""
        return {}

    def fresh(self, g: Tensor) -> Memory:
        """What the rule remembers of a parameter before its first gradient."""
        return {}

    def filter(
        self, params: list[Tensor], grads: list[Tensor], memories: list[Memory]
    ) -> tuple[list[Tensor], list[Memory]]:
        """Change gradients; by the rule, unless a subclass has another way.

        Args:
            params: The parameters that have a gradient, of all groups.
            grads: Their gradients, not to be written to.
            memories: What was remembered of each, not to be written to; empty at first.

        Returns:
            The new gradients, and what to remember.
        """
        rule = self.rule()
        assert rule is not None, f"{type(self).__name__} has neither a rule nor filter()"
        made = [g.clone() for g in grads]
        after = [
            {key: t.clone() for key, t in (memory or self.fresh(g)).items()}
            for memory, g in zip(memories, grads, strict=True)
        ]
        if params:
            columns = {"p": params, "g": made, **_columns(rule, after)}
            every = [[real(t) for t in columns[name]] for name in rule.tensors]
            numbers = self.numbers(params, grads)
            floats = {name: v for name, v in numbers.items() if not isinstance(v, Tensor)}
            vectors = {name: v for name, v in numbers.items() if isinstance(v, Tensor)}
            apply(rule, every, [floats], vectors=vectors)
        return made, after

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
        memories = [self.memory.get(p, {}) for p in params]
        rule, optimizer = self.rule(), self.optimizer
        if rule is not None and isinstance(optimizer, Elementwise) and optimizer.takes_lens:
            with torch.no_grad():
                memories = [m or self.fresh(g) for m, g in zip(memories, grads, strict=True)]
                columns = _columns(rule, memories)
                real_columns = {name: [real(t) for t in column] for name, column in columns.items()}
                lens = Lens(rule, params, self.numbers(params, grads), real_columns)
            optimizer.step_through(lens)
        else:
            with torch.no_grad():
                changed, memories = self.filter(params, grads, memories)
            with lent(params, changed):
                self.step_inside(loss)
        if not self.skipped:
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


def _columns(rule: Rule, memories: list[Memory]) -> dict[str, list[Tensor]]:
    return {name: [m[name] for m in memories] for name in rule.tensors if name not in ("p", "g")}
