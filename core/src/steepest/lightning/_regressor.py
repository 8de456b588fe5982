"""Regression."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.regression import MeanSquaredError, R2Score

from steepest.lightning._mlp import mlp
from steepest.lightning._module import MakeOptimizer, Supervised


class Regressor(Supervised):
    """Mean squared error and R2, with a multilayer perceptron or any network given.

    Logs ``{train,val,test}_loss`` and ``_mse`` in squared units of the target, and ``_r2``, the
    explained fraction of the variance (over the whole split).

    Args:
        network: Inputs -> outputs ``(n,)``; a perceptron by default. Not stored in checkpoints:
            pass it again to ``load_from_checkpoint``.
        features: Numbers per example, for the default network.
        hidden: Units of its hidden layers.
        optimizer: Parameters -> optimizer; default AdamW.

    Raises:
        ValueError: If a width is not positive, or outputs and targets differ in shape.

    Example:
        >>> import torch
        >>> Regressor(hidden=[])(torch.zeros(5, 10)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        network: nn.Module | None = None,
        *,
        features: int = 10,
        hidden: Sequence[int] = (32,),
        optimizer: MakeOptimizer | None = None,
    ) -> None:
        if network is None:
            network = nn.Sequential(mlp(features, hidden, 1), nn.Flatten(0))
        super().__init__(network, {"mse": MeanSquaredError(), "r2": R2Score()}, optimizer)
        self.save_hyperparameters(ignore=["network", "optimizer"], logger=False)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error."""
        if outputs.shape != targets.shape:
            raise ValueError(
                f"outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)} must agree"
            )
        return F.mse_loss(outputs, targets)
