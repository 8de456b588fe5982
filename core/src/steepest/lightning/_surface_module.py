"""Descent on a surface."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from steepest.lightning._loader import EpochLoader, Tensors, loader
from steepest.lightning._module import MakeOptimizer, Trainable
from steepest.objectives import Surface
from steepest.objectives import surface as find_surface


class SurfaceModule(Trainable):
    """One point that descends a function of two variables, and remembers its path.

    Logs ``train_loss``, the mean value over an epoch, and ``test_loss`` and ``test_distance``:
    the value at the last point and its distance to the nearest minimum. Brings its own loaders.

    Attributes:
        point: The point, shape ``(2,)``.

    Args:
        surface: A surface, or its name.
        start: Where to start; by default the surface's own start.
        steps: Steps per epoch.
        optimizer: Parameters -> optimizer; default AdamW.

    Raises:
        ValueError: If there is no such surface, or ``steps`` is not positive.

    Example:
        >>> module = SurfaceModule("ravine")
        >>> module()
        tensor(90.5000, grad_fn=<MulBackward0>)
    """

    def __init__(
        self,
        surface: str | Surface = "rosenbrock",
        *,
        start: tuple[float, float] | None = None,
        steps: int = 1000,
        optimizer: MakeOptimizer | None = None,
    ) -> None:
        super().__init__(optimizer)
        if steps < 1:
            raise ValueError(f"steps must be positive, not {steps}")
        self.surface = find_surface(surface) if isinstance(surface, str) else surface
        self.steps = steps
        self.point = nn.Parameter(torch.tensor(start or self.surface.start))
        self._path: list[Tensor] = []

    @property
    def trajectory(self) -> Tensor:
        """Every point so far, the start first, shape ``(steps + 1, 2)``."""
        return torch.stack([*self._path, self.point.detach().clone()])

    def forward(self) -> Tensor:
        """Value at the point."""
        return self.surface.fn(self.point)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Value at the point; the batch holds nothing."""
        loss = self()
        self.log(
            "train_loss", loss.detach(), on_step=False, on_epoch=True, prog_bar=True, batch_size=1
        )
        return loss

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Remember the point that the step leaves."""
        self._path.append(self.point.detach().clone())

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Log value and distance of the last point."""
        distance = self.surface.distance(self.point)
        self.log_dict({"test_loss": self(), "test_distance": distance}, batch_size=1)

    def train_dataloader(self) -> EpochLoader:
        """As many empty batches as an epoch has steps."""
        return loader(Tensors(torch.zeros(self.steps, 0), torch.zeros(self.steps, 0)), 1)

    def test_dataloader(self) -> EpochLoader:
        """One empty batch."""
        return loader(Tensors(torch.zeros(1, 0), torch.zeros(1, 0)), 1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the path."""
        checkpoint["trajectory"] = self.trajectory

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the path."""
        self._path = list(checkpoint["trajectory"][:-1])
