"""Lightning's command line, for one task and one optimizer."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from steepest.lightning._fit import LOGS, PROG, UsageError
from steepest.lightning._module import MakeOptimizer
from steepest.lightning._oracles import Oracles
from steepest.lightning._random_state import RandomState
from steepest.lightning._tasks import Task

GROUPS = {"--trainer", "--model", "--data", "--optimizer"}


class Origin(Callback):
    """Which task and which optimizer a checkpoint belongs to."""

    def __init__(self, task: str, optimizer: str) -> None:
        self.origin = {"task": task, "optimizer": optimizer}

    def state_dict(self) -> dict[str, str]:
        """Task and optimizer."""
        return self.origin


class Bar(TQDMProgressBar):
    """Lightning's progress bar, with the metrics only."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Metrics without the run's number."""
        metrics = super().get_metrics(trainer, pl_module)
        return {name: value for name, value in metrics.items() if name != "v_num"}


class FitCLI(LightningCLI):
    """Lightning's command line for one task and one optimizer.

    Args:
        task: The task.
        optimizer: Class of the optimizer.
        args: Arguments of the command line.
    """

    def __init__(
        self, task: Task, optimizer: type[torch.optim.Optimizer], args: Sequence[str]
    ) -> None:
        self.task = task
        self.optimizer = optimizer
        super().__init__(
            task.model,
            task.data,
            args=list(args),
            run=False,
            seed_everything_default=0,
            trainer_defaults={
                "max_epochs": task.epochs,
                "devices": 1,
                "log_every_n_steps": 1,
                "enable_model_summary": False,
            },
            parser_kwargs={
                "prog": f"{PROG} --task {task.name} --optimizer {optimizer.__name__}",
                "description": f"Train {task.name} ({task.summary}) with {optimizer.__name__}.",
                "exit_on_error": False,
            },
            auto_configure_optimizers=False,
            save_config_kwargs={"overwrite": True},
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Arguments of trainer, model, data and optimizer."""
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.set_defaults({f"trainer.{k}": v for k, v in self.trainer_defaults.items()})
        own: dict[str, Any] = {"fail_untyped": False, "sub_configs": True}
        skip = {"network", "optimizer"}
        parser.add_class_arguments(self.task.model, "model", skip=skip, **own)
        if self.task.data is not None:
            parser.add_class_arguments(self.task.data, "data", **own)
        parser.add_class_arguments(
            self.optimizer, "optimizer", skip={"params"}, instantiate=False, **own
        )
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            help="Checkpoint to resume from; 'last' for the newest of this task and optimizer.",
        )
        parser.set_defaults(dict(self.task.defaults))

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the arguments given, whatever ``sys.argv`` holds.

        Raises:
            UsageError: If they are not valid; an unknown option gets the nearest one suggested.
        """
        known = {option for action in parser._actions for option in action.option_strings}
        nested = tuple(f"{option}." for option in known - GROUPS)  # --trainer.logger.save_dir
        for arg in args:
            option = arg.partition("=")[0].rstrip("+")
            if not arg.startswith("--") or option.startswith(nested):
                continue
            if not any(name.startswith(option) for name in known):
                near = difflib.get_close_matches(option, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"see {PROG} --help_all"
                raise UsageError(f"there is no option {option}: {hint}")
        try:
            self.config = parser.parse_args(args)
        except argparse.ArgumentError as error:
            raise UsageError(" ".join(str(error).split())) from error

    def instantiate_classes(self) -> None:
        """Make model, data and trainer, and give the model its optimizer.

        Raises:
            UsageError: If one of their arguments is out of its range.
        """
        if self.config.trainer.logger is False or self.config.trainer.fast_dev_run:
            self.save_config_callback = None
        make: MakeOptimizer = partial(self.optimizer, **self.config.optimizer.as_dict())
        try:
            make([nn.Parameter(torch.zeros(1))])  # fails here, not when training starts
            super().instantiate_classes()
        except (ValueError, RuntimeError, MisconfigurationException) as error:
            raise UsageError(" ".join(str(error).split())) from error
        self.model.make_optimizer = make

    @property
    def run_name(self) -> str:
        """Name of the runs of this task and optimizer."""
        return f"{self.task.name}-{self.optimizer.__name__}"

    @property
    def logs(self) -> Path:
        """Folder of the runs of this task and optimizer, one subfolder a run."""
        return Path(self.config.trainer.default_root_dir or ".") / LOGS / self.run_name

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the trainer: logs and the last checkpoint in a new folder for every run."""
        given = self.config_init.trainer
        if given.logger is None:
            kwargs["logger"] = CSVLogger(self.logs.parent, name=self.run_name)
        callbacks = list(given.callbacks or [])
        callbacks += [Oracles(), RandomState(), Origin(self.task.name, self.optimizer.__name__)]
        if given.enable_progress_bar is not False and not any(
            isinstance(callback, ProgressBar) for callback in callbacks
        ):
            callbacks.append(Bar(refresh_rate=10))
        if given.enable_checkpointing is not False and not any(
            isinstance(callback, ModelCheckpoint) for callback in callbacks
        ):
            callbacks.append(
                ModelCheckpoint(
                    filename="last", enable_version_counter=False, save_on_train_epoch_end=True
                )
            )
        return super().instantiate_trainer(callbacks=callbacks, **kwargs)

    def checkpoint(self) -> str | None:
        """Path of the checkpoint to resume from, checked.

        Raises:
            UsageError: If there is none, or it belongs to another task or optimizer.
        """
        path = self.config.ckpt_path
        if path is None:
            return None
        if path == "last":
            runs = self.logs.glob("version_*/checkpoints/last.ckpt")
            newest = max(runs, key=lambda p: int(p.parts[-3].split("_")[1]), default=None)
            if newest is None:
                raise UsageError(f"there is no checkpoint to resume from in {self.logs}")
            path = str(newest)
        elif not Path(path).is_file():
            raise UsageError(f"there is no checkpoint {path}")
        try:
            callbacks = torch.load(path, map_location="cpu", weights_only=True)["callbacks"]
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise UsageError(f"{path} is not a checkpoint that can be read ({reason})") from error
        origin = callbacks.get(Origin.__qualname__, {})
        here = {"task": self.task.name, "optimizer": self.optimizer.__name__}
        if origin and origin != here:
            raise UsageError(
                f"{path} is of --task {origin['task']} --optimizer {origin['optimizer']}, "
                f"not of --task {here['task']} --optimizer {here['optimizer']}"
            )
        return path
