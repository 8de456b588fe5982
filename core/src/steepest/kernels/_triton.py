"""GPU backend: a rule as one Triton launch over all tensors.

The kernel finds its tensors through a table of addresses, so that a model of a thousand
tensors costs one launch, as one flat tensor would.
"""

from __future__ import annotations

import importlib.util
import linecache
import os
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steepest.kernels._rule import Rule

BLOCK = 1024
"""Elements that one program updates."""

_TYPES = {
    torch.float16: "tl.float16",
    torch.bfloat16: "tl.bfloat16",
    torch.float32: "tl.float32",
    torch.float64: "tl.float64",
}


def missing() -> str | None:
    """Why the backend cannot run, or None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: install the extra steepest[gpu], or pip install triton"
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        return "there is no GPU (set TRITON_INTERPRET=1 to run kernels slowly on the CPU)"
    return None


def takes(dtypes: Sequence[torch.dtype]) -> bool:
    """Whether the kernel can read and write tensors of these dtypes."""
    return set(dtypes) <= set(_TYPES)


def launch(
    rule: Rule,
    columns: Sequence[Sequence[Tensor]],
    scalars: np.ndarray | Tensor,
    which: np.ndarray,
) -> Tensor:
    """Update contiguous tensors in place; all tensors of a column have one dtype.

    Arguments and result as for the CPU backend's ``launch``.
    """
    device = columns[0][0].device
    sizes = np.array([p.numel() for p in columns[0]], dtype=np.int64)
    pointers = np.array([[t.data_ptr() for t in column] for column in columns], dtype=np.int64)
    # One copy to the device: addresses, sizes and the scalars' rows, tensor by tensor.
    table = torch.from_numpy(np.vstack([pointers, sizes[None], which[None]])).to(
        device, non_blocking=True
    )
    numbers = torch.as_tensor(scalars).to(device, non_blocking=True)
    tensor, first, counts = _blocks(sizes.tobytes(), device)
    partial = torch.empty(len(tensor), len(rule.sums), dtype=torch.float64, device=device)
    dtypes = tuple(column[0].dtype for column in columns)
    aligned = bool((pointers % 16 == 0).all())
    kernel = _compile(rule, dtypes)
    kernel[(len(tensor),)](table, numbers, tensor, first, partial, len(sizes), aligned, BLOCK)
    if not rule.sums:
        return torch.empty(0, len(sizes))
    # Not with atomic additions: sums are the same in every run.
    return torch.segment_reduce(partial, "sum", lengths=counts, axis=0).T


@cache
def _blocks(sizes: bytes, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Tensor and first element of each block, and each tensor's number of blocks."""
    counts = -(-np.frombuffer(sizes, dtype=np.int64) // BLOCK)
    tensor = np.repeat(np.arange(len(counts)), counts)
    before = np.concatenate([[0], np.cumsum(counts)[:-1]])
    first = (np.arange(len(tensor)) - before[tensor]) * BLOCK
    made = [torch.from_numpy(array).to(device) for array in (tensor, first, counts)]
    return made[0], made[1], made[2]


def source(rule: Rule, dtypes: tuple[torch.dtype, ...]) -> str:
    """Source of the kernel that Triton compiles; its own names have an underscore."""
    compute = "tl.float64" if dtypes[0] == torch.float64 else "tl.float32"
    rows = len(rule.tensors)
    names = [*rule.hoisted, "grad_scale"]
    lines = [
        "def kernel(table, scalars, tensor, first, partial, T,",
        "           ALIGNED: tl.constexpr, BLOCK: tl.constexpr):",
        "    _block = tl.program_id(0)",
        "    _tensor = tl.load(tensor + _block)",
        "    _first = tl.multiple_of(tl.load(first + _block), BLOCK)",
        "    _index = _first + tl.arange(0, BLOCK)",
        f"    _size = tl.load(table + {rows} * T + _tensor)",
        f"    _row = tl.load(table + {rows + 1} * T + _tensor) * {len(names)}",
    ]
    for j, name in enumerate(names):
        lines.append(f"    {name} = tl.load(scalars + _row + {j}).to({compute})")
    columns = list(zip(rule.tensors, dtypes, strict=True))
    for k, (name, dtype) in enumerate(columns):
        lines += [
            f"    {name}_ = tl.load(table + {k} * T + _tensor)",
            f"    {name}_ = {name}_.to(tl.pointer_type({_TYPES[dtype]}))",
            "    if ALIGNED:",
            f"        {name}_ = tl.multiple_of({name}_, 16)",
        ]
    # A full block needs no mask, and only without one are loads and stores 16 bytes wide.
    for branch, mask in (("if _first + BLOCK <= _size:", ""), ("else:", ", mask=_index < _size")):
        lines.append(f"    {branch}")
        inner = [f"{name} = tl.load({name}_ + _index{mask}).to({compute})" for name, _ in columns]
        inner += ["g = g * grad_scale"] if "g" in rule.tensors else []
        inner += rule.body
        inner += [
            f"tl.store({name}_ + _index, {name}.to({_TYPES[dtype]}){mask})"
            for name, dtype in columns
            if name in rule.written
        ]
        for k, name in enumerate(rule.sums):
            kept = f"tl.where(_index < _size, {name}, 0.0)" if mask else name
            place = f"partial + _block * {len(rule.sums)} + {k}"
            inner.append(f"tl.store({place}, tl.sum({kept}.to(tl.float64)))")
        lines += [f"        {line}" for line in inner]
    return "\n".join(lines) + "\n"


@cache
def _compile(rule: Rule, dtypes: tuple[torch.dtype, ...]) -> Any:
    import triton
    import triton.language as tl

    from steepest.kernels import _xp_triton

    text = source(rule, dtypes)
    name = f"<{rule.__name__} on triton, {', '.join(map(str, dtypes))}>"
    # Triton reads a kernel's source through inspect, which asks linecache.
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    scope: dict[str, Any] = {"tl": tl, "xp": _xp_triton, "__name__": __name__}
    exec(compile(text, name, "exec"), scope)
    return triton.jit(scope["kernel"], do_not_specialize=["T"])
