"""Coordinates: its bias by formula, its subsets, its prices, and the two ways to make it cheap."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from steepest.estimators import SPSA, Coordinates, FeatureReuse
from steepest.optim import Estimated
from steepest.oracles import Objective

F64 = torch.float64


def flat(tensors):
    return torch.cat([t.flatten() for t in tensors])


def perceptron(hidden=8, dtype=torch.float32):
    """A perceptron on digits (610 weights with 8 hidden units), and its objective."""
    from steepest.lightning import DigitsData

    data = DigitsData()
    data.setup()
    x, y = (t[:300] for t in (data.splits["train"].inputs, data.splits["train"].targets))
    x = x.to(dtype)
    net = nn.Sequential(nn.Linear(64, hidden), nn.Tanh(), nn.Linear(hidden, 10)).to(dtype)
    return net, Objective(lambda: F.cross_entropy(net(x), y), net)


class _Given(nn.Module):
    """A loss whose module's parameters can be handed in."""

    def __init__(self, net, loss):
        super().__init__()
        self.loss = loss
        for name, layer in net.named_children():
            self.add_module(name, layer)

    def forward(self):
        return self.loss()


def test_by_hand():
    """f = a^2 b at (3, 2): quotients written out, one-sided and central."""
    a, b = (torch.nn.Parameter(torch.tensor(v, dtype=F64)) for v in (3.0, 2.0))
    f, eps = Objective(lambda: a**2 * b, [a, b]), 0.5
    one = flat(Coordinates(eps)(f, 0).gradient)
    assert one.tolist() == [(3.5**2 * 2 - 18) / 0.5, 9.0]
    two = flat(Coordinates(eps, one_sided=False)(f, 0).gradient)
    assert two.tolist() == [12.0, 9.0]  # exact on a parabola
    assert Coordinates()(f, 0).value == 18.0


@pytest.mark.parametrize("one_sided", [True, False])
def test_the_bias_is_that_of_the_formula_and_nothing_varies(one_sided):
    """eps f''/2 one-sided, eps^2 f'''/6 central; the seed plays no part."""
    p = torch.nn.Parameter(torch.linspace(-1, 1, 7, dtype=F64))
    f, eps = Objective(lambda: p.exp().sum(), [p]), 1e-3
    estimator = Coordinates(eps, one_sided=one_sided)
    error = estimator(f, 1).gradient[0] - p.exp()
    law = eps / 2 * p.exp() if one_sided else eps**2 / 6 * p.exp()
    assert torch.allclose(error, law, rtol=1e-3)
    assert torch.equal(estimator(f, 1).gradient[0], estimator(f, 2).gradient[0])


def test_as_many_random_directions_leave_the_error_that_theory_gives():
    """E |g - exact|^2 = (d + 1) |exact|^2 / q for the average of q Gaussian directions."""
    rng = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(torch.randn(20, generator=rng, dtype=F64))
    f = Objective(lambda: 0.5 * p.square().sum(), [p])
    q = 7
    squares = torch.stack(
        [(SPSA(samples=q)(f, s).gradient[0] - p).square().sum().detach() for s in range(60)]
    )
    law = 21 * p.square().sum().item() / q
    assert abs(squares.mean() - law) < 5 * squares.std() / math.sqrt(len(squares))
    assert (Coordinates(one_sided=False)(f, 0).gradient[0] - p).square().sum() < 1e-12 * law


def test_the_direction_of_a_networks_gradient():
    """611 values: cosine above 0.99 along coordinates, below 0.85 along random directions."""
    net, given = perceptron()
    theta = nn.Parameter(flat(net.parameters()).detach())  # in one piece: noise is made faster
    pieces = [(name, p.shape, p.numel()) for name, p in net.named_parameters()]

    def loss():
        parts = theta.split([n for *_, n in pieces])
        named = {k: part.view(shape) for (k, shape, _), part in zip(pieces, parts, strict=True)}
        return torch.func.functional_call(_Given(net, given.loss), named, ())

    f = Objective(loss, [theta])
    exact = flat(f.gradient().gradient)
    f.counts.clear()
    ours = flat(Coordinates()(f, 0).gradient)
    assert f.counts["forward"] == 611
    others = [flat(SPSA(5e-3, 610, one_sided=True)(f, s).gradient) for s in range(1)]
    cosines = [F.cosine_similarity(g, exact, dim=0) for g in (ours, *others)]
    assert cosines[0] > 0.99
    assert max(cosines[1:]) < 0.85
    theory = math.sqrt(610 / (610 + 610 + 1))
    assert all(abs(c - theory) < 0.1 for c in cosines[1:])


