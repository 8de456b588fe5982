from itertools import chain

import pytest
import torch
from sklearn.datasets import load_digits

from steepest.lightning import DigitsData
from steepest.lightning._split import split


def rows(data, name):
    return [tuple(row) for row in data.splits[name].inputs.flatten(1).tolist()]


def loaded(**options):
    data = DigitsData(**options)
    data.setup()
    return data


def test_parts_of_a_split_are_disjoint_cover_all_and_keep_proportions():
    labels = torch.randint(0, 5, (503,))
    fractions = (0.7, 0.15, 0.15)
    parts = split(labels, fractions, seed=1)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(503))
    for part, fraction in zip(parts, fractions, strict=True):
        counts = labels[part].bincount(minlength=5)
        assert ((counts - fraction * labels.bincount(minlength=5)).abs() <= 1).all()
    again = split(labels, fractions, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(parts, again, strict=True))
    assert not torch.equal(parts[0], split(labels, fractions, seed=2)[0])


@pytest.mark.parametrize("fractions", [(0.5, 0.4), (1.2, -0.2), (1.0, 0.0)])
def test_bad_fractions(fractions):
    with pytest.raises(ValueError, match="sum to 1"):
        split(torch.zeros(9), fractions, seed=0)


def test_splits_hold_every_image_once_scaled_to_one():
    data = loaded()
    original = [tuple(row) for row in torch.tensor(load_digits().data / 16).float().tolist()]
    parts = [rows(data, name) for name in ("train", "val", "test")]
    assert sorted(chain.from_iterable(parts)) == sorted(original)
    assert [len(part) for part in parts] == [1258, 270, 269]
    assert max(map(max, parts[0])) == 1
    assert min(map(min, parts[0])) == 0


def test_split_depends_on_the_seed_only():
    torch.manual_seed(5)
    first, again, other = loaded(seed=1), loaded(seed=1), loaded(seed=2)
    for name in first.splits:
        assert torch.equal(first.splits[name].inputs, again.splits[name].inputs)
        assert torch.equal(first.splits[name].targets, again.splits[name].targets)
    assert rows(first, "test") != rows(other, "test")


def test_images_are_the_same_numbers():
    flat, image = loaded(), loaded(image=True)
    assert image.splits["train"].inputs.shape[1:] == (1, 8, 8)
    assert torch.equal(image.splits["train"].inputs.flatten(1), flat.splits["train"].inputs)


@pytest.mark.parametrize("fraction", [0.0, 0.013, 0.4, 1.0])
def test_label_noise_changes_exactly_the_fraction_of_training_labels(fraction):
    clean, noisy = loaded(), loaded(label_noise=fraction)
    changed = clean.splits["train"].targets != noisy.splits["train"].targets
    assert changed.sum() == round(fraction * len(changed))
    assert torch.equal(changed, noisy.noisy)
    assert noisy.splits["train"].targets.min() >= 0
    assert noisy.splits["train"].targets.max() <= 9
    for name in ("val", "test"):
        assert torch.equal(clean.splits[name].targets, noisy.splits[name].targets)
    assert all(
        torch.equal(clean.splits[name].inputs, noisy.splits[name].inputs) for name in clean.splits
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_noise": 1.1}, "label_noise must be a fraction"),
        ({"label_noise": float("nan")}, "label_noise must be a fraction"),
        ({"batch_size": 0}, "batch_size must be positive"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        DigitsData(**options)


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r'scikit-learn: pip install "steepest\[book\]"'):
        loaded()
