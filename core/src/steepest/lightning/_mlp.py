"""The network that the small tasks use by default."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def mlp(features: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """A multilayer perceptron with ReLU; inputs of any shape are flattened.

    Args:
        features: Numbers per example.
        hidden: Units of each hidden layer; none makes a linear model.
        outputs: Outputs per example.

    Raises:
        ValueError: If a width is not positive.
    """
    widths = [features, *hidden, outputs]
    if min(widths) < 1:
        raise ValueError(f"widths must be positive, not {widths}")
    layers: list[nn.Module] = [nn.Flatten()]
    for width_in, width_out in pairwise(widths):
        layers += [nn.Linear(width_in, width_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
