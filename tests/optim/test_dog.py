"""DoG and LDoG: transcriptions, and training without a learning rate."""

import copy
import io
import math

import pytest
import torch
from sklearn.datasets import load_breast_cancer

from steepest.optim import Averaged, DoG, LDoG

F64 = torch.float64


def stream(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def transcription(start, gradients, reps_rel, wd=0.0, c=1.0):
    """The authors' loop over one vector, in float64."""
    x, x0 = start.clone(), start.clone()
    reach, total, path = reps_rel * (1 + x0.norm()), 1e-8, []
    for g in gradients:
        g = g + wd * x
        reach = max(reach, (x - x0).norm())
        total = total + g.square().sum()
        x = x - c * reach / total.sqrt() * g
        path.append(x)
    return torch.stack(path)


@pytest.mark.parametrize("wd", [0.0, 0.1])
def test_dog_against_a_transcription_over_two_tensors(wd):
    start, noise = stream(12), stream(50, 12, seed=1)
    p, q = (torch.nn.Parameter(part.clone()) for part in start.split([5, 7]))
    opt = DoG([p, q], lr=0.7, reps_rel=1e-3, weight_decay=wd)
    expected = transcription(start, noise, 1e-3, wd, 0.7)
    for g, point in zip(noise, expected, strict=True):
        p.grad, q.grad = g.split([5, 7])
        opt.step()
        assert torch.allclose(torch.cat([p, q]), point, rtol=1e-12)


def test_ldog_is_dog_of_each_tensor_also_of_one_that_joins_late():
    p, q = (torch.nn.Parameter(stream(n, seed=n)) for n in (5, 7))
    opt = LDoG([p, q], reps_rel=1e-3)
    late, paths = 3, []
    for n, begin in ((5, 0), (7, late)):
        paths.append(transcription(stream(n, seed=n), stream(20, n, seed=9)[begin:], 1e-3))
    for t in range(20):
        p.grad = stream(20, 5, seed=9)[t]
        q.grad = stream(20, 7, seed=9)[t] if t >= late else None
        opt.step()
    assert torch.allclose(p, paths[0][-1], rtol=1e-12)
    assert torch.allclose(q, paths[1][-1], rtol=1e-12)
    one, two = (torch.nn.Parameter(stream(6)) for _ in range(2))
    dog, ldog = DoG([one]), LDoG([two])
    for g in stream(10, 6, seed=2):
        one.grad, two.grad = g, g
        dog.step()
        ldog.step()
    assert torch.equal(one, two)


@pytest.mark.parametrize("cls", [DoG, LDoG])
def test_the_start_is_in_the_checkpoint(cls):
    """A resumed run measures from where the first one began, not from where it stopped."""
    p = torch.nn.Parameter(stream(8).float())
    opt = cls([p], reps_rel=1e-2)
    gradients = stream(30, 8, seed=1).float()
    for g in gradients[:15]:
        p.grad = g
        opt.step()
    buffer = io.BytesIO()
    torch.save((p.detach(), opt.state_dict()), buffer)
    buffer.seek(0)
    value, state = torch.load(buffer, weights_only=True)
    again = torch.nn.Parameter(value.clone())
    resumed, fresh = cls([again]), cls([torch.nn.Parameter(value.clone())], reps_rel=1e-2)
    resumed.load_state_dict(state)
    (other,) = fresh.param_groups[0]["params"]
    for g in gradients[15:]:
        for each, its in ((p, opt), (again, resumed), (other, fresh)):
            each.grad = g
            its.step()
    assert torch.equal(p, again) and not torch.equal(p, other)


def test_scaling_the_loss_changes_nothing():
    """Distance over gradients has no unit of the loss."""
    ends = []
    for factor in (1.0, 1e6):
        p = torch.nn.Parameter(torch.ones(6, dtype=F64))
        opt = DoG([p], reps_rel=1e-3)
        for g in stream(30, 6):
            p.grad = factor * (p.detach() + 0.1 * g)
            opt.step()
        ends.append(p.detach().clone())
    assert torch.allclose(*ends, rtol=1e-6)


def logistic():
    """Logistic regression on standardized data: inputs, signs, and the losses of many weights."""
    data = load_breast_cancer()
    x = torch.tensor(data.data)
    x = (x - x.mean(0)) / x.std(0)
    return x, 2.0 * torch.tensor(data.target) - 1


PENALTY = 1e-2  # so that there is a minimum: the data are separable


def loss(w, x, y):
    fit = torch.nn.functional.softplus(-y * (x @ w)).mean()
    return (fit + PENALTY / 2 * w.square().sum()).item()


def trained(make, x, y, steps=2000):
    """Weights in the end, their average, and the rates, on batches of 16."""
    w = torch.nn.Parameter(torch.zeros(30, dtype=F64))
    opt = Averaged(make([w]))
    rng, rates = torch.Generator().manual_seed(0), []
    for rows in torch.randint(len(x), (steps, 16), generator=rng):
        xs, ys = x[rows], y[rows]
        w.grad = -(torch.sigmoid(-ys * (xs @ w.detach())) * ys) @ xs / 16
        w.grad += PENALTY * w.detach()
        before = w.detach().clone()
        opt.step()
        rates.append(((w.detach() - before).norm() / w.grad.norm()).item())
    return w.detach(), opt.memory[w]["mean"], rates


def test_no_learning_rate_over_six_orders_of_magnitude_and_near_the_best_of_sgd():
    x, y = logistic()
    ends = {}
    for reps_rel in (1e-8, 1e-6, 1e-4, 1e-2):
        _, mean, rates = trained(lambda ps, r=reps_rel: DoG(ps, reps_rel=r), x, y)
        ends[reps_rel] = loss(mean, x, y)
        assert 0.5 < rates[-1] / rates[1000] < 1.1  # it has settled
    assert max(ends.values()) < 1.1 * min(ends.values())
    best = min(
        loss(trained(lambda ps, k=k: torch.optim.SGD(ps, lr=2.0**k), x, y)[1], x, y)
        for k in range(-12, 5, 2)
    )
    assert max(ends.values()) < 1.3 * best


def test_bad_arguments():
    p = torch.nn.Parameter(torch.ones(3))
    for cls in (DoG, LDoG):
        for bad in ({"reps_rel": 0.0}, {"lr": -1.0}, {"weight_decay": math.nan}):
            with pytest.raises(ValueError, match=f"{cls.__name__}: {next(iter(bad))}="):
                cls([p], **bad)


def test_a_copy_goes_on_alone():
    p = torch.nn.Parameter(torch.ones(3))
    opt = DoG([p])
    p.grad = torch.ones(3)
    opt.step()
    q, other = copy.deepcopy((p, opt))
    q.grad = torch.ones(3)
    other.step()
    assert opt.param_groups[0]["total"] != other.param_groups[0]["total"]
