"""One of two processes that train together; ``test_oracles`` starts both and reads the answers."""

import os
import sys
import warnings
from functools import partial

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.nn import functional as F

from steepest.estimators import SPSA
from steepest.lightning import Oracles, quiet
from steepest.optim import SAM, AdaHessian, AdamW, Estimated, MeZO

OPTIMIZERS = {
    "SAM": lambda params: SAM(torch.optim.SGD(params, lr=0.3, momentum=0.9), rho=0.1),
    "AdaHessian": partial(AdaHessian, lr=0.1),
    "MeZO": partial(MeZO, lr=0.05),
    "Estimated": lambda params: Estimated(AdamW(params, lr=0.01), SPSA()),
    "AdamW": partial(AdamW, lr=0.01),
}


class Net(LightningModule):
    def __init__(self, make, norm=nn.Identity):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), norm(8), nn.Tanh(), nn.Linear(8, 3))
        self.make = make

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return self.make(self.parameters())


class Wire(Callback):
    """The largest message of a training step, in numbers."""

    largest = 0

    def setup(self, trainer, module, stage):
        self.send = torch.distributed.all_reduce if trainer.world_size > 1 else None

    def on_train_batch_start(self, *_):
        if self.send is not None:
            torch.distributed.all_reduce = self.count

    def on_train_batch_end(self, *_):
        if self.send is not None:
            torch.distributed.all_reduce = self.send

    def count(self, tensor, *args, **kwargs):
        self.largest = max(self.largest, tensor.numel())
        return self.send(tensor, *args, **kwargs)


def train(make, world, accumulate, norm=nn.Identity):
    rng = torch.Generator().manual_seed(7)
    data = torch.utils.data.TensorDataset(
        torch.randn(96, 6, generator=rng, dtype=torch.float64),
        torch.randint(0, 3, (96,), generator=rng),
    )
    module, wire = Net(make, norm).double(), Wire()
    trainer = Trainer(
        accelerator="cpu",
        devices=world,
        use_distributed_sampler=False,  # Lightning's shuffles
        strategy="ddp" if world > 1 else "auto",
        callbacks=[Oracles(), wire],
        accumulate_grad_batches=accumulate,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    rank = int(os.environ["RANK"]) if world > 1 else 0
    own = range(rank, len(data), world)  # so the union of batch j is batch j of one process
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=16 // world, sampler=own))
    return torch.cat([t.flatten() for t in module.state_dict().values()]), wire.largest


def run(world):
    warnings.filterwarnings("ignore")
    quiet()
    torch.set_num_threads(1)
    return {(n, k): train(make, world, k) for n, make in OPTIMIZERS.items() for k in (1, 2)}


def statistics():
    """Weights and running statistics of batch normalization, with SGD and with SAM around it."""
    return [
        train(make, 2, 1, nn.BatchNorm1d)[0]
        for make in (
            partial(torch.optim.SGD, lr=0.1),
            lambda params: SAM(torch.optim.SGD(params, lr=0.1), rho=0.0),
        )
    ]


if __name__ == "__main__":
    torch.save((run(world=2), statistics()), sys.argv[1])
