"""Peak memory of a training step under Lightning's Trainer, against inference.

    python core/benchmarks/step_memory.py [--optimizers MeZO AdamW] [--json FILE]

The model is a decoder of 30 million parameters. Each line is measured in a process of its own:
first forward passes under ``torch.inference_mode``, then training steps, on the same batch. On a
CPU the peak is that of resident memory, sampled twice a millisecond; on a GPU it is
``torch.cuda.max_memory_allocated``. Resident memory includes the interpreter, the libraries and
compiled kernels, in both, as a tiny model is trained first; the last column leaves them out: it is
the ratio of what is above the memory just before the model was made.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from optimizer_step import machine
from torch.nn import functional

from steepest.estimators import SPSA, ForwardGradient
from steepest.lightning import Oracles, Transformer, quiet
from steepest.optim import SAM, SGDW, AdamW, Estimated, create

MAKE = {
    "MeZO": lambda params: create("MeZO", params),
    "SGDW": lambda params: SGDW(params),
    "AdamW": lambda params: AdamW(params),
    "SAM(SGDW)": lambda params: SAM(SGDW(params)),
    "AdaHessian": lambda params: create("AdaHessian", params),
    "Estimated(SGDW, SPSA)": lambda params: Estimated(SGDW(params), SPSA()),
    "Estimated(SGDW, ForwardGradient)": lambda params: Estimated(SGDW(params), ForwardGradient()),
}
STEPS = 5


class Decoder(LightningModule):
    """A language model, of 30 million parameters by default."""

    def __init__(self, make, width=512, depth=8) -> None:
        super().__init__()
        self.net = Transformer(9400, 256, width, depth, 8, 0.0)
        self.make = make

    def training_step(self, batch, batch_idx):
        """Loss of a batch of token sequences."""
        return self.loss(batch)

    def loss(self, tokens):
        """Cross-entropy of each next token."""
        return functional.cross_entropy(
            self.net(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()
        )

    def configure_optimizers(self):
        """The optimizer under test."""
        return self.make(self.parameters())


class Peak:
    """Highest memory while the context lasts, in MiB; resident on a CPU, allocated on a GPU."""

    def __enter__(self) -> Peak:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        else:
            self.most, self.over = resident(), threading.Event()
            self.watch = threading.Thread(target=self._watch)
            self.watch.start()
        return self

    def _watch(self) -> None:
        while not self.over.is_set():
            self.most = max(self.most, resident())
            time.sleep(5e-4)

    def __exit__(self, *_: object) -> None:
        if torch.cuda.is_available():
            self.most = torch.cuda.max_memory_allocated() / 2**20
        else:
            self.over.set()
            self.watch.join()


def resident() -> float:
    """Resident memory of this process, MiB."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated() / 2**20
    text = Path("/proc/self/status").read_text("utf-8")
    found = re.search(r"VmRSS:\s+(\d+) kB", text)
    if found is None:
        raise RuntimeError("resident memory is read from /proc, which only Linux has")
    return int(found[1]) / 1024


def fit(module: Decoder, tokens: torch.Tensor) -> None:
    """A few training steps on one batch."""
    trainer = Trainer(
        max_steps=STEPS,
        max_epochs=-1,
        callbacks=[Oracles()],
        accelerator="auto",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader([tokens] * STEPS, batch_size=None))


def measure(name: str) -> dict[str, float]:
    """Peaks of inference and of training steps of one optimizer, in this process."""
    quiet()
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokens = torch.randint(0, 9400, (8, 129), device=device)
    # What is loaded and compiled at first use is there from now on, for both.
    fit(Decoder(MAKE[name], width=16, depth=1), tokens[:1, :9])
    before = resident()
    module = Decoder(MAKE[name]).to(device)
    with Peak() as inference, torch.inference_mode():
        for _ in range(STEPS):
            module.loss(tokens)
    with Peak() as training:
        fit(module, tokens)
    return {"before": before, "inference": inference.most, "training": training.most}


def main() -> None:
    """Measure every optimizer in a process of its own and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--optimizers", nargs="+", default=list(MAKE), choices=list(MAKE))
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--one", choices=list(MAKE), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one)))
        return
    kind = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {kind}; MiB")
    print(
        f"{'optimizer':34s} {'inference':>10s} {'training':>10s} {'ratio':>7s} {'above start':>12s}"
    )
    columns = ["Optimizer", "inference, MiB", "training, MiB", "ratio", "ratio above the start"]
    rows = []
    for name in args.optimizers:
        run = [sys.executable, __file__, "--one", name]
        out = subprocess.run(run, capture_output=True, text=True, check=False)
        if out.returncode:
            sys.exit(out.stderr)
        row = json.loads(out.stdout.splitlines()[-1])
        ratio = row["training"] / row["inference"]
        above = (row["training"] - row["before"]) / (row["inference"] - row["before"])
        peaks = f"{row['inference']:10.0f} {row['training']:10.0f}"
        print(f"{name:34s} {peaks} {ratio:7.3f} {above:12.3f}", flush=True)
        cells = [f"{row['inference']:.0f}", f"{row['training']:.0f}", f"{ratio:.3f}"]
        rows.append([name, *cells, f"{above:.3f}"])
    if args.json:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        record = {
            "machine": machine(device),
            "torch": torch.__version__,
            "title": "Peak memory of a step, 30 million parameters, batches of 8 x 128",
            "columns": columns,
            "rows": rows,
        }
        args.json.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
