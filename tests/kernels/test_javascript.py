"""A rule in JavaScript is the rule: every registered one, and the numbers that feed it."""

import inspect
import json
import math

import pytest
import torch
from py_mini_racer import MiniRacer

from steepest import optim
from steepest.kernels import REDUCTIONS, RULES, XP, Rule, javascript
from steepest.kernels import xp as torch_xp
from steepest.optim import Elementwise, create
from steepest.optim._base import arguments_of

xp = torch_xp  # for the rules below
PACKAGE = {
    r.__name__: r
    for r in (*RULES.values(), *REDUCTIONS.values())
    if r.function.__module__.startswith("steepest.")
}


@pytest.fixture(scope="module")
def engine():
    engine = MiniRacer()
    engine.eval(f"const xp = {XP};")
    return engine


def run(engine, code: str, *arguments):
    """Call a JavaScript function; NaN and infinities come back, which JSON alone would lose."""
    out = engine.eval(
        f"JSON.stringify(({code})(...{json.dumps(arguments)}), "
        "(_, v) => typeof v === 'number' && !Number.isFinite(v) ? String(v) : v)"
    )
    return json.loads(out, parse_int=float)


def rows(r: Rule, count: int = 200) -> tuple[torch.Tensor, dict[str, float]]:
    """Random elements of each tensor, and random numbers, positive where a root may be taken."""
    rng = torch.Generator().manual_seed(1)
    tensors = torch.randn(len(r.tensors), count, generator=rng, dtype=torch.float64)
    for i, name in enumerate(r.tensors):
        if name not in ("p", "g", "m"):
            tensors[i].abs_()
    draws = torch.rand(len(r.numbers), generator=rng, dtype=torch.float64) * 0.8 + 0.1
    return tensors, dict(zip(r.numbers, draws.tolist(), strict=True))


@pytest.mark.parametrize("name", sorted(PACKAGE))
def test_every_rule_equals_the_torch_backend(engine, name):
    r = PACKAGE[name]
    tensors, numbers = rows(r)
    code = f"(columns, numbers) => columns.map((e) => ({javascript(r)})(...e, numbers))"
    found = torch.tensor(run(engine, code, tensors.T.tolist(), numbers), dtype=torch.float64).T
    expected = r(*tensors, **numbers)
    for i, value in enumerate(expected):
        row = found[i].sum() if r.sums else found[i]
        torch.testing.assert_close(row, value.double(), rtol=1e-12, atol=1e-12)


def plain() -> list[str]:
    """Optimizers whose step is a rule and numbers of the step, and no more."""
    return sorted(
        name
        for name, value in vars(optim).items()
        if inspect.isclass(value)
        and issubclass(value, Elementwise)
        and not inspect.isabstract(value)
        and value.coefficients is Elementwise.coefficients
    )


@pytest.mark.parametrize("name", plain())
def test_numbers_equal_those_of_the_optimizer(engine, name):
    opt = create(name, [torch.nn.Parameter(torch.zeros(2))], lr=0.03)
    group = {k: v for k, v in opt.param_groups[0].items() if k != "params"}
    code = javascript(type(opt).numbers)
    for step in (1, 2, 7, 1000):
        found = run(engine, code, group, step)
        expected = opt.numbers(group, step)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert math.isclose(found[key], value, rel_tol=1e-12), (key, step)


SUMMARIES = {
    value.summary.__name__: value.summary
    for value in vars(optim).values()
    if inspect.isclass(value) and issubclass(value, Elementwise) and value.summary
}


@pytest.mark.parametrize("name", sorted(SUMMARIES))
def test_every_summary_equals_torch_on_one_number_and_on_many(engine, name):
    """Also in the first step, with nothing kept, and where all gradients are zero."""
    summary = SUMMARIES[name]
    arguments, options = arguments_of(summary)
    rng = torch.Generator().manual_seed(1)
    values = 10 ** (6 * torch.rand(len(arguments), 200, generator=rng, dtype=torch.float64) - 3)
    values[:, ::3] *= torch.rand(len(arguments), 67, generator=rng) < 0.5
    hyper = {key: 10**k for key, k in zip(options, (-2.0, -1.0), strict=False)}
    many = summary(*values, **hyper)
    code = f"(columns, hyper) => columns.map((e) => ({javascript(summary)})(...e, hyper))"
    rows = run(engine, code, values.T.tolist(), hyper)
    for i, (found, column) in enumerate(zip(rows, values.T, strict=True)):
        one = summary(*column, **hyper)
        for made in (one, {key: value[i] for key, value in many.items()}):
            assert {k: float(v) for k, v in made.items()} == pytest.approx(found, rel=1e-12, abs=0)


def test_reserved_names_and_helpers_are_renamed_and_defined_once(engine):
    def numbers(group, step):
        this, new = map(float, group["betas"])
        both = [this, new] if step > 1 and not group["off"] else [1.0, _twice(new)]
        return {**{"a": 0.0, "b": -this}, "a": _twice(both[1]), "c": math.sqrt(step) ** -2.0}

    code = javascript(numbers)
    assert code.count("const _twice") == 1
    for step in (1, 4):
        group = {"betas": (0.25, 0.5), "off": False}
        assert run(engine, code, group, step) == pytest.approx(numbers(group, step), rel=1e-15)


def _twice(x):
    """Not only arithmetic: a function of the module."""
    return 2 * x


def loops(p):
    for _ in range(2):
        p = p + 1
    return p


def calls(p):
    return open(p)


def reads(p):
    return p * elsewhere  # noqa: F821


@pytest.mark.parametrize("function", [loops, calls, reads])
def test_what_is_no_arithmetic_is_refused(function):
    with pytest.raises(ValueError, match=rf"{function.__name__} is not plain arithmetic"):
        javascript(function)
