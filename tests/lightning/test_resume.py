"""A run that stops and resumes ends in the very weights of the run that did not stop."""

import random

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from steepest.lightning import (
    Classifier,
    DiabetesData,
    DigitsData,
    GrammarData,
    LanguageModel,
    RandomState,
    Regressor,
    SurfaceModule,
)

EPOCHS = 4

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory")


def with_dropout():
    return Classifier(nn.Sequential(nn.Linear(64, 16), nn.Dropout(0.5), nn.Linear(16, 10)))


TASKS = {
    "classifier": (lambda: Classifier(hidden=[16]), lambda: DigitsData(128, label_noise=0.1)),
    "dropout": (with_dropout, lambda: DigitsData(128)),
    "regressor": (Regressor, DiabetesData),
    "language model": (
        lambda: LanguageModel(width=16, depth=1, dropout=0.1),
        lambda: GrammarData(8, windows=80),
    ),
    "surface": (lambda: SurfaceModule("himmelblau", steps=20), lambda: None),
}


@pytest.fixture
def run(trainer, tmp_path):
    def run(task, *, every=10, seed=0, resume=None, **options):
        """Train, with a checkpoint named after its step after every so many."""
        seed_everything(seed, verbose=False)
        make_model, make_data = TASKS[task]
        model = make_model()
        keep = ModelCheckpoint(
            tmp_path,
            filename="{step}",
            auto_insert_metric_name=False,
            every_n_train_steps=every,
            save_top_k=-1,
        )
        runner = trainer(
            callbacks=[RandomState(), keep],
            enable_checkpointing=True,
            **{"max_epochs": EPOCHS, **options},
        )
        path = tmp_path / f"{resume}.ckpt" if resume else None
        runner.fit(model, make_data(), ckpt_path=path)
        return runner, model

    return run


def identical(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("task", TASKS)
def test_resume_after_half_of_the_epochs(run, task, trainer, tmp_path):
    seed_everything(0, verbose=False)
    whole, data = TASKS[task][0](), TASKS[task][1]()
    trainer(max_epochs=EPOCHS).fit(whole, data)  # no checkpoints, no callbacks
    stopped, half = run(task, max_epochs=EPOCHS // 2)
    assert stopped.current_epoch == EPOCHS // 2
    assert not identical(whole, half)
    # Another seed: nothing but the checkpoint may matter.
    runner, resumed = run(task, seed=9, resume=stopped.global_step)
    assert identical(whole, resumed)
    assert runner.current_epoch == EPOCHS


@pytest.mark.parametrize("task", ["classifier", "dropout"])
@pytest.mark.parametrize("step", [1, 14, 20, 29])  # an epoch has 10
def test_resume_after_any_step(run, task, step):
    _, whole = run(task, every=step)
    runner, resumed = run(task, every=step, seed=9, resume=step)
    assert identical(whole, resumed)
    assert runner.global_step == 10 * EPOCHS


def test_resume_when_epochs_are_cut_short(run):
    _, whole = run("classifier", every=6, limit_train_batches=6)
    _, resumed = run("classifier", every=6, limit_train_batches=6, seed=9, resume=12)
    assert identical(whole, resumed)


def test_without_the_callback_dropout_would_draw_other_masks(run, monkeypatch):
    _, whole = run("dropout")
    monkeypatch.setattr(RandomState, "on_train_start", lambda *_: None)
    _, resumed = run("dropout", seed=9, resume=20)
    assert not identical(whole, resumed)


def test_resumed_surface_keeps_its_path(run):
    _, whole = run("surface")
    _, resumed = run("surface", seed=9, resume=40)
    assert torch.equal(whole.trajectory, resumed.trajectory)
    assert resumed.trajectory.shape == (1 + 20 * EPOCHS, 2)


def test_checkpoints_hold_plain_data_only(run, tmp_path):
    run("dropout", max_epochs=1)
    checkpoint = torch.load(tmp_path / "10.ckpt", weights_only=True)
    assert set(checkpoint["callbacks"]["RandomState"]) == {"python", "numpy", "torch", "cuda"}


def test_random_state_restores_every_generator():
    class One:
        world_size = 1

    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    saved = RandomState().state_dict()
    expected = draw()
    callback = RandomState()
    callback.load_state_dict(saved)
    callback.on_train_start(One(), None)
    assert draw() == expected
    callback.on_train_start(One(), None)  # once only
    assert draw() != expected
