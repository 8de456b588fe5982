"""The rasterizer against a loop over pixels, its seams, and its missing gradient."""

import math

import pytest
import torch

from steepest.objectives import mesh, rasterize


def shown(vertices, faces, height, width):
    """The last triangle that each center lies in, by barycentric coordinates, one by one."""
    ids = torch.full((height, width), -1)
    for row in range(height):
        for column in range(width):
            for k, face in enumerate(faces.tolist()):
                (ax, ay), (bx, by), (cx, cy) = vertices[face].tolist()
                whole = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
                x, y = column + 0.5, row + 0.5
                v = ((x - ax) * (cy - ay) - (y - ay) * (cx - ax)) / whole
                w = ((bx - ax) * (y - ay) - (by - ay) * (x - ax)) / whole
                if v >= 0 and w >= 0 and v + w <= 1:
                    ids[row, column] = k
    return ids


def test_against_a_loop():
    """Random triangles of all sizes and both orientations, many of them partly outside."""
    rng = torch.Generator().manual_seed(0)
    for _ in range(5):
        vertices = 30 * torch.rand(15, 2, generator=rng, dtype=torch.float64) - 7
        faces = torch.randperm(15, generator=rng).view(5, 3)
        colors = torch.rand(5, 3, generator=rng)
        image, ids = rasterize(vertices, faces, colors, (11, 17), background=0.25)
        assert torch.equal(ids, shown(vertices, faces, 11, 17))
        assert torch.equal(image[ids >= 0], colors[ids[ids >= 0]])
        assert (image[ids < 0] == 0.25).all()


def test_a_mesh_has_no_seams_and_no_overlaps():
    vertices, faces = mesh(3, 5, (20, 31))
    assert (len(vertices), len(faces)) == (24, 30)
    edges = vertices[faces]
    area = torch.linalg.det(torch.stack([edges[:, 1] - edges[:, 0], edges[:, 2] - edges[:, 0]], 1))
    assert torch.isclose(area.abs().sum() / 2, torch.tensor(20.0 * 31)) and (area > 0).all()
    _, ids = rasterize(vertices, faces, torch.rand(30, 1), (20, 31))
    assert (ids >= 0).all() and len(ids.unique()) == 30


def test_the_image_is_piecewise_constant_and_off_the_graph():
    vertices, faces = mesh(2, 2, (8, 8))
    vertices = (vertices + 0.1).requires_grad_()
    colors = torch.rand(8, 3).requires_grad_()
    image, _ = rasterize(vertices, faces, colors, (8, 8))
    assert not image.requires_grad
    near, _ = rasterize(vertices + 1e-4, faces, colors, (8, 8))
    assert torch.equal(image, near)


def test_a_degenerate_triangle_or_none_paints_nothing():
    line = torch.tensor([[0.0, 0.0], [4.0, 4.0], [2.0, 2.0]])
    assert (rasterize(line, torch.tensor([[0, 1, 2]]), torch.ones(1, 1), (4, 4)).ids == -1).all()
    none = torch.zeros(0, 3, dtype=torch.int64)
    assert (rasterize(line, none, torch.ones(0, 1), (4, 4)).image == 0).all()
    away = line + torch.tensor([[50.0, 0.0], [-9.0, 0.0], [50.0, 90.0]])
    assert rasterize(away, torch.tensor([[0, 1, 2]]), torch.ones(1, 1), (4, 4)).ids.shape == (4, 4)


def test_bad_arguments():
    vertices, faces = mesh(1, 1, (4, 4))
    colors = torch.ones(2, 3)
    for change, message in (
        ({"vertices": vertices[:, :1]}, "vertices have the shape"),
        ({"faces": faces.int()}, r"torch\.int32"),
        ({"faces": faces + 9}, "there are 4"),
        ({"colors": colors[:1]}, r"give \(2, channels\)"),
        ({"size": (0, 4)}, "size="),
        ({"vertices": vertices * math.nan}, "NaN or infinite"),
    ):
        good = {"vertices": vertices, "faces": faces, "colors": colors, "size": (4, 4)}
        with pytest.raises(ValueError, match=message):
            rasterize(**{**good, **change})
    with pytest.raises(ValueError, match="0 rows"):
        mesh(0, 1, (4, 4))
