r"""An update rule, written once as scalar arithmetic, run by every backend.

A rule is a function of one element of each tensor and of the step's scalars::

    @rule
    def sgd(p, g, *, lr):
        # $\theta \leftarrow \theta - \eta\, g$
        p = p - lr * g
        return p

Positional arguments are tensors (``p`` the parameter, ``g`` its gradient, then state),
keyword-only ones are numbers, and the names that it returns are what it writes. The comment
above a line is that line's equation in TeX, between dollars. Maths is an attribute of ``xp``.

A reduction is the same with sums over a tensor's elements, and writes nothing::

    @reduction
    def squares(p, g):
        # $\lVert g \rVert^2$
        gg = xp.sum(g * g)
        return gg

Called with tensors, a rule is its own torch reference. The other backends are generated from
its syntax tree after one transformation: what depends on numbers alone (``1 - beta2``,
``lr / c1``) is computed once a step on the host, in double precision, as torch does with Python
numbers. So the backends agree up to the rounding of single operations (1 - 0.999 in float32 would
be off by 5e-5 of its value), and a moving learning rate is only data: nothing recompiles.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from steepest._listing import source_lines, table
from steepest.kernels import _xp_torch

RULES: dict[str, Rule] = {}
"""Every rule by name, for the tests that run all of them on all backends."""

REDUCTIONS: dict[str, Rule] = {}
"""Every reduction by name."""


@dataclass(frozen=True, eq=False, repr=False)
class Rule:
    """A parsed rule. Make one with the decorator :func:`rule` or :func:`reduction`."""

    function: Callable[..., Any]
    tensors: tuple[str, ...]
    """Names of the tensors, parameter first, gradient second."""
    numbers: tuple[str, ...]
    """Names of the step's numbers (learning rate, bias corrections, ...)."""
    written: tuple[str, ...]
    """Names of the tensors that the rule updates."""
    body: tuple[str, ...]
    """Elementwise statements after hoisting, as source text."""
    hoisted: dict[str, str]
    """Name used in ``body`` -> expression in the numbers alone, in order of evaluation."""
    sums: tuple[str, ...] = ()
    """Names that a reduction sums over the elements of each tensor."""

    @property
    def __name__(self) -> str:
        return self.function.__name__

    def __call__(self, *tensors: Tensor, **numbers: float | Tensor) -> tuple[Tensor, ...]:
        """Torch reference: return the new values of ``written``, or ``sums``; change nothing."""
        out = self.function(*tensors, **numbers)
        return out if isinstance(out, tuple) else (out,)

    def scalars(self, numbers: Mapping[str, Any]) -> list[Any]:
        """Values of the hoisted expressions in double precision, in the order of ``hoisted``.

        Of numbers that are tensors, one value for each parameter, they are tensors too.
        """
        scope = {
            name: number.double() if isinstance(number, Tensor) else float(number)
            for name, number in ((name, numbers[name]) for name in self.numbers)
        }
        for name, code in self._prelude:
            scope[name] = eval(code, {"xp": _xp_torch}, scope)
        return [scope[name] for name in self.hoisted]

    @cached_property
    def _prelude(self) -> list[tuple[str, Any]]:
        return [(name, compile(text, "<rule>", "eval")) for name, text in self.hoisted.items()]

    @cached_property
    def lines(self) -> list[tuple[str, str]]:
        """Pairs of an equation (TeX, may be empty) and the source line that computes it."""
        found = source_lines(self.function)
        return [(tex, line) for tex, line in found if not line.startswith("return")]

    def __repr__(self) -> str:
        return f"{self.__name__}({', '.join(self.tensors)}; {', '.join(self.numbers)})"

    def _repr_markdown_(self) -> str:
        """Show each equation beside its line in a notebook."""
        return table(repr(self), self.lines)


_OWN = {
    *("pointers", "table", "scalars", "which", "sizes", "tensor", "first", "partial"),
    *("T", "grad_scale"),
}
"""Names of a kernel's own arguments."""


def rule(function: Callable[..., Any]) -> Rule:
    """Parse a function of scalars into a :class:`Rule`.

    Raises:
        ValueError: If the function is not plain arithmetic: one assignment a line, ``xp.name``
            for maths, no loops, branches or powers, and a return of tensor names.

    Example:
        >>> import steepest.optim
        >>> RULES["adagrad_norm"]
        adagrad_norm(p, g; lr, root)
        >>> RULES["adagrad_norm"].hoisted
        {'rate': 'lr / root'}
    """
    tensors, numbers, statements, last = _parse(function)
    hoister = _Hoister(function.__name__, set(numbers))
    body = [ast.unparse(kept) for s in statements if (kept := hoister.assign(s)) is not None]
    parsed = Rule(
        function, tensors, numbers, _returned(last, tensors), tuple(body), hoister.hoisted
    )
    RULES[function.__name__] = parsed
    return parsed


