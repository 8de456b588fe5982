"""CPU kernel of ``add_noise_``: numbers are made in registers and cache, and added in place."""

from __future__ import annotations

import numpy as np
from numba import float32, njit, prange, uint64

COUNTERS = 1024
"""Counters that a thread expands at a time."""


@njit(inline="always")
def _philox(counter, k0, k1):
    low = uint64(0xFFFFFFFF)
    c0, c1, c2, c3 = counter & low, counter >> uint64(32), uint64(0), uint64(0)
    for _ in range(10):
        a, b = c0 * uint64(0xD2511F53), c2 * uint64(0xCD9E8D57)
        c0, c1 = (b >> uint64(32)) ^ c1 ^ k0, b & low
        c2, c3 = (a >> uint64(32)) ^ c3 ^ k1, a & low
        k0, k1 = (k0 + uint64(0x9E3779B9)) & low, (k1 + uint64(0xBB67AE85)) & low
    return c0, c1, c2, c3


@njit(inline="always")
def _uniform(word):
    return (float32(np.int32(word >> uint64(8))) + float32(0.5)) * float32(2.0**-24)


@njit(inline="always")
def _gaussian(first, k0, k1, z):
    # Separate passes, so that each is a loop that the compiler can vectorize.
    half = len(z) // 2
    radius, angle = np.empty(half, np.float32), np.empty(half, np.float32)
    for i in range(half // 2):
        w0, w1, w2, w3 = _philox(uint64(first + i), k0, k1)
        radius[2 * i], angle[2 * i] = _uniform(w0), _uniform(w1)
        radius[2 * i + 1], angle[2 * i + 1] = _uniform(w2), _uniform(w3)
    for i in range(half):
        radius[i] = np.sqrt(float32(-2) * np.log(radius[i]))
        angle[i] = float32(2 * np.pi) * angle[i]
    for i in range(half):
        z[2 * i] = radius[i] * np.cos(angle[i])
        z[2 * i + 1] = radius[i] * np.sin(angle[i])


@njit(inline="always")
def _rademacher(first, k0, k1, z):
    one = uint64(1)
    for i in range(len(z) // 128):
        words = _philox(uint64(first + i), k0, k1)
        for j in range(4):
            for bit in range(32):
                flip = float32(np.int32((words[j] >> uint64(bit)) & one))
                z[128 * i + 32 * j + bit] = float32(1) - float32(2) * flip


@njit(parallel=True, nogil=True)
def add_noise(p, start, k0, k1, scale, rademacher):
    """Add noise to a flat float32 or float64 array whose first element has index ``start``."""
    width = 128 if rademacher else 4
    first = start // width
    counters = (start + len(p) + width - 1) // width - first
    for block in prange((counters + COUNTERS - 1) // COUNTERS):
        begin = first + block * COUNTERS
        count = min(COUNTERS, first + counters - begin)
        z = np.empty(width * count, np.float32)
        if rademacher:
            _rademacher(begin, k0, k1, z)
        else:
            _gaussian(begin, k0, k1, z)
        shift = begin * width - start
        low, high = max(0, -shift), min(len(z), len(p) - shift)
        for i in range(low, high):
            p[shift + i] += scale * z[i]
