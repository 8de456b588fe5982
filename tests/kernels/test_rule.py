"""A rule means the same on every backend, and only arithmetic is a rule."""

import itertools
import math
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

import steepest.optim  # noqa: F401  (its rules register)
from steepest.kernels import (
    REDUCTIONS,
    RULES,
    Rule,
    _numba,
    _triton,
    apply,
    available_backends,
    reduction,
    rule,
    xp,
)

SHAPES = [(1,), (3, 5), (0,), (2, 0, 4), (1023,), (1024,), (1025,), (7, 11, 13), (20_000,)]
FUSED = ["cpu", "triton"]


@rule
def everything(p, g, m, *, lr, beta):
    # every function of xp, and hoisted expressions of each kind
    half = lr / 2
    m = m + (g - m) * (1 - beta)
    p = p - half * xp.atan2(m, xp.sqrt(xp.abs(p))) + xp.exp(-xp.abs(g)) * 1e-3
    p = p + lr * xp.where(g > m, xp.sign(g), xp.maximum(m, 0.0)) - xp.log(1 + xp.abs(m)) * lr
    p = xp.minimum(p, 10 * xp.sqrt(beta))
    return p, m


@reduction
def some_sums(p, g, m, *, beta):
    # a sum of each kind: of an expression, of a name, with a hoisted number
    d = p - m
    dd = xp.sum(d * d)
    gg = xp.sum(g * xp.abs(g) * (1 - beta))
    signs = xp.sum(xp.where(d > g, 1.0, 0.0) + d * 0.0)
    return gg, dd, signs


def values(rule: Rule) -> dict[str, float]:
    """Plausible numbers for any rule."""
    given = {"lr": 0.05, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "c1": 0.19, "c2": 0.0447}
    return {name: given.get(name, 0.25 + 0.5 / len(name)) for name in rule.numbers}


def columns(rule: Rule, dtype: torch.dtype, shapes=SHAPES, seed=0) -> list[list[torch.Tensor]]:
    """Parameter and gradient of the dtype, state in the precision that it is kept in."""
    rng = torch.Generator().manual_seed(seed)
    keep = torch.float64 if dtype == torch.float64 else torch.float32
    made = []
    for name in rule.tensors:
        column = [torch.randn(s, generator=rng, dtype=torch.float64) for s in shapes]
        if name not in ("p", "g", "m"):  # second moments and maxima are not negative
            column = [t.abs() for t in column]
        made.append([t.to(dtype if name in ("p", "g") else keep) for t in column])
    return made


