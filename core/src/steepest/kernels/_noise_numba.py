"""CPU kernel of ``add_noise_``: numbers are made in registers and cache, and added in place.

Logarithm, sine and cosine are the Cephes library's in single precision, written out as
arithmetic: a call for each element would not vectorize.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steepest.kernels import _numba

COUNTERS = {"gaussian": 1024, "rademacher": 64}
"""Counters that a thread expands at a time."""


def add_noise(
    tensors: list[Tensor],
    starts: list[int],
    seeds: list[int],
    scales: list[float],
    kind: str,
    masks: Sequence[Tensor] | None = None,
) -> None:
    """Add noise to contiguous tensors of one dtype, float32 or float64, with contiguous masks."""
    width = 4 if kind == "gaussian" else 128
    dtype = np.float64 if tensors[0].dtype == torch.float64 else np.float32
    sizes = np.array([t.numel() for t in tensors], dtype=np.int64)
    start = np.array(starts, dtype=np.int64)
    first = start // width
    blocks = -(-(-(-(start + sizes) // width) - first) // COUNTERS[kind])
    tensor = np.repeat(np.arange(len(sizes)), blocks)
    before = np.concatenate([[0], np.cumsum(blocks)[:-1]])
    counter = first[tensor] + (np.arange(len(tensor)) - before[tensor]) * COUNTERS[kind]
    keys = np.array([[seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF] for seed in seeds], np.uint64)
    columns = [[t.data_ptr() for t in tensors], [t.data_ptr() for t in masks or []]]
    pointers, over = (np.array(column, dtype=np.int64) for column in columns)
    with _numba.torch_threads():
        _compile(kind, dtype)(
            pointers, over, start, sizes, tensor, counter, keys, np.array(scales, dtype)
        )


@cache
def _compile(kind: str, dtype: Any) -> Any:
    from numba import njit, prange

    view, flags = _numba.viewer(dtype), _numba.viewer(np.uint8)
    low, itemsize = np.uint64(0xFFFFFFFF), np.dtype(dtype).itemsize

    @njit(inline="always")
    def philox(counter, k0, k1):
        c0, c1, c2, c3 = counter & low, counter >> np.uint64(32), np.uint64(0), np.uint64(0)
        for _ in range(10):
            a, b = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
            c0, c1 = (b >> np.uint64(32)) ^ c1 ^ k0, b & low
            c2, c3 = (a >> np.uint64(32)) ^ c3 ^ k1, a & low
            k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
        return c0, c1, c2, c3

    @njit(inline="always")
    def uniform(word):
        return (np.float32(np.int32(word >> np.uint32(8))) + np.float32(0.5)) * np.float32(2.0**-24)

    @njit(inline="always")
    def log(x):
        bits = np.float32(x).view(np.int32)
        e = np.float32((bits >> 23) - 126)
        m = np.int32((bits & 0x7FFFFF) | 0x3F000000).view(np.float32)
        small = m < np.float32(0.707106781186547524)
        e = e - np.float32(1) if small else e
        m = m + m - np.float32(1) if small else m - np.float32(1)
        z = m * m
        y = np.float32(7.0376836292e-2) * m - np.float32(1.1514610310e-1)
        y = y * m + np.float32(1.1676998740e-1)
        y = y * m - np.float32(1.2420140846e-1)
        y = y * m + np.float32(1.4249322787e-1)
        y = y * m - np.float32(1.6668057665e-1)
        y = y * m + np.float32(2.0000714765e-1)
        y = y * m - np.float32(2.4999993993e-1)
        y = y * m + np.float32(3.3333331174e-1)
        y = y * m * z - np.float32(2.12194440e-4) * e - np.float32(0.5) * z
        return m + y + np.float32(0.693359375) * e

    @njit(inline="always")
    def circle(u):
        """Cosine and sine of two pi u."""
        t = np.float32(4) * u
        q = np.int32(t + np.float32(0.5))
        x = (t - np.float32(q)) * np.float32(1.5707963267948966)
        z = x * x
        s = np.float32(-1.9515295891e-4) * z + np.float32(8.3321608736e-3)
        s = (s * z - np.float32(1.6666654611e-1)) * z * x + x
        c = np.float32(2.443315711809948e-5) * z - np.float32(1.388731625493765e-3)
        c = (c * z + np.float32(4.166664568298827e-2)) * z * z - np.float32(0.5) * z + np.float32(1)
        turned = (q & 1) == 1
        cos, sin = s if turned else c, c if turned else s
        cos = -cos if ((q + 1) & 2) == 2 else cos
        sin = -sin if (q & 2) == 2 else sin
        return cos, sin

    @njit
    def gaussian(first, n, k0, k1, scale, total, words, z):
        # Separate passes, so that each is a loop that the compiler can vectorize.
        w0, w1, w2, w3 = words[0], words[1], words[2], words[3]
        for i in range(n):
            w0[i], w1[i], w2[i], w3[i] = philox(np.uint64(first + i), k0, k1)
        for pair in range(2):
            radii, angles, even, odd = (
                words[2 * pair],
                words[2 * pair + 1],
                z[2 * pair],
                z[2 * pair + 1],
            )
            for i in range(n):
                radius = np.sqrt(np.float32(-2) * log(uniform(radii[i])))
                cos, sin = circle(uniform(angles[i]))
                even[i] = radius * cos
                odd[i] = radius * sin
        z0, z1, z2, z3 = z[0], z[1], z[2], z[3]
        for i in range(n):
            at = np.uint64(4 * i)
            total[at] += scale * z0[i]
            total[at + np.uint64(1)] += scale * z1[i]
            total[at + np.uint64(2)] += scale * z2[i]
            total[at + np.uint64(3)] += scale * z3[i]

    @njit
    def rademacher(first, n, k0, k1, scale, total, words, z):
        for i in range(n):
            four = philox(np.uint64(first + i), k0, k1)
            for j in range(4):
                word, at = np.uint32(four[j]), np.uint64(128 * i + 32 * j)
                for bit in range(32):
                    flip = dtype(np.int32((word >> np.uint32(bit)) & np.uint32(1)))
                    total[at + np.uint64(bit)] += scale - flip * (scale + scale)

    fill = gaussian if kind == "gaussian" else rademacher
    width, counters = (4 if kind == "gaussian" else 128), COUNTERS[kind]

    @njit(parallel=True, nogil=True)
    def kernel(pointers, over, start, sizes, tensor, counter, keys, scales):
        for b in prange(len(tensor)):
            t = tensor[b]
            total = np.zeros(width * counters, dtype)
            words, z = np.empty((4, counters), np.uint32), np.empty((4, counters), np.float32)
            for m in range(len(scales)):
                fill(counter[b], counters, keys[m, 0], keys[m, 1], scales[m], total, words, z)
            shift = counter[b] * width - start[t]
            begin, end = max(0, -shift), min(len(total), sizes[t] - shift)
            p = view(pointers[t] + (shift + begin) * itemsize, end - begin)
            if len(over):
                mask = flags(over[t] + shift + begin, end - begin)
                for i in range(end - begin):
                    total[np.uint64(begin + i)] *= dtype(mask[i])
            for i in range(end - begin):
                p[i] += total[np.uint64(begin + i)]

    return kernel
