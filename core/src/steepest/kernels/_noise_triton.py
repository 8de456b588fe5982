"""GPU kernel of ``add_noise_``: one launch for all tensors, numbers made in registers.

Logarithm, sine and cosine are the arithmetic of the CPU kernel (Cephes, single precision), so that
both round alike but for fused multiplications.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

COUNTERS = {"gaussian": 256, "rademacher": 8}
"""Counters that one program expands."""


def add_noise(
    tensors: list[Tensor],
    starts: list[int],
    seeds: list[int],
    scales: list[float],
    kind: str,
    masks: Sequence[Tensor] | None = None,
) -> None:
    """Add noise to contiguous tensors of one dtype on one device, with contiguous masks."""
    width, counters = 4 if kind == "gaussian" else 128, COUNTERS[kind]
    sizes = np.array([t.numel() for t in tensors], dtype=np.int64)
    start = np.array(starts, dtype=np.int64)
    first = start // width
    blocks = -(-(-(-(start + sizes) // width) - first) // counters)
    tensor = np.repeat(np.arange(len(sizes)), blocks)
    before = np.concatenate([[0], np.cumsum(blocks)[:-1]])
    counter = first[tensor] + (np.arange(len(tensor)) - before[tensor]) * counters
    pointers = np.array([t.data_ptr() for t in tensors], dtype=np.int64)
    keys = np.array(seeds, dtype=np.uint64).astype(np.int64)
    device = tensors[0].device
    over = np.array([t.data_ptr() for t in masks or tensors], dtype=np.int64)
    shift = counter * width - start[tensor]
    per_block = np.stack([pointers[tensor], shift, sizes[tensor], counter, over[tensor]])
    table = torch.from_numpy(per_block).to(device, non_blocking=True)
    keys_there = torch.from_numpy(keys).to(device, non_blocking=True)
    scales_there = torch.tensor(scales, dtype=torch.float64).to(device, non_blocking=True)
    add_noise_kernel[(len(tensor),)](
        table,
        keys_there,
        scales_there,
        tensors[0][:0],
        len(tensor),
        len(seeds),
        kind == "gaussian",
        masks is not None,
        counters,
    )


@triton.jit
def _uniform(word):
    return ((word >> 8).to(tl.int32).to(tl.float32) + 0.5) * 5.9604644775390625e-08


@triton.jit
def _log(x):
    bits = x.to(tl.int32, bitcast=True)
    e = ((bits >> 23) - 126).to(tl.float32)
    m = ((bits & 0x7FFFFF) | 0x3F000000).to(tl.float32, bitcast=True)
    small = m < 0.707106781186547524
    e = tl.where(small, e - 1.0, e)
    m = tl.where(small, m + m, m) - 1.0
    z = m * m
    y = 7.0376836292e-2 * m - 1.1514610310e-1
    y = y * m + 1.1676998740e-1
    y = y * m - 1.2420140846e-1
    y = y * m + 1.4249322787e-1
    y = y * m - 1.6668057665e-1
    y = y * m + 2.0000714765e-1
    y = y * m - 2.4999993993e-1
    y = y * m + 3.3333331174e-1
    y = y * m * z - 2.12194440e-4 * e - 0.5 * z
    return m + y + 0.693359375 * e


@triton.jit
def _circle(u):
    t = 4.0 * u
    q = (t + 0.5).to(tl.int32)
    x = (t - q.to(tl.float32)) * 1.5707963267948966
    z = x * x
    s = ((-1.9515295891e-4 * z + 8.3321608736e-3) * z - 1.6666654611e-1) * z * x + x
    c = (2.443315711809948e-5 * z - 1.388731625493765e-3) * z + 4.166664568298827e-2
    c = c * z * z - 0.5 * z + 1.0
    turned = (q & 1) == 1
    cos = tl.where(turned, s, c)
    sin = tl.where(turned, c, s)
    return tl.where(((q + 1) & 2) == 2, -cos, cos), tl.where((q & 2) == 2, -sin, sin)


@triton.jit
def _pair(w0, w1):
    radius = tl.sqrt(-2.0 * _log(_uniform(w0)))
    cos, sin = _circle(_uniform(w1))
    return radius * cos, radius * sin


@triton.jit
def add_noise_kernel(  # type: ignore[no-untyped-def]
    table,
    keys,
    scales,
    like,
    blocks,
    seeds,
    GAUSSIAN: tl.constexpr,
    MASKED: tl.constexpr,
    COUNTERS: tl.constexpr,
):
    """One program adds the noise of a run of counters; ``like`` gives the tensors' type."""
    block = tl.program_id(0)
    p = tl.load(table + block).to(like.dtype)
    shift = tl.load(table + blocks + block)
    size = tl.load(table + 2 * blocks + block)
    counter = tl.load(table + 3 * blocks + block) + tl.arange(0, COUNTERS)
    low = (counter & 0xFFFFFFFF).to(tl.uint32)
    high = (counter >> 32).to(tl.uint32)
    zero = low * 0
    width: tl.constexpr = 4 if GAUSSIAN else 128
    double: tl.constexpr = like.dtype.element_ty == tl.float64
    compute: tl.constexpr = tl.float64 if double else tl.float32
    total = tl.zeros((width * COUNTERS,), compute)
    for m in range(seeds):
        w0, w1, w2, w3 = tl.philox(tl.load(keys + m), low, high, zero, zero)
        if GAUSSIAN:
            z0, z1 = _pair(w0, w1)
            z2, z3 = _pair(w2, w3)
            z = tl.interleave(tl.interleave(z0, z2), tl.interleave(z1, z3))
        else:
            words = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))
            bits = (words[:, None] >> tl.arange(0, 32)[None, :].to(tl.uint32)) & 1
            z = 1.0 - 2.0 * tl.reshape(bits, (width * COUNTERS,)).to(tl.float32)
        total += tl.load(scales + m).to(compute) * z.to(compute)
    index = shift + tl.arange(0, width * COUNTERS)
    mask = (index >= 0) & (index < size)
    if MASKED:
        flags = tl.load(table + 4 * blocks + block).to(tl.pointer_type(tl.int8))
        total *= tl.load(flags + index, mask=mask).to(compute)
    old = tl.load(p + index, mask=mask)
    tl.store(p + index, (old.to(compute) + total).to(old.dtype), mask=mask)
