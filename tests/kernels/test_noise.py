"""Noise is a function of seed and element index, on every path the same."""

import math

import pytest
import torch
import triton
import triton.language as tl

from steepest.kernels import _noise as module
from steepest.kernels import add_noise_, noise

KINDS = ["gaussian", "rademacher"]


def test_philox_has_its_published_values():
    """Known answers of the Random123 library for Philox 4x32-10."""
    zero = torch.zeros(1, dtype=torch.int64)
    assert module.philox(0, zero)[0].tolist() == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@triton.jit
def words_of(out, seed, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    w0, w1, w2, w3 = tl.randint4x(seed, i)
    tl.store(out + 4 * i, w0)
    tl.store(out + 4 * i + 1, w1)
    tl.store(out + 4 * i + 2, w2)
    tl.store(out + 4 * i + 3, w3)


def test_philox_is_tritons():
    out = torch.zeros(64, 4, dtype=torch.int32)
    seed = 0x123456789ABCDEF
    words_of[(1,)](out, seed, 64)
    assert torch.equal(out.long() & 0xFFFFFFFF, module.philox(seed, torch.arange(64)))


@pytest.mark.parametrize("kind", KINDS)
def test_moments(kind):
    n = 1_000_000
    z = noise(11, 0, n, kind).double()
    # the variance of z**2 is 2 or 0, that of z**4 is 96 or 0
    kurtosis, second, fourth = (3.0, 2.0, 96.0) if kind == "gaussian" else (1.0, 0.0, 0.0)
    assert abs(z.mean()) < 5 / math.sqrt(n)
    assert abs((z**2).mean() - 1) < 5 * math.sqrt(second / n) + 1e-12
    assert abs((z**4).mean() - kurtosis) < 5 * math.sqrt(fourth / n) + 1e-12
    for lag in (1, 2, 3, 4, 128):
        assert abs((z[:-lag] * z[lag:]).mean()) < 5 / math.sqrt(n)
    other = noise(12, 0, n, kind).double()
    assert abs((z * other).mean()) < 5 / math.sqrt(n)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", [0, 1, 127, 128, 12345, (1 << 33) + 7])
def test_a_part_of_a_stream_is_the_streams_part(kind, start):
    whole = noise(3, start, 1000, kind)
    assert torch.equal(noise(3, start + 13, 500, kind), whole[13:513])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_cpu_kernel_is_the_definition(kind, dtype):
    for start, count in ((0, 200_000), (3, 70_001), ((1 << 32) - 5, 66_000)):
        p = torch.zeros(count, dtype=dtype)
        assert module._fits_numba(p)
        add_noise_([p], 9, 0.5, kind=kind, start=[start])
        expected = 0.5 * noise(9, start, count, kind).to(dtype)
        assert torch.allclose(p, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_shards_order_and_layout_do_not_matter(kind):
    whole = torch.zeros(100_003)
    add_noise_([whole], 4, 1.0, kind=kind)
    sizes = [5, 0, 70_000, 29_998]
    parts = [torch.zeros(n) for n in sizes]
    add_noise_(parts, 4, 1.0, kind=kind)
    assert torch.allclose(torch.cat(parts), whole, atol=1e-6)
    starts = module.offsets(parts)
    again = [torch.zeros(n) for n in reversed(sizes)]
    add_noise_(again, 4, 1.0, kind=kind, start=starts[::-1])
    assert all(torch.equal(a, b) for a, b in zip(again, parts[::-1], strict=True))
    turned = torch.zeros(7, 5).t()
    add_noise_([turned], 4, 1.0, kind=kind)
    assert torch.allclose(turned.reshape(-1), whole[:35], atol=1e-6)


def test_unknown_noise_changes_nothing():
    p = torch.zeros(3)
    with pytest.raises(ValueError, match="choose one of gaussian, rademacher"):
        add_noise_([p], 0, 1.0, kind="cauchy")
    assert (p == 0).all()
