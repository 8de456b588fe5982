"""The callback that gives optimizers their oracle under Lightning's automatic optimization."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from steepest.lightning._session import Session
from steepest.optim import OracleDriven
from steepest.optim._wrapper import Wrapper


class Oracles(Callback):
    """Gives an optimizer that queries the loss what it queries; your module stays as it is.

    Lightning hands an optimizer a closure that runs ``training_step`` and ``backward``, once.
    An optimizer such as ``SAM``, ``MeZO`` or ``AdaHessian`` wants the loss as a function, to be
    asked as often and in whatever way it needs. This callback makes that function from your
    ``training_step``, on the batch at hand::

        Trainer(callbacks=[Oracles()]).fit(module)

    With an optimizer that does not ask, the callback does nothing: it may always be there.

    - *One function in a step.* Every query sees the same batch, the same buffers, and the same
      random numbers of torch (dropout). What ``training_step`` leaves behind, it leaves behind
      once: logged values, metrics, the statistics of batch normalization and other buffers are
      those of the first pass. Plain attributes of the module are your own affair.
    - *Only what is asked for.* A method of values runs no backward and keeps no graph.
    - *Gradients* lie in ``.grad`` before the step, as always: hooks see them, and
      ``gradient_clip_val`` clips them. A method that has none refuses to clip.
    - *Accumulation* keeps the batches, and the step asks about their mean. Each is run once as
      it comes, without a graph, for its logs, and again in each query.
    - *Several processes* (DDP): answers are means over processes. A method of values sends
      numbers, not gradients.
    - *Manual optimization* needs no callback: call ``optimizer.step`` with the loss, in one
      process.
    - *Weights to evaluate with.* An optimizer that has methods ``train`` and ``eval``, because
      it evaluates at another point than it trains at, is switched for validation and at the end
      of the fit. Checkpoints have the weights to evaluate with, and keep those to go on from.

    Raises:
        RuntimeError: While training, if what is asked for cannot be done: scaled gradients
            (``precision="16-mixed"``), or clipping without a gradient. Parameters have not
            moved.
        TypeError: If ``training_step`` returns no loss.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from steepest.lightning import quiet
        >>> from steepest.optim import SAM
        >>> quiet()
        >>> class Module(BoringModel):
        ...     def configure_optimizers(self):
        ...         return SAM(torch.optim.SGD(self.parameters(), lr=0.1))
        >>> silent = {
        ...     f"enable_{part}": False
        ...     for part in ("checkpointing", "progress_bar", "model_summary")
        ... }
        >>> trainer = Trainer(callbacks=[Oracles()], max_steps=3, logger=False, **silent)
        >>> trainer.fit(Module())
        >>> trainer.global_step
        3
    """

    def __init__(self) -> None:
        self._session: Session | None = None
        self._home: list[Tensor] | None = None
        """The weights to train at, while those to evaluate with are in place."""
        self._loaded: list[Tensor] | None = None
        self._plain: Callable[[], dict[str, Any]] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a second callback of this kind."""
        if sum(isinstance(callback, Oracles) for callback in trainer.callbacks) > 1:  # type: ignore[attr-defined]
            raise RuntimeError("the trainer has two callbacks Oracles: one is enough")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        self._home = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the place of Lightning's pass and backward, if the optimizer asks."""
        for optimizer in _switches(trainer):
            optimizer.train()
        if _switches(trainer):
            strategy = trainer.strategy
            self._plain = strategy.lightning_module_state_dict
            strategy.lightning_module_state_dict = partial(  # type: ignore[method-assign]
                self._state_dict, trainer
            )
        if self._loaded is not None:
            _copy(_weights(trainer), self._loaded)
            self._loaded = None
        asking = [opt for opt in trainer.optimizers if isinstance(opt, OracleDriven)]
        if asking and pl_module.automatic_optimization:
            self._session = Session(trainer, pl_module, asking[0])
        elif asking and trainer.world_size > 1:
            raise RuntimeError(
                f"{type(asking[0]).__name__} under manual optimization would learn something else "
                "in each process: use automatic optimization, or one process"
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put Lightning's pass and backward back."""
        self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Put Lightning's pass and backward back, and the weights to train at."""
        self._close()
        self._train(trainer)
        self._restore(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stay at the weights to evaluate with."""
        self._evaluate(trainer)
        self._restore(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go to the weights to evaluate with."""
        if trainer.state.fn == "fit":
            self._evaluate(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go back to the weights to train at."""
        if trainer.state.fn == "fit":
            self._train(trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the weights to go on from beside the module's, which are those to evaluate with."""
        if _switches(trainer):
            weights = self._home if self._home is not None else _weights(trainer)
            checkpoint[_KEY] = [p.detach().clone() for p in weights]

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remember the weights to go on from."""
        if trainer.state.fn == "fit":
            self._loaded = checkpoint.get(_KEY)

    def _state_dict(self, trainer: Trainer) -> dict[str, Any]:
        """The module's, with the weights to evaluate with, whoever asks."""
        assert self._plain is not None
        training = self._home is None
        self._evaluate(trainer)
        state = {key: t.detach().clone() for key, t in self._plain().items()}
        if training:
            self._train(trainer)
        return state

    def _restore(self, trainer: Trainer) -> None:
        if self._plain is not None:
            del trainer.strategy.__dict__["lightning_module_state_dict"]
            self._plain = None

    def _close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def _evaluate(self, trainer: Trainer) -> None:
        switches = _switches(trainer)
        if switches and self._home is None:
            # What an optimizer computes on its way there and back need not be exact.
            self._home = [p.detach().clone() for p in _weights(trainer)]
            for optimizer in switches:
                optimizer.eval()

    def _train(self, trainer: Trainer) -> None:
        if self._home is not None:
            for optimizer in _switches(trainer):
                optimizer.train()
            _copy(_weights(trainer), self._home)
            self._home = None


_KEY = "steepest.lightning.Oracles: weights to train at"


def _switches(trainer: Trainer) -> list[Any]:
    """Optimizers that evaluate at another point than they train at, wrapped ones included."""
    found = []
    for optimizer in trainer.optimizers:
        inner: Any = optimizer
        while inner is not None:
            if callable(getattr(inner, "train", None)) and callable(getattr(inner, "eval", None)):
                found.append(inner)
            inner = inner.optimizer if isinstance(inner, Wrapper) else None
    return found


def _weights(trainer: Trainer) -> list[Tensor]:
    return [p for opt in trainer.optimizers for g in opt.param_groups for p in g["params"]]


@torch.no_grad()
def _copy(params: list[Tensor], values: list[Tensor]) -> None:
    for p, value in zip(params, values, strict=True):
        p.copy_(value)
