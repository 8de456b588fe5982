r"""Random numbers that are a function of (seed, element index), and of nothing else.

Philox 4x32-10 is a counter-based generator: a keyed bijection of 128-bit counters, with no
state. Element :math:`i` of a parameter vector reads its number off counter :math:`i / 4`, so a
perturbation can be made again, or by another process, or in another order, from a seed alone.

- Gaussian: the counter's four words make two pairs of uniforms, and by Box and Muller four
  normals, for elements :math:`4c, \dots, 4c + 3`.
- Rademacher: bit :math:`i \bmod 128` of counter :math:`i / 128`.

The functions here are the definition; numba overrides the in-place one on a CPU, Triton on a GPU.
Words are the same bit for bit, normals to within a few roundings of float32.
"""

from __future__ import annotations

import hashlib
import importlib
import math
from collections.abc import Sequence
from itertools import accumulate
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from steepest.kernels import _numba, _triton

KINDS = ("gaussian", "rademacher")

CHUNK = 1 << 16
"""Elements whose noise the reference holds in memory at a time."""

Word = Any
"""A word of 32 bits: a Python integer, or an int64 tensor of words."""

_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(seed: int, counters: Tensor) -> Tensor:
    """Philox 4x32-10 of 64-bit counters.

    Args:
        seed: Key, taken modulo 2**64.
        counters: Counters, int64, shape ``(n,)``.

    Returns:
        Four words each, int64 in [0, 2**32), shape ``(n, 4)``.

    Example:
        The generator's published test vector.

        >>> [f"{word:x}" for word in philox(0, torch.zeros(1, dtype=torch.int64))[0].tolist()]
        ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']

    Reference:
        Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    zero = torch.zeros_like(counters)
    return torch.stack(_rounds(counters & _LOW, (counters >> 32) & _LOW, zero, zero, seed), dim=-1)


def _rounds(c0: Word, c1: Word, c2: Word, c3: Word, seed: int) -> tuple[Word, ...]:
    """Ten rounds, on tensors of words or on single ones."""
    k0, k1 = seed & _LOW, (seed >> 32) & _LOW
    for _ in range(10):
        low0, high0 = _multiply(c0, _MULTIPLIERS[0])
        low1, high1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def _multiply(a: Word, b: int) -> tuple[Word, Word]:
    """Low and high word of a 32 by 32 bit product, without leaving 63 bits."""
    top, bottom = a * (b >> 16), a * (b & 0xFFFF)
    carried = top + (bottom >> 16)
    return ((carried << 16) | (bottom & 0xFFFF)) & _LOW, carried >> 16


def noise(
    seed: int, start: int, count: int, kind: str = "gaussian", device: torch.device | None = None
) -> Tensor:
    r"""Numbers of the elements ``start`` to ``start + count``, float32, shape ``(count,)``.

    Args:
        seed: Key of the stream.
        start: Global index of the first element.
        count: Number of elements.
        kind: ``gaussian`` (mean 0, variance 1) or ``rademacher`` (:math:`\pm 1`).
        device: Where to make them; the numbers are the same up to rounding.

    Raises:
        ValueError: If the kind is unknown.

    Example:
        A part of a stream is the stream's part.

        >>> torch.equal(noise(7, 0, 10)[3:], noise(7, 3, 7))
        True
    """
    check_kind(kind)
    per_counter = 4 if kind == "gaussian" else 128
    first, last = start // per_counter, -(-(start + count) // per_counter)
    words = philox(seed, torch.arange(first, last, device=device))
    values = _normals(words) if kind == "gaussian" else _signs(words)
    return values.flatten()[start - first * per_counter :][:count]


def _normals(words: Tensor) -> Tensor:
    # The uniform numbers are float32, as on every backend; from there on exact, then rounded.
    uniform = (((words >> 8).float() + 0.5) * 2.0**-24).double()
    radius = (-2 * uniform[:, 0::2].log()).sqrt()
    angle = (2 * math.pi) * uniform[:, 1::2]
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1).float()


def _signs(words: Tensor) -> Tensor:
    bits = (words[:, :, None] >> torch.arange(32, device=words.device)) & 1
    return 1.0 - 2.0 * bits.float()


def split_seed(seed: int, index: int) -> int:
    """An independent seed for each index: the cipher's output on it, 64 bits.

    Example:
        >>> split_seed(1, 2) == split_seed(1, 2) != split_seed(2, 1)
        True
    """
    # Counters of streams end far below 2**62: these are never met as noise.
    low, high, _, _ = _rounds(index & _LOW, (1 << 30) | (index >> 32), 0, 0, seed)
    return int(low | high << 32)


def check_kind(kind: str, known: Sequence[str] = KINDS) -> None:
    """Raise unless the kind of noise is known.

    Args:
        kind: Its name.
        known: The names to choose from.

    Raises:
        ValueError: If it is another.

    Example:
        >>> check_kind("uniform")
        Traceback (most recent call last):
        ValueError: unknown noise 'uniform': choose one of gaussian, rademacher
    """
    if kind not in known:
        raise ValueError(f"unknown noise {kind!r}: choose one of {', '.join(known)}")


def offsets(tensors: Sequence[Tensor], names: Sequence[str] | None = None) -> list[int]:
    """Global index of the first element of each tensor.

    Without names, tensors follow each other. With names, each tensor has a place of its own in
    the stream, which its name alone decides: neither the order of the tensors matters then, nor
    which others there are.

    Example:
        >>> a, b = torch.zeros(3), torch.zeros(2)
        >>> offsets([a, b])
        [0, 3]
        >>> offsets([a, b], ["a", "b"]) == offsets([b, a], ["b", "a"])[::-1]
        True
    """
    if names is None:
        return [0, *accumulate(t.numel() for t in tensors)][: len(tensors)]
    return [_place(name) for name in names]


def _place(name: str) -> int:
    # One of 2**54 places, 128 elements apart, below 2**61. That two of a thousand tensors of 10**8
    # elements overlap has a probability of 10**-4; they would share a part of their noise.
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % (1 << 54) << 7


@torch.no_grad()
def add_noise_(
    tensors: Sequence[Tensor],
    seed: int | Sequence[int],
    scale: float | Sequence[float],
    *,
    kind: str = "gaussian",
    start: Sequence[int] | None = None,
    masks: Sequence[Tensor] | None = None,
) -> None:
    """Add ``scale`` times the seed's noise to each tensor, in place.

    Of several seeds the sum is made first and added at once: the tensor is read, rounded and
    written a single time. Memory is bounded, as noise is made for a chunk at a time.

    Args:
        tensors: Real tensors of any shape; elements count in row-major order.
        seed: Key of the stream, or several.
        scale: Factor on the noise, one for each seed.
        kind: ``gaussian`` or ``rademacher``.
        start: Global index of the first element of each tensor, from :func:`offsets`; by default
            they follow each other.
        masks: For each tensor one of its shape, of bool: where it is False nothing is added. An
            element's number does not depend on the mask.

    Raises:
        ValueError: If the kind is unknown, there are not as many scales as seeds, or a mask does
            not fit its tensor. Nothing has changed then.

    Example:
        To go and to come back takes no memory but the seed.

        >>> p = torch.zeros(3, dtype=torch.float64)
        >>> add_noise_([p], seed=1, scale=0.5, kind="rademacher")
        >>> p.abs()
        tensor([0.5000, 0.5000, 0.5000], dtype=torch.float64)
        >>> add_noise_([p], seed=1, scale=-0.5, kind="rademacher")
        >>> p
        tensor([0., 0., 0.], dtype=torch.float64)
    """
    check_kind(kind)
    seeds = [seed] if isinstance(seed, int) else list(seed)
    scales = [float(scale)] if isinstance(scale, float | int) else list(map(float, scale))
    if len(seeds) != len(scales):
        raise ValueError(f"{len(seeds)} seeds and {len(scales)} scales: give one for each")
    if not seeds:
        return
    begin = offsets(tensors) if start is None else list(start)
    for t, mask in zip(tensors, masks or [], strict=masks is not None):
        if mask.shape != t.shape or mask.dtype != torch.bool:
            raise ValueError(
                f"a mask of shape {tuple(mask.shape)} and {mask.dtype} does not fit a tensor of "
                f"shape {tuple(t.shape)}: give one of its shape and of bool"
            )
    fused: dict[tuple[ModuleType, torch.dtype, torch.device], list[int]] = {}
    # To compile pays from some size on: that of all tensors, as a model has many small ones.
    large = sum(t.numel() for t in tensors) >= CHUNK
    for i, t in enumerate(tensors):
        backend = _backend(t) if large else None
        if backend is not None:
            fused.setdefault((backend, t.dtype, t.device), []).append(i)
        else:
            _add_noise(t, begin[i], seeds, scales, kind, masks[i] if masks else None)
    for (backend, _, _), index in fused.items():
        flat = [tensors[i].detach() for i in index]
        over = masks and [masks[i].contiguous() for i in index]
        backend.add_noise(flat, [begin[i] for i in index], seeds, scales, kind, over)


def _add_noise(
    t: Tensor, first: int, seeds: list[int], scales: list[float], kind: str, mask: Tensor | None
) -> None:
    """The definition."""
    flat = t.view(-1) if t.is_contiguous() else t.reshape(-1)
    for i in range(0, t.numel(), CHUNK):
        part = flat[i : i + CHUNK]
        compute = torch.promote_types(part.dtype, torch.float32)
        total = torch.zeros(len(part), device=t.device, dtype=compute)
        for seed, scale in zip(seeds, scales, strict=True):
            z = noise(seed, first + i, len(part), kind, t.device)
            total.add_(z.to(compute), alpha=scale)
        if mask is not None:
            total *= mask.reshape(-1)[i : i + CHUNK]
        part.copy_(part.to(compute) + total)
    if not t.is_contiguous():
        t.copy_(flat.view(t.shape))


def _backend(t: Tensor) -> ModuleType | None:
    """The module of the fused kernel for a tensor, if there is one."""
    if not t.is_contiguous() or not t.numel() or t.is_complex():
        return None
    if (
        t.device.type == "cpu"
        and t.dtype in (torch.float32, torch.float64)
        and _numba.missing() is None
    ):
        return importlib.import_module("steepest.kernels._noise_numba")
    if t.device.type == "cuda" and _triton.missing() is None:
        return importlib.import_module("steepest.kernels._noise_triton")
    return None
