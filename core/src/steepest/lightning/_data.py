"""What the data modules share."""

from __future__ import annotations

from abc import ABC, abstractmethod

from lightning.pytorch import LightningDataModule

from steepest.lightning._loader import EpochLoader, Tensors, loader


class TensorData(LightningDataModule, ABC):
    """Data that fits in memory, in three splits; a subclass says how to load them.

    Attributes:
        splits: Data sets ``train``, ``val`` and ``test``, empty before :meth:`setup`.

    Args:
        batch_size: Examples per batch; the last batch of an epoch may be smaller.
        seed: Seed of the split and of the training order.
        num_workers: Worker processes.

    Raises:
        ValueError: If ``batch_size`` is not positive.
    """

    def __init__(self, batch_size: int, seed: int, num_workers: int) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, not {batch_size}")
        self.batch_size = batch_size
        self.seed = seed
        self.num_workers = num_workers
        self.splits: dict[str, Tensors] = {}

    @abstractmethod
    def load(self) -> dict[str, Tensors]:
        """The three splits."""

    def setup(self, stage: str | None = None) -> None:
        """Load the data, once."""
        if not self.splits:
            self.splits = self.load()

    def _loader(self, split: str) -> EpochLoader:
        self.setup()
        return loader(
            self.splits[split],
            self.batch_size,
            seed=self.seed,
            shuffle=split == "train",
            num_workers=self.num_workers,
        )

    def train_dataloader(self) -> EpochLoader:
        """Training batches, in an order that depends on seed and epoch only."""
        return self._loader("train")

    def val_dataloader(self) -> EpochLoader:
        """Validation batches, in a fixed order."""
        return self._loader("val")

    def test_dataloader(self) -> EpochLoader:
        """Test batches, in a fixed order."""
        return self._loader("test")
