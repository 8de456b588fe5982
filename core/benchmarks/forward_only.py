"""Time the parts of a MeZO step: forward passes, and perturbing and updating the parameters.

    python core/benchmarks/forward_only.py [--batches 1x64 8x128] [--json FILE]

The model is a decoder of 30 million parameters. The reference formulation, MeZO's own, moves all
parameters four times: there, across, back, and along the update. Each time it seeds torch's
generator and adds ``torch.normal``, parameter by parameter. Ours comes back and updates in one, and
adds noise that is made in registers (``steepest.kernels.add_noise_``). They take turns, round by
round, with the two forward passes of a step at each size of the batch.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from optimizer_step import clock, machine
from torch.nn import functional
from tqdm import tqdm

from steepest.kernels import add_noise_, offsets
from steepest.lightning import Transformer

EPS, LR = 1e-3, 1e-6


def ours(params: list[torch.Tensor], kind: str) -> None:
    """The three moves of a step."""
    places = offsets(params)
    for scale in (EPS, -2 * EPS, EPS - LR):
        add_noise_(params, 7, scale, kind=kind, start=places)


def reference(params: list[torch.Tensor]) -> None:
    """The four moves, as MeZO's trainer does it."""
    for scale in (EPS, -2 * EPS, EPS, -LR):
        torch.manual_seed(7)
        for p in params:
            z = torch.normal(mean=0.0, std=1.0, size=p.size(), device=p.device, dtype=p.dtype)
            p.add_(z, alpha=scale)


def main() -> None:
    """Print a table; write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", nargs="+", default=["1x32", "4x64", "8x128"])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.manual_seed(0)
    net = Transformer(9400, 256, 512, 8, 8, 0.0).to(device)
    params = [p.detach() for p in net.parameters()]

    def forward(rows: int, length: int) -> Callable[[], None]:
        tokens = torch.randint(0, 9400, (rows, length + 1), device=device)

        @torch.inference_mode()
        def run() -> None:
            for _ in range(2):
                logits = net(tokens[:, :-1]).flatten(0, 1)
                functional.cross_entropy(logits, tokens[:, 1:].flatten())

        return run

    sizes = [tuple(map(int, text.split("x"))) for text in args.batches]
    steps: dict[str, Callable[[], None]] = {
        "gaussian": lambda: ours(params, "gaussian"),
        "rademacher": lambda: ours(params, "rademacher"),
        "reference": lambda: reference(params),
        **{f"{rows} x {length}": forward(rows, length) for rows, length in sizes},
    }
    for step in steps.values():
        step()  # compile, touch the memory
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in tqdm(range(args.rounds)):
        for name, step in steps.items():
            times[name].append(1e3 * clock(step, device))
    ms = {name: statistics.median(values) for name, values in times.items()}
    columns = ["Batch x length", "two forwards, ms", "noise, ms", "its share", "signs, ms"]
    columns += ["reference, ms", "its share", "reference / noise", "reference / signs"]
    rows = []
    for name in list(steps)[3:]:
        share, theirs = (ms[k] / (ms[k] + ms[name]) for k in ("gaussian", "reference"))
        cells = [f"{ms[name]:.0f}", f"{ms['gaussian']:.0f}", f"{share:.0%}"]
        cells += [f"{ms['rademacher']:.0f}", f"{ms['reference']:.0f}", f"{theirs:.0%}"]
        cells += [f"{ms['reference'] / ms[k]:.1f}" for k in ("gaussian", "rademacher")]
        rows.append([name, *cells])
    count = sum(p.numel() for p in params)
    record = {
        "machine": machine(device),
        "torch": torch.__version__,
        "title": f"Parts of a MeZO step, {count / 1e6:.1f} million parameters; medians of "
        f"{args.rounds} rounds",
        "columns": columns,
        "rows": rows,
    }
    print(f"{record['machine']}; torch {record['torch']}\n{record['title']}")
    for row in [columns, *rows]:
        print("  ".join(f"{cell:>17s}" for cell in row))
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
