"""Apply an update rule to many tensors at once, on the backend that fits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from steepest.kernels import _numba, _triton
from steepest.kernels._rule import Rule

_FUSED: dict[str, ModuleType] = {"cpu": _numba, "triton": _triton}

BACKENDS = ("auto", "torch", *_FUSED)

SMALL = 1 << 15
"""Below so many elements ``auto`` takes plain torch: compiling a kernel would not pay."""


def check_backend(backend: str) -> None:
    """Raise unless a backend can be forced here.

    Raises:
        ValueError: If there is no backend of that name.
        RuntimeError: If it is missing on this machine; the message names the remedy.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}: choose one of {', '.join(BACKENDS)}")
    if backend in _FUSED and (reason := _FUSED[backend].missing()) is not None:
        raise RuntimeError(f"backend {backend!r} cannot run: {reason}; or use backend='auto'")


def available_backends() -> list[str]:
    """Backends that can run here, ``auto`` left out.

    Example:
        >>> "torch" in available_backends()
        True
    """
    return ["torch", *(name for name, module in _FUSED.items() if module.missing() is None)]


def apply(
    rule: Rule,
    columns: Sequence[Sequence[Tensor]],
    numbers: Sequence[Mapping[str, float]],
    which: Sequence[int] | None = None,
    *,
    vectors: Mapping[str, Tensor] | None = None,
    grad_scale: float = 1.0,
    backend: str = "auto",
) -> dict[str, Tensor]:
    """Run a rule on T parameters with their gradients and state, in place.

    Args:
        rule: The rule, or reduction.
        columns: For each tensor name of the rule, its T tensors; within one index all have
            the same shape. Gradients and other unwritten tensors do not change.
        numbers: U sets of values for the rule's numbers.
        which: For each of the T parameters, the index of its set; the first when omitted.
        vectors: Numbers that were measured on the device, and stay there: float64 tensors of
            shape (T,), or () for all parameters. They come before those of ``numbers``.
        grad_scale: Factor on the gradient before the rule sees it (-1 to maximize).
        backend: ``torch``, ``cpu``, ``triton``, or ``auto``: the fused kernel of the tensors'
            device if it is there and the work is large enough to pay for it.

    Returns:
        The sums of a reduction by name, float64 of shape (T,), on the first tensor's device; of
        a rule nothing.

    Raises:
        ValueError: If the backend is unknown, or tensors of one index differ in size.
        RuntimeError: If the backend is forced and missing, or is not for the tensors' device.
            Nothing has changed then.

    Example:
        >>> import steepest.optim
        >>> from steepest.kernels import RULES
        >>> p, g = torch.tensor([1.0, 2.0]), torch.tensor([1.0, -1.0])
        >>> _ = apply(RULES["adagrad_norm"], [[p], [g]], [{"lr": 0.5, "root": 2.0}])
        >>> p
        tensor([0.7500, 2.2500])
    """
    check_backend(backend)
    sizes = [p.numel() for p in columns[0]]
    if any([t.numel() for t in column] != sizes for column in columns[1:]):
        raise _unequal(rule, columns)  # a kernel would write beyond its tensors
    count = len(sizes)
    which = which if which is not None else [0] * count
    vectors = {name: v.double().expand(count) for name, v in (vectors or {}).items()}
    home = columns[0][0].device
    sums = torch.zeros(len(rule.sums), count, device=home).double() if rule.sums else None
    for device, index in _partition(columns):
        part, rows, own = columns, which, vectors
        if index is not None:
            part = [[column[j] for j in index] for column in columns]
            rows = [which[j] for j in index]
            own = {name: v[index].to(device) for name, v in vectors.items()}
        name = _choose(backend, device, part[0])
        if name == "torch":
            made = _run_torch(rule, part, numbers, rows, own, grad_scale)
        else:
            scalars, order = _scalars(rule, numbers, rows, own, grad_scale)
            made = _run_fused(_FUSED[name], rule, part, scalars, order)
        if sums is not None:
            sums[:, slice(None) if index is None else index] = made.to(home)
    return {} if sums is None else dict(zip(rule.sums, sums, strict=True))


def _unequal(rule: Rule, columns: Sequence[Sequence[Tensor]]) -> ValueError:
    first = rule.tensors[0]
    name, t, p = next(
        (name, t, p)
        for name, column in zip(rule.tensors[1:], columns[1:], strict=True)
        for t, p in zip(column, columns[0], strict=True)
        if t.numel() != p.numel()
    )
    return ValueError(
        f"{rule.__name__}: {name} has shape {tuple(t.shape)}, and {first} {tuple(p.shape)}: "
        "give tensors of one shape"
    )


