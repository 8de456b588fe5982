"""Objective: every answer against dense algebra, its cost, and that it leaves no trace."""

import gc
import itertools
import math
import weakref
from functools import partial

import pytest
import torch
from oracles._zoo import CASES, F64, close, dense, directions, flat, make, unflat
from torch import nn
from torch.func import grad, jvp
from torch.utils._pytree import tree_leaves

from steepest.oracles import Objective


@pytest.fixture(params=CASES)
def case(request):
    model, criterion, inputs, targets = make(request.param)
    objective = Objective(lambda: criterion(model(inputs), targets), model)
    return objective, dense(request.param), directions(model)


# ---- answers


def test_gradient(case):
    f, exact, _ = case
    value, gradient = f.gradient()
    assert close(value, exact.loss(exact.theta))
    assert torch.equal(value, f.value())
    assert close(flat(gradient), exact.gradient())


def test_gradient_by_differences(case):
    """Second opinion, without any differentiation: central differences along directions."""
    f, exact, v = case
    v = flat(v) / exact.theta.abs().clamp(min=1).max()
    slope = flat(f.gradient().gradient) @ v
    steps = [1e-3 / 4**k for k in range(6)]
    rows = [
        (exact.loss(exact.theta + h * v) - exact.loss(exact.theta - h * v)) / (2 * h) for h in steps
    ]
    richardson = [(16 * b - a) / 15 for a, b in itertools.pairwise(rows)]
    assert min(abs(r - slope).item() for r in richardson) <= 1e-6 * (1 + abs(slope).item())


def test_derivative_is_the_inner_product(case):
    f, exact, v = case
    value, slope = f.derivative(v)
    assert close(value, exact.loss(exact.theta))
    terms = exact.gradient() * flat(v)
    assert abs(slope - terms.sum()) <= 1e-9 * terms.abs().sum()
    assert not value.requires_grad
    assert not slope.requires_grad


def test_hvp(case):
    f, exact, v = case
    value, gradient, product = f.hvp(v)
    hessian = exact.hessian
    assert close(hessian, hessian.T)
    assert close(flat(product), hessian @ flat(v))
    assert close(flat(gradient), exact.gradient())
    assert close(value, exact.loss(exact.theta))
    assert not any(t.requires_grad for t in (value, *gradient, *product))


def test_hvp_by_differences(case):
    """Second opinion: differences of gradients."""
    f, exact, v = case
    v, size = flat(v), exact.theta.abs().clamp(min=1).max()
    product = flat(f.hvp(unflat(v, exact.model)).product)
    errors = []
    for k in range(6):
        h = 1e-3 / 4**k / size
        ahead, behind = (grad(exact._loss)(exact.theta + s * h * v) for s in (1, -1))
        errors.append(((ahead - behind) / (2 * h) - product).norm() / product.norm())
    assert min(errors) <= 1e-5


def test_hvp_is_symmetric(case):
    f, exact, v = case
    w = directions(exact.model, seed=2)
    hv, hw = flat(f.hvp(v).product), flat(f.hvp(w).product)
    scale = hv.norm() * flat(w).norm()
    assert abs(hv @ flat(w) - hw @ flat(v)) <= 1e-9 * scale


def test_gradient_can_be_differentiated(case):
    f, exact, v = case
    value, gradient = f.gradient(create_graph=True)
    inner = sum((g * d).sum() for g, d in zip(gradient, v, strict=True))
    product = torch.autograd.grad(inner, f.params, retain_graph=True, materialize_grads=True)
    assert close(flat(product), exact.hessian @ flat(v))
    first = torch.autograd.grad(value, f.params, materialize_grads=True)
    assert close(flat(first), flat(gradient))


def test_rank(case):
    f, exact, _ = case
    points = [[0.1 * d for d in directions(exact.model, seed)] for seed in range(8)]
    losses = torch.stack([exact.loss(exact.theta + flat(d)) for d in points])
    best = losses.argsort().tolist()
    assert f.rank(points) == best
    assert f.rank(points, top=3) == best[:3]


def test_costs(case):
    f, _, v = case
    expected = {
        "value": (f.value, 1, 0),
        "gradient": (f.gradient, 1, 1),
        "derivative": (lambda: f.derivative(v), 1, 0),
        "hvp": (lambda: f.hvp(v), 1, 2),
        "rank": (lambda: f.rank([v, v, v]), 3, 0),
    }
    calls = 0

    def counted(loss):
        nonlocal calls
        calls += 1
        return loss()

    f._terms = [(partial(counted, loss), noise) for loss, noise in f._terms]
    for name, (query, forward, backward) in expected.items():
        f.counts.clear()
        calls = 0
        query()
        assert (f.counts[name], f.counts["forward"], f.counts["backward"]) == (1, forward, backward)
        assert calls == forward


