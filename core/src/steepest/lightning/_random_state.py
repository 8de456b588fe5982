"""Random numbers that go on after a resume as if nothing had happened."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class RandomState(Callback):
    """Keep the state of the global random number generators in checkpoints.

    Lightning does not: a network with dropout, resumed, draws other masks than it would have
    drawn uninterrupted. With this callback the resumed run is the same run, if loaders leave the
    global generators alone: :class:`EpochLoader` does, and an unshuffled ``DataLoader`` with a
    ``generator`` of its own. (A plain one draws a seed for each epoch, in a resumed run before
    the states are back.) It covers Python, NumPy, PyTorch on the CPU and on every visible CUDA
    device, in a run of one process; with several processes it does nothing, because a checkpoint
    holds the state of one.

    Example:
        >>> trainer = Trainer(callbacks=[RandomState()], logger=False)
    """

    def __init__(self) -> None:
        self._saved: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """States of the generators, of types that ``torch.load(weights_only=True)`` accepts."""
        numpy = np.random.get_state(legacy=False)
        words = torch.from_numpy(numpy["state"]["key"].astype(np.int64))
        return {
            "python": random.getstate(),
            "numpy": {**numpy, "state": {**numpy["state"], "key": words}},
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until training starts."""
        self._saved = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the states."""
        if self._saved is None or trainer.world_size > 1:
            return
        state, self._saved = self._saved, None
        random.setstate(state["python"])
        numpy = state["numpy"]
        words = numpy["state"]["key"].numpy().astype(np.uint32)
        np.random.set_state({**numpy, "state": {**numpy["state"], "key": words}})
        torch.set_rng_state(state["torch"].cpu())
        if len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
