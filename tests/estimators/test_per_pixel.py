"""PerPixel: a transcription, SPSA as a limit, its bias over all signs, and its variance."""

import itertools
import math

import pytest
import torch

from steepest.estimators import SPSA, PerPixel, Pixels
from steepest.kernels import noise, split_seed
from steepest.objectives import mesh, rasterize
from steepest.optim import Estimated
from steepest.oracles import Objective

SIZE = (64, 64)


class Scene:
    """A mesh of triangles over a target image; parameters in units of a pixel and of 0.05."""

    def __init__(self, n, seed=0, size=SIZE, everything=False):
        rng = torch.Generator().manual_seed(seed)
        self.grid, self.faces = mesh(n, n, size)
        self.size, self.everything = size, everything
        inner = ((self.grid > 0) & (self.grid < size[0])).all(1, keepdim=True)
        bent = torch.rand(self.grid.shape, generator=rng) - 0.5
        hidden = self.grid + inner * 0.5 * size[0] / n * bent
        x, y = (hidden[self.faces].mean(1) / size[0]).T
        disk = (torch.hypot(x - 0.5, y - 0.5) < 0.3).float()
        colors = torch.stack([0.5 + 0.5 * torch.sin(6 * x + 2 * y), 0.1 + 0.8 * disk, y], 1)
        self.target = rasterize(hidden, self.faces, colors, size).image
        self.vertices = torch.nn.Parameter(torch.zeros_like(self.grid))
        self.colors = torch.nn.Parameter(torch.zeros(len(self.faces), 3))

    def params(self):
        return [self.vertices, self.colors]

    def __call__(self):
        vertices, colors = self.grid + self.vertices, 0.5 + 0.05 * self.colors
        image, ids = rasterize(vertices, self.faces, colors, self.size)
        losses = (image - self.target).square().sum(2).flatten()
        shown = ids.view(-1, 1)
        corners = torch.where(shown >= 0, self.faces[shown[:, 0].clamp(min=0)], -1)
        self.pixels = Pixels(losses, [None, None] if self.everything else [corners, shown])
        return losses.sum()


def flat(gradient):
    return torch.cat([g.flatten() for g in gradient])


def test_against_a_transcription():
    """A loop over pixels and over the set of what each shows."""
    scene, scales, seed = Scene(3, size=(12, 12)), [0.7, 0.4], 5
    params = scene.params()
    estimator = PerPixel(lambda: scene.pixels, scale=scales, samples=2)
    value, gradient = estimator(Objective(scene, params), seed)
    expected = [torch.zeros_like(p) for p in params]
    values = []
    for i in range(2):
        long = [p.numel() for p in params]
        z = [
            noise(split_seed(seed, i), start, count, "rademacher")
            for start, count in zip((0, long[0]), long, strict=True)
        ]
        e = [s * d.view_as(p) for s, d, p in zip(scales, z, params, strict=True)]
        read = []
        for side in (1, -1):
            with torch.no_grad():
                for p, d in zip(params, e, strict=True):
                    p.copy_(side * d)
            values.append(scene())
            read.append(scene.pixels)
        for k in range(2):
            for pixel in range(144):
                rows = {r for s in read for r in s.contributors[k][pixel].tolist()} - {-1}
                difference = read[0].losses[pixel] - read[1].losses[pixel]
                for row in rows:
                    expected[k][row] += difference / (2 * e[k][row]) / 2
    for g, other in zip(gradient, expected, strict=True):
        assert torch.allclose(g, other, rtol=1e-4, atol=1e-5)
    assert torch.isclose(value, torch.stack(values).mean())


def test_if_everything_contributes_everywhere_it_is_spsa():
    for samples in (1, 3):
        scene = Scene(4, everything=True)
        objective = Objective(scene, scene.params())
        estimator = PerPixel(lambda scene=scene: scene.pixels, samples=samples)
        one = flat(estimator(objective, 7).gradient)
        two = flat(SPSA(eps=1.0, samples=samples, kind="rademacher")(objective, 7).gradient)
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-4)


def exact(size=(16, 16)):
    """Two triangles that overlap: both estimates of the vertices, averaged over all signs."""
    rng = torch.Generator().manual_seed(3)
    vertices = torch.tensor(
        [[2.2, 2.7], [13.1, 3.3], [6.4, 12.8], [4.6, 9.1], [14.3, 6.2], [11.7, 14.9]]
    )
    faces = torch.tensor([[0, 1, 2], [3, 4, 5]])
    colors = torch.tensor([[0.9, 0.2], [0.3, 0.8]])
    target = torch.rand(*size, 2, generator=rng)
    plain, local = torch.zeros(6, 2), torch.zeros(6, 2)
    for signs in itertools.product((-1.0, 1.0), repeat=12):
        e = torch.tensor(signs).view(6, 2)
        if signs[0] < 0:
            continue  # its mirror image gives the same estimate
        renders = [rasterize(vertices + side * e, faces, colors, size) for side in (1, -1)]
        d1, d2 = ((image - target).square().sum(2).flatten() for image, _ in renders)
        shown = torch.stack([ids.flatten() for _, ids in renders], 1)
        for k in range(2):
            own = (shown == k).any(1)
            rows = faces[k]
            plain[rows] += (d1 - d2).sum() / (2 * e[rows]) / 2**11
            local[rows] += (d1 - d2)[own].sum() / (2 * e[rows]) / 2**11
    return plain, local