def test_a_list_is_as_good_as_a_module():
    """Forward mode reaches whoever holds the tensor: views, ties, captured parameters."""
    p = torch.tensor([1.0, 2.0, 3.0], dtype=F64, requires_grad=True)
    view = p.detach().view(3, 1)  # shares memory, and nothing else
    f = Objective(lambda: (p.view(3, 1) ** 2).sum() + p[0] * p[1], [p])
    v = torch.tensor([1.0, 10.0, 100.0], dtype=F64)
    assert f.derivative([v]).slope.item() == 2 + 40 + 600 + 2 + 10
    assert torch.equal(view[:, 0], p.detach())


def test_rank_orders_ties_and_nan():
    p = torch.zeros((), requires_grad=True)
    f = Objective(lambda: p.abs().log() if p > 5 else (p - p) / p if p < 0 else p * 0, [p])
    points = [[torch.tensor(d)] for d in (1.0, math.inf, -math.inf, 2.0, 6.0)]
    # 0, inf, nan, 0, log 6
    assert f.rank(points) == [0, 3, 4, 1, 2]


def test_constant_curvature():
    """A linear loss has no second derivative, and a parameter it ignores has no first."""
    p, q = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
    f = Objective(lambda: p.sum(), [p, q])
    gradient = f.gradient().gradient
    assert [g.tolist() for g in gradient] == [[1, 1, 1], [0, 0]]
    product = f.hvp([torch.ones(3), torch.ones(2)]).product
    assert [h.tolist() for h in product] == [[0, 0, 0], [0, 0]]
    for g in (*gradient, *product):
        g.add_(1)  # no broadcast memory


class HalfSquare(torch.autograd.Function):
    """Half the squared norm, whose second backward pass hands its argument on as it is."""

    @staticmethod
    def forward(ctx, p):
        ctx.save_for_backward(p)
        return p.square().sum() / 2

    @staticmethod
    def backward(ctx, _):
        return ctx.saved_tensors[0].clone()


def test_answers_share_no_memory():
    p, q = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    f = Objective(lambda: HalfSquare.apply(p + q), [p, q])
    v = [torch.ones(3), torch.ones(3)]
    _, gradient, product = f.hvp(v)
    assert [h.tolist() for h in product] == [[2, 2, 2]] * 2
    places = {t.untyped_storage().data_ptr() for t in (*v, *gradient, *product, p, q)}
    assert len(places) == 8
    one, two = f.gradient().gradient
    assert one.data_ptr() != two.data_ptr()
    alone, w = Objective(lambda: HalfSquare.apply(p), [p]), torch.ones(3)
    assert alone.hvp([w]).product[0].data_ptr() != w.data_ptr()
    r = torch.ones((), requires_grad=True)
    itself = Objective(lambda: r, [r])
    for value in (itself.value(), itself.gradient().value, itself.derivative([r.detach()]).value):
        assert value.data_ptr() != r.data_ptr()
    assert itself.rank([[torch.ones(())], [-torch.ones(())]]) == [1, 0]


LINEAR = {
    "value": lambda f, v: f.value(),
    "gradient": lambda f, v: f.gradient(),
    "derivative": lambda f, v: f.derivative(v),
    "hvp": lambda f, v: f.hvp(v),
}
"""Queries whose answer is linear in the loss."""


def test_a_list_of_losses_is_their_sum():
    """In every answer that is linear in the loss, and in the ranking; passes count for each."""
    model, criterion, x, y = make("mlp-mse")
    first, last = (
        lambda part=part: criterion(model(x[part]), y[part]) for part in (slice(2), slice(2, None))
    )
    whole = Objective(lambda: first() + last(), model)
    parts = Objective([first, last], model)
    v = directions(model)
    for query in LINEAR.values():
        answers = tree_leaves(query(whole, v)), tree_leaves(query(parts, v))
        assert all(map(close, *answers))
    moves = [directions(model, seed) for seed in range(5)]
    assert whole.rank(moves) == parts.rank(moves)
    assert parts.counts["forward"] == 2 * whole.counts["forward"] == 18
    gradient = parts.gradient(create_graph=True).gradient
    twice = torch.autograd.grad(sum(g.square().sum() for g in gradient), parts.params)
    product = whole.hvp([g.detach() for g in gradient]).product
    assert all(close(a, 2 * b) for a, b in zip(twice, product, strict=True))
    with pytest.raises(TypeError, match="pass a callable"):
        Objective([first, None], model)


