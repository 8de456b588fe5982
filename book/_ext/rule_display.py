"""Equation beside line: rules that a chapter displays are checked against the package, and linked.

A cell that ends in ``RULES["adamw"]`` shows a table of each equation and the line that computes it,
and that table is stored with the notebook. Here it is compared with the rule as it is now: where
they differ, the build warns, and so fails.
"""

from __future__ import annotations

from api_pages import origins, public_names
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.util import logging

import steepest.optim  # noqa: F401  (registers its rules)
from steepest.kernels import REDUCTIONS, RULES, Rule

logger = logging.getLogger(__name__)


def displays(document: nodes.document) -> list[tuple[nodes.table, nodes.literal, Rule]]:
    """Tables of a page that show a rule of the package, and where they name it."""
    found = []
    for table in document.findall(nodes.table):
        head = next(iter(table.findall(nodes.thead)), None)
        names = list(head.findall(nodes.literal)) if head is not None else []
        if len(names) != 1 or not head.astext().startswith("equation"):
            continue
        name = names[0].astext().partition("(")[0]
        rule = RULES.get(name) or REDUCTIONS.get(name)
        if rule is not None:
            found.append((table, names[0], rule))
    return found


def shown(table: nodes.table) -> list[tuple[str, str]]:
    """Pairs of equation and line, as a page has them."""
    pairs = []
    for row in next(iter(table.findall(nodes.tbody))).findall(nodes.row):
        equation, line = row.findall(nodes.entry)
        pairs.append((equation.astext().strip(), line.astext().strip()))
    return pairs


def expected(rule: Rule) -> list[tuple[str, str]]:
    """The same of the rule in the package."""
    return [(tex.replace("|", r"\vert ").strip(), code) for tex, code in rule.lines]


def symbol(rule: Rule) -> str | None:
    """Path of the public name that the rule belongs to."""
    module = rule.function.__module__
    room = ".".join(module.split(".")[:2])
    defined = origins(__import__(room, fromlist=["_"]))
    names = [n for n in public_names(room.partition(".")[2]) if defined[n] == module]
    plain = rule.__name__.replace("_", "")
    names.sort(key=lambda name: name.lower() != plain)
    return f"{room}.{names[0]}" if names else None


def check(app: Sphinx, document: nodes.document) -> None:
    """Mark every display, link it to the reference, and warn where it is out of date."""
    for table, name, rule in displays(document):
        table["classes"] += ["rule"]
        if shown(table) != expected(rule):
            logger.warning(
                "the rule %s has changed since this page was run: make refresh",
                rule.__name__,
                location=(app.env.docname, table.line),
            )
        if target := symbol(rule):
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
