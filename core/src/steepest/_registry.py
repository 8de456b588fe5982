"""The registry: what every method is, said once, beside its code.

The decorator :func:`method` feeds the contract tests, the factory ``steepest.optim.create``,
the book's index of methods and ``python -m steepest methods``.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

Symbol = TypeVar("Symbol", bound=Callable[..., Any])

ORACLES = ("value", "ranking", "gradient", "jvp", "hvp", "jacobian", "per-sample", "none")

SCOPES = ("element", "tensor", "model")

KINDS = {
    "kernels": "kernel",
    "oracles": "oracle",
    "geometry": "geometry",
    "estimators": "estimator",
    "aggregation": "aggregator",
    "objectives": "objective",
    "nn": "module",
    "optim": "optimizer",
    "schedules": "schedule",
    "solvers": "solver",
    "samplers": "sampler",
    "probes": "probe",
    "lightning": "glue",
}
"""Room of the package -> what a public name of that room is."""


@dataclass(frozen=True)
class Method:
    """One public symbol that implements a paper, or a part of one."""

    symbol: Callable[..., Any]
    paper: str
    title: str
    oracle: str
    forward: int
    backward: int
    state_bytes: int
    scope: str
    claims: frozenset[str]

    @property
    def name(self) -> str:
        """Public name, e.g. ``AdamW``."""
        return self.symbol.__name__

    @property
    def room(self) -> str:
        """Room of the package that holds the symbol, e.g. ``optim``."""
        return self.symbol.__module__.split(".")[1]

    @property
    def path(self) -> str:
        """Public import path, e.g. ``steepest.optim.AdamW``."""
        return f"steepest.{self.room}.{self.name}"


_METHODS: list[Method] = []


def check_oracle(name: str) -> None:
    """Raise ``ValueError`` unless it is one of ``ORACLES``."""
    if name not in ORACLES:
        raise ValueError(f"unknown oracle {name!r}: choose one of {', '.join(ORACLES)}")


def method(
    *,
    paper: str,
    title: str,
    oracle: str,
    forward: int = 1,
    backward: int = 1,
    state_bytes: int = 0,
    scope: str = "element",
    claims: Iterable[str] = (),
) -> Callable[[Symbol], Symbol]:
    """Register a public class or function as the implementation of a paper.

    Args:
        paper: The paper's key in the book's bibliography.
        title: The paper's exact title (a test compares it with the bibliography).
        oracle: The oracle that one step queries, one of ``ORACLES``.
        forward: Forward passes per step.
        backward: Backward passes per step.
        state_bytes: Bytes of state per float32 parameter, with default arguments.
        scope: What a step couples, one of ``SCOPES``: with ``element`` it does not matter how
            parameters are cut into tensors, with ``tensor`` not how tensors are grouped.
        claims: Names of properties that the contract tests check, e.g. ``scale_invariant``.

    Raises:
        ValueError: If ``oracle`` or ``scope`` is not a known one.
    """
    if scope not in SCOPES:
        raise ValueError(f"unknown scope {scope!r}: choose one of {', '.join(SCOPES)}")
    check_oracle(oracle)

    def register(symbol: Symbol) -> Symbol:
        _METHODS.append(
            Method(
                symbol,
                paper,
                title,
                oracle,
                forward,
                backward,
                state_bytes,
                scope,
                frozenset(claims),
            )
        )
        return symbol

    return register


@cache
def _import_rooms(rooms: tuple[str, ...]) -> None:
    import steepest

    present = {module.name for module in pkgutil.iter_modules(steepest.__path__) if module.ispkg}
    for room in rooms:
        if room in present:
            importlib.import_module(f"steepest.{room}")


def methods(*rooms: str) -> list[Method]:
    """Every registered method of the given rooms (all rooms when none is given)."""
    _import_rooms(rooms or tuple(KINDS))
    return [m for m in _METHODS if not rooms or m.room in rooms]


def find_root(start: Path | None = None) -> Path | None:
    """Root of the repository that holds book, chapters and tests; None outside of one."""
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents, *Path(__file__).resolve().parents):
        if (folder / "_toc.yml").is_file() and (folder / "core" / "pyproject.toml").is_file():
            return folder
    return None


@cache
def _text(path: Path) -> str:
    return path.read_text("utf-8")


def _find_chapter(names: list[str], root: Path) -> str | None:
    """Section that explains a method: the Markdown target ``(name)=`` in a chapter's source."""
    for name in names:
        for source in sorted((root / "chapters").rglob("*.py")):
            if re.search(rf"^# \({name.lower()}\)=$", _text(source), re.MULTILINE):
                notebook = source.with_suffix(".ipynb").relative_to(root).as_posix()
                return f"{notebook}#{name.lower()}"
    return None


def _find_tests(names: list[str], rooms: set[str], root: Path) -> list[str]:
    """Test files of the method's rooms that name one of its symbols."""
    word = re.compile(rf"\b({'|'.join(map(re.escape, names))})\b")
    tests = root / "tests"
    return [
        path.relative_to(root).as_posix()
        for path in sorted(tests.rglob("test_*.py"))
        if path.relative_to(tests).parts[0] in rooms and word.search(_text(path))
    ]


def records(root: Path | None = None) -> list[dict[str, Any]]:
    """One JSON-ready record per paper, sorted by title.

    Chapter and tests are found in the repository at ``root``, not typed; outside of a
    repository they are ``None`` and empty.
    """
    root = root or find_root()
    papers: dict[str, list[Method]] = {}
    for m in methods():
        papers.setdefault(m.paper, []).append(m)
    rows = []
    rooms = list(KINDS)
    for paper, parts in papers.items():
        # What asks stands before what helps it to; and as rooms are ordered from parts to wholes,
        # an optimizer before its estimator.
        parts.sort(key=lambda part: (part.oracle == "none", -rooms.index(part.room)))
        first = parts[0]
        names = [part.name for part in parts]
        rows.append(
            {
                "paper": paper,
                "title": first.title,
                "symbols": [part.path for part in parts],
                "kind": KINDS[first.room],
                "oracle": first.oracle,
                "passes": {"forward": first.forward, "backward": first.backward},
                "state_bytes": first.state_bytes,
                "claims": sorted(set().union(*(part.claims for part in parts))),
                "chapter": _find_chapter(names, root) if root else None,
                "tests": _find_tests(names, {part.room for part in parts}, root) if root else [],
            }
        )
    return sorted(rows, key=lambda row: row["title"].lower())