def _scalars(
    rule: Rule,
    numbers: Sequence[Mapping[str, float]],
    which: Sequence[int],
    vectors: Mapping[str, Tensor],
    grad_scale: float,
) -> tuple[np.ndarray | Tensor, np.ndarray]:
    """Rows of hoisted scalars with the gradient's factor, and the row of each parameter."""
    if not vectors:
        rows = [[*rule.scalars(n), grad_scale] for n in numbers]
        return np.array(rows), np.array(which, dtype=np.int64)
    like = next(iter(vectors.values()))
    # Without a wait for the device: what is there stays, what is known here goes there.
    given = {
        name: vectors[name]
        if name in vectors
        else torch.tensor([float(numbers[u][name]) for u in which], dtype=torch.float64).to(
            like.device, non_blocking=True
        )
        for name in rule.numbers
    }
    filled = [
        s if isinstance(s, Tensor) else torch.full_like(like, s)
        for s in (*rule.scalars(given), grad_scale)
    ]
    return torch.stack(filled, dim=1), np.arange(len(which))


def _partition(
    columns: Sequence[Sequence[Tensor]],
) -> Iterator[tuple[torch.device, list[int] | None]]:
    """Tensors that can share a launch, one device and one dtype a column: None means all."""
    devices = {p.device for p in columns[0]}
    uniform = len(devices) == 1 and all(len({t.dtype for t in c}) == 1 for c in columns)
    if uniform and all(p.numel() for p in columns[0]):
        yield devices.pop(), None
        return
    parts: dict[tuple[torch.device, tuple[torch.dtype, ...]], list[int]] = {}
    for j, row in enumerate(zip(*columns, strict=True)):
        if row[0].numel():
            parts.setdefault((row[0].device, tuple(t.dtype for t in row)), []).append(j)
    for (device, _), index in parts.items():
        yield device, index


def _choose(backend: str, device: torch.device, params: Sequence[Tensor]) -> str:
    fits = {"cpu": "cpu", "cuda": "triton"}.get(device.type, "torch")
    if backend == "auto":
        large = sum(p.numel() for p in params) >= SMALL
        return fits if large and fits in available_backends() else "torch"
    if backend not in ("torch", fits) and not (backend == "triton" and device.type == "cpu"):
        raise RuntimeError(f"backend {backend!r} cannot update tensors on {device}: use 'auto'")
    return backend


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Precision in which a parameter's update is computed and its state is kept."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _run_torch(
    rule: Rule,
    columns: Sequence[Sequence[Tensor]],
    numbers: Sequence[Mapping[str, float]],
    which: Sequence[int],
    vectors: Mapping[str, Tensor],
    grad_scale: float,
) -> Tensor:
    compute = compute_dtype(columns[0][0].dtype)
    written = [rule.tensors.index(name) for name in rule.written]
    sums = []
    for j, row in enumerate(zip(*columns, strict=True)):
        values = [t.to(compute) for t in row]
        if grad_scale != 1.0 and "g" in rule.tensors:
            g = rule.tensors.index("g")
            values[g] = values[g] * grad_scale
        used = {
            name: vectors[name][j] if name in vectors else numbers[which[j]][name]
            for name in rule.numbers
        }
        answer = rule(*values, **used)
        if rule.sums:
            sums.append(torch.stack(answer))
            continue
        for k, new in zip(written, answer, strict=True):
            row[k].copy_(new)
    return torch.stack(sums, dim=1) if sums else columns[0][0].new_zeros(0)


def _run_fused(
    module: ModuleType,
    rule: Rule,
    columns: Sequence[Sequence[Tensor]],
    scalars: np.ndarray | Tensor,
    which: np.ndarray,
) -> Tensor:
    """Launch a kernel; tensors that it cannot work on in place go through a packed copy."""
    if not module.takes([column[0].dtype for column in columns]):
        strided = list(range(len(columns[0])))
    else:
        strided = sorted(
            {j for column in columns for j, t in enumerate(column) if not t.is_contiguous()}
        )
    if not strided:
        made: Tensor = module.launch(rule, columns, scalars, which)
        return made
    compute = compute_dtype(columns[0][0].dtype)
    packed = [[c[j].to(compute).contiguous() for j in strided] for c in columns]
    made = module.launch(rule, packed, scalars, which[strided])
    sums = made.new_empty(len(rule.sums), len(which))
    sums[:, strided] = made
    for name in rule.written:
        k = rule.tensors.index(name)
        for j, t in zip(strided, packed[k], strict=True):
            columns[k][j].copy_(t)
    if rest := sorted(set(range(len(which))) - set(strided)):
        made = module.launch(rule, [[c[j] for j in rest] for c in columns], scalars, which[rest])
        sums[:, rest] = made
    return sums
