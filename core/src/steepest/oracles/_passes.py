"""What the oracles share: parameters, directions, and the settings under which a pass runs."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.nn.attention import SDPBackend, sdpa_kernel

Over = torch.nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]]


def trainable(over: Over) -> list[Tensor]:
    """Tensors that require a gradient, each once; see :func:`named`."""
    return named(over)[1]


def named(over: Over) -> tuple[list[str] | None, list[Tensor]]:
    """Names, where there are any, and tensors that require a gradient, each once.

    Raises:
        TypeError: If something in the iterable is not a tensor.
        ValueError: If nothing requires a gradient, or two have the same name.
    """
    given: list[Any] = list(over.named_parameters() if isinstance(over, torch.nn.Module) else over)
    pairs = given and all(isinstance(item, tuple) and len(item) == 2 for item in given)
    names, tensors = zip(*given, strict=True) if pairs else (range(len(given)), given)
    params: dict[int, tuple[str, Tensor]] = {}
    for name, p in zip(names, tensors, strict=True):
        if not isinstance(p, Tensor):
            raise TypeError(f"parameter {name} is of type {type(p).__name__}, not a tensor")
        if p.requires_grad:
            params.setdefault(id(p), (name, p))
    if not params:
        raise ValueError(
            f"none of the {len(given)} parameters requires a gradient: unfreeze some with "
            "requires_grad_(True)"
        )
    kept = list(params.values())
    if pairs and len({name for name, _ in kept}) < len(kept):
        raise ValueError(
            "two parameters have the same name: take names from one module that holds them all, "
            "model.named_parameters(), or pass no names"
        )
    return [name for name, _ in kept] if pairs else None, [p for _, p in kept]


def check_directions(params: Sequence[Tensor], directions: Iterable[Tensor]) -> list[Tensor]:
    """Directions as a detached list, one for each parameter, like it in shape, dtype and device.

    Raises:
        TypeError: If something in the list is not a tensor.
        ValueError: If length, a shape, a dtype or a device differs.
    """
    if isinstance(directions, Tensor):
        raise TypeError("directions is a tensor: pass a list, one tensor for each parameter")
    given = list(directions)
    if len(given) != len(params):
        raise ValueError(f"{len(given)} directions for {len(params)} parameters")
    for i, (p, v) in enumerate(zip(params, given, strict=True)):
        if not isinstance(v, Tensor):
            raise TypeError(f"direction {i} is of type {type(v).__name__}, not a tensor")
        own, wanted = (v.shape, v.dtype, v.device), (p.shape, p.dtype, p.device)
        if own != wanted:
            raise ValueError(
                f"direction {i} has shape {tuple(v.shape)}, {v.dtype} on {v.device}; its parameter "
                f"has shape {tuple(p.shape)}, {p.dtype} on {p.device}"
            )
    return [v.detach() for v in given]


@contextmanager
def recording(graph: bool, *, dear: bool = False) -> Iterator[None]:
    """Set whether a graph is kept, whatever the caller's modes, and put the modes back.

    Args:
        graph: Keep a graph.
        dear: A second derivative or forward mode follows. Fused attention has neither, so
            attention is computed by its definition meanwhile.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(graph))
        # Autocast remembers casts of parameters; those may have moved since.
        torch.clear_autocast_cache()
        stack.callback(torch.clear_autocast_cache)
        if dear:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.callback(
                torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled()
            )
            torch.backends.mha.set_fastpath_enabled(False)
        yield


class Replay:
    """Context that repeats, each later time, the random numbers of the first time.

    Generators of the CPU and of the tensors' devices are set, and put back.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._devices = list({t.device for t in tensors if t.device.type != "cpu"})
        self._start: list[Tensor] | None = None
        self._later: list[Tensor] | None = None

    def __enter__(self) -> None:
        now = [torch.get_rng_state()]
        now += [torch.get_device_module(d).get_rng_state(d) for d in self._devices]
        if self._start is None:
            self._start, self._later = now, None
        else:
            self._later = now
            self._set(self._start)

    def __exit__(self, *_: object) -> None:
        if self._later is not None:
            self._set(self._later)

    def _set(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for device, state in zip(self._devices, states[1:], strict=True):
            torch.get_device_module(device).set_rng_state(state, device)


@contextmanager
def tangents(params: Sequence[Tensor], directions: Sequence[Tensor]) -> Iterator[None]:
    """Give the parameters themselves a tangent while the context lasts.

    The tangent comes by an in-place copy of each parameter onto itself, with a direction as the
    copy's derivative. No value changes, and whoever holds the parameter (a closure, a module
    that ties it, a view) sees the tangent; what is handed to a function could miss some.
    """
    with forward_ad.dual_level():
        with torch.no_grad(), warnings.catch_warnings():
            # Where torch compiles its own derivatives, at first use, it deprecates how.
            warnings.filterwarnings("ignore", r"`torch\.jit", DeprecationWarning)
            for p, v in zip(params, directions, strict=True):
                # The values stay, so a graph that the caller has saved them in stays good.
                with _unsafe_preserve_version_counter(p):
                    p.copy_(forward_ad.make_dual(p.detach(), v))
        yield


def fresh(
    answers: Sequence[Tensor | None], params: Sequence[Tensor], others: Sequence[Tensor] = ()
) -> list[Tensor]:
    """Answers that a caller may write to: zeros for None, dense, memory shared with no one.

    Autograd may return one tensor for two parameters, a broadcast scalar, or its own argument.
    """
    seen = {v.untyped_storage().data_ptr() for v in others}
    own = []
    for answer, p in zip(answers, params, strict=True):
        t = torch.zeros_like(p, requires_grad=False) if answer is None else answer
        t = t if t.layout == torch.strided else t.to_dense()
        place = t.untyped_storage().data_ptr()
        broadcast = any(
            step == 0 and size > 1 for step, size in zip(t.stride(), t.shape, strict=True)
        )
        if broadcast or place in seen:
            t = t.clone(memory_format=torch.contiguous_format)
        seen.add(place)
        own.append(t)
    return own
