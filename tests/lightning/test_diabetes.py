import numpy as np
import pytest
import sklearn.datasets
import torch
from sklearn.linear_model import LinearRegression

from steepest.lightning import DiabetesData
from steepest.lightning._split import split


def loaded(**options):
    data = DiabetesData(**options)
    data.setup()
    return data


def test_training_part_is_standard():
    train = loaded().splits["train"]
    for column in (*train.inputs.double().unbind(1), train.targets.double()):
        assert abs(column.mean().item()) < 1e-6
        assert abs(column.std(correction=0).item() - 1) < 1e-6


def test_statistics_come_from_the_training_part_alone(monkeypatch):
    before = loaded()
    bunch = sklearn.datasets.load_diabetes(scaled=False)
    others = torch.cat(split(torch.zeros(442), (0.7, 0.15, 0.15), seed=0)[1:]).numpy()
    bunch.data[others] = 1e3 * bunch.data[others] + 7
    bunch.target[others] = -bunch.target[others]
    monkeypatch.setattr(sklearn.datasets, "load_diabetes", lambda scaled: bunch)
    after = loaded()
    assert torch.equal(before.splits["train"].inputs, after.splits["train"].inputs)
    assert torch.equal(before.splits["train"].targets, after.splits["train"].targets)
    assert (before.target_mean, before.target_std) == (after.target_mean, after.target_std)
    assert not torch.equal(before.splits["val"].inputs, after.splits["val"].inputs)


def test_targets_can_be_brought_back_to_their_units():
    data = loaded()
    back = torch.cat([part.targets for part in data.splits.values()]).double()
    back = back * data.target_std + data.target_mean
    original = np.sort(sklearn.datasets.load_diabetes().target)
    np.testing.assert_allclose(back.sort().values.numpy(), original, rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_least_squares_explains_about_half_of_the_variance(seed):
    splits = loaded(seed=seed).splits
    x = torch.cat([part.inputs for part in splits.values()]).numpy()
    y = torch.cat([part.targets for part in splits.values()]).numpy()
    assert 0.45 < LinearRegression().fit(x, y).score(x, y) < 0.55
