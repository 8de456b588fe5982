"""The tasks that ``python -m steepest fit`` knows."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule

from steepest.lightning._cifar10 import CIFAR10Data
from steepest.lightning._classifier import Classifier
from steepest.lightning._diabetes import DiabetesData
from steepest.lightning._digits import DigitsData
from steepest.lightning._grammar_data import GrammarData
from steepest.lightning._language_model import LanguageModel
from steepest.lightning._regressor import Regressor
from steepest.lightning._surface_module import SurfaceModule
from steepest.lightning._wikitext2 import WikiText2Data
from steepest.objectives import SURFACES


@dataclass(frozen=True)
class Task:
    """A model, its data, and defaults of the command line that differ from theirs.

    Attributes:
        name: Name on the command line.
        summary: What it is, in a line.
        model: Class of the model.
        data: Class of the data; None when the model brings its own.
        epochs: Epochs by default.
        defaults: Other defaults, e.g. ``{"model.features": 3072}``.
        needs: Module and package that it needs beyond the package's own dependencies.
    """

    name: str
    summary: str
    model: type[LightningModule]
    data: type[LightningDataModule] | None
    epochs: int
    defaults: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, str] | None = None


SKLEARN = ("sklearn", "scikit-learn")

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("digits", "handwritten digits, 8x8", Classifier, DigitsData, 40, needs=SKLEARN),
        Task("diabetes", "tabular regression", Regressor, DiabetesData, 40, needs=SKLEARN),
        Task("grammar", "character language model", LanguageModel, GrammarData, 5),
        Task(
            "cifar10",
            "color images, 32x32 (downloads 163 MiB)",
            Classifier,
            CIFAR10Data,
            10,
            {"model.features": CIFAR10Data.features, "model.hidden": [512, 256]},
        ),
        Task(
            "wikitext2",
            "word language model (downloads 4.3 MiB)",
            LanguageModel,
            WikiText2Data,
            3,
            {"model.vocabulary": 33278, "model.width": 128},
        ),
        *(
            Task(
                name,
                "surface in two dimensions",
                SurfaceModule,
                None,
                5,
                {"model.surface": name},
            )
            for name in SURFACES
        ),
    )
}


def find_task(name: str) -> Task:
    """A task by name.

    Raises:
        ValueError: If there is none; the message suggests the nearest.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(TASKS)}"
        raise ValueError(f"there is no task {name!r}: {hint}")
    return TASKS[name]
