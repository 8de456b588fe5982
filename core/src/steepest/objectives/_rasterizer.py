r"""A picture of triangles, which has no gradient: a problem for methods that need none."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Raster(NamedTuple):
    """Result of :func:`rasterize`."""

    image: Tensor
    """The color of each pixel, of shape ``(height, width, channels)``."""
    ids: Tensor
    """The triangle that each pixel shows, int64 of shape ``(height, width)``; -1 for none."""


@torch.no_grad()
def rasterize(
    vertices: Tensor,
    faces: Tensor,
    colors: Tensor,
    size: tuple[int, int],
    background: float = 0.0,
) -> Raster:
    r"""Paint triangles in one color each, hard-edged: no smoothing, and no gradient.

    A pixel shows the last of the triangles that its center lies in. Its center is in a triangle
    if it is on the inner side of all three edges,

    .. math::

        (b - a) \times (p - a) \ge 0, \qquad (c - b) \times (p - b) \ge 0, \qquad
        (a - c) \times (p - c) \ge 0,

    of one that runs counter-clockwise. As a function of the vertices the image is piecewise
    constant: its derivative is zero wherever it exists. Each triangle is compared with the pixels
    of a square as large as the widest triangle, so small ones are cheap.

    Args:
        vertices: Positions in pixels, of shape ``(vertices, 2)``: to the right, then down. The
            center of the first pixel is (0.5, 0.5).
        faces: Vertices of each triangle, in either order, int64 of shape ``(triangles, 3)``.
        colors: Of shape ``(triangles, channels)``.
        size: Height and width of the image.
        background: The color, in all channels, where there is no triangle.

    Returns:
        :class:`Raster`. It is off the graph, whether or not its inputs ask for gradients.

    Raises:
        ValueError: If shapes do not fit, a position or a color is NaN or infinite, or a face
            names a vertex that there is not.

    Example:
        >>> corners = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]])
        >>> rasterize(corners, torch.tensor([[0, 1, 2]]), torch.ones(1, 1), (3, 3)).ids
        tensor([[ 0,  0,  0],
                [ 0,  0, -1],
                [ 0, -1, -1]])
    """
    height, width = size
    _check(vertices, faces, colors, height, width)
    image = torch.full((height * width, colors.shape[1]), background, dtype=colors.dtype)
    ids = torch.full((height * width,), -1)
    corners = vertices.double()[faces]
    edges = corners.roll(-1, 1) - corners
    area = _cross(edges[:, 0], edges[:, 1])
    low = corners.amin(1).floor().clamp(min=0)
    high = corners.amax(1).ceil().minimum(torch.tensor([width, height]).double())
    reach = int((high - low).amax().clamp(min=0)) if len(faces) else 0
    steps = torch.arange(reach)
    column = low[:, None, None, 0].long() + steps
    row = low[:, None, None, 1].long() + steps[:, None]
    shape = (len(faces), reach, reach)
    centers = torch.stack([column.expand(shape), row.expand(shape)], -1) + 0.5
    sides = _cross(edges[:, :, None, None], centers[:, None] - corners[:, :, None, None])
    inside = (sides * area.sign()[:, None, None, None] >= 0).all(1) & (area != 0)[:, None, None]
    inside &= (column < width) & (row < height)
    order = torch.arange(len(faces))[:, None, None].expand(shape)
    ids.scatter_reduce_(0, (row * width + column)[inside], order[inside], "amax")
    shown = ids >= 0
    image[shown] = colors.detach()[ids[shown]]
    return Raster(image.view(height, width, -1), ids.view(height, width))


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _check(vertices: Tensor, faces: Tensor, colors: Tensor, height: int, width: int) -> None:
    if vertices.dim() != 2 or vertices.shape[1] != 2:
        raise ValueError(f"vertices have the shape {tuple(vertices.shape)}: give (vertices, 2)")
    if faces.dim() != 2 or faces.shape[1] != 3 or faces.dtype != torch.int64:
        raise ValueError(
            f"faces have the shape {tuple(faces.shape)} and are {faces.dtype}: give (triangles, 3) "
            "of torch.int64"
        )
    if colors.dim() != 2 or len(colors) != len(faces):
        raise ValueError(
            f"colors have the shape {tuple(colors.shape)}: give ({len(faces)}, channels)"
        )
    if height < 1 or width < 1:
        raise ValueError(f"size={(height, width)!r} is not valid: give whole numbers >= 1")
    if not (vertices.isfinite().all() and colors.isfinite().all()):
        raise ValueError("a position or a color is NaN or infinite: lower lr if it was trained")
    if len(faces) and not (faces.min() >= 0 and faces.max() < len(vertices)):
        raise ValueError(f"a face names a vertex that there is not: there are {len(vertices)}")


def mesh(rows: int, columns: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """A regular grid of quadrilaterals over an image, cut into two triangles each.

    Args:
        rows: Quadrilaterals from top to bottom.
        columns: Quadrilaterals from left to right.
        size: Height and width of the image.

    Returns:
        Vertices, of shape ``((rows + 1) * (columns + 1), 2)``, and faces, of shape
        ``(2 * rows * columns, 3)``.

    Raises:
        ValueError: If there are none.

    Example:
        >>> vertices, faces = mesh(1, 1, (4, 4))
        >>> vertices.tolist(), faces.tolist()
        ([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [4.0, 4.0]], [[0, 1, 2], [1, 3, 2]])
    """
    if rows < 1 or columns < 1:
        raise ValueError(f"{rows} rows and {columns} columns: give whole numbers >= 1")
    down = torch.linspace(0.0, float(size[0]), rows + 1)
    right = torch.linspace(0.0, float(size[1]), columns + 1)
    y, x = torch.meshgrid(down, right, indexing="ij")
    corner = torch.arange(rows)[:, None] * (columns + 1) + torch.arange(columns)
    a, b = corner.flatten(), corner.flatten() + 1
    c, d = a + columns + 1, b + columns + 1
    faces = torch.stack([torch.stack([a, b, c], 1), torch.stack([b, d, c], 1)], 1)
    return torch.stack([x, y], -1).reshape(-1, 2), faces.reshape(-1, 3)