def test_replay_makes_a_noisy_loss_one_function():
    """Every query sees the first one's masks; the generator goes on as after one pass."""
    p = torch.nn.Parameter(torch.ones(1000))
    drop = torch.nn.Dropout(0.5)
    losses = [lambda: drop(p).sum(), lambda: drop(2 * p).sum()]
    torch.manual_seed(3)
    fresh_draws = [drop(p).sum() for _ in range(2)]
    later = torch.rand(1)
    torch.manual_seed(3)
    f = Objective(losses, [p], replay=True)
    first = f.value()
    assert close(first, fresh_draws[0] + 2 * fresh_draws[1])
    assert f.value() == f.gradient().value == f.derivative([torch.ones(1000)]).value == first
    assert torch.equal(torch.rand(1), later)
    free = Objective(losses, [p])
    assert free.value() != free.value()


def test_average_stands_for_the_mean_over_processes():
    """As if another process had found three times as much: means are twice what is here."""
    model, criterion, x, y = make("mlp-mse")
    v = directions(model)

    def average(tensors):
        for t in tensors:
            t.mul_(2)

    here = Objective(lambda: criterion(model(x), y), model)
    mean = Objective(lambda: criterion(model(x), y), model, average=average)
    for query in LINEAR.values():
        for a, b in zip(tree_leaves(query(here, v)), tree_leaves(query(mean, v)), strict=True):
            assert close(2 * a, b)
    with pytest.raises(RuntimeError, match="keeps no graph"):
        mean.gradient(create_graph=True)


def test_tied_and_frozen_parameters():
    model = make("transformer-ce")[0]
    model.layer.linear1.bias.requires_grad_(False)
    f = Objective(lambda: torch.zeros(()), model)
    names = [name for name, _ in model.named_parameters()]
    assert len(f.params) == len(names) - 1
    assert sum(p is model.embed.weight for p in f.params) == 1
    tied = [model.embed.weight, model.read.weight, torch.ones(3)]
    assert len(Objective(lambda: torch.zeros(()), tied).params) == 1


def test_sparse_gradients_are_dense():
    embed = nn.Embedding(4, 2, sparse=True)
    f = Objective(lambda: embed(torch.tensor([1, 1])).sum(), embed)
    assert f.gradient().gradient[0].tolist() == [[0, 0], [2, 2], [0, 0], [0, 0]]


def test_zero_size_and_strided_parameters():
    p, q = torch.zeros(0, 3), torch.arange(6.0).reshape(2, 3).T
    p.requires_grad_(), q.requires_grad_()
    f = Objective(lambda: (q**3).sum() / 3 + p.sum(), [p, q])
    v = [torch.zeros(0, 3), torch.ones(3, 2)]
    assert f.derivative(v).slope == 55
    assert torch.equal(f.hvp(v).product[1], 2 * q.detach())
    assert f.rank([v, [torch.zeros(0, 3), -torch.ones(3, 2)]]) == [1, 0]


@pytest.mark.parametrize("train", [True, False])
def test_attention_with_fused_kernels(train):
    """Fused attention has no forward mode and no second derivative: its definition has."""
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True).double()
    layer.train(train)
    x = torch.randn(2, 3, 4, dtype=F64)
    weight = torch.randn(4, dtype=F64)
    fast = torch.backends.mha.get_fastpath_enabled()
    f = Objective(lambda: (layer(x) * weight).square().mean(), layer)
    v = directions(layer)
    with torch.no_grad():
        assert close(f.derivative(v).slope, flat(f.gradient().gradient) @ flat(v))
        w = directions(layer, seed=2)
        symmetric = [flat(f.hvp(a).product) @ flat(b) for a, b in ((v, w), (w, v))]
    assert close(*symmetric)
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_a_loss_that_contains_derivatives():
    """The residual of a differential equation, differentiated in the inputs."""
    net = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    t = torch.linspace(0, 1, 5, dtype=F64)[:, None]

    def residual():
        with torch.enable_grad():
            x = t.clone().requires_grad_()
            u = net(x)
            return (torch.autograd.grad(u.sum(), x, create_graph=True)[0] - u).square().mean()

    f, v = Objective(residual, net), directions(net)
    assert not f.value().requires_grad
    assert close(f.derivative(v).slope, flat(f.gradient().gradient) @ flat(v))
    sides, h = [], 1e-5
    for shift in (h, -2 * h, h):
        with torch.no_grad():
            for p, d in zip(net.parameters(), v, strict=True):
                p.add_(shift * d)
        sides.append(flat(f.gradient().gradient))
    assert close((sides[0] - sides[1]) / (2 * h), flat(f.hvp(v).product), rtol=1e-7)


