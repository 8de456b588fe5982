import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from steepest.lightning import (
    Classifier,
    DiabetesData,
    DigitsData,
    GrammarData,
    LanguageModel,
    Regressor,
    SurfaceModule,
)
from steepest.objectives import Surface
from steepest.optim import Adam, AdamW


def fitted(trainer, model, data, **options):
    runner = trainer(max_epochs=1, **options)
    runner.fit(model, data)
    return runner.test(model, data, verbose=False)[0]


def test_classifier_reports_loss_and_accuracy_of_the_whole_split(trainer):
    model, data = Classifier(hidden=[16]), DigitsData()
    report = fitted(trainer, model, data, limit_train_batches=5)
    part = data.splits["test"]
    with torch.no_grad():
        logits = model(part.inputs)
    accuracy = (logits.argmax(1) == part.targets).float().mean().item()
    assert math.isclose(report["test_accuracy"], accuracy, rel_tol=1e-6)
    assert math.isclose(
        report["test_loss"], F.cross_entropy(logits, part.targets).item(), rel_tol=1e-5
    )


def test_regressor_reports_error_and_explained_variance(trainer):
    model, data = Regressor(), DiabetesData()
    report = fitted(trainer, model, data)
    part = data.splits["test"]
    with torch.no_grad():
        squares = (model(part.inputs) - part.targets).square()
    variance = (part.targets - part.targets.mean()).square().mean()
    assert math.isclose(report["test_mse"], squares.mean().item(), rel_tol=1e-5)
    assert math.isclose(report["test_r2"], 1 - (squares.mean() / variance).item(), abs_tol=1e-5)


def test_perplexity_is_the_exponential_of_the_loss(trainer):
    data = GrammarData(windows=64)
    report = fitted(trainer, LanguageModel(), data, limit_train_batches=1)
    assert math.isclose(report["test_perplexity"], math.exp(report["test_loss"]), rel_tol=1e-5)
    assert report["test_loss"] > data.floor("test")


def test_language_model_looks_at_the_past_only():
    model = LanguageModel().double().eval()
    tokens = torch.randint(0, 21, (3, 64))
    before = model(tokens)
    for position in (0, 17, 63):
        changed = tokens.clone()
        changed[:, position] = (changed[:, position] + 1) % 21
        after = model(changed)
        assert torch.equal(before[:, :position], after[:, :position])
        assert not torch.isclose(before[:, position], after[:, position]).all(-1).any()
    assert torch.allclose(model(tokens[:, :20]), before[:, :20], rtol=0, atol=1e-12)


def test_language_model_ties_its_weights_and_starts_uniform():
    model = LanguageModel()
    assert model.network.head.weight is model.network.embedding.weight
    assert sum(p.numel() for p in model.parameters()) == 105_536
    tokens = torch.randint(0, 21, (64, 64))
    loss = model.loss(model(tokens), torch.randint(0, 21, (64, 64))).item()
    assert abs(loss - math.log(21)) < 0.05


def test_language_model_refuses_bad_sizes():
    with pytest.raises(ValueError, match="heads must divide width"):
        LanguageModel(width=10, heads=4)
    with pytest.raises(ValueError, match="longer than the context of 8"):
        LanguageModel(context=8)(torch.zeros(1, 9, dtype=torch.int64))


def test_optimizer_is_adamw_or_what_was_given():
    assert type(Classifier().configure_optimizers()) is AdamW
    given = Classifier(optimizer=partial(Adam, lr=0.25)).configure_optimizers()
    assert type(given) is Adam
    assert given.param_groups[0]["lr"] == 0.25
    assert len(given.param_groups[0]["params"]) == 4


def test_any_network_serves(trainer):
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    fitted(trainer, Classifier(network), DigitsData(image=True), limit_train_batches=2)


def test_regressor_refuses_outputs_that_would_broadcast():
    with pytest.raises(ValueError, match=r"\(5, 1\) and targets \(5,\) must agree"):
        Regressor().loss(torch.zeros(5, 1), torch.zeros(5))


def test_modules_load_from_checkpoints(trainer, tmp_path):
    model = Classifier(hidden=[3])
    runner = trainer(max_epochs=1, limit_train_batches=1)
    runner.fit(model, DigitsData())
    runner.save_checkpoint(tmp_path / "model.ckpt")
    torch.load(tmp_path / "model.ckpt", weights_only=True)
    loaded = Classifier.load_from_checkpoint(tmp_path / "model.ckpt")
    for a, b in zip(model.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(a, b)


def test_no_warning_on_a_machine_of_many_cores(trainer, monkeypatch):
    module = "lightning.pytorch.trainer.connectors.data_connector.suggested_max_num_workers"
    monkeypatch.setattr(module, lambda devices: 16)
    fitted(trainer, Classifier(hidden=[4]), DigitsData(), limit_train_batches=2)


def test_surface_module_walks_the_path_of_a_plain_loop(trainer):
    module = SurfaceModule("beale", steps=7, optimizer=partial(torch.optim.SGD, lr=0.01))
    runner = trainer(max_epochs=2)
    runner.fit(module)
    point, path = nn.Parameter(torch.tensor([1.0, 1.0])), [torch.tensor([1.0, 1.0])]
    optimizer = torch.optim.SGD([point], lr=0.01)
    for _ in range(14):
        optimizer.zero_grad()
        module.surface.fn(point).backward()
        optimizer.step()
        path.append(point.detach().clone())
    assert torch.equal(module.trajectory, torch.stack(path))
    (report,) = runner.test(module, verbose=False)
    assert math.isclose(report["test_loss"], module().item(), rel_tol=1e-6)
    expected = math.dist(module.point.tolist(), (3.0, 0.5))
    assert math.isclose(report["test_distance"], expected, rel_tol=1e-6)


def test_surface_module_takes_a_surface_of_ones_own():
    bowl = Surface(
        "bowl", lambda z: z.square().sum(-1), (3.0, 4.0), ((0.0, 0.0),), 0.0, ((-5, 5), (-5, 5))
    )
    assert SurfaceModule(bowl)() == 25
    assert SurfaceModule(bowl, start=(1.0, 0.0)).trajectory.tolist() == [[1.0, 0.0]]
    with pytest.raises(ValueError, match="did you mean 'saddle'"):
        SurfaceModule("sadle")
    with pytest.raises(ValueError, match="steps must be positive"):
        SurfaceModule(steps=0)
