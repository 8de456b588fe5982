"""Classification."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from steepest.lightning._mlp import mlp
from steepest.lightning._module import MakeOptimizer, Supervised


class Classifier(Supervised):
    """Cross-entropy and accuracy, with a multilayer perceptron or any network given.

    Logs ``{train,val,test}_loss`` in nats and ``{train,val,test}_accuracy`` in [0, 1].

    Args:
        network: Inputs -> logits ``(n, classes)``; a perceptron by default. Not stored in
            checkpoints: pass it again to ``load_from_checkpoint``.
        features: Numbers per example, for the default network.
        hidden: Units of its hidden layers.
        classes: Number of classes.
        optimizer: Parameters -> optimizer; default AdamW.

    Raises:
        ValueError: If a width is not positive.

    Example:
        >>> import torch
        >>> Classifier(hidden=[32])(torch.zeros(5, 64)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        network: nn.Module | None = None,
        *,
        features: int = 64,
        hidden: Sequence[int] = (256,),
        classes: int = 10,
        optimizer: MakeOptimizer | None = None,
    ) -> None:
        super().__init__(
            network if network is not None else mlp(features, hidden, classes),
            {"accuracy": MulticlassAccuracy(classes, average="micro")},
            optimizer,
        )
        self.save_hyperparameters(ignore=["network", "optimizer"], logger=False)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy, in nats."""
        return F.cross_entropy(outputs, targets)
