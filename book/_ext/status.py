"""``{status}``: what the last run of each chapter took, from ``book/status.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

HEAD = ("Chapter", "CPU time (s)", "Peak memory (MiB)", "Last run", "Python", "torch", "Lightning")


def row(chapter: str, run: dict[str, Any]) -> list[str]:
    """Markdown of the cells for one chapter."""
    packages = run["packages"]
    return [
        f"{{doc}}`/chapters/{chapter}`",
        f"{run['seconds']:.0f}",
        str(run["peak_mib"]),
        run["date"].replace("-", "\N{NON-BREAKING HYPHEN}"),
        run["python"],
        packages["torch"],
        packages["lightning"],
    ]


class Status(SphinxDirective):
    """Table of the chapters' last runs, and on what they ran."""

    def run(self) -> list[nodes.Node]:
        """Write the table as Markdown."""
        path = Path(self.env.app.srcdir) / "book" / "status.json"
        self.env.note_dependency(str(path))
        status = json.loads(path.read_text("utf-8"))
        lines = [list(HEAD), ["---"] + ["--:"] * 2 + ["---"] * (len(HEAD) - 3)]
        lines += [row(chapter, run) for chapter, run in status.items()]
        total = sum(run["seconds"] for run in status.values())
        devices = sorted({run["device"] for run in status.values()})
        text = f"{len(status)} chapters, {total / 60:.0f} minutes of CPU time in all. "
        text += f"Device: {'; '.join(devices)}."
        rows = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        found = self.parse_text_to_nodes(f"{text}\n\n{rows}")
        for table in (t for node in found for t in node.findall(nodes.table)):
            table["classes"] += ["benchmarks"]
        return found


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.add_directive("status", Status)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
