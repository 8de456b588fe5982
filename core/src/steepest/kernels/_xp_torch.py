"""The namespace ``xp`` of an update rule, for torch: the definition of each function.

The other backends have the same names with the same meaning (``_xp_numba``, ``_xp_triton``);
a test compares them. Arguments are tensors or numbers; numbers alone give a number, in double
precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

Value: TypeAlias = Tensor | float


def _unary(on_tensor: Callable[[Tensor], Tensor], on_number: Callable[[float], float]) -> Any:
    def function(x: Value) -> Value:
        return on_tensor(x) if isinstance(x, Tensor) else on_number(x)

    return function


def _binary(
    on_tensors: Callable[[Tensor, Tensor], Tensor], on_numbers: Callable[[float, float], float]
) -> Any:
    def function(a: Value, b: Value) -> Value:
        if not isinstance(a, Tensor) and not isinstance(b, Tensor):
            return on_numbers(a, b)
        like = a if isinstance(a, Tensor) else b
        assert isinstance(like, Tensor)
        x, y = (
            v if isinstance(v, Tensor) else torch.full((), v, dtype=like.dtype, device=like.device)
            for v in (a, b)
        )
        return on_tensors(x, y)

    return function


abs = _unary(torch.abs, math.fabs)
exp = _unary(torch.exp, math.exp)
log = _unary(torch.log, math.log)
sqrt = _unary(torch.sqrt, math.sqrt)
sign = _unary(torch.sign, lambda x: float((x > 0) - (x < 0)))
maximum = _binary(torch.maximum, max)
minimum = _binary(torch.minimum, min)
atan2 = _binary(torch.atan2, math.atan2)


def where(condition: Tensor | bool, a: Value, b: Value) -> Value:
    """``a`` where the condition holds, else ``b``."""
    if isinstance(condition, Tensor):
        return torch.where(condition, a, b)
    return a if condition else b


def sum(x: Tensor) -> Tensor:
    """Sum over all elements, in double precision. Only for reductions, which generate it."""
    return x.sum(dtype=torch.float64)
