"""A rule on a page is compared with the rule of the package."""

import pytest
from docutils.core import publish_doctree
from myst_parser.parsers.docutils_ import Parser
from rule_display import displays, expected, shown, symbol

from steepest.kernels import REDUCTIONS, RULES

PACKAGE = [
    r
    for r in (*RULES.values(), *REDUCTIONS.values())
    if r.function.__module__.startswith("steepest.")
]


def read(text):
    settings = {"myst_enable_extensions": ["dollarmath"], "report_level": 5}
    return publish_doctree(text, parser=Parser(), settings_overrides=settings)


@pytest.mark.parametrize("rule", PACKAGE, ids=lambda rule: rule.__name__)
def test_a_display_is_found_compared_and_linked(rule):
    ((table, name, found),) = displays(read(rule._repr_markdown_()))
    assert found is rule
    assert name.astext().startswith(rule.__name__)
    assert shown(table) == expected(rule)
    assert symbol(rule) is None or symbol(rule).startswith("steepest.")


def test_a_changed_line_a_changed_equation_and_a_lost_line_are_seen():
    rule = RULES["adamw"]
    text = rule._repr_markdown_()
    lines = text.splitlines()
    for changed in (
        text.replace("p * (1 - lr * wd)", "p * (1 + lr * wd)"),
        text.replace(r"1 - \eta\lambda", r"1 + \eta\lambda"),
        "\n".join(lines[:-1]),
    ):
        assert changed != text
        ((table, _, _),) = displays(read(changed))
        assert shown(table) != expected(rule)


def test_other_tables_are_left_alone():
    assert displays(read("| equation | code |\n|:--|:--|\n| $a$ | `b = a` |")) == []
    assert displays(read("| equation | `unknown(p, g)` |\n|:--|:--|\n| $a$ | `b = a` |")) == []


def test_optimizers_own_their_rules():
    assert symbol(RULES["adamw"]) == "steepest.optim.AdamW"
    assert symbol(RULES["sgdw"]) == "steepest.optim.SGDW"
