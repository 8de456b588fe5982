"""One fit of an optimizer that asks: Lightning's pass and backward, replaced for its length."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torchmetrics import Metric

from steepest.optim import Answer, OracleDriven
from steepest.optim._oracle import gradients
from steepest.oracles._passes import Replay


class _Batch:
    """What ``training_step`` was called with, and what it returned the first time."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], noise: Replay) -> None:
        self.args = args
        self.kwargs = kwargs
        self.noise = noise
        self.output: Any = None
        self.buffers: list[tuple[torch.nn.Module, str, Tensor]] = []
        """The module's buffers as they were before the first pass."""


class Session:
    """Stands in for Lightning's pass and backward while a fit lasts.

    Lightning's loop runs as ever: its closure calls the strategy's ``training_step``, clears
    gradients, calls the module's ``backward``, and then the hooks before a step, which clip. Two
    of these calls come here. Instead of a pass, the optimizer's query runs, in which it asks for
    as many passes as it needs; instead of a backward pass, the gradient found is put in place.
    So all that Lightning does around a step, it does.

    Args:
        trainer: The trainer, about to train.
        module: Its module.
        optimizer: Its optimizer.

    Raises:
        RuntimeError: If the trainer's precision, strategy or data cannot be had with queries.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, optimizer: OracleDriven) -> None:
        self._check(trainer, module, optimizer)
        self._trainer = trainer
        self._module = module
        self._optimizer = optimizer
        self._pass = trainer.strategy.training_step
        self._batches: list[_Batch] = []
        self._answer: Answer | None = None
        self._stepping = False
        trainer.strategy.training_step = self._training_step  # type: ignore[method-assign]
        # Not the module's own backward: a copy of the module would take it along.
        trainer.precision_plugin.backward = self._backward  # type: ignore[assignment]
        optimizer._deliver = self._deliver

    def close(self) -> None:
        """Put everything back."""
        del self._trainer.strategy.__dict__["training_step"]
        del self._trainer.precision_plugin.__dict__["backward"]
        self._optimizer._deliver = None

    @staticmethod
    def _check(trainer: Trainer, module: LightningModule, optimizer: OracleDriven) -> None:
        name = type(optimizer).__name__
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            raise RuntimeError(
                f"{name} cannot train with precision='16-mixed': the gradient scaler calls the "
                "optimizer without its loss. Use precision='bf16-mixed' or '32-true'"
            )
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            raise RuntimeError(
                f"{name} asks the loss of whole models: {type(trainer.strategy).__name__} splits "
                "them. Use one device, or strategy='ddp'"
            )
        if is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True):
            raise RuntimeError(
                f"{name} asks about a batch more than once: let training_step take a batch, not "
                "dataloader_iter"
            )

    def _deliver(self, optimizer: OracleDriven, closure: Callable[[], Any] | None) -> Answer:
        """Run Lightning's closure, in which the query is made."""
        self._stepping = True
        try:
            if closure is not None:
                closure()
        finally:
            self._stepping = False
        answer, self._answer = self._answer, None
        if answer is None:
            raise RuntimeError(
                "the optimizer was stepped without a pass: an optimizer_step of your own must "
                "hand on what it gets, optimizer.step(closure=optimizer_closure)"
            )
        return answer

    def _training_step(self, *args: Any, **kwargs: Any) -> Any:
        """In place of the strategy's: a query if a step is due, a pass while batches gather."""
        if self._trainer.fit_loop.batch_idx % self._trainer.accumulate_grad_batches == 0:
            self._batches = []  # as Lightning clears gradients where a window begins
        batch = _Batch(args, kwargs, Replay(self._module.parameters()))
        self._batches.append(batch)
        if not self._stepping:
            differentiates = self._optimizer.oracle not in ("value", "ranking", "jvp")
            with torch.set_grad_enabled(differentiates):
                self._loss(batch)
            return batch.output
        batches, self._batches = self._batches, []
        objective = self._optimizer.objective(
            [partial(self._loss, each) for each in batches],
            replay=False,  # each batch repeats its own
            average=self._average if self._trainer.world_size > 1 else None,
        )
        answer = self._optimizer.query(objective)
        if answer.gradient is None and self._trainer.gradient_clip_val:
            name = type(self._optimizer).__name__
            raise RuntimeError(
                f"{name} has no gradient in memory, so gradient_clip_val cannot clip it: leave "
                "it out, and lower lr if steps are too long"
            )
        self._answer = answer
        return batch.output

    def _backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """In place of the precision's: the gradient is known."""
        if self._answer is not None:
            params = [p for group in self._optimizer.param_groups for p in group["params"]]
            for p, g in zip(params, gradients(params, self._answer), strict=True):
                p.grad = g

    def _loss(self, batch: _Batch) -> Tensor:
        """The loss of a batch, as Lightning weighs it when batches accumulate."""
        first = batch.output is None
        with self._unsynchronized(), batch.noise:
            if first:
                self._share_buffers()
                batch.buffers = [(o, n, t.detach().clone()) for o, n, t in _buffers(self._module)]
                output = self._pass(*batch.args, **batch.kwargs)
                batch.output = _detached(output)
            else:
                with _unnoticed(self._module, batch.buffers):
                    output = self._pass(*batch.args, **batch.kwargs)
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if not isinstance(loss, Tensor):
            raise TypeError(
                f"training_step returned {'no loss' if loss is None else type(loss).__name__}: "
                f"{type(self._optimizer).__name__} asks for the loss of every batch; return it, "
                "and leave batches to skip out of the data"
            )
        parts = self._trainer.accumulate_grad_batches
        return loss if parts == 1 else loss / parts

    def _unsynchronized(self) -> Any:
        strategy = self._trainer.strategy
        if isinstance(strategy, DDPStrategy):
            return strategy.block_backward_sync()  # answers are averaged, not gradients on the way
        return nullcontext()

    def _share_buffers(self) -> None:
        """Take over the first process's buffers, as DDP does in a pass that it synchronizes."""
        if self._trainer.world_size > 1:
            for _, _, t in _buffers(self._module):
                torch.distributed.broadcast(t, 0)

    def _average(self, tensors: Sequence[Tensor]) -> None:
        """Mean over processes in place, one message for each type of tensor."""
        kinds = defaultdict(list)
        for t in tensors:
            kinds[t.dtype, t.device].append(t)
        for same in kinds.values():
            flat = torch.cat([t.reshape(-1) for t in same])
            mean = self._trainer.strategy.reduce(flat, reduce_op="mean")
            for t, part in zip(same, mean.split([t.numel() for t in same]), strict=True):
                t.copy_(part.view_as(t))


