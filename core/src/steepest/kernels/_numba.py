"""CPU backend: a rule as one parallel loop over all tensors, compiled by numba.

The generated function walks blocks of all tensors at once, in place, with no temporary:
every element is read once and written once.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steepest.kernels._rule import Rule

BLOCK = 1 << 14
"""Elements of a tensor that one thread updates at a time (64 KiB of float32)."""


def missing() -> str | None:
    """Why the backend cannot run, or None."""
    if importlib.util.find_spec("numba") is None:
        return "numba is not installed: install the extra steepest[cpu], or pip install numba"
    return None


def takes(dtypes: Sequence[torch.dtype]) -> bool:
    """Whether the kernel can read and write tensors of these dtypes."""
    return set(dtypes) in ({torch.float32}, {torch.float64})


def launch(
    rule: Rule,
    columns: Sequence[Sequence[Tensor]],
    scalars: np.ndarray | Tensor,
    which: np.ndarray,
) -> Tensor:
    """Update contiguous tensors of one dtype in place.

    Args:
        rule: The update rule.
        columns: For each tensor name of the rule, the T tensors that bear it.
        scalars: Rows of the rule's hoisted scalars and the gradient's factor, shape (U, S + 1),
            double precision.
        which: Row of ``scalars`` that each of the T tensors uses, shape (T,).

    Returns:
        The rule's sums over each tensor, float64 of shape (number of sums, T).
    """
    dtype = np.float64 if columns[0][0].dtype == torch.float64 else np.float32
    pointers = np.array([[t.data_ptr() for t in column] for column in columns], dtype=np.int64)
    sizes = np.array([p.numel() for p in columns[0]], dtype=np.int64)
    tensor, first = _blocks(sizes.tobytes())
    kernel = _compile(rule, dtype)
    partial = np.empty((len(rule.sums), len(tensor)))
    with torch_threads():
        kernel(pointers, np.asarray(scalars, dtype), which, sizes, tensor, first, partial)
    if not rule.sums:
        return torch.empty(0, len(sizes))
    # Blocks of a tensor stand together, and the first of each starts at 0.
    return torch.from_numpy(np.add.reduceat(partial, np.flatnonzero(first == 0), axis=1))


@contextmanager
def torch_threads() -> Iterator[None]:
    """Let numba use as many threads as torch does, and put back the number of either."""
    import numba

    threads = torch.get_num_threads()
    before = numba.get_num_threads()  # its first call sets OpenMP's number, which is torch's too
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    try:
        yield
    finally:
        numba.set_num_threads(before)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


@cache
def _blocks(sizes: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Tensor and first element of each block; T sizes come as bytes to be hashable."""
    counts = -(-np.frombuffer(sizes, dtype=np.int64) // BLOCK)
    tensor = np.repeat(np.arange(len(counts)), counts)
    before = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return tensor, (np.arange(len(tensor)) - before[tensor]) * BLOCK


def source(rule: Rule) -> str:
    """Source of the loop that numba compiles; its own names have an underscore."""
    names = [*rule.hoisted, "grad_scale"]
    setup = [
        "_t = tensor[_b]",
        f"_size = min(sizes[_t] - first[_b], {BLOCK})",
        "_offset = first[_b] * itemsize",
        *(f"{n}_ = view(pointers[{k}, _t] + _offset, _size)" for k, n in enumerate(rule.tensors)),
        *(f"{n} = scalars[which[_t], {j}]" for j, n in enumerate(names)),
        *(f"{name}_ = 0.0" for name in rule.sums),
    ]
    body = [
        *(f"{name} = {name}_[_i]" for name in rule.tensors),
        *(["g = g * grad_scale"] if "g" in rule.tensors else []),
        *rule.body,
        *(f"{name}_[_i] = {name}" for name in rule.written),
        *(f"{name}_ += double({name})" for name in rule.sums),
    ]
    lines = [
        "def kernel(pointers, scalars, which, sizes, tensor, first, partial):",
        "    for _b in prange(len(tensor)):",
        *(f"        {line}" for line in setup),
        "        for _i in range(_size):",
        *(f"            {line}" for line in body),
        *(f"        partial[{k}, _b] = {name}_" for k, name in enumerate(rule.sums)),
    ]
    return "\n".join(lines)


@cache
def viewer(dtype: type) -> Any:
    """Compiled function: address and length of an array -> the array."""
    from numba import carray, njit, types
    from numba.core import cgutils
    from numba.extending import intrinsic

    @intrinsic
    def as_pointer(typing_context: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], cgutils.voidptr_t)

        return types.voidptr(address), codegen

    @njit
    def view(address: Any, n: Any) -> Any:
        return carray(as_pointer(address), (n,), dtype)

    return view


@cache
def _compile(rule: Rule, dtype: type) -> Any:
    from numba import njit, prange

    from steepest.kernels import _xp_numba

    scope: dict[str, Any] = {
        "prange": prange,
        "view": viewer(dtype),
        "xp": _xp_numba,
        "double": np.float64,
        "itemsize": np.dtype(dtype).itemsize,
    }
    exec(compile(source(rule), f"<{rule.__name__} on numba>", "exec"), scope)
    # Only sums may be reordered: in lanes, as no processor vectorizes them in sequence.
    free = {"reassoc"} if rule.sums else False
    options = {"parallel": True, "nogil": True, "error_model": "numpy", "fastmath": free}
    return njit(**options)(scope["kernel"])