def reduction(function: Callable[..., Any]) -> Rule:
    """Parse a function of scalars into a :class:`Rule` that writes nothing and returns sums.

    Raises:
        ValueError: As for :func:`rule`; and if a returned name is not the sum of something,
            ``name = xp.sum(expression)``, or a sum is used before the return.

    Example:
        >>> import torch, steepest.optim
        >>> square = REDUCTIONS["gradient_square"]
        >>> square.sums, square(torch.zeros(2), torch.tensor([3.0, 4.0]))
        (('gg',), (tensor(25., dtype=torch.float64),))
    """
    tensors, numbers, statements, last = _parse(function)
    hoister = _Hoister(function.__name__, set(numbers))
    body: list[str] = []
    sums: list[str] = []
    for statement in statements:
        if used := {n.id for n in ast.walk(statement) if isinstance(n, ast.Name)} & {*sums}:
            raise ValueError(f"reduction {function.__name__} uses the sum {used.pop()}: return it")
        if isinstance(statement, ast.Assign) and _is_sum(statement.value):
            assert isinstance(statement.value, ast.Call)
            sums.append(ast.unparse(statement.targets[0]))
            statement.value = statement.value.args[0]
        if (kept := hoister.assign(statement)) is not None:
            body.append(ast.unparse(kept))
    parsed = Rule(
        function, tensors, numbers, (), tuple(body), hoister.hoisted, _returned(last, tuple(sums))
    )
    REDUCTIONS[function.__name__] = parsed
    return parsed


def _parse(
    function: Callable[..., Any],
) -> tuple[tuple[str, ...], tuple[str, ...], list[ast.stmt], ast.stmt]:
    """Names of tensors and numbers, the statements, and the return."""
    definition = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(definition, ast.FunctionDef)
    tensors = tuple(a.arg for a in definition.args.args)
    numbers = tuple(a.arg for a in definition.args.kwonlyargs)
    if reserved := [
        name for name in (*tensors, *numbers) if name.strip("_") != name or name in _OWN
    ]:
        raise ValueError(f"a rule cannot use the name {reserved[0]}: kernels use it")
    *statements, last = _skip_docstring(definition.body)
    return tensors, numbers, statements, last


def _skip_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0]
    return (
        body[1:] if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) else body
    )


def _is_sum(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Call)
        and _is_xp(node.func)
        and ast.unparse(node.func) == "xp.sum"
        and len(node.args) == 1
    )


def _returned(last: ast.stmt, tensors: tuple[str, ...]) -> tuple[str, ...]:
    value = last.value if isinstance(last, ast.Return) else None
    items = value.elts if isinstance(value, ast.Tuple) else [value]
    names = tuple(item.id for item in items if isinstance(item, ast.Name))
    if not names or len(names) != len(items) or not set(names) <= set(tensors):
        raise ValueError(
            "a rule ends by returning names of its tensors, return p, m, v; a reduction names of "
            "its sums"
        )
    return names


class _Hoister(ast.NodeTransformer):
    """Replace every largest expression in numbers alone by a name, and remember it."""

    _operators = (ast.Add, ast.Sub, ast.Mult, ast.Div)

    def __init__(self, rule_name: str, numbers: set[str]) -> None:
        self.rule_name = rule_name
        self.numbers = numbers
        self.hoisted: dict[str, str] = {}

    def assign(self, statement: ast.stmt) -> ast.stmt | None:
        """Transform ``name = expression``; None if all of it was hoisted."""
        if not (
            isinstance(statement, ast.Assign)
            and len(statement.targets) == 1
            and isinstance(statement.targets[0], ast.Name)
        ):
            raise self._error(statement, "has a statement other than `name = expression`")
        if self._is_number(statement.value):
            name = statement.targets[0].id
            self.hoisted[name] = ast.unparse(statement.value)
            self.numbers.add(name)
            return None
        statement.value = self.visit(statement.value)
        return statement

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, ast.expr) and self._is_number(node):
            text = ast.unparse(node)
            known = {expression: name for name, expression in self.hoisted.items()}
            if isinstance(node, ast.Name):
                name = node.id
                self.hoisted.setdefault(name, name)
            else:
                name = known.get(text, f"_k{len(self.hoisted)}")
                self.hoisted[name] = text
            return ast.Name(name, ast.Load())
        if isinstance(node, ast.BinOp) and not isinstance(node.op, self._operators):
            raise self._error(node, "uses an operator other than + - * / (write g * g)")
        if isinstance(node, ast.Call):
            if not _is_xp(node.func) or node.keywords:
                raise self._error(node, "calls something other than xp.name(values)")
            node.args = [self.visit(argument) for argument in node.args]
            return node
        if not isinstance(
            node,
            ast.BinOp
            | ast.UnaryOp
            | ast.Compare
            | ast.Name
            | ast.operator
            | ast.unaryop
            | ast.cmpop
            | ast.expr_context,
        ):
            raise self._error(node, "is more than arithmetic")
        return self.generic_visit(node)

    def _is_number(self, node: ast.AST) -> bool:
        if isinstance(node, ast.Constant):
            return isinstance(node.value, int | float)
        if isinstance(node, ast.Name):
            return node.id in self.numbers
        if isinstance(node, ast.UnaryOp):
            return self._is_number(node.operand)
        if isinstance(node, ast.BinOp):
            return self._is_number(node.left) and self._is_number(node.right)
        if isinstance(node, ast.Call):
            return _is_xp(node.func) and all(map(self._is_number, node.args))
        return False

    def _error(self, node: ast.AST, what: str) -> ValueError:
        return ValueError(f"rule {self.rule_name} {what}: {ast.unparse(node)}")


def _is_xp(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "xp"
    )