def test_over_all_signs_its_mean_is_spsas():
    """For what lies on top, exactly; what is hidden in part has a bias, and the same direction."""
    plain, local = exact()
    assert plain.norm() > 1
    assert torch.allclose(local[3:], plain[3:], atol=1e-4)
    assert torch.cosine_similarity(local.flatten(), plain.flatten(), dim=0) > 0.98
    large = plain.abs() > plain.abs().mean()
    assert (local[large].sign() == plain[large].sign()).float().mean() >= 0.9


def test_both_renders_are_needed():
    """An object moves away from a pixel: only the render that it has left behind shows it."""
    colors = torch.ones(1, 1)
    faces = torch.tensor([[0, 1, 2]])
    p = torch.nn.Parameter(torch.tensor([[1.0, -1.0], [5.0, 3.5], [1.0, 8.0]]))

    def loss():
        image, ids = rasterize(p, faces, colors, (7, 7))
        losses = image.flatten()
        keep.append(Pixels(losses, [torch.where(ids.view(-1, 1) >= 0, faces[0], -1)]))
        return losses.sum()

    keep = []
    gradient = PerPixel(lambda: keep[-1])(Objective(loss, [p]), 0).gradient[0]
    one, two = keep
    gone = (one.contributors[0][:, 0] >= 0) != (two.contributors[0][:, 0] >= 0)
    change = (one.losses - two.losses)[gone].sum()
    assert change.abs() == (one.losses - two.losses).sum().abs() > 0
    assert torch.allclose(gradient.abs(), change.abs() / 2)


def test_parameters_end_as_they_were_and_two_values_are_read():
    scene = Scene(4)
    before = [p.detach().clone() for p in scene.params()]
    objective = Objective(scene, scene.params())
    estimator = PerPixel(lambda: scene.pixels, samples=3)
    estimator(objective, 0)
    assert objective.counts["forward"] == estimator.forward == 6
    assert all(torch.equal(p, b) for p, b in zip(scene.params(), before, strict=True))


def test_bad_arguments():
    for bad in ({"scale": 0.0}, {"scale": [1.0, math.nan]}, {"samples": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))}="):
            PerPixel(list, **bad)
    p = torch.nn.Parameter(torch.ones(3, 2))
    good = torch.zeros(4, 1, dtype=torch.int64)
    rows = {
        "0 contributors": Pixels(torch.ones(4), []),
        r"shape \(2, 2\)": Pixels(torch.ones(2, 2), [good]),
        r"give whole numbers of shape \(4, k\)": Pixels(torch.ones(4), [good[:2]]),
        "row 3 of a parameter of 3 rows": Pixels(torch.ones(4), [good + 3]),
        "add up to 4, and the loss is 6": Pixels(torch.ones(4), [good]),
    }
    for message, pixels in rows.items():
        opt = Estimated(torch.optim.SGD([p], lr=0.1), PerPixel(lambda pixels=pixels: pixels))
        with pytest.raises(ValueError, match=message):
            opt.step(lambda: p.detach().abs().round().sum().clamp(6, 6))
        assert torch.equal(p, torch.ones(3, 2)) and p.grad is None
    lost = Pixels(torch.tensor([math.nan, 0, 0, 0]), [good])
    with pytest.raises(RuntimeError, match="NaN"):
        PerPixel(lambda: lost)(Objective(lambda: p.sum() * math.nan, [p]), 0)
    with pytest.raises(ValueError, match="2 scales and 1 parameters"):
        PerPixel(lambda: lost, scale=[1.0, 1.0])(Objective(lambda: p.sum(), [p]), 0)
    with pytest.raises(ValueError, match="lost beside"):
        fine = Pixels(torch.full((4,), 1.5), [good])
        PerPixel(lambda: fine, scale=1e-9)(Objective(lambda: p.sum(), [p]), 0)
    assert torch.equal(p, torch.ones(3, 2))


# ---- the paper's claims


def relative_variance(estimator, scene, draws=150):
    """Squared error over the squared length of the mean, both without bias."""
    objective = Objective(scene, scene.params())
    g = torch.stack([flat(estimator(objective, seed).gradient) for seed in range(draws)])
    variance = g.var(0).sum()
    return (variance / (g.mean(0).square().sum() - variance / draws)).item()


def test_its_variance_does_not_grow_with_the_scene():
    """From 32 to 512 triangles, where SPSA's is in proportion to their number."""
    local, plain = [], []
    for scene in (Scene(4), Scene(16)):
        objective = Objective(scene, scene.params())
        g = [flat(PerPixel(lambda: scene.pixels)(objective, k).gradient) for k in range(100)]  # noqa: B023
        g = torch.stack(g)
        variance = g.var(0).sum()
        signal = g.mean(0).square().sum() - variance / 100
        local.append(variance / signal)
        spsa = SPSA(eps=1.0, kind="rademacher")
        squares = [flat(spsa(objective, k).gradient).square().sum() for k in range(100)]
        plain.append(torch.stack(squares).mean() / signal - 1)
    assert local[1] < 2 * local[0]
    assert plain[1] > 8 * plain[0] > 64 * local[0]


def test_it_recovers_an_image_that_spsa_does_not():
    """120 steps of Adam and 240 renders each; SPSA's rate is the best of three."""

    def error(lr, make):
        scene = Scene(6, size=(32, 32))
        opt = Estimated(torch.optim.Adam(scene.params(), lr=lr), make(scene))
        for _ in range(120):
            opt.step(scene)
        return scene().item()

    local = error(0.2, lambda scene: PerPixel(lambda: scene.pixels))
    rates = (0.1, 0.3, 0.6)
    plain = [error(lr, lambda scene: SPSA(eps=1.0, kind="rademacher")) for lr in rates]
    assert local < 0.3 * min(plain)
