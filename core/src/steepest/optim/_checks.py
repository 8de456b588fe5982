"""Checks of hyper-parameters, by name, shared by every optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any


def _finite(low: float, *, strict: bool = False) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        x = float(value)
        return math.isfinite(x) and (x > low if strict else x >= low)

    return check


def _decays(value: Any) -> bool:
    return len(value) == 2 and all(0.0 <= float(beta) < 1.0 for beta in value)


CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "lr": (_finite(0.0), "a finite number >= 0"),
    "eps": (_finite(0.0), "a finite number >= 0"),
    "weight_decay": (_finite(0.0), "a finite number >= 0"),
    "betas": (_decays, "two numbers in [0, 1)"),
    "momentum": (lambda value: 0.0 <= float(value) < 1.0, "a number in [0, 1)"),
    "a": (_finite(0.0, strict=True), "a finite number > 0"),
    "b": (_finite(0.0, strict=True), "a finite number > 0"),
    "ridge": (_finite(0.0, strict=True), "a finite number > 0"),
    "window": (lambda value: isinstance(value, int) and value >= 1, "a whole number >= 1"),
}


def check_hyperparameters(optimizer: str, values: Mapping[str, Any]) -> None:
    """Check every value that has a known name.

    Raises:
        ValueError: If a value is out of its range; the message says what is allowed.
    """
    for name, value in values.items():
        check, allowed = CHECKS.get(name, (None, ""))
        if check is None:
            continue
        try:
            good = check(value)
        except (TypeError, ValueError):
            good = False
        if not good:
            raise ValueError(f"{optimizer}: {name}={value!r} is not valid: give {allowed}")
    if values.get("decouple_lr") and float(values.get("base_lr", values["lr"])) == 0:
        raise ValueError(f"{optimizer}: decouple_lr=True needs an initial lr above 0")