def _buffers(module: LightningModule) -> list[tuple[torch.nn.Module, str, Tensor]]:
    return [
        (owner, name, t)
        for owner in module.modules()
        for name, t in owner.named_buffers(recurse=False)
    ]


def _copied(state: Any) -> Any:
    """A metric's state that updates cannot reach: they write to tensors and append to lists."""
    return list(state) if isinstance(state, list) else state.detach().clone()


def _detached(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.detach().clone()
    if isinstance(output, Mapping):
        return {key: v.detach() if isinstance(v, Tensor) else v for key, v in output.items()}
    return output


@contextmanager
def _unnoticed(
    module: LightningModule, start: list[tuple[torch.nn.Module, str, Tensor]]
) -> Iterator[None]:
    """Pass again from the same buffers; drop what is logged and changed in buffers and metrics."""
    # The pass gets copies to write to: a graph may still hold the buffers themselves.
    buffers = _buffers(module)
    metrics = [
        (m, dict(vars(m)), {name: _copied(state) for name, state in m.metric_state.items()})
        for m in module.modules()
        if isinstance(m, Metric)
    ]
    for owner, name, t in start:
        setattr(owner, name, t.clone())
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        del module.__dict__["log"]
        for owner, name, t in buffers:
            setattr(owner, name, t)
        for metric, attributes, state in metrics:
            vars(metric).update(attributes)
            for name, kept in state.items():
                setattr(metric, name, kept)