def test_a_subset_has_the_gradients_entries_and_zeros_and_is_drawn_anew():
    net, f = perceptron()
    keep = [0.25, 0.0, 0.5, 1.0]
    whole = Coordinates()(f, 0).gradient
    estimator, seen = Coordinates(keep=keep, period=2, seed=3), []
    for k in range(4):
        part = estimator(f, k).gradient
        for g, h, p, ratio in zip(part, whole, net.parameters(), keep, strict=True):
            assert torch.equal(g[g != 0], h[g != 0])
            assert 0.6 * ratio * p.numel() <= (g != 0).sum() <= ratio * p.numel()  # blank pixels: 0
        seen.append(flat(part) != 0)
    assert estimator.forward == 1 + 128 + 40 + 10
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[2], seen[3])
    assert not torch.equal(seen[0], seen[2])
    again = Coordinates(keep=keep, period=2, seed=3)
    again.estimates = 2  # as after a resume
    assert torch.equal(flat(again(f, 9).gradient) != 0, seen[2])


def test_every_coordinate_has_its_turn():
    """Over draws each is probed with its tensor's ratio."""
    p = torch.nn.Parameter(torch.ones(40))
    f, estimator, runs = Objective(lambda: p.sum(), [p]), Coordinates(keep=0.25), 400
    hits = sum((estimator(f, 0).gradient[0] != 0).double() for _ in range(runs)) / runs
    assert (hits - 0.25).abs().max() < 5 * math.sqrt(0.25 * 0.75 / runs)