def close(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal up to rounding: one of a low precision, a few of the precision of the arithmetic."""
    low = expected.dtype in (torch.bfloat16, torch.float16)
    bound = (1 if low else 8) * torch.finfo(expected.dtype).eps
    return torch.allclose(actual.double(), expected.double(), rtol=bound, atol=bound)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("name", sorted({*RULES} | {"everything"}))
def test_backends_agree(name, backend, dtype):
    assert backend in available_backends()
    r = RULES[name]
    reference = columns(r, dtype)
    for step in range(3):
        # Each step starts from the same point: the interpreter truncates where a GPU rounds, and
        # half an ulp of bfloat16 in the parameter would be many of float32 in the next moments.
        fused = [[t.clone() for t in column] for column in reference]
        apply(r, reference, [values(r)], backend="torch", grad_scale=-0.5)
        apply(r, fused, [values(r)], backend=backend, grad_scale=-0.5)
        for k, column in enumerate(zip(reference, fused, strict=True)):
            for expected, actual in zip(*column, strict=True):
                assert close(actual, expected), (r.tensors[k], step)


@pytest.mark.parametrize("backend", ["torch", *FUSED])
def test_only_written_tensors_change(backend):
    for r in RULES.values():
        tensors = columns(r, torch.float32)
        before = [[t.clone() for t in column] for column in tensors]
        apply(r, tensors, [values(r)], backend=backend)
        for name, old, new in zip(r.tensors, before, tensors, strict=True):
            same = all(torch.equal(a, b) for a, b in zip(old, new, strict=True))
            assert same == (name not in r.written), (r.__name__, name)


@pytest.mark.parametrize("backend", FUSED)
def test_each_tensor_uses_its_own_numbers(backend):
    r = RULES["adamw"]
    sets = [values(r), {**values(r), "lr": 0.5, "c1": 0.7}]
    which = [j % 2 for j in range(len(SHAPES))]
    reference, fused = columns(r, torch.float32), columns(r, torch.float32)
    apply(r, reference, sets, which, backend="torch")
    apply(r, fused, sets, which, backend=backend)
    assert all(close(a, b) for a, b in zip(fused[0], reference[0], strict=True))
    uniform = columns(r, torch.float32)
    apply(r, uniform, sets, backend=backend)
    assert not torch.equal(uniform[0][1], fused[0][1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["torch", *FUSED])
@pytest.mark.parametrize("name", sorted({*REDUCTIONS} | {"some_sums"}))
def test_reductions_are_sums_over_each_tensor(name, backend, dtype):
    """Against float64, tensor by tensor, also strided ones and ones with numbers of their own."""
    r = REDUCTIONS[name]
    tensors = columns(r, dtype)
    for column in tensors:
        column.append(column[-1][:100].clone().reshape(4, 25).t())
    sets = [values(r), {key: v / 2 for key, v in values(r).items()}]
    which = [j % 2 for j in range(len(tensors[0]))]
    before = [[t.clone() for t in column] for column in tensors]
    sums = apply(r, tensors, sets, which, grad_scale=-0.5, backend=backend)
    assert [*sums] == [*r.sums]
    pairs = zip(itertools.chain(*tensors), itertools.chain(*before), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    for j, row in enumerate(zip(*tensors, strict=True)):
        exact = [t.double() for t in row]
        if "g" in r.tensors:
            exact[r.tensors.index("g")] *= -0.5
        size = max(row[0].numel(), 1)
        rounding = torch.finfo(dtype if dtype == torch.float64 else torch.float32).eps
        for total, expected in zip(sums.values(), r(*exact, **sets[which[j]]), strict=True):
            assert total.dtype == torch.float64
            assert abs(total[j] - expected) <= 8 * rounding * (size + abs(expected)), (j, size)


@pytest.mark.parametrize("backend", ["torch", *FUSED])
def test_numbers_may_be_tensors(backend):
    """One for all parameters or one for each, they mean what numbers mean."""
    r = RULES["adamw"]
    rates = torch.linspace(0.01, 0.9, len(SHAPES), dtype=torch.float64)
    vectors = {"lr": rates, "beta2": torch.tensor(0.75, dtype=torch.float64)}
    sets = [{**values(r), "lr": float(lr), "beta2": 0.75} for lr in rates]
    expected, actual = columns(r, torch.float32), columns(r, torch.float32)
    apply(r, expected, sets, range(len(sets)), backend=backend)
    plain = {name: v for name, v in values(r).items() if name not in vectors}
    apply(r, actual, [plain, {**plain, "wd": 9.0}], vectors=vectors, backend=backend)
    for a, b in zip(itertools.chain(*actual), itertools.chain(*expected), strict=True):
        assert torch.equal(a, b) if backend != "torch" else close(a, b)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("a = p * g\n    return a", "ends by returning names"),
        ("a = xp.sum(p)\n    b = xp.sum(a * g)\n    return a, b", "uses the sum a"),
        ("a = xp.sum(p) + 1\n    return a", "ends by returning names"),
    ],
)
def test_what_is_not_a_sum_is_refused(body, message, tmp_path):
    path = tmp_path / "bad.py"
    path.write_text(f"def bad(p, g, *, lr):\n    {body}\n")
    scope: dict = {}
    exec(compile(path.read_text(), str(path), "exec"), scope)
    with pytest.raises(ValueError, match=message):
        reduction(scope["bad"])


@pytest.mark.parametrize("backend", FUSED)
def test_strided_tensors_are_updated_in_place(backend):
    r = RULES["adamw"]
    bases = columns(r, torch.float32, shapes=[(200, 300), (64, 3, 5, 5)])
    views = [[c[0].t()[::2], c[1].to(memory_format=torch.channels_last)] for c in bases]
    copies = [[t.clone() for t in column] for column in views]
    apply(r, copies, [values(r)], backend="torch")
    apply(r, views, [values(r)], backend=backend)
    assert all(close(a, b) for a, b in zip(views[0], copies[0], strict=True))
    untouched = bases[0][0].t()[1::2]
    assert torch.equal(untouched, columns(r, torch.float32, [(200, 300)])[0][0].t()[1::2])


def test_a_launch_writes_nothing_outside_its_tensors():
    r = RULES["adamw"]
    for backend in FUSED:
        memory = [torch.full((4096,), 7.0) for _ in r.tensors]
        part = [[m[100:1333]] for m in memory]
        apply(r, part, [values(r)], backend=backend)
        for m in memory:
            assert (m[:100] == 7).all() and (m[1333:] == 7).all()


def test_numbers_are_computed_in_double_precision():
    # In float32, 1 - 0.999 is off by 5e-5 of its value: a kernel must not compute it.
    r = RULES["adamw"]
    scalars = dict(zip(r.hoisted, r.scalars(values(r)), strict=True))
    texts = {text: name for name, text in r.hoisted.items()}
    assert scalars[texts["1 - beta2"]] == 1 - 0.999
    body = " ".join(r.body)
    assert "beta" not in body and not re.search(r"\b\d", body)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_triton_compiles_for_a_gpu_with_wide_loads(dtype):
    """Compile for an NVIDIA architecture, which needs no GPU, and look at the assembly."""
    import os
    import subprocess
    import sys

    code = f"""
import re, torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import steepest.optim
from steepest.kernels import REDUCTIONS, RULES, _triton
types = {{"table": "*i64", "scalars": "*fp64", "tensor": "*i64", "first": "*i64",
         "partial": "*fp64", "T": "i32",
         "ALIGNED": "constexpr", "BLOCK": "constexpr"}}
for rule in (*RULES.values(), *REDUCTIONS.values()):
    keep = torch.float64 if {dtype} == torch.float64 else torch.float32
    dtypes = ({dtype}, {dtype}, *[keep] * (len(rule.tensors) - 2))
    kernel = _triton._compile(rule, dtypes)
    source = ASTSource(kernel, types, {{"ALIGNED": True, "BLOCK": 1024}})
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
    wide = "v2.b64" if {dtype} == torch.float64 else "v4.b32"
    assert f"ld.global.{{wide}}" in ptx and (rule.sums or f"st.global.{{wide}}" in ptx), rule
print(len(RULES), "compiled")
"""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.match(r"[1-9]\d* compiled", done.stdout)


def test_equations_stand_beside_their_lines():
    for r in (*RULES.values(), *REDUCTIONS.values()):
        if r.function.__module__.startswith("steepest."):  # and not a rule of some test
            assert len(r.lines) >= 2
            assert all(equation and " = " in code for equation, code in r.lines), r.__name__
        assert {line.count("|") for line in r._repr_markdown_().splitlines()} == {3}
    table = RULES["adamw"]._repr_markdown_()
    assert r"| $\theta \leftarrow (1 - \eta\lambda)\,\theta$ | `p = p * (1 - lr * wd)` |" in table


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("p = p ** 2\n    return p", "other than"),
        ("for i in range(3):\n        p = p\n    return p", "statement other than"),
        ("p = abs(p)\n    return p", "other than xp"),
        ("p, g = g, p\n    return p", "statement other than"),
        ("p = p - g\n    return p - g", "ends by returning names"),
        ("p = p - g\n    return lr", "ends by returning names"),
        ("p = p if p > g else g\n    return p", "more than arithmetic"),
    ],
)
def test_what_is_not_arithmetic_is_refused(body, message, tmp_path):
    path = tmp_path / "bad.py"
    path.write_text(f"def bad(p, g, *, lr):\n    {body}\n")
    scope: dict = {}
    exec(compile(path.read_text(), str(path), "exec"), scope)
    with pytest.raises(ValueError, match=message):
        rule(scope["bad"])


def test_a_changing_learning_rate_compiles_nothing():
    r = RULES["adamw"]
    tensors = columns(r, torch.float32)
    apply(r, tensors, [values(r)], backend="cpu")
    kernel = _numba._compile(r, np.float32)
    compiled = len(kernel.signatures)
    misses = (_numba._compile.cache_info().misses, _triton._compile.cache_info().misses)
    for lr in (1e-1, 1, 0.0, 1e-9):
        apply(r, tensors, [{**values(r), "lr": lr}], backend="cpu")
    assert len(kernel.signatures) == compiled == 1
    assert (_numba._compile.cache_info().misses, _triton._compile.cache_info().misses) == misses


def test_a_forced_backend_that_is_missing_names_its_extra(monkeypatch):
    import importlib.util

    r = RULES["adamw"]
    tensors = columns(r, torch.float32)
    before = tensors[0][1].clone()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for backend, extra in (("cpu", r"steepest\[cpu\]"), ("triton", r"steepest\[gpu\]")):
        with pytest.raises(RuntimeError, match=extra):
            apply(r, tensors, [values(r)], backend=backend)
    with pytest.raises(ValueError, match="choose one of auto, torch, cpu, triton"):
        apply(r, tensors, [values(r)], backend="cuda")
    assert torch.equal(tensors[0][1], before)
    apply(r, tensors, [values(r)], backend="auto")
    assert not torch.equal(tensors[0][1], before)


def test_numba_keeps_its_number_of_threads():
    import numba

    r = RULES["adamw"]
    before = numba.get_num_threads()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        apply(r, columns(r, torch.float32), [values(r)], backend="cpu")
        assert numba.get_num_threads() == before
    finally:
        torch.set_num_threads(threads)


def test_atan2_on_the_cpu_is_the_standard_one():
    """To a rounding over forty decades, and exactly at signed zeros, infinities and NaN."""
    from steepest.kernels._xp_numba import atan2

    rng = torch.Generator().manual_seed(0)
    y, x = torch.randn(2, 3000, generator=rng, dtype=torch.float64)
    powers = 10 * torch.randn(2, 3000, generator=rng, dtype=torch.float64)
    y, x = y * 10 ** powers[0], x * 10 ** powers[1]
    for a, b in zip(y.tolist(), x.tolist(), strict=True):
        assert math.isclose(atan2(a, b), math.atan2(a, b), rel_tol=5e-16)
    special = [0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, 5e-324]
    for a, b in itertools.product(special, special):
        ours, exact = atan2(a, b), math.atan2(a, b)
        same = ours == exact and math.copysign(1, ours) == math.copysign(1, exact)
        assert same or (math.isnan(ours) and math.isnan(exact)), (a, b)


def test_exp_on_the_cpu_is_the_standard_one():
    """To a few roundings over the whole range; beyond it infinity and 0, and NaN for NaN."""
    from steepest.kernels._xp_numba import exp

    for x in torch.linspace(-707.9, 708.9, 20_001, dtype=torch.float64).tolist():
        assert math.isclose(exp(x), math.exp(x), rel_tol=1e-15)
    for x in (0.0, -0.0, 1e-300, -1e-300):
        assert exp(x) == 1.0
    assert exp(710.0) == exp(math.inf) == math.inf
    assert exp(-746.0) == exp(-math.inf) == 0.0
    assert math.isnan(exp(math.nan))


@pytest.mark.parametrize("backend", ["torch", "cpu", "triton"])
def test_tensors_of_different_sizes_are_refused_before_a_kernel_writes(backend):
    p, g = torch.ones(6), torch.ones(6)
    short = torch.ones(1)
    for columns in ([[p], [short]], [[p, p], [g, short]], [[short], [g]]):
        with pytest.raises(ValueError, match=r"adagrad_norm: g has shape .* and p \("):
            apply(RULES["adagrad_norm"], columns, [{"lr": 0.5, "root": 2.0}], backend=backend)
    assert torch.equal(p, torch.ones(6)) and torch.equal(g, p) and short.item() == 1


def test_the_first_fused_step_leaves_torch_its_number_of_threads():
    code = """
import torch
from steepest.kernels import add_noise_
from steepest.optim import AdamW
torch.set_num_threads(1)
for step in range(2):
    p = torch.nn.Parameter(torch.ones(1 << 17))
    p.grad = torch.ones_like(p)
    AdamW([p], backend="cpu").step()
    add_noise_([p], seed=1, scale=1.0)
    print(torch.get_num_threads())
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["1", "1"]
