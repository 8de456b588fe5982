"""Source on a page is compared with the source of the package."""

import pytest
from docutils.core import publish_doctree
from myst_parser.parsers.docutils_ import Parser
from source_display import displays, expected, function_of, is_current, shown, symbol

from steepest import listing
from steepest.kernels import REDUCTIONS, RULES
from steepest.nn import QuantizedLinear
from steepest.optim import CBO, SAM, ClipNorm
from steepest.solvers import direct_search

PACKAGE = [
    r
    for r in (*RULES.values(), *REDUCTIONS.values())
    if r.function.__module__.startswith("steepest.")
]
FUNCTIONS = [SAM.query, CBO.update, ClipNorm.filter, QuantizedLinear.weight, direct_search]


def read(display):
    text = display if isinstance(display, str) else display._repr_markdown_()
    settings = {"myst_enable_extensions": ["dollarmath"], "report_level": 5}
    return publish_doctree(text, parser=Parser(), settings_overrides=settings)


@pytest.mark.parametrize("rule", PACKAGE, ids=lambda rule: rule.__name__)
def test_a_rule_is_found_compared_and_linked(rule):
    ((table, name, path),) = displays(read(rule))
    assert path == rule.__name__
    assert function_of(path) is rule.function
    assert shown(table) == expected(path, rule.function)
    assert symbol(rule.function) is None or symbol(rule.function).startswith("steepest.")
    assert name.astext().startswith(path)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: repr(listing(f)))
def test_a_function_is_found_compared_and_linked(function):
    ((table, _, path),) = displays(read(listing(function)))
    found = function_of(path)
    assert repr(listing(found)) == repr(listing(function)) == f"listing({path})"
    pairs = shown(table)
    assert pairs == expected(path, found)
    assert is_current(pairs[1:], expected(path, found))
    assert not is_current([*pairs[1:], pairs[0]], expected(path, found))


def test_a_changed_line_a_changed_equation_and_a_lost_line_are_seen():
    rule = RULES["adamw"]
    text = rule._repr_markdown_()
    lines = text.splitlines()
    for changed in (
        text.replace("p * (1 - lr * wd)", "p * (1 + lr * wd)"),
        text.replace(r"1 - \eta\lambda", r"1 + \eta\lambda"),
        "\n".join([*lines[:3], *lines[4:]]),
    ):
        assert changed != text
        ((table, _, path),) = displays(read(changed))
        assert not is_current(shown(table), expected(path, rule.function))


def test_other_tables_are_left_alone():
    assert displays(read("| equation | code |\n|:--|:--|\n| $a$ | `b = a` |")) == []
    ((_, _, path),) = displays(read("| equation | `unknown(p, g)` |\n|:--|:--|\n| | `b = a` |"))
    assert function_of(path) is None
    assert function_of("optim.Unknown.step") is None


def test_displays_name_their_owner():
    assert symbol(RULES["adamw"].function) == "steepest.optim.AdamW"
    assert symbol(RULES["sgdw"].function) == "steepest.optim.SGDW"
    assert symbol(SAM.query) == "steepest.optim.SAM"
