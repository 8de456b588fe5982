r"""A function's source as a table: each equation beside the line that computes it.

An equation is a comment in TeX, between dollars, above its line::

    # $\hat\theta = \theta + \rho\, g / \lVert g \rVert$
    ahead = p + rho / norm * g
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

Line = tuple[str, str]
"""An equation (TeX, may be empty) and a line of source, indented."""


class Listing:
    """Source of functions, which a notebook shows as a table. Made by :func:`listing`."""

    def __init__(
        self, functions: tuple[Callable[..., Any], ...], start: str | None, stop: str | None
    ) -> None:
        self.parts = [(_head(f), _cut(source_lines(f), start, stop)) for f in functions]

    def __repr__(self) -> str:
        return f"listing({', '.join(head.partition('(')[0] for head, _ in self.parts)})"

    def _repr_markdown_(self) -> str:
        """Show each equation beside its line in a notebook."""
        return "\n\n".join(table(head, lines) for head, lines in self.parts)


def listing(*functions: Any, start: str | None = None, stop: str | None = None) -> Listing:
    """Show functions or methods of the package, each equation beside the line that computes it.

    The last line of a notebook's cell, or the argument of ``display``. What is shown is the source
    as it is, without signature types, docstring and empty lines.

    Args:
        functions: Functions, methods or properties; or their names below ``steepest``, which also
            finds what a room does not export, such as ``"optim.gsnr"``.
        start: Text of the first line to show; all of the function by default.
        stop: Text of the first line after it that is not shown any more.

    Raises:
        ValueError: If nothing is given, there is nothing of that name, or no line has the text of
            ``start`` or ``stop``.
        TypeError: If what is given has no source in Python.

    Example:
        >>> from steepest.optim import SAM
        >>> listing(SAM.query, SAM.update)
        listing(optim.SAM.query, optim.SAM.update)
    """
    if not functions:
        raise ValueError("listing() needs a function to show, such as listing(SAM.update)")
    return Listing(tuple(map(_function, functions)), start, stop)


def find(path: str) -> Any:
    """What ``optim.SAM.update`` names, or ``optim.gsnr``, in a room or in one of its modules.

    Raises:
        ValueError: If there is nothing of that name.
    """
    room, _, rest = path.partition(".")
    first, *others = rest.split(".")
    try:
        home = importlib.import_module(f"steepest.{room}")
    except ImportError:
        raise ValueError(f"{path!r}: there is no steepest.{room}") from None
    for holder in (home, *filter(inspect.ismodule, vars(home).values())):
        if hasattr(holder, first):
            found: Any = getattr(holder, first)
            for name in others:
                found = inspect.getattr_static(found, name, None)
            if found is not None:
                return found
    raise ValueError(f"there is no {path!r} in steepest")


def source_lines(function: Callable[..., Any]) -> list[Line]:
    """Lines of a function's body, without docstring, empty lines and marks for linters."""
    source, definition = _parsed(function)
    above, first = definition.body[0], definition.body[0].lineno
    if (
        isinstance(above, ast.Expr)
        and isinstance(above.value, ast.Constant)
        and isinstance(above.value.value, str)
    ):
        first = (above.end_lineno or first) + 1
    while first > 1 and source[first - 2].strip().startswith("#"):
        first -= 1
    body = textwrap.dedent("\n".join(source[first - 1 :])).splitlines()
    found: list[Line] = []
    equation = ""
    for line in body:
        text = re.sub(r"\s*# (noqa|type:).*", "", line).rstrip()
        if tex := re.fullmatch(r"\s*# \$(.+)\$", text):
            equation = f"{equation} {_bars(tex[1])}".strip()
        elif text:
            found.append((equation, text))
            equation = ""
    return found


def table(head: str, lines: Iterable[Line]) -> str:
    """Markdown: a row a line, indented by spaces that survive in a cell."""
    rows = [f"| equation | {_code(head)} |", "|:--|:--|"]
    for tex, line in lines:
        text = line.lstrip()
        indent = "&emsp;" * ((len(line) - len(text)) // 2)
        rows.append(f"| {f'${tex}$' if tex else ''} | {indent}{_code(text)} |")
    return "\n".join(rows)


def _bars(tex: str) -> str:
    r"""TeX without bare bars, which would end a table's cell."""
    return tex.replace(r"\|", r"\Vert ").replace("|", r"\vert ")


def _code(text: str) -> str:
    fence = "``" if "`" in text else "`"
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text.replace('|', chr(92) + '|')}{pad}{fence}"


def _function(thing: Any) -> Callable[..., Any]:
    """The function behind a name, a property, a method or a decorator."""
    thing = find(thing) if isinstance(thing, str) else thing
    thing = getattr(thing, "fget", None) or getattr(thing, "__func__", thing)
    thing = inspect.unwrap(thing)
    if not inspect.isfunction(thing):
        raise TypeError(f"{thing!r} is no Python function: pass one, such as SAM.update")
    return thing


def _parsed(function: Callable[..., Any]) -> tuple[list[str], ast.FunctionDef]:
    text = textwrap.dedent(inspect.getsource(function))
    definition = ast.parse(text).body[0]
    assert isinstance(definition, ast.FunctionDef)
    return text.splitlines(), definition


def _head(function: Callable[..., Any]) -> str:
    """``optim.SAM.update(self, answers)``: the room, the name and the arguments' names."""
    _, definition = _parsed(function)
    a = definition.args
    names = [arg.arg for arg in (*a.posonlyargs, *a.args)]
    if a.vararg or a.kwonlyargs:
        names.append(f"*{a.vararg.arg if a.vararg else ''}")
    names += [arg.arg for arg in a.kwonlyargs]
    names += [f"**{a.kwarg.arg}"] if a.kwarg else []
    package, _, rest = function.__module__.partition(".")
    room = f"{rest.partition('.')[0]}." if package == "steepest" else ""
    return f"{room}{function.__qualname__}({', '.join(names)})"


def _cut(lines: list[Line], start: str | None, stop: str | None) -> list[Line]:
    first = 0 if start is None else _find(lines, start, 0)
    last = len(lines) if stop is None else _find(lines, stop, first + 1)
    shown = lines[first:last]
    edge = min(len(line) - len(line.lstrip()) for _, line in shown)
    return [(tex, line[edge:]) for tex, line in shown]


def _find(lines: list[Line], text: str, begin: int) -> int:
    for i, (_, line) in enumerate(lines[begin:], begin):
        if text in line:
            return i
    raise ValueError(f"no line has {text!r}: {[line for _, line in lines[begin:]]}")
