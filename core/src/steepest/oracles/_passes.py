"""What the oracles share: parameters, directions, and the settings under which a pass runs."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.nn.attention import SDPBackend, sdpa_kernel

Over = torch.nn.Module | Iterable[Tensor]


def trainable(over: Over) -> list[Tensor]:
    """Tensors of a module or an iterable that require a gradient, each once.

    Raises:
        TypeError: If something in the iterable is not a tensor.
        ValueError: If nothing requires a gradient.
    """
    given: list[Tensor] = list(over.parameters() if isinstance(over, torch.nn.Module) else over)
    for i, p in enumerate(given):
        if not isinstance(p, Tensor):
            raise TypeError(f"parameter {i} is of type {type(p).__name__}, not a tensor")
    params = {id(p): p for p in given if p.requires_grad}
    if not params:
        raise ValueError(
            f"none of the {len(given)} parameters requires a gradient: unfreeze some with "
            "requires_grad_(True)"
        )
    return list(params.values())


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
