"""``{methods-index}``: one row a paper, from the registry of the package.

The result is a plain table; ``_static/methods-index.js`` adds filters and sorting where
JavaScript runs.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from docutils import nodes
from pybtex.database import BibliographyData, parse_file
from sphinx.addnodes import tabular_col_spec
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from steepest import _registry
from steepest.estimators import RandomEstimator
from steepest.optim import Elementwise, Filter, MeZO

COLUMNS = (
    "Method",
    "Section",
    "Part",
    "Oracle",
    "Passes (F + B)",
    "State (bytes)",
    "Kernel",
    "Claims",
    "Year",
    "Paper",
)
WIDTHS = (18, 16, 10, 9, 6, 5, 7, 11, 5, 19)
"""Of the columns on a printed page, in shares of its width."""


@cache
def parts(root: Path) -> dict[str, str]:
    """Folder of a part -> its caption in the table of contents."""
    toc = yaml.safe_load((root / "_toc.yml").read_text("utf-8"))
    return {
        chapter["file"].split("/")[1]: part["caption"]
        for part in toc["parts"]
        for chapter in part["chapters"]
        if chapter["file"].startswith("chapters/")
    }


@cache
def bibliography(root: Path) -> BibliographyData:
    """The papers."""
    return parse_file(root / "book" / "references.bib")


def fields(key: str, root: Path) -> Mapping[str, str]:
    """What the bibliography knows of a paper; of an unknown one nothing, and its citation warns."""
    known = bibliography(root).entries
    return known[key].fields if key in known else {}


def kernel(symbols: list[str]) -> str:
    """What a method has a fused kernel for, on CPU and GPU: its update, its noise, or nothing."""
    paths = [symbol.rpartition(".") for symbol in symbols]
    found = [getattr(importlib.import_module(room), name) for room, _, name in paths]
    classes = [each for each in found if inspect.isclass(each)]
    if any(issubclass(c, Elementwise) for c in classes):
        return "update"
    if any(issubclass(c, Filter) and c.rule is not Filter.rule for c in classes):
        return "update"
    if any(issubclass(c, MeZO | RandomEstimator) for c in classes):
        return "noise"
    return "–"


def paper_url(key: str, root: Path) -> str | None:
    """Where a paper can be read, if the bibliography says so."""
    found = fields(key, root)
    if "eprint" in found:
        return f"https://arxiv.org/abs/{found['eprint']}"
    if "doi" in found:
        return f"https://doi.org/{found['doi']}"
    return found.get("url")


def row(record: dict[str, Any], root: Path) -> list[str]:
    """Markdown of the cells for one record of the registry."""
    symbols = [f"{{py:obj}}`~{symbol}`" for symbol in record["symbols"]]
    passes = record["passes"]
    section, part = "–", "–"
    if record["chapter"]:
        section = f"{{ref}}`{record['chapter'].partition('#')[2]}`"
        part = parts(root).get(record["chapter"].split("/")[1], "–")
    title = escape(record["title"])
    if url := paper_url(record["paper"], root):
        title = f"[{title}]({url})"
    year = fields(record["paper"], root).get("year", "–")
    return [
        ", ".join(symbols),
        section,
        part,
        record["oracle"],
        f"{passes['forward']} + {passes['backward']}",
        str(record["state_bytes"]),
        kernel(record["symbols"]),
        ", ".join(claim.replace("_", " ") for claim in record["claims"]) or "–",
        year,
        f"{title} {{cite:p}}`{record['paper']}`",
    ]


def name(record: dict[str, Any]) -> str:
    """What a row of the table is found by: its first symbol, without the room."""
    return str(record["symbols"][0].rpartition(".")[2])


def escape(text: str) -> str:
    """Markdown that shows ``text`` as it is inside of a table's cell."""
    return "".join(f"\\{c}" if c in r"\`*_{}[]<>#$|~" else c for c in text)


class MethodsIndex(SphinxDirective):
    """Table of every registered method."""

    has_content = False

    def run(self) -> list[nodes.Node]:
        """Write the table as Markdown and let MyST parse it, roles included."""
        self.env.note_reread()  # the registry may have changed when this page has not
        root = Path(self.env.app.srcdir)
        records = sorted(_registry.records(root), key=lambda record: name(record).lower())
        rows = [row(record, root) for record in records]
        lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
        text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        parsed = self.parse_text_to_nodes(text)
        for table in (found for node in parsed for found in node.findall(nodes.table)):
            table["classes"] += ["methods-index", "longtable"]
        widths = "".join(rf"\X{{{width}}}{{{sum(WIDTHS)}}}" for width in WIDTHS)
        small, normal = (
            nodes.raw("", text, format="latex") for text in (r"\begingroup\tiny", r"\endgroup")
        )
        inside = [small, tabular_col_spec(spec=widths), *parsed, normal]
        return [nodes.container("", *inside, classes=["methods-wide"])]


def forget(app: Sphinx) -> None:
    """Read table of contents and bibliography afresh in every build."""
    parts.cache_clear()
    bibliography.cache_clear()


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.add_directive("methods-index", MethodsIndex)
    app.connect("builder-inited", forget)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
