"""Equation beside line: source that a chapter displays is checked against the package, and linked.

A cell that ends in ``RULES["adamw"]`` or ``listing(SAM.update)`` shows a table of each equation and
the line that computes it, and that table is stored with the notebook. Here it is compared with the
source as it is now: where they differ, the build warns, and so fails. It fails too where a table
has no equation.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from api_pages import origins, public_names
from docutils import nodes
from sphinx.addnodes import pending_xref, tabular_col_spec
from sphinx.application import Sphinx
from sphinx.util import logging

import steepest.optim  # noqa: F401  (registers its rules)
from steepest import listing
from steepest._listing import find
from steepest.kernels import REDUCTIONS, RULES

logger = logging.getLogger(__name__)

Pairs = list[tuple[str, str]]
"""Equations and lines of code, as a table has them."""


def displays(document: nodes.document) -> list[tuple[nodes.table, nodes.literal, str]]:
    """Tables of a page that show source, where they name it, and its name."""
    found = []
    for table in document.findall(nodes.table):
        head = next(iter(table.findall(nodes.thead)), None)
        names = list(head.findall(nodes.literal)) if head is not None else []
        if len(names) == 1 and head.astext().startswith("equation") and "(" in names[0].astext():
            found.append((table, names[0], names[0].astext().partition("(")[0]))
    return found


def shown(table: nodes.table) -> Pairs:
    """Pairs of equation and line, as a page has them."""
    pairs = []
    for row in next(iter(table.findall(nodes.tbody))).findall(nodes.row):
        equation, line = row.findall(nodes.entry)
        pairs.append((equation.astext().strip(), line.astext().strip()))
    return pairs


def function_of(name: str) -> Any:
    """What a display's name stands for: ``adamw``, a rule, or ``optim.SAM.update``."""
    if rule := RULES.get(name) or REDUCTIONS.get(name):
        return rule.function
    try:
        return find(name)
    except ValueError:
        return None


def expected(name: str, function: Callable[..., Any]) -> Pairs:
    """Pairs of equation and line, as the package has them."""
    rule = RULES.get(name) or REDUCTIONS.get(name)
    lines = rule.lines if rule else listing(function).parts[0][1]
    return [(tex.strip(), line.strip()) for tex, line in lines]


def is_current(pairs: Pairs, now: Pairs) -> bool:
    """Whether a display is what the source says, or a part of it."""
    n = len(pairs)
    return any(now[i : i + n] == pairs for i in range(len(now) - n + 1))


def symbol(function: Callable[..., Any]) -> str | None:
    """Path of the public name that a function belongs to."""
    module = function.__module__
    room = ".".join(module.split(".")[:2])
    defined = origins(importlib.import_module(room))
    names = [n for n in public_names(room.partition(".")[2]) if defined[n] == module]
    plain = function.__qualname__.partition(".")[0].replace("_", "").lower()
    names.sort(key=lambda name: name.lower() != plain)
    return f"{room}.{names[0]}" if names else None


def check(app: Sphinx, document: nodes.document) -> None:
    """Mark every display, link it to the reference, and warn where it is out of date."""
    for table, name, path in displays(document):
        function = function_of(path)
        if function is None:
            continue
        where = (app.env.docname, table.line)
        table["classes"] += ["source"]
        pairs = shown(table)
        if not is_current(pairs, expected(path, function)):
            logger.warning(
                "the source of %s has changed since this page was run: make refresh",
                path,
                location=where,
            )
        if not any(equation for equation, _ in pairs):
            logger.warning(
                "%s is shown without an equation: write it above its line, # $...$",
                path,
                location=where,
            )
        for row in next(iter(table.findall(nodes.tbody))).findall(nodes.row):
            if not row[0].astext():
                row[0].clear()  # of an empty paragraph, which would take a line
            for line in row.findall(nodes.literal):
                line["classes"] += ["code", "highlight"]
                line["language"] = "python"
        widths = r"\X{3}{10}\X{7}{10}"
        table.parent.insert(table.parent.index(table), tabular_col_spec(spec=widths))
        function = getattr(function, "fget", None) or function
        if target := symbol(inspect.unwrap(function)):
            link = pending_xref(
                "",
                refdomain="py",
                reftype="obj",
                reftarget=target,
                refdoc=app.env.docname,
                refexplicit=True,
                refwarn=True,
            )
            name.replace_self(link)
            link += name


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("doctree-read", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
