"""CIFAR-10."""

from __future__ import annotations

import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from steepest.lightning._cache import cache_root, download
from steepest.lightning._data import TensorData
from steepest.lightning._loader import Tensors
from steepest.lightning._split import split

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
ARCHIVE = "cifar-10-python.tar.gz"
FOLDER = "cifar-10-batches-py"

ARRAYS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): lambda kind, shape, code: np.empty(shape),
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): lambda kind, *flags: np.dtype(kind),
}
"""What a pickled array calls, by the names of Python 2's numpy."""


class _Unpickler(pickle.Unpickler):
    """Reads the archive's dictionaries of arrays, and can make nothing but arrays."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) not in ARRAYS:
            raise pickle.UnpicklingError(f"{module}.{name} does not belong in CIFAR-10")
        return ARRAYS[module, name]


def _read(file: IO[bytes]) -> tuple[Tensor, Tensor]:
    batch = _Unpickler(file, encoding="bytes").load()
    images = torch.from_numpy(np.array(batch[b"data"], dtype=np.uint8)).reshape(-1, 3, 32, 32)
    return images, torch.tensor(batch[b"labels"], dtype=torch.int64)


def _scale(images: Tensor) -> Tensor:
    return images.float() / 255


class CIFAR10Data(TensorData):
    """CIFAR-10: 60,000 color images of 32x32 pixels in ten classes.

    Downloads the original archive (163 MiB) once. A tenth of the 50,000 training images,
    500 of each class, is kept for validation. Images are stored as bytes and become floats in
    [0, 1], shape ``(3, 32, 32)``, when a batch is made; there is no augmentation.

    Args:
        batch_size: Examples per batch.
        root: Folder of the archive; by default ``data/cache`` of the repository, or
            ``~/.cache/steepest`` outside of one.
        seed: Seed of the split and of the training order.
        num_workers: Worker processes.

    Raises:
        ValueError: If ``batch_size`` is not positive.
        DownloadError: If the archive is missing and there is no network. Raised by
            ``prepare_data``, and says what to put where.
    """

    features = 3 * 32 * 32
    classes = 10
    names = (
        "airplane", "automobile", "bird", "cat", "deer",
        "dog", "frog", "horse", "ship", "truck",
    )  # fmt: skip

    def __init__(
        self,
        batch_size: int = 128,
        *,
        root: str | os.PathLike[str] | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, seed, num_workers)
        self.root = root

    def prepare_data(self) -> None:
        """Download the archive if it is not there."""
        self.archive()

    def archive(self) -> Path:
        """The archive, downloaded if need be."""
        return download(URL, cache_root(self.root) / ARCHIVE, SHA256)

    def load(self) -> dict[str, Tensors]:
        """The three splits."""
        batches = {}
        with tarfile.open(self.archive(), "r:gz") as tar:
            for member in tar:  # in the archive's order: one pass through the compression
                folder, _, name = member.name.partition("/")
                if folder == FOLDER and "_batch" in name and (file := tar.extractfile(member)):
                    batches[name] = _read(file)
        parts = [batches[name] for name in sorted(batches) if name.startswith("data_batch")]
        images, labels = (torch.cat(column) for column in zip(*parts, strict=True))
        train, val = split(labels, (0.9, 0.1), self.seed)
        return {
            "train": Tensors(images[train], labels[train], _scale),
            "val": Tensors(images[val], labels[val], _scale),
            "test": Tensors(*batches["test_batch"], _scale),
        }
