"""The base of optimizers that wrap another one."""

from __future__ import annotations

from abc import ABC
from typing import Any

import torch
from torch import Tensor

from steepest.optim._checks import check_shapes, check_unwrapped
from steepest.optim._oracle import OracleDriven

Memory = dict[str, Tensor]
"""What a wrapper remembers of one parameter: tensors by name."""


class Wrapper(torch.optim.Optimizer, ABC):
    """Abstract optimizer around another one, of this package or of ``torch.optim``.

    Groups and state *are* the inner optimizer's, the same objects: a schedule that moves the
    learning rate of either moves both, and wrappers nest. A checkpoint is the inner one's with
    the wrapper's own numbers beside it.

    Args:
        optimizer: The optimizer to wrap. Step this wrapper, not the inner one.

    Raises:
        TypeError: If it is not an optimizer, or asks for its gradients itself.

    Attributes:
        optimizer: The optimizer inside.
        memory: What the wrapper remembers of a parameter: tensors by name.

    Example:
        >>> class Counting(Wrapper):
        ...     calls = 0
        ...
        ...     def step(self, closure=None):
        ...         self.calls += 1
        ...         return self.optimizer.step(closure)
        >>> p = torch.nn.Parameter(torch.tensor([1.0]))
        >>> p.grad = torch.tensor([1.0])
        >>> opt = Counting(torch.optim.SGD([p], lr=0.25))
        >>> opt.step()
        >>> opt.calls, p.item()
        (1, 0.75)
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        own, given = type(self).__name__, type(optimizer).__name__
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"{own} wraps an optimizer, not a {given}: make it first, AdamW(model.parameters())"
            )
        if isinstance(optimizer, OracleDriven):
            remedy = "use one of the two"
            if isinstance(optimizer, Wrapper) and not isinstance(self, OracleDriven):
                remedy = f"put it inside, {given}({own}(...))"
            raise TypeError(
                f"{own} wraps an optimizer that takes gradients as they come, and {given} asks for "
                f"its own: {remedy}"
            )
        self.optimizer = optimizer
        self.memory: dict[Tensor, Memory] = {}
        super().__init__(optimizer.param_groups, optimizer.defaults)
        self._share()

    @property
    def needs_loss(self) -> bool:
        """Whether the optimizer inside reads the loss's value."""
        return getattr(self.optimizer, "needs_loss", False)

    @property
    def skipped(self) -> bool:
        """Whether the optimizer inside has left out its last step; there is nothing to learn."""
        return getattr(self.optimizer, "skipped", False)

    def step_inside(self, loss: Any) -> None:
        """Step the optimizer inside; one that reads the loss's value gets it."""
        self.optimizer.step((lambda: loss) if self.needs_loss else None)

    def own_state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the wrapper itself: the memory, by the parameter's index.

        A wrapper with numbers of its own adds them.
        """
        return {"memory": {i: self.memory[p] for i, p in self._numbered() if p in self.memory}}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`own_state` gave."""
        memory = state["memory"]
        self.memory = {
            p: {key: t.detach().to(p.device, copy=True) for key, t in memory[i].items()}
            for i, p in self._numbered()
            if i in memory
        }

    def _numbered(self) -> list[tuple[int, Tensor]]:
        return list(enumerate(p for group in self.param_groups for p in group["params"]))

    def _share(self) -> None:
        self.param_groups = self.optimizer.param_groups
        self.state = self.optimizer.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the inner optimizer."""
        if any(param_group is group for group in self.optimizer.param_groups):
            super().add_param_group(param_group)  # from __init__: it is there already
        else:
            self.optimizer.add_param_group(param_group)
            self._share()

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's checkpoint, and this wrapper's numbers under its name.

        Of two of a kind, the outer one's name gets a ``+``.
        """
        inner = self.optimizer.state_dict()
        taken = self._key(inner)
        own = {**self.own_state(), "around": self._inside}
        return {**inner, f"{taken}+" if taken else self._name: own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of the same wrapper around the same optimizer.

        Raises:
            ValueError: If it was saved without this wrapper, with one more around it or in another
                order, or is not the inner optimizer's. Nothing has changed then.
        """
        own = self._key(state_dict)
        if own is None:
            raise ValueError(
                f"the state_dict was saved without {self._name}: load it into the optimizer"
            )
        around = state_dict[own]["around"]
        if around != self._inside:
            raise ValueError(
                f"the state_dict is of {self._name} around {around}, and this one is around "
                f"{self._inside}: nest them as they were"
            )
        params = [p for _, p in self._numbered()]
        check_shapes(self._name, params, state_dict[own]["memory"])
        inner = {key: value for key, value in state_dict.items() if key != own}
        check_unwrapped(self._name, inner)
        self.optimizer.load_state_dict(inner)
        self.load_own_state(state_dict[own])
        self._share()

    @property
    def _name(self) -> str:
        return type(self).__name__

    @property
    def _inside(self) -> str:
        return type(self.optimizer).__name__

    def _key(self, state_dict: dict[str, Any]) -> str | None:
        """Key of the outermost wrapper of this kind, if there is one."""
        keys = [key for key in state_dict if key.rstrip("+") == self._name]
        return max(keys, key=len, default=None)

    def __getstate__(self) -> dict[str, Any]:
        # A schedule sets a step of its own on an optimizer, which is bound to this one.
        own = {k: v for k, v in vars(self).items() if not k.startswith("_") and k != "step"}
        return {**super().__getstate__(), **own}
