"""``{methods-index}``: one row a paper, from the registry of the package.

The result is a plain table; ``_static/methods-index.js`` adds a filter and sorting where
JavaScript runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from steepest import _registry

COLUMNS = (
    "Method",
    "Paper",
    "Oracle",
    "Passes (F + B)",
    "State (bytes)",
    "Section",
)


def row(record: dict[str, Any]) -> list[str]:
    """Markdown of the cells for one record of the registry."""
    symbols = [f"{{py:obj}}`~{symbol}`" for symbol in record["symbols"]]
    passes = record["passes"]
    section = "–"
    if record["chapter"]:
        section = f"{{ref}}`{record['chapter'].partition('#')[2]}`"
    return [
        ", ".join(symbols),
        f"{escape(record['title'])} {{cite:p}}`{record['paper']}`",
        record["oracle"],
        f"{passes['forward']} + {passes['backward']}",
        str(record["state_bytes"]),
        section,
    ]


def escape(text: str) -> str:
    """Markdown that shows ``text`` as it is inside of a table's cell."""
    return "".join(f"\\{c}" if c in r"\`*_{}[]<>#$|~" else c for c in text)


class MethodsIndex(SphinxDirective):
    """Table of every registered method."""

    has_content = False

    def run(self) -> list[nodes.Node]:
        """Write the table as Markdown and let MyST parse it, roles included."""
        self.env.note_reread()  # the registry may have changed when this page has not
        records = _registry.records(Path(self.env.app.srcdir))
        lines = [COLUMNS, ["---"] * len(COLUMNS), *map(row, records)]
        text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        parsed = self.parse_text_to_nodes(text)
        for table in (found for node in parsed for found in node.findall(nodes.table)):
            table["classes"] += ["methods-index"]
        return parsed


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.add_directive("methods-index", MethodsIndex)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
