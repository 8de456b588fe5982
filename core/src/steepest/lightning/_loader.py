"""Batches in an order that depends on nothing but the seed and the epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from steepest.lightning._quiet import hush

Pair = tuple[Tensor, Tensor]


class Tensors(Dataset[Pair]):
    """Inputs and targets in memory; a batch is one indexing operation per tensor.

    Args:
        inputs: Inputs, one per row.
        targets: Targets, one per row.
        transform: Applied to the inputs of a batch (and of a single example).

    Raises:
        ValueError: If there is not one target per input.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if len(inputs) != len(targets):
            raise ValueError(f"{len(inputs)} inputs but {len(targets)} targets")
        self.inputs = inputs
        self.targets = targets
        self.transform = transform

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.inputs)

    def __getitem__(self, index: int) -> Pair:
        """One example."""
        inputs = self.inputs[index]
        return (self.transform(inputs) if self.transform else inputs), self.targets[index]

    def __getitems__(self, indices: list[int]) -> Pair:
        """A batch of examples, already stacked."""
        rows = torch.tensor(indices)
        inputs = self.inputs[rows]
        return (self.transform(inputs) if self.transform else inputs), self.targets[rows]


class EpochLoader(DataLoader[Pair]):
    """A loader that resumes where it stopped, in the middle of an epoch too.

    Its sampler is a ``DistributedSampler``, whose order is a function of seed and epoch and of
    nothing else; plain shuffling draws from the global generator, so that a run resumed at
    epoch 5 sees another order than one that went through epochs 0 to 4. Lightning sets the
    epoch, and keeps :meth:`state_dict` in its checkpoints. A complete pass advances the epoch
    by itself, so that a hand-written loop sees a new order each time.

    Example:
        >>> def loader():
        ...     order = DistributedSampler(range(4), num_replicas=1, rank=0, seed=1)
        ...     return EpochLoader(range(4), batch_size=2, sampler=order)
        >>> broken, whole, resumed = loader(), loader(), loader()
        >>> first = next(iter(broken))
        >>> resumed.load_state_dict(broken.state_dict())
        >>> [batch.tolist() for batch in [first, *resumed]] == [b.tolist() for b in whole]
        True
    """

    sampler: DistributedSampler[Pair]
    _delivered = 0
    _resume = (-1, 0)

    def __iter__(self) -> Iterator[Pair]:  # type: ignore[override]
        """Batches of one epoch; nothing happens before the first one is asked for."""
        if not isinstance(self.sampler, DistributedSampler):
            raise TypeError(
                f"EpochLoader has a {type(self.sampler).__name__}, which knows no epochs: pass "
                "sampler=DistributedSampler(data, num_replicas=1, rank=0, shuffle=...)"
            )
        epoch, start = self._resume
        self._resume = (-1, 0)
        self._delivered = start if epoch == self.sampler.epoch and start < len(self) else 0
        for batch in islice(super().__iter__(), self._delivered, None):
            self._delivered += 1
            yield batch
        self.sampler.set_epoch(self.sampler.epoch + 1)

    def state_dict(self) -> dict[str, int]:
        """Epoch, and how many of its batches have been delivered."""
        return {"epoch": self.sampler.epoch, "batches": self._delivered}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after those batches, if the next pass is over that epoch."""
        self._resume = (state["epoch"], state["batches"])
        self.sampler.set_epoch(state["epoch"])


def _as_is(batch: Any) -> Any:
    return batch


def loader(
    data: Tensors, batch_size: int, *, seed: int = 0, shuffle: bool = False, num_workers: int = 0
) -> EpochLoader:
    """Loader of a data set that lies in memory.

    Worker processes would only copy what is already here, so 0 is the right number of them,
    and Lightning's advice to take more is turned off. In a run of several processes each gets
    its share, so that their batches together are the batch that one process would see.

    Args:
        data: The data set.
        batch_size: Examples per batch; the last batch of an epoch may be smaller.
        seed: Seed of the order.
        shuffle: Whether to shuffle.
        num_workers: Worker processes.

    Raises:
        ValueError: If ``batch_size`` is not positive.
    """
    hush()
    group = dist.is_available() and dist.is_initialized()
    world, rank = (dist.get_world_size(), dist.get_rank()) if group else (1, 0)
    # The sampler adds the epoch to its seed; mixed first, seeds 0 and 1 share no order.
    mixed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return EpochLoader(
        data,
        batch_size,
        sampler=DistributedSampler(data, world, rank, shuffle=shuffle, seed=mixed),
        num_workers=num_workers,
        collate_fn=_as_is,
        generator=torch.Generator().manual_seed(mixed),  # leaves the global one alone
    )
