"""The playground's optimizers and surfaces are the package's, and do what its page says."""

import json
from pathlib import Path

import playground
import pytest
import torch
from playground import SURFACES, best_rate, descend, make, names
from py_mini_racer import MiniRacer

ROOT = Path(__file__).resolve().parents[2]
GRADIENT_DESCENT = "gradient descent"


@pytest.fixture(scope="module")
def browser():
    """A JavaScript engine with the playground's two scripts, and no page."""
    engine = MiniRacer()
    engine.eval(playground.script(ROOT))
    engine.eval((ROOT / "book" / "_static" / "playground.js").read_text("utf-8"))
    return engine


def race(browser, name, kind, lr, **options):
    """Points and heights of a descent in JavaScript."""
    call = (
        "((name, kind, lr, options) => {"
        "  const optimizer = steepest.optimizers[name], surface = steepest.surfaces[kind];"
        "  const group = {...optimizer.group, lr, base_lr: lr};"
        "  const made = steepest.descend(optimizer, surface,"
        "    {start: surface.start, steps: steepest.steps, group, ...options});"
        "  return JSON.stringify(made, (_, v) => Number.isFinite(v) || typeof v !== 'number'"
        "    ? v : String(v)); })"
    )
    text = browser.eval(f"{call}(...{json.dumps([name, kind, lr, options])})")
    made = json.loads(text, parse_constant=float)
    points = [[float(x) for x in point] for point in made["points"]]
    return torch.tensor(points, dtype=torch.float64), [float(v) for v in made["values"]]


def trained(name, kind, lr, steps):
    """The same by the package's own optimizer."""
    shape, _ = SURFACES[kind]
    p = torch.nn.Parameter(torch.tensor(shape.start, dtype=torch.float64))
    opt = make(name, [p], shape.value, lr=lr)
    points = [p.detach().clone()]
    for _ in range(steps):
        opt.zero_grad()
        loss = shape.fn(p)
        loss.backward()
        opt.step(lambda loss=loss: loss.detach())
        points.append(p.detach().clone())
    return torch.stack(points)


@pytest.mark.parametrize("kind", SURFACES)
def test_surfaces_and_slopes_equal_those_of_the_package(browser, kind):
    shape, _ = SURFACES[kind]
    low, high = torch.tensor(shape.box, dtype=torch.float64).T
    z = (low + (high - low) * torch.rand(50, 2, dtype=torch.float64)).requires_grad_()
    values = shape.fn(z)
    (slopes,) = torch.autograd.grad(values.sum(), z)
    code = f"(s => {json.dumps(z.tolist())}.map(p => [s.value(p), ...s.gradient(p)]))"
    found = json.loads(browser.eval(f"JSON.stringify({code}(steepest.surfaces[{kind!r}]))"))
    expected = torch.cat([values[:, None], slopes], 1)
    torch.testing.assert_close(torch.tensor(found, dtype=z.dtype), expected, rtol=1e-9, atol=1e-9)


def test_no_two_paths_look_alike_and_the_first_six_differ_in_color():
    drawn = list(playground.styles(list(names())).values())
    assert len({*drawn}) == len(names())
    assert len({color for color, _ in drawn[:6]}) == 6


@pytest.mark.parametrize("name", names())
def test_a_race_in_javascript_is_a_race_of_the_package(browser, name):
    for kind in ("ravine", "saddle", "himmelblau"):
        lr = best_rate(name, kind) / 4
        expected = trained(name, kind, lr, 40)
        found, _ = race(browser, name, kind, lr, steps=40)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
        static, _ = descend(name, SURFACES[kind][0], [lr], 40)
        torch.testing.assert_close(static[:, 0], expected, rtol=1e-6, atol=1e-8)


def test_gradient_descent_is_stable_up_to_two_over_the_curvature_and_not_beyond(browser):
    limit = browser.eval("2 / steepest.surfaces.ravine.smoothness")
    assert limit == pytest.approx(0.02)
    for share, grows in ((0.99, False), (0.999, False), (1.001, True), (1.01, True)):
        points, _ = race(browser, GRADIENT_DESCENT, "ravine", share * limit)
        assert (points[-1, 1].abs() > points[0, 1].abs()) == grows, share


def test_a_turned_ravine_stops_adam_and_not_gradient_descent(browser):
    straight, turned = "ravine", "ravine, turned by 45°"
    heights = {
        (name, kind): race(browser, name, kind, lr)[1][100]
        for name, lr in (("Adam", 0.5), (GRADIENT_DESCENT, 0.01))
        for kind in (straight, turned)
    }
    assert heights["Adam", straight] < 0.01
    assert heights["Adam", turned] > 1
    ratio = heights[GRADIENT_DESCENT, turned] / heights[GRADIENT_DESCENT, straight]
    assert 0.2 < ratio < 5


