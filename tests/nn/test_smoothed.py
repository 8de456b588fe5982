import pytest
import torch
from scipy.stats import beta

from steepest.nn import Smoothed, clopper_pearson


def linear(weight, bias):
    return lambda x: torch.stack([x @ weight + bias, torch.zeros(len(x), dtype=x.dtype)], 1)


def test_bound_is_the_quantile_of_a_beta_distribution():
    for n in (1, 10, 1000):
        hits = torch.tensor([0, 1, n // 2, n])
        for alpha in (0.001, 0.05, 0.5):
            found = clopper_pearson(hits, n, alpha)
            expected = [beta.ppf(alpha, k, n - k + 1) if k else 0.0 for k in hits.tolist()]
            torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-9, atol=1e-12)


def test_radius_of_a_linear_classifier_is_its_distance_from_below():
    weight, bias = torch.randn(5, dtype=torch.float64), 0.3
    x = torch.randn(100, 5, dtype=torch.float64)
    margin = (x @ weight + bias) / weight.norm()
    found = Smoothed(linear(weight, bias), sigma=0.7).certify(x, samples=10_000, alpha=1e-4)
    sure = found.prediction >= 0
    assert (found.prediction[sure] == (margin < 0).long()[sure]).all()
    assert (found.radius <= margin.abs()).all()
    near = sure & (margin.abs() < 1.2) & (margin.abs() > 0.3)
    assert near.sum() > 10
    assert (found.radius[near] > 0.8 * margin.abs()[near]).all()
    assert sure[margin.abs() > 0.2].all()


def test_it_abstains_where_it_cannot_tell():
    weight = torch.ones(2)
    found = Smoothed(linear(weight, 0.0), sigma=1.0).certify(torch.zeros(3, 2), samples=200)
    assert (found.prediction == -1).all()
    assert (found.radius == 0).all()


def test_shares_have_the_probabilities_of_the_normal_distribution():
    x = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
    shares = Smoothed(linear(torch.ones(1, dtype=torch.float64), 0.0), 0.5)(x, samples=20_000)
    exact = torch.special.ndtr(x[:, 0] / 0.5)
    assert (shares.sum(1) == 1).all()
    assert ((shares[:, 0] - exact).abs() < 5 * 0.5 / 20_000**0.5).all()


def test_the_noise_that_chooses_is_not_the_noise_that_counts():
    """Else a class chosen by luck would be counted by the same luck."""
    seen = []

    def classifier(x):
        seen.append(x)
        return torch.stack([x[:, 0], -x[:, 0]], 1)

    Smoothed(classifier, 1.0).certify(torch.zeros(1, 1), selection=50, samples=50)
    assert not torch.isin(seen[0], seen[1]).any()


@pytest.mark.parametrize(
    ("options", "name"),
    [({"selection": 0}, "selection"), ({"samples": 0}, "samples"), ({"alpha": 1.0}, "alpha")],
)
def test_arguments_out_of_range(options, name):
    smoothed = Smoothed(linear(torch.ones(1), 0.0), 1.0)
    with pytest.raises(ValueError, match=name):
        smoothed.certify(torch.zeros(1, 1), **options)
    with pytest.raises(ValueError, match="sigma"):
        Smoothed(torch.sin, sigma=0.0)
