"""One of two processes that send each other bytes; ``test_shared_randomness`` starts both."""

import os
import sys
import warnings
from functools import partial

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.nn import functional as F

from steepest.lightning import Oracles, SharedRandomness, quiet

STEPS = 12


class Net(LightningModule):
    def __init__(self, make):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        self.make = make

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return self.make(self.named_parameters())


class Wire(Callback):
    """Bytes that a process sends in its training steps, by collective."""

    def __init__(self):
        self.sent = {"all_reduce": 0, "all_gather": 0, "broadcast": 0}

    def on_train_batch_start(self, *_):
        self.plain = {name: getattr(torch.distributed, name) for name in self.sent}
        for name in self.sent:
            setattr(torch.distributed, name, partial(self.count, name))

    def on_train_batch_end(self, *_):
        for name, call in self.plain.items():
            setattr(torch.distributed, name, call)

    def count(self, name, *args, **kwargs):
        self.sent[name] += (args[1] if name == "all_gather" else args[0]).nbytes
        return self.plain[name](*args, **kwargs)


def data():
    rng = torch.Generator().manual_seed(7)
    return torch.utils.data.TensorDataset(
        torch.randn(8 * 2 * STEPS, 6, generator=rng),
        torch.randint(0, 3, (8 * 2 * STEPS,), generator=rng),
    )


def batches(rank):
    return torch.utils.data.DataLoader(
        data(), batch_size=8, sampler=range(rank, 16 * STEPS, 2), shuffle=False
    )


def make(params, **options):
    return SharedRandomness(params, lr=0.05, samples=2, seed=5, **options)


def main(output):
    warnings.filterwarnings("ignore")
    quiet()
    torch.set_num_threads(1)
    module, wire = Net(make), Wire()
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        use_distributed_sampler=False,
        callbacks=[Oracles(), wire],
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, batches(int(os.environ["RANK"])))
    (opt,) = trainer.optimizers
    log = [tuple(entry) for entry in opt.log]
    torch.save({"weights": module.net.state_dict(), "log": log, "sent": wire.sent}, output)


if __name__ == "__main__":
    main(sys.argv[1])
