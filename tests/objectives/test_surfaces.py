import math

import pytest
import torch

from steepest.objectives import SURFACES, beale, ravine, rosenbrock, surface

ALL = pytest.mark.parametrize("known", SURFACES.values(), ids=SURFACES)


@ALL
def test_minima_are_stationary_with_the_stated_value(known):
    for minimum in known.minima:
        z = torch.tensor(minimum, dtype=torch.float64, requires_grad=True)
        value = known.fn(z)
        (gradient,) = torch.autograd.grad(value, z)
        assert abs(value.item() - known.value) < 1e-25
        assert gradient.norm() < 1e-12
        hessian = torch.autograd.functional.hessian(known.fn, z.detach())
        assert torch.linalg.eigvalsh(hessian).min() > 0.1


@ALL
def test_nothing_in_the_box_is_lower_and_all_of_it_is_there(known):
    x, y, values = known.grid(201)
    assert values.min() >= known.value
    assert values.shape == x.shape == y.shape == (201, 201)
    assert (x[0, 0].item(), x[0, -1].item()) == known.box[0]
    assert (y[0, 0].item(), y[-1, 0].item()) == known.box[1]
    for point in (known.start, *known.minima):
        assert all(low <= c <= high for c, (low, high) in zip(point, known.box, strict=True))


@ALL
def test_leading_dimensions_are_a_batch(known):
    z = torch.randn(3, 4, 2, dtype=torch.float64)
    one_by_one = torch.stack([known.fn(p) for p in z.reshape(-1, 2)]).reshape(3, 4)
    torch.testing.assert_close(known.fn(z), one_by_one, rtol=0, atol=0)
    assert (known.distance(torch.tensor(known.minima)) == 0).all()
    with pytest.raises(ValueError, match=r"\(\.\.\., 2\)"):
        known.fn(torch.zeros(3))


@pytest.mark.parametrize("angle", [0.0, 0.3, math.pi / 4])
def test_ravine_has_the_stated_condition_number_at_any_angle(angle):
    def turned(z):
        return ravine(z, condition=1e4, angle=angle)

    hessian = torch.autograd.functional.hessian(turned, torch.zeros(2, dtype=torch.float64))
    low, high = torch.linalg.eigvalsh(hessian)
    torch.testing.assert_close(high / low, torch.tensor(1e4, dtype=torch.float64))
    along = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    torch.testing.assert_close(turned(along), torch.tensor(0.5, dtype=torch.float64))


def test_what_the_docstrings_say_of_curvature_and_walls():
    one = torch.ones(2, dtype=torch.float64)
    low, high = torch.linalg.eigvalsh(torch.autograd.functional.hessian(rosenbrock, one))
    assert round((high / low).item()) == 2508
    x, y, _ = surface("beale").grid()
    z = torch.stack((x, y), dim=-1).requires_grad_()
    norms = torch.autograd.grad(beale(z).sum(), z)[0].norm(dim=-1)
    assert norms.max() / norms[norms > 0].min() > 1e6


def test_parameters_reach_the_function_and_bad_ones_fail_at_once():
    assert surface("ravine", condition=7.0).fn(torch.tensor([0.0, 2.0])) == 14
    with pytest.raises(ValueError, match="condition must be at least 1"):
        surface("ravine", condition=0.5)
    with pytest.raises(TypeError):
        surface("saddle", condition=3.0)
    with pytest.raises(ValueError, match="did you mean 'rosenbrock'"):
        surface("rosenbrok")
