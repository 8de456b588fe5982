"""Checks of hyper-parameters, by name, and of checkpoints, shared by every optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor


def _finite(low: float, *, strict: bool = False) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        x = float(value)
        return math.isfinite(x) and (x > low if strict else x >= low)

    return check


def _decays(value: Any) -> bool:
    return len(value) == 2 and all(0.0 <= float(beta) < 1.0 for beta in value)


def _momenta(value: Any) -> bool:
    return len(value) == 3 and float(value[0]) < 1.0 and all(map(_finite(0.0), value))


CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "lr": (_finite(0.0), "a finite number >= 0"),
    "eps": (_finite(0.0), "a finite number >= 0"),
    "weight_decay": (_finite(0.0), "a finite number >= 0"),
    "betas": (_decays, "two numbers in [0, 1)"),
    "momentum": (lambda value: 0.0 <= float(value) < 1.0, "a number in [0, 1)"),
    "a": (_finite(0.0, strict=True), "a finite number > 0"),
    "b": (_finite(0.0, strict=True), "a finite number > 0"),
    "ridge": (_finite(0.0, strict=True), "a finite number > 0"),
    "floor": (lambda value: 0.0 <= float(value) <= 1.0, "a number in [0, 1]"),
    "beta": (lambda value: 0.0 <= float(value) < 1.0, "a number in [0, 1)"),
    "alpha": (_finite(0.0), "a finite number >= 0"),
    "radius": (_finite(0.0, strict=True), "a finite number > 0"),
    "free_steps": (lambda value: isinstance(value, int) and value >= 0, "a whole number >= 0"),
    "warmup": (lambda value: isinstance(value, int) and value >= 0, "a whole number >= 0"),
    "rho": (_finite(0.0), "a finite number >= 0"),
    "power": (lambda value: 0.0 < float(value) <= 1.0, "a number in (0, 1]"),
    "samples": (lambda value: isinstance(value, int) and value >= 1, "a whole number >= 1"),
    "window": (lambda value: isinstance(value, int) and value >= 1, "a whole number >= 1"),
    "friction": (_finite(0.0), "a finite number >= 0"),
    "damping": (_finite(0.0, strict=True), "a finite number > 0"),
    "sigma": (lambda value: 0.0 <= float(value) < 1.0, "a number in [0, 1)"),
    "lookahead": (_finite(0.0), "a finite number >= 0"),
    "seed": (lambda value: isinstance(value, int), "a whole number"),
    "momenta": (_momenta, "three finite numbers >= 0, the first below 1"),
    "reps_rel": (_finite(0.0, strict=True), "a finite number > 0"),
    "l1": (_finite(0.0), "a finite number >= 0"),
    "l2": (_finite(0.0), "a finite number >= 0"),
    "lamb": (_finite(0.0), "a finite number >= 0"),
    "eta": (_finite(0.0), "a finite number >= 0"),
    "gamma": (_finite(0.0), "a finite number >= 0"),
    "c": (lambda value: 0.0 <= float(value) < 1.0, "a number in [0, 1)"),
    "period": (lambda value: isinstance(value, int) and value >= 0, "a whole number >= 0"),
    "eta0": (_finite(0.0, strict=True), "a finite number > 0"),
    "truncation": (_finite(0.0, strict=True), "a finite number > 0"),
    "warm": (lambda value: isinstance(value, int) and value >= 1, "a whole number >= 1"),
    "f_star": (lambda value: math.isfinite(float(value)), "a finite number"),
    "max_norm": (lambda value: float(value) > 0.0, "a number > 0, or infinity"),
    "drift": (_finite(0.0), "a finite number >= 0"),
    "diffusion": (lambda value: value is None or _finite(0.0)(value), "a finite number >= 0"),
    "width": (_finite(0.0), "a finite number >= 0"),
    "sigma0": (_finite(0.0, strict=True), "a finite number > 0"),
    "sigma_lr": (lambda value: value is None or _finite(0.0)(value), "a finite number >= 0"),
    "clip": (lambda value: value is None or float(value) > 0.0, "a number > 0, or None"),
    "population": (lambda value: isinstance(value, int) and value >= 2, "a whole number >= 2"),
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
            # A file's "1e-3" may be text, on which a schedule would fail later.
            good = not isinstance(value, str) and check(value)
        except (TypeError, ValueError):
            good = False
        if not good:
            raise ValueError(f"{optimizer}: {name}={value!r} is not valid: give {allowed}")
    if values.get("decouple_lr") and float(values.get("base_lr", values["lr"])) == 0:
        raise ValueError(f"{optimizer}: decouple_lr=True needs an initial lr above 0")


def check_unwrapped(name: str, state_dict: Mapping[str, Any]) -> None:
    """Raise where a checkpoint has the memory of a wrapper that is not here.

    Args:
        name: Of the optimizer or wrapper that loads, for the message.
        state_dict: What it is to load, without its own entry.
    """
    for wrapper, own in state_dict.items():
        if isinstance(own, Mapping) and own.get("around") == name:
            raise ValueError(
                f"the state_dict is of {wrapper.rstrip('+')} around {name}: load it into such a "
                f"one, or leave out its entry {wrapper!r} to go on without"
            )


def check_shapes(
    name: str, params: Sequence[Tensor], entries: Mapping[int, Mapping[str, Any]]
) -> None:
    """Raise where what a checkpoint says of a parameter is not of its shape.

    Args:
        name: Of the optimizer, for the message.
        params: The parameters.
        entries: By index of the parameter, tensors by name: a number, of the parameter's shape,
            or several of these in a row.
    """
    for i, entry in entries.items():
        if i >= len(params):
            raise ValueError(f"{name}: the state_dict has a parameter {i}, and here are fewer")
        shape = params[i].shape
        for key, t in entry.items():
            if isinstance(t, Tensor) and t.ndim and t.shape[t.ndim - len(shape) :] != shape:
                raise ValueError(
                    f"{name}: {key} of parameter {i} has shape {tuple(t.shape)}, the parameter "
                    f"{tuple(shape)}: load it into the same model"
                )