def test_a_subset_belongs_to_names():
    a, b = (torch.nn.Parameter(torch.ones(30)) for _ in range(2))

    def hits(pairs):
        f = Objective(lambda: a.sum() + b.sum(), pairs)
        return dict(zip(f.names, Coordinates(keep=0.5)(f, 0).gradient, strict=True))

    one, two = hits([("a", a), ("b", b)]), hits([("b", b), ("a", a)])
    assert all(torch.equal(one[name], two[name]) for name in "ab")
    assert not torch.equal(one["a"], one["b"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_end_bit_for_bit_as_they_were(dtype):
    p = torch.nn.Parameter(torch.randn(4, 6).t().to(dtype))
    assert not p.is_contiguous()
    before, calls = p.detach().clone(), iter(range(9))

    def fails():
        if next(calls) == 5:
            raise KeyError("the sixth pass")
        return p.float().square().sum()

    with pytest.raises(KeyError, match="sixth"):
        Coordinates(0.1)(Objective(fails, [p]), 0)
    assert torch.equal(p, before)
    f = Objective(lambda: p.double().square().sum(), [p])
    error = Coordinates(0.1, one_sided=False)(f, 0).gradient[0] - 2 * p
    # the width is what rounding has left of it, so that even bfloat16 has the slope
    assert torch.equal(p, before) and error.abs().max() < 0.1


def test_the_width_that_rounding_leaves_is_what_is_divided_by():
    """At weights of 1 in bfloat16 a step of 5e-3 becomes one of 2^-7."""
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    f = Objective(lambda: p.double().sum(), [p])
    assert torch.equal(Coordinates()(f, 0).gradient[0], torch.ones(3, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match=r"eps=0\.001 is lost"):
        Coordinates(1e-3)(f, 0)
    assert (p == 1).all()


@pytest.mark.parametrize("one_sided", [True, False])
def test_restarted_layers_give_the_same_gradient_at_the_counted_price(one_sided):
    """sum_l d_l (L - l + 1) layers, and those of one whole pass, instead of d L and L."""
    torch.manual_seed(0)
    stack = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    net, x, y = FeatureReuse(stack), torch.randn(20, 6), torch.arange(20) % 3
    f = Objective(lambda: F.cross_entropy(net(x), y), net)
    plain = Coordinates(one_sided=one_sided)(f, 0).gradient
    sizes, sides = {5: 35, 3: 24, 1: 15}, 1 if one_sided else 2
    assert net.evaluations == 5 * (1 + sides * sum(sizes.values()))
    net.evaluations = 0
    reused = Coordinates(one_sided=one_sided, reuse=net)(f, 0).gradient
    assert (flat(plain) - flat(reused)).abs().max() < 1e-4
    assert net.evaluations == 5 + sides * sum(n * d for n, d in sizes.items())


def test_kept_inputs_are_those_of_one_input_and_one_estimate():
    """Another input runs from the start, and nothing is kept afterwards."""
    net, x = FeatureReuse(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))), torch.randn(5, 3)
    with net.kept():
        net(x)
        with net.restart(net.layers[1].weight):
            assert torch.equal(net(2 * x), net.layers(2 * x))
        nn.init.zeros_(net.layers[0].weight)
        with net.restart(net.layers[0].weight):
            assert torch.equal(net(x), net.layers(x))
    with net.restart(net.layers[1].weight):
        nn.init.ones_(net.layers[0].weight)
        assert torch.equal(net(x), net.layers(x))
    with pytest.raises(TypeError, match="pass a Sequential"):
        FeatureReuse(nn.Linear(1, 1))


@pytest.mark.parametrize("one_sided", [True, False])
def test_many_at_once_are_one_after_the_other(one_sided):
    """In float64; with dropout, whose masks are those of one function."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 2)).double()
    x = torch.randn(10, 4, dtype=F64)
    f = Objective([lambda: net(x).square().mean(), lambda: net(2 * x).mean()], net, replay=True)
    one = Coordinates(one_sided=one_sided, keep=0.7)
    many = Coordinates(one_sided=one_sided, keep=0.7, module=net, chunk=7)
    before = [p.detach().clone() for p in net.parameters()]
    plain = flat(one(f, 0).gradient)
    price = dict(f.counts)
    f.counts.clear()
    assert torch.allclose(flat(many(f, 0).gradient), plain, rtol=0, atol=1e-9)
    assert dict(f.counts) == price and one.forward == many.forward
    assert price["forward"] == 2 * one.forward
    assert all(map(torch.equal, net.parameters(), before))


def test_it_drives_an_optimizer():
    """SGD on its estimates follows SGD on gradients."""
    net, f = perceptron(dtype=F64)
    twin, g = perceptron(dtype=F64)
    twin.load_state_dict(net.state_dict())
    sgd = torch.optim.SGD(twin.parameters(), lr=0.3, momentum=0.9)
    opt = Estimated(
        torch.optim.SGD(net.parameters(), lr=0.3, momentum=0.9),
        Coordinates(1e-4, module=net, one_sided=False),
    )
    for _ in range(3):
        opt.step(f)
        for p, grad in zip(twin.parameters(), g.gradient().gradient, strict=True):
            p.grad = grad
        sgd.step()
    assert torch.allclose(flat(net.parameters()), flat(twin.parameters()), atol=1e-6)


def test_bad_arguments():
    p = torch.nn.Parameter(torch.ones(3))
    f = Objective(lambda: p.sum(), [p])
    for bad, text in (
        ({"eps": 0.0}, "eps=0"),
        ({"period": 0}, "whole number >= 1"),
        ({"chunk": 1.5}, "whole number >= 1"),
        ({"keep": [0.5, 1.5]}, r"shares in \[0, 1\]"),
        ({"keep": 0.0}, "not all 0"),
        ({"reuse": FeatureReuse(nn.Sequential()), "module": nn.Linear(1, 1)}, "not both"),
    ):
        with pytest.raises(ValueError, match=text):
            Coordinates(**bad)
    with pytest.raises(ValueError, match="2 ratios and 1 parameters"):
        Coordinates(keep=[1.0, 1.0])(f, 0)
    with pytest.raises(ValueError, match="not the module's"):
        Coordinates(module=nn.Linear(1, 1))(f, 0)
    net = nn.Linear(3, 1)
    before = net.weight.detach().clone()
    for module in (None, net):
        for factor in (math.nan, math.inf):
            g = Objective(lambda k=factor: net.weight.sum() * k, net)
            with pytest.raises(RuntimeError, match="NaN or infinite"):
                Coordinates(module=module)(g, 0)
        with pytest.raises(ValueError, match="one real number"):
            Coordinates(module=module)(Objective(lambda: net.weight[0], net), 0)
        with pytest.raises(RuntimeError, match="calls backward"):
            Coordinates(module=module)(Objective(lambda: net.weight.sum().backward(), net), 0)
    assert torch.equal(net.weight, before)


def test_at_once_a_turned_weight_may_come_alone():
    net = nn.Linear(4, 6, bias=False)
    net.weight = nn.Parameter(torch.randn(4, 6).t())
    x = torch.randn(5, 4)
    f = Objective(lambda: net(x).square().mean(), net)
    one, many = (Coordinates(module=m, chunk=1)(f, 0).gradient[0] for m in (None, net))
    assert torch.allclose(one, many, rtol=0, atol=1e-3)
