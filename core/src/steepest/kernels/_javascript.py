"""A rule as JavaScript: the backend of a page in a browser, in double precision."""

from __future__ import annotations

import ast
import inspect
import json
import math
import textwrap
from collections.abc import Callable
from typing import Any

from steepest.kernels import _xp_torch
from steepest.kernels._rule import Rule

XP = """{
  abs: Math.abs, exp: Math.exp, log: Math.log, sqrt: Math.sqrt, sign: Math.sign,
  atan2: Math.atan2,
  maximum: (a, b) => Math.max(a, b),
  minimum: (a, b) => Math.min(a, b),
  where: (condition, a, b) => (condition ? a : b),
  sum: (term) => term,
}"""
"""The namespace ``xp`` as a JavaScript object. ``sum`` gives the term: who calls adds them up."""

# fmt: off
_RESERVED = frozenset((
    "arguments", "await", "case", "catch", "const", "debugger", "default", "delete", "do", "enum",
    "eval", "export", "extends", "function", "implements", "instanceof", "interface", "let", "new",
    "null", "package", "private", "protected", "public", "static", "super", "switch", "this",
    "throw", "typeof", "var", "void", "with", "yield",
))
# fmt: on
_OPERATORS: dict[type[ast.AST], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.Pow: "**",
    ast.USub: "-",
    ast.UAdd: "+",
    ast.Not: "!",
    ast.And: "&&",
    ast.Or: "||",
    ast.Eq: "===",
    ast.NotEq: "!==",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
}


def javascript(function: Rule | Callable[..., Any]) -> str:
    """JavaScript expression of a function: a rule, or one that makes a rule's numbers.

    Arithmetic is the function's own, operation by operation, in double precision. Of a rule, the
    result takes its tensors' elements in order and an object of its numbers, and returns a list
    of the new values of ``written``, or of the terms of ``sums``; it finds ``xp`` where it is
    evaluated (:data:`XP`).

    Args:
        function: Assignments and a return, made of arithmetic, comparisons, ``a if c else b``,
            subscripts, dictionaries, ``math``, ``xp``, and other such functions of its module. A
            method's ``self`` is dropped.

    Raises:
        ValueError: If the function has something else; the message says where.

    Example:
        >>> def shrink(p, *, lr):
        ...     return p * (1 - lr**2)
        >>> print(javascript(shrink))
        (function shrink(p, {lr}) {
          return (p * (1 - (lr ** 2)));
        })
    """
    helpers: dict[str, str] = {}
    if isinstance(function, Rule):
        main = _translate(function.function, helpers, listed=True)
    else:
        main = _translate(function, helpers)
    if not helpers:
        return f"({main})"
    made = "\n".join(f"const {name} = {text};" for name, text in helpers.items())
    return f"(() => {{\n{textwrap.indent(made, '  ')}\n  return {main};\n}})()"


def _translate(function: Callable[..., Any], helpers: dict[str, str], listed: bool = False) -> str:
    definition = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(definition, ast.FunctionDef)
    body = definition.body
    if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        body = body[1:]  # a docstring
    last = body[-1]
    if listed and isinstance(last, ast.Return) and isinstance(last.value, ast.Name):
        last.value = ast.List([last.value], ast.Load())
    given = [a.arg for a in definition.args.args if a.arg != "self"]
    keywords = [a.arg for a in definition.args.kwonlyargs]
    writer = _Writer(function, helpers, {*given, *keywords})
    lines = [writer.statement(statement) for statement in body]
    arguments = [*map(_name, given)]
    if keywords:
        arguments.append(f"{{{', '.join(map(_key, keywords))}}}")
    new = sorted(writer.local - {*given, *keywords})
    declared = [f"let {', '.join(map(_name, new))};"] if new else []
    text = textwrap.indent("\n".join([*declared, *lines]), "  ")
    return f"function {definition.name}({', '.join(arguments)}) {{\n{text}\n}}"


