"""Optimizers by name."""

from __future__ import annotations

import builtins
import difflib
import inspect
from typing import Any

import torch

from steepest._registry import Method, check_oracle, methods
from steepest.optim._base import Params
from steepest.optim._wrapper import Wrapper


def _optimizers() -> dict[str, Method]:
    return {m.name: m for m in methods("optim") if isinstance(m.symbol, type)}


def find(name: str) -> type[torch.optim.Optimizer]:
    """Optimizer class of a name; case, ``-`` and ``_`` do not matter.

    Raises:
        ValueError: If there is none; the message suggests the nearest names.

    Example:
        >>> find("adam-atan2").__name__
        'AdamAtan2'
    """

    def plain(text: str) -> str:
        return text.lower().replace("-", "").replace("_", "")

    known = {plain(key): m.symbol for key, m in _optimizers().items()}
    if plain(name) in known:
        return known[plain(name)]  # type: ignore[return-value]
    near = difflib.get_close_matches(plain(name), known, n=3, cutoff=0.5)
    names = ", ".join(known[key].__name__ for key in near) or ", ".join(sorted(_optimizers()))
    raise ValueError(f"there is no optimizer {name!r}: did you mean {names}?")


def create(name: str, params: Params, *, base: str = "SGDW", **hyper: Any) -> torch.optim.Optimizer:
    """Make an optimizer by name.

    Args:
        name: Its name, as for :func:`find`.
        params: Parameters or groups.
        base: Where the name is of a wrapper, such as SAM: name of the optimizer to wrap.
        **hyper: Its hyper-parameters; those that a wrapper does not have are its base's.

    Raises:
        ValueError: If there is no such optimizer, or a hyper-parameter is out of its range.
        TypeError: If it has no such hyper-parameter.

    Example:
        >>> import torch
        >>> create("adamw", [torch.nn.Parameter(torch.zeros(2))], lr=3e-4).defaults["lr"]
        0.0003
        >>> type(create("sam", [torch.nn.Parameter(torch.zeros(2))], rho=0.1, lr=0.5).optimizer)
        <class 'steepest.optim._adamw.SGDW'>
    """
    cls = find(name)
    if not issubclass(cls, Wrapper):
        return cls(params, **hyper)
    own = {key: hyper.pop(key) for key in [*hyper] if key in inspect.signature(cls).parameters}
    inner = find(base)
    if not issubclass(inner, Wrapper):
        for key in hyper:
            if key not in inspect.signature(inner).parameters:
                raise TypeError(
                    f"neither {cls.__name__} nor {inner.__name__} has a hyper-parameter {key!r}"
                )
    return cls(create(base, params, **hyper), **own)


def list(
    *,
    oracle: str | None = None,
    max_state_bytes: float | None = None,
    max_backward: int | None = None,
    claims: set[str] | frozenset[str] = frozenset(),
) -> builtins.list[str]:
    """Names of the optimizers that fit.

    Args:
        oracle: The oracle that a step queries, e.g. ``gradient``.
        max_state_bytes: Most bytes of state per float32 parameter.
        max_backward: Most backward passes per step.
        claims: Properties that the contract tests have checked, e.g. ``{"scale_invariant"}``.

    Raises:
        ValueError: If there is no such oracle.

    Example:
        >>> found = list(claims={"scale_invariant"}, max_state_bytes=8)
        >>> [name for name in found if name.startswith("Adam")]
        ['Adam', 'AdamAtan2', 'AdamW']
    """
    if oracle is not None:
        check_oracle(oracle)
    return sorted(
        name
        for name, m in _optimizers().items()
        if (oracle is None or m.oracle == oracle)
        and (max_state_bytes is None or m.state_bytes <= max_state_bytes)
        and (max_backward is None or m.backward <= max_backward)
        and claims <= m.claims
    )
