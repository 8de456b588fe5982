"""A stack of layers that is not run again from the start when a late layer changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor

from steepest._registry import method


@final
@method(
    paper="chen2024deepzero",
    title="DeepZero: Scaling up Zeroth-Order Optimization for Deep Model Training",
    oracle="none",
    forward=0,
    backward=0,
)
class FeatureReuse(torch.nn.Module):
    r"""A ``Sequential`` that keeps its layers' inputs, and restarts at the layer that changed.

    To probe a weight of layer :math:`l` of :math:`L`, layers before it would do again what they
    have done. With their outputs kept, all weights cost
    :math:`\sum_l d_l (L - l + 1)` evaluations of layers instead of :math:`d L`.

    It is a module around the stack, with the stack's parameters, and trains as the stack does.
    Inputs are kept inside of :meth:`kept` only, and used only for the very input tensor that they
    belong to.

    Args:
        layers: The stack. Its layers do the same each time, and leave their inputs as they are: no
            batch normalization or dropout in training mode, nothing in place.

    Attributes:
        evaluations: Layers run so far.

    Raises:
        TypeError: If it is not a ``torch.nn.Sequential``.

    Example:
        >>> net = FeatureReuse(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1)))
        >>> x = torch.ones(1, 2)
        >>> with net.kept():
        ...     _ = net(x)
        ...     with net.restart(net.layers[1].weight):
        ...         _ = net(x)
        >>> net.evaluations
        3

    Reference:
        :cite:t:`chen2024deepzero`.

    When not to use it:
        Where the inputs of all layers do not fit in memory at once: it gives up inference's low
        memory. For gradients there is backpropagation, which does the same for all weights.
    """

    def __init__(self, layers: torch.nn.Sequential) -> None:
        super().__init__()
        if not isinstance(layers, torch.nn.Sequential):
            raise TypeError(f"the layers are a {type(layers).__name__}: pass a Sequential")
        self.layers = layers
        self.evaluations = 0
        self._inputs: list[Tensor] | None = None
        self._begin = 0

    def forward(self, x: Tensor) -> Tensor:
        """Run the layers that are to be run."""
        # $\text{is } x_0 \text{ as before?}$
        if self._begin and self._inputs and self._inputs[0] is x:
            # $x_l$
            x = self._inputs[self._begin]
            # $l, \dots, L$
            layers = [*self.layers][self._begin :]
        else:
            layers = [*self.layers]
        inputs = []
        for layer in layers:
            inputs.append(x)
            # $x_{l+1} = F_l(x_l)$
            x = layer(x)
        self.evaluations += len(layers)
        if self._inputs == []:
            self._inputs = inputs
        return x

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep the inputs of the first pass inside."""
        self._inputs = []
        try:
            yield
        finally:
            self._inputs = None

    @contextmanager
    def restart(self, p: Tensor) -> Iterator[None]:
        """Passes inside begin at the first layer that reads a parameter; all, if none does."""
        readers = (
            i for i, layer in enumerate(self.layers) if any(q is p for q in layer.parameters())
        )
        self._begin = next(readers, 0)
        try:
            yield
        finally:
            self._begin = 0
