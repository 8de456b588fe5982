"""Disease progression of diabetes patients."""

from __future__ import annotations

import torch

from steepest.lightning._data import TensorData
from steepest.lightning._extra import require
from steepest.lightning._loader import Tensors
from steepest.lightning._split import SPLITS, split


class DiabetesData(TensorData):
    """A tabular regression: 442 patients, ten measurements, progression after a year.

    The set comes with scikit-learn, in the units in which it was measured (age in years, blood
    pressure, serum values, ...). Measurements and target are standardized with the mean and the
    standard deviation of the *training* part, so that nothing of validation and test leaks. A
    least-squares fit explains about half of the variance. The parts hold 70, 15 and 15 %.

    Attributes:
        target_mean: Mean of the training targets, in the original units, after ``setup``.
        target_std: Standard deviation of the training targets, in the original units.

    Args:
        batch_size: Examples per batch.
        seed: Seed of the split and of the training order.
        num_workers: Worker processes.

    Raises:
        ValueError: If ``batch_size`` is not positive.
        ModuleNotFoundError: If scikit-learn is missing.

    Example:
        >>> data = DiabetesData(batch_size=16)
        >>> x, y = next(iter(data.train_dataloader()))
        >>> x.shape, y.shape
        (torch.Size([16, 10]), torch.Size([16]))
    """

    features = 10

    def __init__(self, batch_size: int = 32, *, seed: int = 0, num_workers: int = 0) -> None:
        super().__init__(batch_size, seed, num_workers)
        self.target_mean = 0.0
        self.target_std = 1.0

    def load(self) -> dict[str, Tensors]:
        """The three splits, standardized by statistics of the training part."""
        bunch = require("sklearn.datasets", "scikit-learn", "DiabetesData").load_diabetes(
            scaled=False
        )
        inputs = torch.tensor(bunch.data, dtype=torch.float64)
        targets = torch.tensor(bunch.target, dtype=torch.float64)
        parts = split(torch.zeros(len(targets)), (0.7, 0.15, 0.15), self.seed)
        train = parts[0]
        self.target_mean = targets[train].mean().item()
        self.target_std = targets[train].std(correction=0).item()
        mean, std = inputs[train].mean(0), inputs[train].std(0, correction=0)
        inputs = ((inputs - mean) / std).float()
        targets = ((targets - self.target_mean) / self.target_std).float()
        return {
            name: Tensors(inputs[rows], targets[rows])
            for name, rows in zip(SPLITS, parts, strict=True)
        }
