"""The base of optimizers that wrap another one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch


class Wrapper(torch.optim.Optimizer, ABC):
    """Abstract optimizer around another one, of this package or of ``torch.optim``.

    Groups and state *are* the inner optimizer's, the same objects: a schedule that moves the
    learning rate of either moves both, and wrappers nest. A checkpoint is the inner one's with
    the wrapper's own numbers beside it.

    Args:
        optimizer: The optimizer to wrap. Step this wrapper, not the inner one.

    Raises:
        TypeError: If it is not an optimizer.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"{type(self).__name__} wraps an optimizer, not a {type(optimizer).__name__}: "
                "make it first, AdamW(model.parameters())"
            )
        self.optimizer = optimizer
        super().__init__(optimizer.param_groups, optimizer.defaults)
        self._share()

    @abstractmethod
    def own_state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the wrapper itself: numbers and tensors by name."""

    @abstractmethod
    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`own_state` gave."""

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
        """The inner optimizer's checkpoint, and this wrapper's numbers under its name."""
        return {**self.optimizer.state_dict(), type(self).__name__: self.own_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of the same wrapper around the same optimizer.

        Raises:
            ValueError: If it was saved without this wrapper, or is not the inner optimizer's.
        """
        name = type(self).__name__
        if name not in state_dict:
            raise ValueError(f"the state_dict was saved without {name}: load it into the optimizer")
        inner = {key: value for key, value in state_dict.items() if key != name}
        self.optimizer.load_state_dict(inner)
        self.load_own_state(state_dict[name])
        self._share()

    def __getstate__(self) -> dict[str, Any]:
        own = {key: value for key, value in vars(self).items() if not key.startswith("_")}
        return {**super().__getstate__(), **own}