def test_gradient_descent_waits_on_the_plateau_and_adam_does_not(browser):
    for name, step, low, high in ((GRADIENT_DESCENT, 100, 0.99, 1), ("Adam", 20, 0, 0.01)):
        _, values = race(browser, name, "plateau", best_rate(name, "plateau"))
        assert low <= values[step] / values[0] <= high, name


@pytest.mark.parametrize("kind", SURFACES)
def test_who_makes_a_rate_descends_everywhere_and_gradient_descent_at_1_does_not(browser, kind):
    shape, noise = SURFACES[kind]

    def shares(name):
        """Heights over that of the start."""
        _, values = race(browser, name, kind, 1.0, noise=noise)
        return [(value - shape.value) / (values[0] - shape.value) for value in values]

    for name in ("AdaGradNorm", "DoG", "Polyak's step"):
        assert best_rate(name, kind) == 1
        assert shares(name)[-1] < 0.2, name
    diverges = not shares(GRADIENT_DESCENT)[-1] < 10
    assert diverges == (kind not in ("saddle", "plateau"))


def test_dog_waits_then_runs(browser):
    _, values = race(browser, "DoG", "himmelblau", 1.0)
    assert 0.99 < values[50] / values[0] < 1
    assert values[100] < 1e-6
    assert race(browser, "DoG", "himmelblau", 3.0)[1][-1] > 1e6


def test_polyaks_step_is_ahead_of_tuned_gradient_descent_on_the_ravine(browser):
    _, values = race(browser, "Polyak's step", "ravine", 1.0)
    _, tuned = race(browser, GRADIENT_DESCENT, "ravine", best_rate(GRADIENT_DESCENT, "ravine"))
    assert values[100] < 1e-5
    assert tuned[100] > 1


def test_no_coordinate_goes_farther_under_sania_than_one_over_its_slope(browser):
    """Too short a way where slopes are large, too far where they are small."""
    for kind, (shape, _) in SURFACES.items():
        points, _ = race(browser, "SANIA", kind, 1.0, steps=50)
        slopes = torch.func.vmap(torch.func.grad(shape.fn))(points[:-1])
        assert (points.diff(dim=0) * slopes).abs().max() < 1 + 1e-9
    _, values = race(browser, "SANIA", "ravine", 1.0)
    assert values[-1] > 70
    points, _ = race(browser, "SANIA", "saddle", 1.0)
    assert 90 < points[1, 1].abs() < 101


def test_a_lower_rate_ends_lower_and_later_under_noise(browser):
    ends = []
    for lr in (0.1, 0.01):
        _, values = race(browser, GRADIENT_DESCENT, "noisy quadratic", lr, noise=2.0, steps=3000)
        first = next(i for i, value in enumerate(values) if value < 1.0)
        ends.append((sum(values[-2000:]) / 2000, first))
    (loud, early), (quiet, late) = ends
    assert quiet < loud / 3
    assert late > 3 * early


@pytest.mark.parametrize("name", names())
def test_no_path_leaves_the_line_through_a_saddle_without_noise(browser, name):
    lr = best_rate(name, "saddle")
    points, _ = race(browser, name, "saddle", lr, start=[-1.5, 0.0])
    assert points[:, 1].abs().max() < 1e-9
    noisy, _ = race(browser, name, "saddle", lr, start=[-1.5, 0.0], noise=0.1)
    assert noisy[:, 1].abs().max() > 0.1


def test_all_meet_the_same_noise(browser):
    again = [
        race(browser, n, "ravine", 0.01, noise=1.0, steps=1)[0] for n in (GRADIENT_DESCENT,) * 2
    ]
    assert torch.equal(*again)
    other, _ = race(browser, GRADIENT_DESCENT, "ravine", 0.01, noise=1.0, steps=1, seed=2)
    assert not torch.equal(again[0], other)
    draws = json.loads(
        browser.eval("(n => JSON.stringify(Array.from({length: 20000}, n)))(normals(3))")
    )
    z = torch.tensor(draws, dtype=torch.float64)
    assert abs(z.mean()) < 5 / 20000**0.5
    assert abs(z.var() - 1) < 5 * (2 / 20000) ** 0.5
    assert abs((z[1:] * z[:-1]).mean()) < 5 / 20000**0.5
