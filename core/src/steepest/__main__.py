"""The command line: ``python -m steepest methods`` and ``python -m steepest fit``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from steepest._registry import KINDS, ORACLES, records

WIDTH, NAMES = 100, 28


def table(rows: list[dict[str, Any]], width: int = WIDTH) -> str:
    """Records as an aligned table; long lists of names are wrapped, long titles cut.

    Args:
        rows: Records of methods.
        width: Most columns of text.
    """
    cells = [("METHOD", "KIND", "ORACLE", "PASSES", "STATE", "PAPER")]
    for row in rows:
        names = ", ".join(symbol.rpartition(".")[2] for symbol in row["symbols"])
        first, *more = textwrap.wrap(names, NAMES)
        passes = f"{row['passes']['forward']}F {row['passes']['backward']}B"
        state = f"{row['state_bytes']} B"
        cells.append((first, row["kind"], row["oracle"], passes, state, row["title"]))
        cells += [(line, "", "", "", "", "") for line in more]
    widths = [max(map(len, column)) for column in list(zip(*cells, strict=True))[:-1]]
    left = max(8, width - sum(widths) - 2 * len(widths))
    lines = []
    for *texts, title in cells:
        columns = [text.ljust(w) for text, w in zip(texts, widths, strict=True)]
        short = title if len(title) <= left else f"{title[: left - 1]}…"
        lines.append("  ".join([*columns, short]).rstrip())
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments after the program's name; those of the process by default.

    Returns:
        Exit status: 0, or 2 for a mistake in the arguments.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["fit"]:
        # Threads that spin while they wait make small models ten times slower on a busy machine.
        # OpenMP reads this when PyTorch is imported.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        from steepest.lightning._fit import main as fit

        return fit(argv[1:])
    parser = argparse.ArgumentParser(
        "python -m steepest", description="List the methods, or train a task with an optimizer."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listing = commands.add_parser("methods", help="list every method")
    listing.add_argument("--json", action="store_true", help="as JSON, one record per paper")
    listing.add_argument("--oracle", choices=ORACLES, help="only methods that query this oracle")
    listing.add_argument("--kind", choices=sorted(set(KINDS.values())), help="only this kind")
    commands.add_parser("fit", help="train a task with an optimizer")
    args = parser.parse_args(argv)
    rows = [
        row
        for row in records()
        if args.oracle in (None, row["oracle"]) and args.kind in (None, row["kind"])
    ]
    print(json.dumps(rows, indent=2, ensure_ascii=False) if args.json else table(rows))
    if not args.json:
        print("\nPASSES: forward and backward per step. STATE: bytes per float32 parameter.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
