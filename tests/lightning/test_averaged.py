"""Averaged under the Trainer: validation, checkpoints and the end of a fit see the average."""

import copy

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from steepest.lightning import Classifier, DigitsData, Oracles
from steepest.optim import SGDW, Averaged


class Watch(Callback):
    """Weights in training after each step, and in each validation."""

    def __init__(self):
        self.trained, self.validated = [], []

    def on_train_batch_end(self, trainer, module, *args):
        self.trained.append(flat(module))

    def on_validation_start(self, trainer, module):
        if not trainer.sanity_checking:
            self.validated.append(flat(module))


def flat(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()]).double()


def fit(tmp_path, epochs, ckpt=None, name="last"):
    torch.manual_seed(0)
    module = Classifier(hidden=[16], optimizer=lambda ps: Averaged(SGDW(ps, lr=0.1), gamma=0.0))
    watch = Watch()
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        callbacks=[Oracles(), watch, ModelCheckpoint(tmp_path, filename=name)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DigitsData(batch_size=256), ckpt_path=ckpt)
    return module, watch, trainer


def test_the_average_is_what_one_sees_and_the_weights_are_what_one_trains(tmp_path):
    module, watch, trainer = fit(tmp_path, 3)
    steps = trainer.num_training_batches
    path = torch.stack(watch.trained)
    assert len(path) == 3 * steps
    for epoch, seen in enumerate(watch.validated, 1):
        # its last step ends an epoch after validation: where training goes on is not validated
        mean = path[: epoch * steps].mean(0)
        assert torch.allclose(seen, mean, atol=1e-6)
        assert not torch.allclose(seen, path[epoch * steps - 1], atol=1e-3)
    assert torch.allclose(flat(module), path.mean(0), atol=1e-6)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=False)["state_dict"]
    again = copy.deepcopy(module)
    again.load_state_dict(saved)
    assert torch.allclose(flat(again), path.mean(0), atol=1e-6)


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_a_resumed_fit_is_the_fit(tmp_path):
    whole, _, _ = fit(tmp_path, 4, name="whole")
    fit(tmp_path, 2, name="half")
    resumed, _, _ = fit(tmp_path, 4, ckpt=tmp_path / "half.ckpt", name="rest")
    assert torch.equal(flat(resumed), flat(whole))
