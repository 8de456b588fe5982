"""What the modules share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import cast

from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric

from steepest.optim import AdamW

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]


class Trainable(LightningModule, ABC):
    """A module whose optimizer is an argument.

    Args:
        optimizer: Parameters -> optimizer, e.g. ``partial(Adam, lr=3e-3)``; default AdamW.

    Attributes:
        make_optimizer: The same, replaceable until training starts.
    """

    def __init__(self, optimizer: MakeOptimizer | None) -> None:
        super().__init__()
        self.make_optimizer = optimizer or AdamW

    def configure_optimizers(self) -> Optimizer:
        """The optimizer of all parameters."""
        return self.make_optimizer(self.parameters())


class Supervised(Trainable, ABC):
    """A network, a loss and metrics; the same three steps for training, validation and test.

    Logs ``{train,val,test}_loss`` and one metric a name, averaged over epochs.

    Args:
        network: Inputs -> outputs.
        metrics: Name -> metric of ``(outputs, targets)``.
        optimizer: Parameters -> optimizer; default AdamW.
    """

    def __init__(
        self, network: nn.Module, metrics: Mapping[str, Metric], optimizer: MakeOptimizer | None
    ) -> None:
        super().__init__(optimizer)
        self.network = network
        self.metrics = nn.ModuleDict(
            {
                f"{split}_{name}": metric.clone()
                for split in ("train", "val", "test")
                for name, metric in metrics.items()
            }
        )

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of a batch, a scalar."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs of the network."""
        return cast(Tensor, self.network(inputs))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of a training batch."""
        return self._step("train", batch)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log loss and metrics of a validation batch."""
        self._step("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log loss and metrics of a test batch."""
        self._step("test", batch)

    def _step(self, split: str, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, targets = batch
        outputs = self(inputs)
        loss = self.loss(outputs, targets)
        self.log(
            f"{split}_loss",
            loss.detach(),
            on_step=False,
            on_epoch=True,
            prog_bar=split == "val",
            sync_dist=True,
            batch_size=len(inputs),
        )
        for name, module in self.metrics.items():
            if name.startswith(split):
                metric = cast(Metric, module)
                metric.update(outputs.detach(), targets)
                self.log(name, metric, on_step=False, on_epoch=True, prog_bar=split == "val")
        return loss