def _name(name: str) -> str:
    return f"{name}_" if name in _RESERVED else name


def _key(name: str) -> str:
    return f"{name}: {name}_" if name in _RESERVED else name


class _Writer:
    """Statements and expressions of one function, as text."""

    def __init__(
        self, function: Callable[..., Any], helpers: dict[str, str], local: set[str]
    ) -> None:
        self.function = function
        self.helpers = helpers
        self.local = local
        self.known = getattr(function, "__globals__", {})

    def statement(self, node: ast.stmt) -> str:
        if isinstance(node, ast.Return) and node.value is not None:
            return f"return {self.text(node.value)};"
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target = node.targets[0]
            names = target.elts if isinstance(target, ast.Tuple) else [target]
            if all(isinstance(name, ast.Name) for name in names):
                found = [name.id for name in names if isinstance(name, ast.Name)]
                value = self.text(node.value)
                self.local |= {*found}
                left = ", ".join(map(_name, found))
                return f"{f'[{left}]' if isinstance(target, ast.Tuple) else left} = {value};"
        raise self._error(node)

    def text(self, node: ast.expr) -> str:
        match node:
            case ast.Constant(value=None | bool() | int() | float() | str() as value):
                return json.dumps(value)
            case ast.Name(id=name) if name in self.local:
                return _name(name)
            case ast.BinOp(left=a, op=op, right=b) if type(op) in _OPERATORS:
                return f"({self.text(a)} {_OPERATORS[type(op)]} {self.text(b)})"
            case ast.UnaryOp(op=op, operand=a) if type(op) in _OPERATORS:
                return f"({_OPERATORS[type(op)]}{self.text(a)})"
            case ast.BoolOp(op=op, values=values):
                return f"({f' {_OPERATORS[type(op)]} '.join(map(self.text, values))})"
            case ast.Compare(left=a, ops=[op], comparators=[b]) if type(op) in _OPERATORS:
                return f"({self.text(a)} {_OPERATORS[type(op)]} {self.text(b)})"
            case ast.IfExp(test=test, body=a, orelse=b):
                return f"({self.text(test)} ? {self.text(a)} : {self.text(b)})"
            case ast.Subscript(value=a, slice=index):
                return f"{self.text(a)}[{self.text(index)}]"
            case ast.Tuple(elts=elements) | ast.List(elts=elements):
                return f"[{', '.join(map(self.text, elements))}]"
            case ast.Dict(keys=keys, values=values):
                pairs = zip(keys, values, strict=True)
                items = [
                    f"...{self.text(v)}" if k is None else f"{self.text(k)}: {self.text(v)}"
                    for k, v in pairs
                ]
                return f"{{{', '.join(items)}}}"
            case ast.Call(func=called, args=arguments, keywords=[]):
                return self._call(node, called, arguments)
        raise self._error(node)

    def _call(self, node: ast.expr, called: ast.expr, arguments: list[ast.expr]) -> str:
        match called, arguments:
            case ast.Name(id="float"), [value]:
                return self.text(value)
            case ast.Name(id="map"), [ast.Name(id="float"), value]:
                return self.text(value)
        values = ", ".join(map(self.text, arguments))
        match called:
            case ast.Attribute(value=ast.Name(id=module), attr=name):
                if self.known.get(module) is _xp_torch:
                    return f"xp.{name}({values})"
                if self.known.get(module) is math:
                    return f"Math.{name}({values})"
            case ast.Name(id=name) if inspect.isfunction(self.known.get(name)):
                if name not in self.helpers:
                    self.helpers[name] = _translate(self.known[name], self.helpers)
                return f"{name}({values})"
        raise self._error(node)

    def _error(self, node: ast.AST) -> ValueError:
        name = getattr(self.function, "__qualname__", repr(self.function))
        return ValueError(f"{name} is not plain arithmetic for JavaScript: {ast.unparse(node)}")
