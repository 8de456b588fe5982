"""``{benchmarks} FOLDER`` and ``{benchmark-table} FILE``: result files of ``core/benchmarks``.

The folder has what ``optimizer_step.py --json`` wrote on one machine each, and is shown as tables
with bars; the file is a table as the other scripts write it. Nothing is measured here, and
no number is typed in.
"""

from __future__ import annotations

import json
import math
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

SETS = {
    "transformer": "A transformer: 30.0 million parameters in 100 tensors",
    "resnet50": "ResNet-50: 25.6 million parameters in 161 tensors",
    "small": "1,000 tensors of 64 by 32",
}
TORCH = ("torch, fused", "torch, foreach", "torch, for-loop")
HEAD = ("Optimizer", "fused", "torch backend", "torch.optim", "peer", "peer / fused")
HEAD += ("allocated", "of copy")
COLORS = ("#0072B2", "#999999", "#D55E00")
Rows = dict[str, dict[str, dict[str, Any]]]
"""Optimizer -> implementation -> row of the file."""


def ours(rows: dict[str, dict[str, Any]]) -> str:
    """Our fused implementation on this machine."""
    return next(name for name in ("steepest, triton", "steepest, cpu") if name in rows)


def table(rows: Rows) -> str:
    """Markdown table: an optimizer a row, milliseconds an implementation."""
    lines = [list(HEAD), ["---"] + ["--:"] * (len(HEAD) - 1)]
    for name, row in sorted(rows.items()):
        best, peer = row[ours(row)], row.get("pytorch_optimizer")
        torchs = [row[variant]["ms"] for variant in TORCH if variant in row]
        times = [best["ms"], row["steepest, torch"]["ms"], min(torchs, default=None)]
        times.append(peer and peer["ms"])
        lines.append(
            [
                f"{{py:obj}}`~steepest.optim.{name}`",
                *("–" if ms is None else f"{ms:.1f}" for ms in times),
                "–" if peer is None else f"{peer['ms'] / best['ms']:.1f}",
                f"{best['allocated_per_parameter']:.1f}",
                f"{best['share_of_copy']:.0%}",
            ]
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def mean_speedup(rows: Rows) -> tuple[float, int] | None:
    """Geometric mean over shared methods of the peer's time by ours, and their number."""
    ratios = [
        row["pytorch_optimizer"]["ms"] / row[ours(row)]["ms"]
        for row in rows.values()
        if "pytorch_optimizer" in row
    ]
    if not ratios:
        return None
    return math.exp(sum(map(math.log, ratios)) / len(ratios)), len(ratios)


def bars(rows: Rows) -> str:
    """Milliseconds of a step: ours, torch's and the peer's."""
    groups = {}
    for optimizer, row in sorted(rows.items()):
        names = (ours(row), "torch, fused", "pytorch_optimizer")
        present = zip(("steepest, fused", "torch, fused", "pytorch_optimizer"), names, strict=True)
        groups[optimizer] = {label: row[name]["ms"] for label, name in present if name in row}
    return chart(groups, "Milliseconds of a step")


def chart(groups: dict[str, dict[str, float]], title: str) -> str:
    """SVG: a group of bars for each name, a bar for each label; text has the page's color."""
    width, bar, gap = 640, 9, 8  # pixels
    left = 20 + 6.5 * max(map(len, groups))
    longest = max(max(group.values()) for group in groups.values())
    fullest = sorted(groups.values(), key=len, reverse=True)
    labels = list(dict.fromkeys(label for group in fullest for label in group))
    colors = dict(zip(labels, COLORS, strict=False))
    parts, y = [], 6.0
    for name, group in groups.items():
        middle = y + bar * len(group) / 2 + 4
        parts.append(
            f'<text x="{left - 8}" y="{middle:.1f}" text-anchor="end">{escape(name)}</text>'
        )
        for label, value in group.items():
            length = (width - left - 60) * value / longest
            parts.append(
                f'<rect x="{left}" y="{y:.1f}" width="{length:.1f}" height="{bar - 1}"'
                f' fill="{colors[label]}"><title>{escape(label)}: {value:g}</title></rect>'
                f'<text x="{left + length + 4:.1f}" y="{y + bar - 1:.1f}" font-size="9">'
                f"{value:.0f}</text>"
            )
            y += bar
        y += gap
    x = 8.0
    for label, color in colors.items():
        parts.append(
            f'<rect x="{x}" y="{y + 4:.1f}" width="10" height="10" fill="{color}"/>'
            f'<text x="{x + 14}" y="{y + 13:.1f}">{escape(label)}</text>'
        )
        x += 40 + 6.5 * len(label)
    return (
        f'<svg role="img" aria-label="{escape(title)}" viewBox="0 0 {width} {y + 22:.0f}"'
        ' style="width:100%;max-width:44rem;font:12px sans-serif" fill="currentColor"'
        f' xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


class Benchmarks(SphinxDirective):
    """Every result file of a folder, one after the other."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Write Markdown for each file and set, with bars above each table."""
        found: list[nodes.Node] = []
        folder = Path(self.env.app.srcdir) / self.arguments[0]
        for path in sorted(folder.glob("*.json")):
            self.env.note_dependency(str(path))
            record = json.loads(path.read_text("utf-8"))
            peer = record["pytorch_optimizer"]
            versions = f"torch {record['torch']}"
            versions += f", pytorch_optimizer {peer}" if peer else ""
            intro = f"**{record['machine']}**; {versions}; medians of {record['rounds']} rounds."
            found += self.parse_text_to_nodes(intro)
            for name, title in SETS.items():
                rows: Rows = {}
                for row in record["rows"]:
                    if row["set"] == name:
                        rows.setdefault(row["optimizer"], {})[row["implementation"]] = row
                if not rows:
                    continue
                text = f"*{title}, milliseconds a step.*"
                if speedup := mean_speedup(rows):
                    mean, count = speedup
                    text += f" Geometric mean over {count} shared methods: {mean:.1f} times as"
                    text += " fast as pytorch_optimizer."
                found += self.parse_text_to_nodes(text)
                found.append(nodes.raw("", bars(rows), format="html"))
                parsed = self.parse_text_to_nodes(table(rows))
                for each in (t for node in parsed for t in node.findall(nodes.table)):
                    each["classes"] += ["benchmarks"]
                found += parsed
        return found


class BenchmarkTable(SphinxDirective):
    """A result file that is a table; ``:bars:`` names columns to draw above it."""

    required_arguments = 1
    option_spec = {"bars": directives.unchanged_required}  # noqa: RUF012  (docutils has it so)

    def run(self) -> list[nodes.Node]:
        """Write it as Markdown."""
        path = Path(self.env.app.srcdir) / self.arguments[0]
        self.env.note_dependency(str(path))
        record = json.loads(path.read_text("utf-8"))
        lines = [record["columns"], ["---"] + ["--:"] * (len(record["columns"]) - 1)]
        lines += record["rows"]
        text = f"{record['title']}. **{record['machine']}**; torch {record['torch']}."
        rows = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        found = self.parse_text_to_nodes(text)
        if drawn := [name.strip() for name in self.options.get("bars", "").split(";") if name]:
            places = {name: record["columns"].index(name) for name in drawn}
            groups = {
                row[0]: {name: float(row[k]) for name, k in places.items()}
                for row in record["rows"]
            }
            found.append(nodes.raw("", chart(groups, record["title"]), format="html"))
        found += self.parse_text_to_nodes(rows)
        for table in (t for node in found for t in node.findall(nodes.table)):
            table["classes"] += ["benchmarks"]
        return found


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.add_directive("benchmarks", Benchmarks)
    app.add_directive("benchmark-table", BenchmarkTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
