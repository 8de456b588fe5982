"""Handwritten digits, 8x8 pixels."""

from __future__ import annotations

import torch

from steepest.lightning._data import TensorData
from steepest.lightning._extra import require
from steepest.lightning._loader import Tensors
from steepest.lightning._split import SPLITS, split


class DigitsData(TensorData):
    """Handwritten digits: 1,797 real images of 8x8 pixels in ten classes, nothing to download.

    The set comes with scikit-learn (the test part of the UCI "Optical Recognition of
    Handwritten Digits" data). A network of one hidden layer reaches a test accuracy of 97 % in
    seconds on a CPU. Training, validation and test hold 70, 15 and 15 % of each class.

    Attributes:
        noisy: Which training labels were changed, shape ``(n_train,)``, after ``setup``.

    Args:
        batch_size: Examples per batch.
        image: Shape inputs ``(1, 8, 8)`` rather than ``(64,)``.
        label_noise: Fraction of the *training* labels replaced by another class, drawn
            uniformly. Validation and test labels are never touched.
        seed: Seed of the split, the noise and the training order.
        num_workers: Worker processes.

    Raises:
        ValueError: If ``batch_size`` is not positive or ``label_noise`` is not in [0, 1].
        ModuleNotFoundError: If scikit-learn is missing.

    Example:
        >>> data = DigitsData(batch_size=32)
        >>> x, y = next(iter(data.train_dataloader()))
        >>> x.shape, x.min() >= 0, x.max() <= 1, y.dtype
        (torch.Size([32, 64]), tensor(True), tensor(True), torch.int64)
    """

    features = 64
    classes = 10

    def __init__(
        self,
        batch_size: int = 32,
        *,
        image: bool = False,
        label_noise: float = 0.0,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, seed, num_workers)
        if not 0 <= label_noise <= 1:
            raise ValueError(f"label_noise must be a fraction in [0, 1], not {label_noise}")
        self.image = image
        self.label_noise = label_noise
        self.noisy = torch.zeros(0, dtype=torch.bool)

    def load(self) -> dict[str, Tensors]:
        """The three splits, pixels scaled to [0, 1]."""
        bunch = require("sklearn.datasets", "scikit-learn", "DigitsData").load_digits()
        inputs = torch.tensor(bunch.data / 16.0, dtype=torch.float32)
        labels = torch.tensor(bunch.target, dtype=torch.int64)
        if self.image:
            inputs = inputs.reshape(-1, 1, 8, 8)
        parts = split(labels, (0.7, 0.15, 0.15), self.seed)
        splits = {
            name: Tensors(inputs[rows], labels[rows])
            for name, rows in zip(SPLITS, parts, strict=True)
        }
        self._add_noise(splits["train"])
        return splits

    def _add_noise(self, train: Tensors) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        size = len(train)
        rows = torch.randperm(size, generator=generator)[: round(self.label_noise * size)]
        shift = torch.randint(1, self.classes, (len(rows),), generator=generator)
        train.targets[rows] = (train.targets[rows] + shift) % self.classes
        self.noisy = torch.zeros(size, dtype=torch.bool)
        self.noisy[rows] = True
