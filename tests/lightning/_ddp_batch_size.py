"""One of two processes whose batches grow together; ``test_adaptive_batch_size`` starts both."""

import sys
import warnings

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn import functional as F

from steepest.lightning import AdaptiveBatchSize, quiet

SAMPLES = 240


def data():
    rng = torch.Generator().manual_seed(7)
    x = torch.randn(SAMPLES, 6, generator=rng, dtype=torch.float64)
    y = torch.randint(0, 3, (SAMPLES,), generator=rng)
    return torch.utils.data.TensorDataset(x, y, torch.arange(SAMPLES))


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Linear(6, 3).double()
        self.seen = []

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.seen.append(batch[2].tolist())

    def configure_optimizers(self):
        return torch.optim.Adagrad(self.parameters(), lr=0.1)


class Watched(AdaptiveBatchSize):
    """Writes down each measurement."""

    def __init__(self, **options):
        super().__init__(**options)
        self.sizes, self.noises = [], []

    def _wanted(self, trainer, module, batch, batch_idx):
        size = super()._wanted(trainer, module, batch, batch_idx)
        self.sizes.append(size)
        return size


def train(folder, resume=None):
    module, grow = Net(), Watched(eta=0.6, every=1, parts=4)
    keep = ModelCheckpoint(
        folder,
        filename="{step}",
        auto_insert_metric_name=False,
        every_n_train_steps=5,
        save_top_k=-1,
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        callbacks=[grow, keep],
        max_epochs=3,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = torch.utils.data.DataLoader(data(), batch_size=4, shuffle=True)
    trainer.fit(module, loader, ckpt_path=resume)
    return {"seen": module.seen, "sizes": grow.sizes, "weights": module.net.state_dict()}


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    quiet()
    torch.set_num_threads(1)
    output, folder = sys.argv[1:]
    whole = train(folder)
    torch.save((whole, train(folder, f"{folder}/5.ckpt")), output)
