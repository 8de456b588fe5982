"""``python -m steepest fit``: train one of the tasks with one of the optimizers."""

from __future__ import annotations

import argparse
import sys
import textwrap
import warnings
from collections.abc import Sequence

from lightning.pytorch.callbacks import ModelCheckpoint

from steepest import optim
from steepest.lightning._cache import DownloadError
from steepest.lightning._extra import require
from steepest.lightning._grammar_data import GrammarData
from steepest.lightning._quiet import quiet
from steepest.lightning._tasks import TASKS, find_task

PROG = "python -m steepest fit"
LOGS = "lightning_logs"


class UsageError(Exception):
    """What was asked for cannot be done; the message is one line."""


def _parser() -> argparse.ArgumentParser:
    names = ", ".join(name for name in optim.list() if not _wraps(name))
    optimizers = textwrap.fill(names, 78, initial_indent="  ", subsequent_indent="  ")
    tasks = "\n".join(f"  {task.name:<12}{task.summary}" for task in TASKS.values())
    parser = argparse.ArgumentParser(
        PROG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train a task with an optimizer, on the CPU or one GPU, then test it.",
        epilog=f"""\
tasks:
{tasks}

optimizers:
{optimizers}

examples:
  {PROG} --task digits --optimizer AdamW
  {PROG} --task grammar --optimizer AdamW --optimizer.lr 3e-3 --data.batch_size 64
  {PROG} --task digits --trainer.max_epochs 60 --ckpt_path last

Each run writes its configuration, its metrics and its last checkpoint to a new folder,
{LOGS}/TASK-OPTIMIZER/version_N. Every option of optimizer, model, data and trainer:
  {PROG} --task digits --optimizer AdamW --help_all""",
        allow_abbrev=False,
    )
    parser.add_argument("--task", metavar="NAME", default="digits", help="default: digits")
    parser.add_argument("--optimizer", metavar="NAME", default="AdamW", help="default: AdamW")
    parser.add_argument("--help_all", action="store_true", help="list every option and exit")
    group = parser.add_argument_group("passed on (the most useful)")
    for option, text in (
        ("--optimizer.lr", "learning rate; likewise every other hyper-parameter"),
        ("--trainer.max_epochs", "epochs, counted from the first, a resumed run's included"),
        ("--data.batch_size", "examples per batch"),
        ("--seed_everything", "seed of the weights (default: 0); --data.seed is the data's"),
        ("--ckpt_path", "checkpoint to resume from; 'last' for the newest of task and optimizer"),
        ("--config", "YAML file of options, such as a run's config.yaml"),
    ):
        group.add_argument(option, metavar="X", default=argparse.SUPPRESS, help=text)
    return parser


def _wraps(optimizer: str) -> bool:
    return issubclass(optim.find(optimizer), optim.Wrapper)


def _run(task_name: str, optimizer_name: str, args: Sequence[str]) -> None:
    try:
        task = find_task(task_name)
        optimizer = optim.find(optimizer_name)
        if _wraps(optimizer_name):
            raise UsageError(
                f"{optimizer.__name__} wraps another optimizer, which options cannot say: "
                f"use it in a script, {optimizer.__name__}(AdamW(model.parameters()))"
            )
        require("jsonargparse", "jsonargparse", "fit")
        if task.needs:
            require(*task.needs, f"the task {task.name}")
    except (ValueError, ModuleNotFoundError) as error:
        raise UsageError(str(error)) from error
    from steepest.lightning._fit_cli import FitCLI  # needs jsonargparse

    quiet()
    # A resumed run has a folder of its own.
    warnings.filterwarnings("ignore", "The dirpath has changed")
    cli = FitCLI(task, optimizer, args)
    path = cli.checkpoint()
    count = sum(p.numel() for p in cli.model.parameters())
    hyper = ", ".join(
        f"{name}={value}"
        for name, value in cli.config.optimizer.items()
        if value is not None and value is not False
    )
    print(f"{task.name}: {type(cli.model).__name__}, {count:,} parameters", flush=True)
    print(f"{optimizer.__name__}: {hyper}", flush=True)
    if path:
        print(f"resumes from {path}", flush=True)
    try:
        cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=path)
        (results,) = cli.trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)
    except DownloadError as error:
        raise UsageError(str(error)) from error
    if isinstance(cli.datamodule, GrammarData):
        results = {**results, "floor of loss": cli.datamodule.floor("test")}
    for name, value in results.items():
        print(f"{name:<16}{value:.4f}")
    keeper = cli.trainer.checkpoint_callback
    if isinstance(keeper, ModelCheckpoint) and keeper.best_model_path:
        print(f"checkpoint      {keeper.best_model_path}")


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: Arguments after ``fit``.

    Returns:
        Exit status: 0, or 2 for a mistake in the arguments.
    """
    parser = _parser()
    names = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    names.add_argument("--task", default="digits")
    names.add_argument("--optimizer", default="AdamW")
    names.add_argument("-h", "--help", action="store_true")
    names.add_argument("--help_all", action="store_true")
    try:
        known, args = names.parse_known_args(list(argv))
        if known.help:
            parser.print_help()
            return 0
        _run(known.task, known.optimizer, ["--help"] if known.help_all else args)
    except (UsageError, argparse.ArgumentError) as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return 2
    return 0