def test_autocast_forgets_casts_between_queries():
    """In one autocast region a cast is remembered, and is stale once the parameter moves."""
    model = nn.Linear(8, 1)
    x = torch.randn(4, 8)
    f = Objective(lambda: model(x).float().square().mean(), model)
    near, far = ([c * p.detach() for p in f.params] for c in (-0.9, 10.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        f.value()
        assert flat(f.gradient().gradient)[:8].abs().max() > 0
        assert f.rank([far, near]) == [1, 0]
        before = f.value()
        with torch.no_grad():
            for p in f.params:
                p.mul_(10)
        assert f.value() > 50 * before


# ---- nothing changes


def snapshot(params):
    return [
        (p.data_ptr(), p.detach().clone(), p.grad, None if p.grad is None else p.grad.clone())
        for p in params
    ]


def unchanged(params, before, versions):
    for p, (place, value, held, copy) in zip(params, before, strict=True):
        assert p.data_ptr() == place
        assert torch.equal(p.detach().view(torch.int64), value.view(torch.int64))  # bit for bit
        assert p.grad is held
        assert held is None or torch.equal(held, copy)
        assert p.requires_grad
        assert p.is_leaf
    assert [p._version for p in params] == versions


def queries(f, v):
    return {
        "value": f.value,
        "gradient": f.gradient,
        "derivative": lambda: f.derivative(v),
        "hvp": lambda: f.hvp(v),
        "rank": lambda: f.rank([v, v]),
    }


QUERIES = ("value", "gradient", "derivative", "hvp", "rank")
MODES = {
    "plain": torch.enable_grad,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("query", QUERIES)
def test_a_query_leaves_no_trace(query, mode):
    model, criterion, x, y = make("mlp-mse")
    model.train()
    params = list(model.parameters())
    with torch.no_grad():
        params[0][0, 0] = -0.0
    params[0].grad = torch.randn_like(params[0])
    f = Objective(lambda: criterion(model(x), y), model)
    pending = f.loss()  # a graph of the caller's own, open during the query
    before, versions = snapshot(params), [p._version for p in params]
    random = torch.get_rng_state()
    with MODES[mode]():
        enabled = torch.is_grad_enabled()
        answer = queries(f, directions(model))[query]()
        assert torch.is_grad_enabled() == enabled
    unchanged(params, before, versions)
    assert torch.equal(random, torch.get_rng_state())
    assert model.training
    assert torch.autograd.forward_ad._current_level == -1
    again = queries(f, directions(model))[query]()
    assert str(answer) == str(again)
    pending.backward()  # no saved tensor was spoilt


def test_randomness_is_the_losses_own():
    """Each evaluation draws once, as calling the loss does."""
    model = nn.Sequential(nn.Linear(3, 50), nn.Dropout(0.5)).double()
    x = torch.randn(2, 3, dtype=F64)
    f = Objective(lambda: model(x).square().mean(), model)
    v = directions(model)
    torch.manual_seed(5)
    plain = [f.loss().item() for _ in range(4)]
    torch.manual_seed(5)
    asked = [f.value(), f.gradient().value, f.derivative(v).value, f.hvp(v).value]
    assert plain == pytest.approx([a.item() for a in asked], rel=1e-12)


def bad_losses(model, x):
    def loss():
        return model(x).square().mean()

    def backward(clear=True):
        if clear:
            model.zero_grad()
        out = loss()
        out.backward()
        return out

    def backward_anyway():
        with torch.enable_grad():
            return backward(clear=False)

    def freed():
        with torch.enable_grad():
            out = loss()
            torch.autograd.grad(out, list(model.parameters()))
            return out

    def fails():
        loss()
        raise KeyError("a bug of the user's")

    return {
        "none": (lambda: None, TypeError, "returned None"),
        "number": (lambda: loss().item(), TypeError, "returned a float"),
        "vector": (lambda: model(x).square().mean(1), ValueError, r"shape \(4,\)"),
        "integer": (lambda: torch.tensor(1), ValueError, "torch.int64"),
        "backward": (backward, RuntimeError, "calls backward"),
        "backward_anyway": (backward_anyway, RuntimeError, "calls backward"),
        "freed": (freed, RuntimeError, "calls backward"),
        "detached": (lambda: loss().detach() * 1, RuntimeError, "none of the parameters"),
        "other": (lambda: torch.ones((), requires_grad=True) * 2, RuntimeError, "none of the"),
        "fails": (fails, KeyError, "user's"),
    }


HARMLESS = {  # what needs no graph does not miss it
    *itertools.product(("freed", "detached", "other"), ("value", "rank")),
    ("freed", "derivative"),
}


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("kind", bad_losses(None, None))
def test_bad_losses_change_nothing(kind, query):
    model, _, x, _ = make("mlp-mse")
    loss, error, match = bad_losses(model, x)[kind]
    params = list(model.parameters())
    params[0].grad = torch.randn_like(params[0])
    before, versions = snapshot(params), [p._version for p in params]
    f = Objective(loss, model)
    if (kind, query) in HARMLESS:
        queries(f, directions(model))[query]()
    else:
        with pytest.raises(error, match=match):
            queries(f, directions(model))[query]()
        assert not f.counts
    unchanged(params, before, versions)
    good = Objective(lambda: model(x).square().mean(), model)
    assert good.gradient().value == good.value()


def test_bad_directions_are_refused_before_anything_runs():
    model = make("mlp-mse")[0]
    f = Objective(lambda: pytest.fail("the loss ran"), model)
    v = directions(model)
    for bad, error, match in (
        (v[:-1], ValueError, "3 directions for 4 parameters"),
        ([*v[:-1], torch.zeros(3, dtype=F64)], ValueError, r"direction 3 has shape \(3,\)"),
        ([*v[:-1], v[-1].float()], ValueError, "direction 3 .*torch.float32"),
        ([*v[:-1], v[-1].to("meta")], ValueError, "direction 3 .* on meta"),
        ([*v[:-1], 1.0], TypeError, "direction 3 is of type float"),
        (v[0], TypeError, "pass a list"),
    ):
        for query in (f.derivative, f.hvp, lambda d: f.rank([v, d])):
            with pytest.raises(error, match=match):
                query(bad)
    for top in (0, 2, -1):
        with pytest.raises(ValueError, match="top="):
            f.rank([v], top=top)
    assert f.rank([]) == []


def test_bad_parameters_are_refused():
    frozen = make("mlp-mse")[0].requires_grad_(False)
    for over in (frozen, frozen.parameters(), frozen.named_parameters(), []):
        with pytest.raises(ValueError, match="requires_grad_"):
            Objective(lambda: torch.zeros(()), over)
    with pytest.raises(TypeError, match="parameter 1 is of type float"):
        Objective(lambda: torch.zeros(()), [torch.ones(1), 2.0])
    with pytest.raises(TypeError, match="pass a callable"):
        Objective(torch.zeros(()), make("mlp-mse")[0])


def test_nested_forward_mode_is_refused():
    model, _, x, _ = make("mlp-mse")
    f = Objective(lambda: jvp(model, (x,), (x,))[1].square().mean(), model)
    with pytest.raises(RuntimeError, match="forward mode itself"):
        f.derivative(directions(model))
    assert f.gradient().value == f.value()


@pytest.mark.parametrize("query", QUERIES)
def test_no_graph_survives(query):
    """What a pass computes dies with it, by reference counts alone: cycles are what leaks."""
    model, criterion, x, y = make("mlp-ce")
    alive = []

    def loss():
        hidden = model(x)
        alive.append(weakref.ref(hidden))
        return criterion(hidden, y)

    f = Objective(loss, model)
    v = directions(model)
    gc.collect()
    gc.disable()
    try:
        answers = [queries(f, v)[query]() for _ in range(3)]
        assert not any(ref() is not None for ref in alive)
        assert len(alive) == f.counts["forward"]
        del answers
    finally:
        gc.enable()


def test_memory_does_not_grow():
    model, criterion, x, y = make("mlp-ce")
    f = Objective(lambda: criterion(model(x), y), model)
    v = directions(model)

    def tensors():
        gc.collect()
        return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    sizes = []
    for _ in range(3):
        for query in queries(f, v).values():
            query()
        sizes.append(tensors())
    assert len(set(sizes[1:])) == 1
