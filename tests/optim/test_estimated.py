"""Estimated: any estimator drives any first-order optimizer."""

import copy
import io

import pytest
import torch

from steepest.estimators import SPSA, ForwardGradient
from steepest.kernels import split_seed
from steepest.optim import AdamW, ClipNorm, Estimated, OracleDriven, Wrapper, create, find
from steepest.optim import list as list_optimizers
from steepest.oracles import Objective

FIRST_ORDER = [n for n in list_optimizers() if not issubclass(find(n), OracleDriven | Wrapper)]


def problem():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
    x, y = torch.randn(32, 4), torch.randn(32, 1)
    return model, lambda model=model: torch.nn.functional.mse_loss(model(x), y)


def same(one, two):
    return all(map(torch.equal, one.parameters(), two.parameters()))


@pytest.mark.parametrize("estimator", [SPSA(samples=2), ForwardGradient(kind="rademacher")])
@pytest.mark.parametrize("name", FIRST_ORDER)
def test_it_is_the_inner_optimizer_on_the_estimate(name, estimator):
    model, loss = problem()
    twin, other = problem()
    opt, inner = (
        Estimated(create(name, model.parameters()), estimator, seed=5),
        create(name, twin.parameters()),
    )
    for t in range(5):
        value = opt.step(loss)
        answer = estimator(Objective(other, twin.parameters()), split_seed(5, t))
        assert value == answer.value
        for p, g in zip(twin.parameters(), answer.gradient, strict=True):
            p.grad = g
        inner.step((lambda value=value: value) if getattr(inner, "needs_loss", False) else None)
    assert same(model, twin)
    assert all(p.grad is None for p in model.parameters())


def test_a_schedule_moves_the_inner_learning_rate():
    model, loss = problem()
    twin, other = problem()
    estimator = ForwardGradient(4)
    opt = Estimated(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), estimator)
    schedule = torch.optim.lr_scheduler.ExponentialLR(opt, 0.5)
    inner = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    for t in range(8):
        opt.step(loss)
        schedule.step()
        answer = estimator(Objective(other, twin.parameters()), split_seed(0, t))
        for p, g in zip(twin.parameters(), answer.gradient, strict=True):
            p.grad = g
        inner.param_groups[0]["lr"] = 0.1 * 0.5**t
        inner.step()
    assert same(model, twin)


def test_gradients_of_others_survive():
    model, loss = problem()
    weight = model[0].weight
    weight.grad = torch.full_like(weight, 7.0)
    Estimated(AdamW(model.parameters()), SPSA()).step(loss)
    assert (weight.grad == 7).all() and model[0].bias.grad is None


def test_resume_is_bit_exact():
    model, loss = problem()
    opt = Estimated(AdamW(model.parameters(), lr=0.01), SPSA(), seed=3)
    for _ in range(5):
        opt.step(loss)
    buffer = io.BytesIO()
    torch.save((model.state_dict(), opt.state_dict()), buffer)
    for _ in range(5):
        opt.step(loss)
    buffer.seek(0)
    weights, state = torch.load(buffer, weights_only=True)
    resumed, again = problem()
    resumed.load_state_dict(weights)
    other = Estimated(AdamW(resumed.parameters()), SPSA(), seed=99)
    other.load_state_dict(state)
    for _ in range(5):
        other.step(again)
    assert same(model, resumed)


def test_copies_share_nothing_with_the_original_and_all_with_their_inner():
    model, loss = problem()
    opt = Estimated(AdamW(model.parameters()), SPSA())
    opt.step(loss)
    twin = copy.deepcopy(opt)
    assert twin.state is twin.optimizer.state and twin.param_groups is twin.optimizer.param_groups
    assert twin.state is not opt.state
    assert (twin.seed, twin.steps, twin.estimator.eps) == (0, 1, 1e-3)


def test_two_wrappers_of_a_kind_keep_their_own_numbers():
    def nested(lr):
        p = torch.nn.Parameter(torch.ones(2))
        inner = ClipNorm(AdamW([p], lr=lr), max_norm=0.5)
        return p, ClipNorm(inner, max_norm=7.0)

    p, opt = nested(0.1)
    p.grad = torch.ones(2)
    opt.step()
    _, other = nested(0.3)
    other.max_norm = other.optimizer.max_norm = 1.0
    other.load_state_dict(opt.state_dict())
    assert (other.max_norm, other.optimizer.max_norm, other.steps) == (7.0, 0.5, 1)
    assert other.param_groups[0]["lr"] == 0.1
    with pytest.raises(ValueError, match="ClipNorm around AdamW, and this one is around ClipNorm"):
        other.load_state_dict(opt.optimizer.state_dict())


def test_a_group_that_joins_later():
    model, loss = problem()
    opt = Estimated(AdamW([model[0].weight]), SPSA())
    opt.add_param_group({"params": [model[2].weight], "lr": 0.5})
    assert len(opt.optimizer.param_groups) == 2 and opt.param_groups[1]["lr"] == 0.5
    before = model[2].weight.detach().clone()
    opt.step(loss)
    assert not torch.equal(before, model[2].weight)


def test_bad_calls_change_nothing():
    model, loss = problem()
    opt = Estimated(AdamW(model.parameters()), SPSA())
    before = copy.deepcopy(model)

    def backward():
        value = loss()
        value.backward()
        return value

    with pytest.raises(RuntimeError, match="queries the value oracle: pass the loss"):
        opt.step()
    with pytest.raises(RuntimeError, match="calls backward"):
        opt.step(backward)
    with pytest.raises(TypeError, match="returned None"):
        opt.step(lambda: None)
    opt.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match=r"lr=-1\.0"):
        opt.step(loss)
    assert same(model, before) and opt.steps == 0 and not opt.state
    with pytest.raises(ValueError, match="saved without Estimated"):
        opt.load_state_dict(AdamW(model.parameters()).state_dict())
    with pytest.raises(TypeError, match="wraps an optimizer"):
        Estimated(model.parameters(), SPSA())
    with pytest.raises(TypeError, match="pass SPSA"):
        Estimated(AdamW(model.parameters()), "spsa")
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="requires a gradient"):
        opt.step(loss)
