"""A loader whose batch size may grow between two batches, and that resumes where it stopped."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Sampler

from steepest.lightning._loader import EpochLoader


class Order(Sampler[int]):
    """The order of a sampler, made a function of seed and epoch.

    Samplers draw from torch's global generator, or from one of their own: both are seeded for as
    long as the order is drawn, and put back. So an epoch can be begun again in its middle.

    Args:
        sampler: The sampler, e.g. a ``RandomSampler`` or a ``DistributedSampler``.
        seed: Seed of the orders.
    """

    def __init__(self, sampler: Any, seed: int) -> None:
        self.sampler = sampler
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this."""
        self.epoch = epoch
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def mixed(self) -> int:
        """Seed of this epoch."""
        words = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1, np.uint64)
        return int(words[0]) >> 1

    def __iter__(self) -> Iterator[int]:
        """The epoch's indices."""
        own = getattr(self.sampler, "generator", None)
        generators = [torch.default_generator, *([own] if own is not None else [])]
        states = [g.get_state() for g in generators]
        try:
            for g in generators:
                g.manual_seed(self.mixed())
            order = list(self.sampler)
        finally:
            for g, state in zip(generators, states, strict=True):
                g.set_state(state)
        return iter(order)

    def __len__(self) -> int:
        """Number of indices in an epoch."""
        return len(self.sampler)


class GrowingBatchSampler(Sampler[list[int]]):
    """Cuts an order into batches of a size that may change from one to the next.

    A batch has the size in force when it is *drawn*. Worker processes draw ahead, so what they
    hold keeps its size; a batch that is drawn and not yet delivered is *pending*. Every index is
    in one batch, whatever the sizes.

    Args:
        order: The order.
        batch_size: Size of the first batches.
        drop_last: Whether to drop an epoch's last batch if it falls short. Where the size has
            grown beyond what is left, batches of the size before come to the end.
    """

    def __init__(self, order: Order, batch_size: int, drop_last: bool) -> None:
        self.sampler = order  # the name by which Lightning finds what to tell the epoch
        self.batch_size = batch_size
        self.drop_last = drop_last
        self._resuming = False
        self._begin()

    def _begin(self) -> None:
        self._epoch = self.sampler.epoch
        self.delivered = 0
        """Batches of this epoch that have been delivered."""
        self._samples = 0
        self._pending: deque[int] = deque()
        self._last = self.batch_size

    def _follow(self) -> None:
        if self._epoch != self.sampler.epoch:
            self._begin()

    def start(self) -> None:
        """Begin a pass: a new one, or the rest of the one that a state was loaded of."""
        if not self._resuming:
            self._begin()
        self._resuming = False

    def deliver(self) -> None:
        """A batch has reached training."""
        self._samples += self._pending.popleft()
        self.delivered += 1

    def __iter__(self) -> Iterator[list[int]]:
        """Indices of the batches that have not been delivered."""
        self._follow()
        order = list(self.sampler)
        position, drawn = self._samples, self.delivered
        while True:
            ahead = drawn - self.delivered
            if ahead == len(self._pending):
                size = self._next(len(order) - position)
                if not size:
                    return
                self._pending.append(size)
                self._last = size
            size = self._pending[ahead]
            yield order[position : position + size]
            position += size
            drawn += 1

    def _next(self, rest: int) -> int:
        if rest >= self.batch_size:
            return self.batch_size
        if self.drop_last:
            return self._last if rest >= self._last else 0
        return rest

    def __len__(self) -> int:
        """Batches in this epoch: delivered, pending, and to come if the size stays."""
        self._follow()
        rest = len(self.sampler) - self._samples - sum(self._pending)
        count, tail = divmod(rest, self.batch_size)
        if not self.drop_last:
            count += tail > 0
        elif not count:
            count = tail // self._last
        return self.delivered + len(self._pending) + count

    def state_dict(self) -> dict[str, Any]:
        """Order, place in it, and sizes, as plain numbers."""
        self._follow()
        return {
            "seed": self.sampler.seed,
            "epoch": self._epoch,
            "batch_size": self.batch_size,
            "delivered": self.delivered,
            "samples": self._samples,
            "pending": list(self._pending),
            "last": self._last,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue there, if the next pass is over that epoch."""
        self.sampler.seed = state["seed"]
        self.sampler.set_epoch(state["epoch"])
        self._epoch = state["epoch"]
        self.batch_size = state["batch_size"]
        self.delivered = state["delivered"]
        self._samples = state["samples"]
        self._pending = deque(state["pending"])
        self._last = state["last"]
        self._resuming = True


class GrowingLoader(DataLoader[Any]):
    """A data loader around a :class:`GrowingBatchSampler`, like the one given in all the rest.

    Args:
        loader: The loader to take after.
        seed: Seed of the orders.

    Raises:
        TypeError: If batches of the loader are not its own to make.
    """

    batch_sampler: GrowingBatchSampler
    generator: torch.Generator

    def __init__(self, loader: DataLoader[Any], seed: int) -> None:
        check(loader)
        assert loader.batch_size is not None
        names = (
            *("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn"),
            *("multiprocessing_context", "prefetch_factor", "persistent_workers", "in_order"),
        )
        super().__init__(
            loader.dataset,
            batch_sampler=GrowingBatchSampler(
                Order(loader.sampler, seed), loader.batch_size, loader.drop_last
            ),
            # Of its own: an iterator draws a seed for its workers, with no workers too.
            generator=torch.Generator(),
            **{name: getattr(loader, name) for name in names if hasattr(loader, name)},
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Batches of one epoch; the first is made when it is asked for, its place now."""
        self.batch_sampler.start()
        return self._batches()

    def _batches(self) -> Iterator[Any]:
        self.generator.manual_seed(self.batch_sampler.sampler.mixed())
        for batch in super().__iter__():
            self.batch_sampler.deliver()
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """That of the batch sampler: Lightning asks, to know that an epoch can be resumed."""
        return self.batch_sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue there."""
        self.batch_sampler.load_state_dict(state)


def check(loader: object) -> None:
    """Refuse what makes its batches itself.

    Raises:
        TypeError: If it is not a loader, or the data set, the batch sampler or a subclass
            decides what is in a batch.
    """
    remedy = "Give the training data as DataLoader(dataset, batch_size=...)"
    if not isinstance(loader, DataLoader):
        raise TypeError(f"AdaptiveBatchSize cannot resize a {type(loader).__name__}. {remedy}")
    if isinstance(loader.dataset, IterableDataset):
        raise TypeError(
            "AdaptiveBatchSize cannot resize batches of an IterableDataset, whose order has no "
            f"place to come back to. {remedy}, of a data set with __getitem__ and __len__"
        )
    if type(loader.batch_sampler) is not BatchSampler:
        own = type(loader.batch_sampler).__name__ if loader.batch_sampler else "batch_size=None"
        raise TypeError(
            f"AdaptiveBatchSize cannot resize batches that {own} makes. {remedy}, with a sampler "
            "if the order matters"
        )
    if type(loader).__iter__ not in (DataLoader.__iter__, EpochLoader.__iter__):
        raise TypeError(
            f"AdaptiveBatchSize cannot resize a {type(loader).__name__}, which iterates in its "
            f"own way. {remedy}"
        )
