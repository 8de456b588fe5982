"""Noise is a function of seed and element index, on every path the same."""

import math
import os
import subprocess
import sys

import pytest
import torch
import triton
import triton.language as tl

from steepest.kernels import _noise as module
from steepest.kernels import _noise_numba, _noise_triton, add_noise_, noise

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


KERNELS = {"numba": _noise_numba, "triton": _noise_triton}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_is_the_definition(name, dtype, kind):
    """Over several tensors and seeds, at places that are no counter's, far out in the stream."""
    if name == "numba" and dtype == torch.bfloat16:
        pytest.skip("numba has no bfloat16")
    sizes, seeds, scales = [20_000, 1, 1001], [9, (1 << 63) + 5], [0.5, -2.0]
    for start in (0, 3, (1 << 32) - 5, (1 << 60) + 77):
        begin = [start, start + 5, start + 20_000]
        tensors = [torch.ones(n, dtype=dtype) for n in sizes]
        KERNELS[name].add_noise(tensors, begin, seeds, scales, kind)
        for t, first in zip(tensors, begin, strict=True):
            zs = [noise(s, first, len(t), kind).double() for s in seeds]
            exact = 1 + sum(c * z for c, z in zip(scales, zs, strict=True))
            if dtype == torch.bfloat16:
                assert ((t.double() - exact).abs() <= 2**-7 * exact.abs() + 4e-6).all()
            else:  # 3 roundings of float32 at the size of the terms, none for signs
                bound = 4e-7 * (1 + sum(abs(c * z) for c, z in zip(scales, zs, strict=True)))
                assert ((t.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("kind", KINDS)
def test_several_seeds_are_added_in_one_pass_and_rounded_once(kind):
    for size in (1000, 70_000):  # the definition, and the kernel
        seeds, scales = [3, 8, 11], [1e-3, 2e-3, -4e-3]
        one = torch.full((size,), 100.0, dtype=torch.float64)
        many = one.clone()
        add_noise_([one], seeds, scales, kind=kind)
        for seed, scale in zip(seeds, scales, strict=True):
            add_noise_([many], seed, scale, kind=kind)
        assert torch.allclose(one, many, rtol=1e-14)
        low = torch.full((size,), 100.0, dtype=torch.bfloat16)
        add_noise_([low], seeds, scales, kind=kind)
        assert torch.equal(low, one.bfloat16())
    with pytest.raises(ValueError, match="2 seeds and 1 scales"):
        add_noise_([one], [1, 2], [0.5])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1000, 70_000])
def test_a_mask_leaves_elements_as_they_are_and_the_others_numbers_too(kind, size):
    tensors = [torch.ones(size), torch.ones(50, 3).t()]
    masks = [torch.arange(size) % 3 == 1, torch.ones(3, 50, dtype=torch.bool)]
    plain, triton_too = ([t.clone() for t in tensors] for _ in range(2))
    add_noise_(tensors, 5, 1.0, kind=kind, masks=masks)
    add_noise_(plain, 5, 1.0, kind=kind)
    _noise_triton.add_noise(triton_too[:1], [0], [5], [1.0], kind, masks[:1])
    assert torch.equal(tensors[1], plain[1])
    for masked in (tensors[0], triton_too[0]):
        assert (masked[~masks[0]] == 1).all()
        assert torch.allclose(masked[masks[0]], plain[0][masks[0]], atol=1e-6)
    for bad in (masks[:1], [masks[0], masks[0]], [m.int() for m in masks]):
        with pytest.raises(ValueError, match=r"does not fit|shorter"):
            add_noise_(tensors, 5, 1.0, kind=kind, masks=bad)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp64"])
def test_the_gpu_kernel_compiles(kind, dtype):
    """For an NVIDIA architecture, which needs no GPU."""
    code = f"""
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from steepest.kernels._noise_triton import add_noise_kernel
types = {{"table": "*i64", "keys": "*i64", "scales": "*fp64", "like": "*{dtype}", "blocks": "i32",
         "seeds": "i32", **dict.fromkeys(("GAUSSIAN", "MASKED", "COUNTERS"), "constexpr")}}
own = {{"GAUSSIAN": {kind == "gaussian"}, "MASKED": True}}
own["COUNTERS"] = {256 if kind == "gaussian" else 8}
source = ASTSource(add_noise_kernel, types, own)
assert "st.global" in triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
"""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


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
