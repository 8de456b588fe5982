"""Two rules in one launch: what the first makes of the gradient, the second is given."""

from __future__ import annotations

import ast
from functools import cache
from typing import Any

from steepest.kernels._rule import Rule

PREFIX = "first_"
"""Put before the first rule's names, ``p`` and ``g`` excepted, to keep them apart."""


@cache
def compose(first: Rule, then: Rule) -> Rule:
    """A rule that changes the gradient by one rule, and updates the parameter by another.

    The gradient itself is read and not written: between the two it is a register.

    Args:
        first: A rule that returns ``g``, and what it remembers.
        then: An update rule.

    Returns:
        A rule with the tensors ``p``, ``g``, those of ``then`` under their names and those of
        ``first`` under their names after ``PREFIX``; numbers likewise.

    Raises:
        ValueError: If the first rule does not return ``g``, or writes the parameter.

    Example:
        >>> import steepest.optim
        >>> from steepest.kernels import RULES
        >>> compose(RULES["grokfast"], RULES["adagrad_norm"])
        run(p, g, first_mean; lr, root, first_lamb, first_beta)
    """
    if "g" not in first.written or "p" in first.written:
        raise ValueError(f"{first.__name__} cannot come first: it has to return g, and not p")

    def renamed(name: str) -> str:
        return name if name in ("p", "g") else PREFIX + name

    def run(*tensors: Any, **numbers: Any) -> tuple[Any, ...]:
        given = dict(zip(fused.tensors, tensors, strict=True))
        made = first(
            *(given[renamed(name)] for name in first.tensors),
            **{name: numbers[renamed(name)] for name in first.numbers},
        )
        changed = dict(zip(map(renamed, first.written), made, strict=True))
        g = changed.pop("g")
        updated = then(
            *({**given, "g": g}[name] for name in then.tensors),
            **{name: numbers[name] for name in then.numbers},
        )
        return (*updated, *changed.values())

    fused = Rule(
        run,
        (*then.tensors, *(renamed(n) for n in first.tensors if n not in ("p", "g"))),
        (*then.numbers, *map(renamed, first.numbers)),
        (*then.written, *(renamed(n) for n in first.written if n != "g")),
        (*(_rename(line) for line in first.body), *then.body),
        {**{renamed(n): _rename(text) for n, text in first.hoisted.items()}, **then.hoisted},
    )
    return fused


def _rename(text: str) -> str:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id not in ("p", "g", "xp"):
            node.id = PREFIX + node.id
    return ast.unparse(tree)
