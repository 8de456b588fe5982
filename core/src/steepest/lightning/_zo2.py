r"""Forward-only fine-tuning of a model that the device has no room for."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, final

import torch
from torch import Tensor, nn

from steepest._registry import method
from steepest.estimators import SPSA
from steepest.estimators._base import check_slope
from steepest.kernels import split_seed
from steepest.kernels._noise import CHUNK, offsets
from steepest.optim._checks import check_hyperparameters
from steepest.oracles import Objective
from steepest.oracles._passes import Replay

SLOTS = 3
"""Blocks on the device: one that leaves, one that computes, one that arrives."""

ALIGNMENT = 64
"""Bytes; as torch's own allocations, so that no matrix product takes another path."""


class Move(NamedTuple):
    """What is still to be done to a block for its weights to be what they should."""

    seed: int
    weight: float
    """Of the seed's direction, to be added."""
    keep: float = 1.0
    """Factor on the weights, before."""


class Ticket(Protocol):
    """A copy under way."""

    def result(self) -> Any:
        """Wait for it."""


class Block:
    """A module whose tensors lie side by side in one piece of memory, which can be moved."""

    def __init__(self, module: nn.Module, names: dict[Tensor, str], path: Path | None) -> None:
        self.module = module
        self.tensors = [*module.parameters(), *module.buffers()]
        self.params = [p for p in module.parameters() if p.requires_grad]
        self.places = offsets(self.params, [names[p] for p in self.params])
        self.pending: Move | None = None
        self.starts, self.size = [], 0
        for t in self.tensors:
            self.starts.append(self.size)
            self.size += -(-t.numel() * t.element_size() // ALIGNMENT) * ALIGNMENT
        if path is None:
            self.home = torch.empty(self.size, dtype=torch.uint8, pin_memory=True)
        else:
            self.home = torch.from_file(str(path), shared=True, size=self.size, dtype=torch.uint8)
        for t, view in zip(self.tensors, self.views(self.home), strict=True):
            view.copy_(t.detach())
        self.lie_in(self.home)

    def views(self, memory: Tensor) -> list[Tensor]:
        """The tensors' places in a piece of memory."""
        return [
            memory[at : at + t.numel() * t.element_size()].view(t.dtype).view(t.shape)
            for t, at in zip(self.tensors, self.starts, strict=True)
        ]

    def lie_in(self, memory: Tensor) -> None:
        """Make the module read its tensors from there."""
        for t, view in zip(self.tensors, self.views(memory), strict=True):
            t.data = view


def copy(target: Tensor, source: Tensor) -> None:
    """One transfer."""
    target.copy_(source, non_blocking=True)


class Threads:
    """Copies by one thread for each direction, beside the thread that computes."""

    def __init__(self) -> None:
        self._workers = {way: ThreadPoolExecutor(1) for way in ("up", "down")}

    def start(self, way: str, target: Tensor, source: Tensor, after: Ticket | None) -> Ticket:
        """Begin a copy that waits for another one."""

        def run() -> None:
            if after is not None:
                after.result()
            copy(target, source)

        return self._workers[way].submit(run)


class Streams:
    """Copies on one CUDA stream for each direction, beside the stream that computes."""

    class Mark:
        """The end of a copy, for whoever's stream is current to wait for."""

        def __init__(self) -> None:
            self.event: Any = torch.cuda.Event()
            self.event.record()

        def result(self) -> None:
            """Let the current stream wait; the program goes on."""
            torch.cuda.current_stream().wait_event(self.event)

    def __init__(self, device: torch.device) -> None:
        self._streams = {way: torch.cuda.Stream(device) for way in ("up", "down")}

    def start(self, way: str, target: Tensor, source: Tensor, after: Ticket | None) -> Ticket:
        """Begin a copy that waits for another one, and, downwards, for what is computed."""
        stream = self._streams[way]
        if way == "down":
            stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            if after is not None:
                after.result()
            copy(target, source)
            return Streams.Mark()


@final
@method(
    paper="wang2025zo2",
    title=(
        "ZO2: Scalable Zeroth-Order Fine-Tuning for Extremely Large Language Models with Limited "
        "GPU Memory"
    ),
    oracle="value",
    scope="model",
    forward=2,
    backward=0,
)
class ZO2:
    r"""ZO2: MeZO on a model of which three blocks at a time are on the device.

    A step of :class:`~steepest.optim.MeZO` asks for two values, and moves the weights between
    and after; done naively, each block would come four times. Here it comes once, since

    - both values are computed together: a block that is there takes
      :math:`x^+ \mapsto B(\theta + \epsilon z;\, x^+)` and
      :math:`x^- \mapsto B(\theta - \epsilon z;\, x^-)`, one after the other;
    - a block's update waits. The slope is known only when the last block has computed, so a block
      gets it when it comes next, in the pass that brings it back from its last probe. Until then
      a number and a seed stand for it.

    While a block computes, the next one arrives and the one before leaves. Operations on each
    weight, and their order, are those of MeZO, so in float32 the weights are the same bit for bit.

    On a GPU, blocks live in pinned memory of the host, or in files, and copies run on streams
    beside the one that computes. On a CPU, blocks live in files that are mapped into memory, and
    two threads copy.

    Args:
        model: The blocks, in order: each takes what the one before returns, a tensor. Between
            steps its weights are where probes have left them: call :meth:`flush` before you read
            them. They then lie on the host.
        lr: Step :math:`\eta`, as for MeZO. Attribute ``lr`` may be set between steps.
        eps: Radius :math:`\epsilon` of the probes.
        weight_decay: Decoupled decay :math:`\lambda`.
        kind: ``gaussian`` or ``rademacher`` directions.
        seed: Seed of the directions.
        device: Where to compute; by default, where the model is.
        folder: Where to put the blocks' files; by default a temporary folder on a CPU, and none
            on a GPU.

    Raises:
        TypeError: If ``model`` is no ``torch.nn.Sequential``.
        ValueError: If a hyper-parameter is out of its range, a block shares a tensor with
            another one, a trained weight has half precision, or there is none.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
        >>> _ = [nn.init.ones_(p) for p in model.parameters()]
        >>> zo2 = ZO2(model, lr=0.1, kind="rademacher")
        >>> zo2.step(torch.ones(1, 1), lambda y: y.sum()).round(decimals=3)
        tensor(1.)
        >>> zo2.flush()
        >>> zo2.counts["up"], zo2.counts["down"]  # a step, and the flush
        (4, 4)

    Reference:
        :cite:t:`wang2025zo2`.

    Deviations:
        Embedding and head are blocks like others; in the paper they stay on the device. Blocks
        travel as they are, not compressed. Buffers travel with their block.

    When not to use it:
        With a model that fits. Or where copying takes longer than two forward passes, as with
        small batches on a slow bus: then the device waits. The path for a GPU has its test, which
        a machine without one skips.
    """

    def __init__(
        self,
        model: nn.Sequential,
        lr: float = 1e-6,
        eps: float = 1e-3,
        weight_decay: float = 0.0,
        kind: str = "gaussian",
        *,
        seed: int = 0,
        device: torch.device | str | None = None,
        folder: str | Path | None = None,
    ) -> None:
        if not isinstance(model, nn.Sequential):
            raise TypeError(f"the model is a {type(model).__name__}: pass a torch.nn.Sequential")
        if kind == "sphere":
            raise ValueError("kind='sphere' needs the length of all blocks' noise: use 'gaussian'")
        self.estimator = SPSA(eps, kind=kind, in_place=True)
        self.lr, self.weight_decay, self.seed, self.steps = lr, weight_decay, seed, 0
        self._check()
        self._params = _trained(model)
        self.device = torch.device(device or self._params[0].device)
        self.counts: Counter[str] = Counter()
        """Transfers, ``up`` to the device and ``down`` from it."""
        if folder is None and self.device.type == "cpu":
            folder = tempfile.mkdtemp(prefix="zo2-")
            # What is mapped stays readable, for as long as a tensor lies there.
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
        self.blocks = [
            Block(module, names, Path(folder) / f"block-{i}.bin" if folder else None)
            for i, module in enumerate(model)
        ]
        largest = max(block.size for block in self.blocks)
        self._arena = [
            torch.empty(largest, dtype=torch.uint8, device=self.device) for _ in range(SLOTS)
        ]
        self._copies: Threads | Streams = (
            Streams(self.device) if self.device.type == "cuda" else Threads()
        )
        total = sum(p.numel() for p in self._params)
        self._ballast = [torch.empty(CHUNK, device="meta")] if total >= CHUNK else []

    @torch.no_grad()
    def step(self, x: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """Make one update.

        Args:
            x: What the first block takes.
            loss: Makes the loss of what the last block returns.

        Returns:
            The mean of the two values that were read, of shape ().

        Raises:
            RuntimeError: If a value is NaN or infinite, or the loss calls ``backward``.
            TypeError: If the loss does not return a tensor.
            ValueError: If it does not return one real number. After each of these, weights are
                as they were, to within rounding, once flushed.
        """
        self._check()
        seed, eps = split_seed(self.seed, self.steps), self.estimator.eps
        pair = [x.to(self.device)] * 2

        def dual(block: Block) -> None:
            noise = Replay([*pair, *block.tensors])
            offset = 0.0
            for i, side in enumerate((1.0, -1.0)):
                # $\theta \pm \epsilon z$
                self._shift(block, Move(seed, side * eps - offset))
                offset = side * eps
                # $\text{to come: back to } \theta$
                block.pending = Move(seed, -offset)
                with noise:
                    # $x^\pm \leftarrow B(\theta \pm \epsilon z;\, x^\pm)$
                    pair[i] = block.module(pair[i])

        self._visit(dual)
        # One noise for both: what the loss draws, it draws twice.
        replay = Replay(pair)
        values = []
        for out in pair:
            with replay:
                values.append(Objective(partial(loss, out), self._params).value())
        first, second = values
        # $w = (f(x^+) - f(x^-)) / 2\epsilon$
        slope = ((first - second) / (2 * eps)).item()
        check_slope(slope)
        keep = 1 - float(self.lr) * float(self.weight_decay)
        for block in self.blocks:
            # $\text{to come: } \theta \leftarrow (1 - \eta\lambda)\,\theta - \eta\, w z$
            block.pending = Move(seed, -float(self.lr) * slope + keep * eps, keep)
        self.steps += 1
        return torch.stack(values).mean()

    def flush(self) -> None:
        """Bring all weights to where they should be, one up and one down for each block."""
        if any(block.pending for block in self.blocks):
            self._visit(lambda block: None)

    @torch.no_grad()
    def _visit(self, work: Callable[[Block], None]) -> None:
        """Have each block on the device once, do what is pending, then the work."""
        arriving: dict[int, Ticket] = {}
        leaving: dict[int, Ticket] = {}

        def send_for(i: int) -> None:
            if i < len(self.blocks):
                slot, home = self._slot(i), self.blocks[i].home
                arriving[i] = self._copies.start("up", slot, home, leaving.get(i - SLOTS))

        send_for(0)
        try:
            for i, block in enumerate(self.blocks):
                send_for(i + 1)
                arriving.pop(i).result()
                self.counts["up"] += 1
                block.lie_in(self._slot(i))
                try:
                    if block.pending is not None:
                        self._shift(block, block.pending)
                        block.pending = None
                    work(block)
                finally:
                    leaving[i] = self._copies.start("down", block.home, self._slot(i), None)
                    self.counts["down"] += 1
                    block.lie_in(block.home)
        finally:
            for ticket in (*arriving.values(), *leaving.values()):
                ticket.result()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)

    def _slot(self, i: int) -> Tensor:
        return self._arena[i % SLOTS][: self.blocks[i].size]

    def _shift(self, block: Block, move: Move) -> None:
        params = [p.detach() for p in block.params]
        if move.keep != 1:
            for p in params:
                p.mul_(move.keep)
        # Whether noise is made by the compiled kernel depends on how much there is in a call; the
        # ballast has no memory and makes it as much as in a call for the whole model.
        self.estimator.accumulate_(
            [*params, *self._ballast],
            move.seed,
            {0: move.weight},
            [*block.places, *[0 for _ in self._ballast]],
        )

    def _check(self) -> None:
        numbers = {"lr": self.lr, "weight_decay": self.weight_decay, "seed": self.seed}
        check_hyperparameters("ZO2", numbers)


def _trained(model: nn.Sequential) -> list[Tensor]:
    """The parameters to train, if ZO2 can train them."""
    owners: Counter[Tensor] = Counter()
    for module in model:
        owners.update({t: 1 for t in (*module.parameters(), *module.buffers())})
    if max(owners.values(), default=1) > 1:
        raise ValueError("two blocks share a tensor: put what shares it into one block")
    params: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    if not params:
        raise ValueError("no parameter requires a gradient: unfreeze some")
    for p in params:
        if p.is_complex() or p.element_size() < 4:
            raise ValueError(
                f"a trained parameter is {p.dtype}: probes would leave their rounding in it; use "
                "float32, or freeze it"
            )
    return params
