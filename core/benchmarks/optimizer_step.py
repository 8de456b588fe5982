"""Time one optimizer step: ours on each backend, torch.optim, pytorch_optimizer, in one run.

    python core/benchmarks/optimizer_step.py [--optimizer AdamW Adam] [--sets transformer small]

By default every optimizer is timed that takes gradients from ``.grad``; a wrapper has AdamW
inside. Rivals take turns, round by round, so that a machine that slows down slows all of them. A
row gives the median time, the bytes that the step has to move (read parameter, gradient and
state, write parameter and state), the bandwidth that this makes of the median time, as a share
of a copy's bandwidth measured in the same rounds, the most memory that a step allocates on the
way, in bytes a parameter, and the ratio to torch's fused step. On a CPU the share can exceed 1: a
copy also fetches the memory that it is about to overwrite, which an update in place has read
anyway. Allocations are those through torch; a kernel's own scratch space is not seen.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import statistics
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from steepest import optim
from steepest.kernels import available_backends

Step = Callable[[], object]

PEERS = {
    "Grokfast": lambda peers, params: peers.GrokFastAdamW(params),
    "PerpGrad": lambda peers, params: peers.OrthoGrad(peers.AdamW(params)),
    "SGDW": lambda peers, params: peers.SGDW(params, momentum=0.9),
}
"""Where a peer has another name than ours, another form, or by default no momentum."""


def transformer() -> list[tuple[int, ...]]:
    """A decoder of 30.0M parameters: width 512, eight blocks, vocabulary 9,400."""
    d = 512
    block = [(d,), (d,), (3 * d, d), (3 * d,), (d, d), (d,), (d,), (d,), (4 * d, d), (4 * d,)]
    block += [(d, 4 * d), (d,)]
    return [(9400, d), (256, d), *(block * 8), (d,), (d,)]


def resnet50() -> list[tuple[int, ...]]:
    """The 161 tensors of a ResNet-50, 25.6M parameters."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for i in range(blocks):
            convs = [(width, inputs, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            convs += [(4 * width, inputs, 1, 1)] if i == 0 else []
            for conv in convs:
                shapes += [conv, (conv[0],), (conv[0],)]
            inputs = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


SETS = {
    "transformer": transformer,
    "resnet50": resnet50,
    "small": lambda: [(64, 32)] * 1000,
}


def parameters(shapes: list[tuple[int, ...]], device: torch.device) -> list[torch.nn.Parameter]:
    """Parameters with gradients."""
    params = [torch.nn.Parameter(torch.randn(s, device=device)) for s in shapes]
    for p in params:
        p.grad = torch.randn_like(p)
    return params


def competitors() -> list[str]:
    """Names of the optimizers that take gradients from ``.grad``."""
    return [n for n in optim.list() if not issubclass(optim.find(n), optim.OracleDriven)]


def make(name: str, params: list[torch.nn.Parameter], backend: str) -> torch.optim.Optimizer:
    """An optimizer of ours; a wrapper around AdamW."""
    return optim.create(name, params, base="AdamW", backend=backend)


def needs_loss(opt: torch.optim.Optimizer) -> bool:
    """Whether a step reads the loss's value."""
    return getattr(opt, "needs_loss", False)


def rivals(name: str, shapes: list[tuple[int, ...]], device: torch.device) -> Iterator[tuple]:
    """Name, step and optimizer of every implementation, each on parameters of its own."""
    fits = {"cpu": "cpu", "cuda": "triton"}[device.type]
    loss = torch.ones((), device=device)
    for backend in available_backends():
        if backend in ("torch", fits):
            opt = make(name, parameters(shapes, device), backend)
            step = partial(opt.step, lambda: loss) if needs_loss(opt) else opt.step
            yield f"steepest, {backend}", step, opt
    theirs = getattr(torch.optim, name, None) or getattr(torch.optim, name.capitalize(), None)
    if theirs is not None:
        variants = {"for-loop": {"foreach": False}, "foreach": {"foreach": True}}
        for variant, options in {**variants, "fused": {"fused": True}}.items():
            try:
                opt = theirs(parameters(shapes, device), **options)
            except (TypeError, RuntimeError):
                continue  # this one has no such variant
            yield f"torch, {variant}", opt.step, opt
    try:
        import pytorch_optimizer
    except ImportError:
        return
    by_name = {n.lower(): value for n, value in vars(pytorch_optimizer).items()}
    peer = by_name.get(name.lower())
    if name in PEERS:
        opt = PEERS[name](pytorch_optimizer, parameters(shapes, device))
        yield "pytorch_optimizer", opt.step, opt
    elif isinstance(peer, type):
        opt = peer(parameters(shapes, device))
        yield "pytorch_optimizer", opt.step, opt


class Allocations(TorchDispatchMode):
    """Most bytes that tensors made in the context hold at a time."""

    now = most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        old = {t.untyped_storage().data_ptr() for t in tensors((args, kwargs))}
        for t in tensors(out):
            memory = t.untyped_storage()
            if memory.data_ptr() not in old:
                self.add(memory.nbytes())
                weakref.finalize(memory, self.add, -memory.nbytes())
        return out

    def add(self, size: int) -> None:
        """Count bytes that come, or go."""
        self.now += size
        self.most = max(self.most, self.now)


def tensors(tree: object) -> list[torch.Tensor]:
    """Tensors in a nested structure."""
    return [t for t in tree_leaves(tree) if isinstance(t, torch.Tensor)]


def allocated(step: Step, device: torch.device) -> int:
    """Most bytes that a step allocates on the way."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    with Allocations() as seen:
        step()
    return seen.most


def clock(step: Step, device: torch.device) -> float:
    """Seconds of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(name: str, set_name: str, rounds: int, device: torch.device) -> list[dict]:
    """One row per implementation."""
    shapes = SETS[set_name]()
    entries = list(rivals(name, shapes, device))
    count = sum(p.numel() for g in entries[0][2].param_groups for p in g["params"])
    source = torch.randn(max(count, 1 << 24), device=device)
    target = torch.empty_like(source)
    steps: dict[str, Step] = {label: step for label, step, _ in entries}
    steps["copy"] = lambda: target.copy_(source)
    for step in steps.values():
        step()  # compile, allocate state
    times: dict[str, list[float]] = {label: [] for label in steps}
    for _ in tqdm(range(rounds), desc=f"{name} on {set_name}", leave=False):
        for label, step in steps.items():
            times[label].append(clock(step, device))
    median = {label: statistics.median(values) for label, values in times.items()}
    extra = {label: allocated(step, device) for label, step, _ in entries}
    copy = 2 * source.nbytes / median["copy"]
    rows = []
    for label, _, opt in entries:
        inner = opt.state_dict()
        own = {t.data_ptr(): t for t in tensors(inner) if t.numel() > 1}
        state = sum(t.nbytes for t in own.values())
        moved = 2 * state + 12 * count
        rows.append(
            {
                "optimizer": name,
                "set": set_name,
                "implementation": label,
                "ms": 1e3 * median[label],
                "bytes_per_parameter": moved / count,
                "allocated_per_parameter": extra[label] / count,
                "share_of_copy": moved / median[label] / copy,
                "over_torch_fused": median[label] / median.get("torch, fused", float("nan")),
                "copy_gb_per_s": copy / 1e9,
            }
        )
    return rows


def machine(device: torch.device) -> str:
    """What was measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            s.split(":", 1)[1].strip() for s in info.read_text().splitlines() if "model name" in s
        ]
        model = names[0] if names else model
    return f"{model}, {torch.get_num_threads()} threads"


def peer_version() -> str | None:
    """Version of pytorch_optimizer, if it is installed."""
    try:
        return importlib.metadata.version("pytorch_optimizer")
    except importlib.metadata.PackageNotFoundError:
        return None


def main() -> None:
    """Print a table; write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--optimizer", nargs="+", default=competitors())
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    args = parser.parse_args()
    device = torch.device(args.device)
    rows = []
    print(f"{machine(device)}; torch {torch.__version__}; medians of {args.rounds} rounds")
    for set_name in args.sets:
        for name in args.optimizer:
            part = measure(name, set_name, args.rounds, device)
            copy = part[0]["copy_gb_per_s"]
            print(f"\n{name}, {set_name} (a copy moves {copy:.1f} GB/s)")
            print(f"{'':24s}{'ms':>9s}{'B/param':>9s}{'+ alloc':>9s}{'of copy':>9s}{'/ fused':>9s}")
            for row in part:
                print(
                    f"{row['implementation']:24s}{row['ms']:9.2f}{row['bytes_per_parameter']:9.0f}"
                    f"{row['allocated_per_parameter']:9.1f}{row['share_of_copy']:9.0%}{row['over_torch_fused']:9.2f}"
                )
            rows += part
    if device.type == "cpu":
        print("\nNot measured: a GPU. Triton's interpreter is no measure of speed.")
    if args.json:
        record = {
            "machine": machine(device),
            "device": device.type,
            "torch": torch.__version__,
            "pytorch_optimizer": peer_version(),
            "rounds": args.rounds,
            "rows": rows,
        }
        args.json.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
