r"""Functions of two variables, to look at how a method descends.

Each is a pure function of points of shape ``(..., 2)`` and returns values of shape ``(...)``,
so that one call draws a contour plot and the same call, under autograd, is the loss.
:func:`surface` adds what a picture needs: where to start, where the minima are, what to show.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

Point = tuple[float, float]


@dataclass(frozen=True)
class Surface:
    """A function of two variables and what is known of it.

    Attributes:
        name: Name of the function.
        fn: Points of shape ``(..., 2)`` to values of shape ``(...)``.
        start: Where a descent starts.
        minima: Every global minimum.
        value: The value at the minima.
        box: What a picture shows, ``((x_low, x_high), (y_low, y_high))``.
    """

    name: str
    fn: Callable[[Tensor], Tensor]
    start: Point
    minima: tuple[Point, ...]
    value: float
    box: tuple[Point, Point]

    def distance(self, point: Tensor) -> Tensor:
        """Euclidean distance of points ``(..., 2)`` to the nearest minimum, shape ``(...)``.

        Example:
            >>> surface("rosenbrock").distance(torch.tensor([1.0, 3.0]))
            tensor(2.)
        """
        minima = torch.tensor(self.minima, dtype=point.dtype, device=point.device)
        return torch.linalg.vector_norm(point[..., None, :] - minima, dim=-1).amin(-1)

    def grid(self, steps: int = 101) -> tuple[Tensor, Tensor, Tensor]:
        """Coordinates and values over the box, three ``(steps, steps)`` tensors for a contour.

        Args:
            steps: Points along each axis.
        """
        xs, ys = (torch.linspace(low, high, steps, dtype=torch.float64) for low, high in self.box)
        x, y = torch.meshgrid(xs, ys, indexing="xy")
        return x, y, self.fn(torch.stack((x, y), dim=-1))


def _coordinates(z: Tensor) -> tuple[Tensor, Tensor]:
    if z.ndim == 0 or z.shape[-1] != 2:
        raise ValueError(f"points must have shape (..., 2), not {tuple(z.shape)}")
    return z[..., 0], z[..., 1]


def rosenbrock(z: Tensor) -> Tensor:
    r"""Rosenbrock's curved valley, :math:`(1 - x)^2 + 100\,(y - x^2)^2`.

    The valley's floor is easy to reach and hard to follow: it turns, and at the minimum the
    curvature along it is 2,508 times weaker than across. One minimum, 0 at (1, 1).

    Args:
        z: Points, shape ``(..., 2)``.

    Returns:
        Values, shape ``(...)``.

    Raises:
        ValueError: If the last dimension is not 2.

    Example:
        >>> rosenbrock(torch.tensor([[1.0, 1.0], [-1.0, 1.0]]))
        tensor([0., 4.])
    """
    x, y = _coordinates(z)
    return (1 - x).square() + 100 * (y - x.square()).square()


def ravine(z: Tensor, condition: float = 100.0, angle: float = 0.0) -> Tensor:
    r"""An ill-conditioned quadratic, :math:`\tfrac12 (u^2 + \kappa v^2)`.

    Here :math:`(u, v)` are the coordinates turned by ``angle``: at 0 the ravine follows the
    x-axis, and a method that scales each coordinate by itself sees through it; at
    :math:`\pi/4` the same method gains nothing. One minimum, 0 at the origin.

    Args:
        z: Points, shape ``(..., 2)``.
        condition: Condition number :math:`\kappa \ge 1`, the ratio of the two curvatures.
        angle: Angle of the ravine to the x-axis, in radians.

    Returns:
        Values, shape ``(...)``.

    Raises:
        ValueError: If the last dimension is not 2, or ``condition`` is less than 1.

    Example:
        >>> ravine(torch.tensor([2.0, 1.0]), condition=10.0)
        tensor(7.)
    """
    if not condition >= 1:
        raise ValueError(f"condition must be at least 1, not {condition}")
    x, y = _coordinates(z)
    u = math.cos(angle) * x + math.sin(angle) * y
    v = math.cos(angle) * y - math.sin(angle) * x
    return 0.5 * (u.square() + condition * v.square())


def saddle(z: Tensor) -> Tensor:
    r"""A strict saddle between two wells, :math:`\tfrac12 x^2 - \tfrac12 y^2 + \tfrac14 y^4`.

    The gradient vanishes at the origin, a saddle of curvatures 1 and -1, and descent from near
    the x-axis is drawn to it before it escapes. Two minima, -1/4 at (0, 1) and (0, -1).

    Args:
        z: Points, shape ``(..., 2)``.

    Returns:
        Values, shape ``(...)``.

    Raises:
        ValueError: If the last dimension is not 2.

    Example:
        >>> saddle(torch.tensor([[0.0, 0.0], [0.0, -1.0]]))
        tensor([ 0.0000, -0.2500])
    """
    x, y = _coordinates(z)
    return 0.5 * x.square() - 0.5 * y.square() + 0.25 * y.square().square()


def beale(z: Tensor) -> Tensor:
    r"""Beale's function, :math:`\sum_{k=1}^3 (c_k - x + x y^k)^2`, with c = 1.5, 2.25, 2.625.

    Flat plains and steep walls: over its box the gradient's norm spans six orders of magnitude.
    One minimum, 0 at (3, 1/2).

    Args:
        z: Points, shape ``(..., 2)``.

    Returns:
        Values, shape ``(...)``.

    Raises:
        ValueError: If the last dimension is not 2.

    Example:
        >>> beale(torch.tensor([3.0, 0.5]))
        tensor(0.)
    """
    x, y = _coordinates(z)
    terms = [(c - x + x * y**k).square() for k, c in ((1, 1.5), (2, 2.25), (3, 2.625))]
    return terms[0] + terms[1] + terms[2]


def himmelblau(z: Tensor) -> Tensor:
    r"""Himmelblau's four wells, :math:`(x^2 + y - 11)^2 + (x + y^2 - 7)^2`.

    Four minima of the same value 0, of which (3, 2) is one: where a method lands says as much
    about its path as about its speed.

    Args:
        z: Points, shape ``(..., 2)``.

    Returns:
        Values, shape ``(...)``.

    Raises:
        ValueError: If the last dimension is not 2.

    Example:
        >>> himmelblau(torch.tensor([[3.0, 2.0], [0.0, 0.0]]))
        tensor([  0., 170.])
    """
    x, y = _coordinates(z)
    return (x.square() + y - 11).square() + (x + y.square() - 7).square()


def plateau(z: Tensor) -> Tensor:
    r"""A hole in a plain, :math:`1 - \exp(-\tfrac12 (x^2 + y^2))`.

    Far out the gradient is nearly nothing, and so is a step in proportion to it; a step whose
    length does not depend on the gradient's walks on. One minimum, 0 at the origin.

    Args:
        z: Points, shape ``(..., 2)``.

    Returns:
        Values, shape ``(...)``.

    Raises:
        ValueError: If the last dimension is not 2.

    Example:
        >>> plateau(torch.tensor([[0.0, 0.0], [30.0, 40.0]]))
        tensor([0., 1.])
    """
    x, y = _coordinates(z)
    return 1 - (-0.5 * (x.square() + y.square())).exp()


SURFACES: dict[str, Surface] = {
    s.name: s
    for s in (
        Surface("rosenbrock", rosenbrock, (-1.2, 1.0), ((1.0, 1.0),), 0.0, ((-2, 2), (-1, 3))),
        Surface("ravine", ravine, (-9.0, 1.0), ((0.0, 0.0),), 0.0, ((-10, 10), (-2, 2))),
        Surface(
            "saddle",
            saddle,
            (-1.5, 0.01),
            ((0.0, 1.0), (0.0, -1.0)),
            -0.25,
            ((-2, 2), (-1.5, 1.5)),
        ),
        Surface("beale", beale, (1.0, 1.0), ((3.0, 0.5),), 0.0, ((-4.5, 4.5), (-4.5, 4.5))),
        Surface(
            "himmelblau",
            himmelblau,
            (0.0, 0.0),
            (
                (3.0, 2.0),
                (-2.805118086952745, 3.131312518250573),
                (-3.779310253377747, -3.283185991286170),
                (3.584428340330492, -1.848126526964404),
            ),
            0.0,
            ((-5, 5), (-5, 5)),
        ),
        Surface("plateau", plateau, (-3.2, 2.2), ((0.0, 0.0),), 0.0, ((-4, 4), (-3, 3))),
    )
}
"""Every surface by name, with default parameters."""


def surface(name: str, **parameters: Any) -> Surface:
    """A surface by name.

    Args:
        name: One of ``rosenbrock``, ``ravine``, ``saddle``, ``beale``, ``himmelblau``,
            ``plateau``.
        **parameters: Parameters of the function, e.g. ``condition`` of the ravine. They must
            not move the minima, and none of the present ones does.

    Raises:
        ValueError: If there is no such surface (the nearest name is suggested) or a parameter
            is out of its range.
        TypeError: If the function has no such parameter.

    Example:
        >>> steep = surface("ravine", condition=1e4)
        >>> steep.fn(torch.tensor([0.0, 1.0]))
        tensor(5000.)
    """
    if name not in SURFACES:
        near = difflib.get_close_matches(name, SURFACES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(SURFACES)}"
        raise ValueError(f"there is no surface {name!r}: {hint}")
    known = SURFACES[name]
    if not parameters:
        return known
    fn = partial(known.fn, **parameters)
    fn(torch.tensor(known.start))  # fails here, not in the first step, on a bad parameter
    return Surface(name, fn, known.start, known.minima, known.value, known.box)
