"""Composite: every matrix product against the dense matrix, identities, costs, refusals."""

import functools
import itertools

import pytest
import torch
from oracles._zoo import CASES, F64, Dense, close, dense, directions, flat, make
from torch import nn
from torch.nn import functional

from steepest.oracles import Composite

MSE = [c for c in CASES if "mse" in c]
CE = [c for c in CASES if "ce" in c and "mse" not in c]


def load(name):
    parts = make(name)
    return Composite(*parts), dense(name), directions(parts[0])


@pytest.fixture(params=CASES)
def case(request):
    return load(request.param)


def matrix(product, model):
    """A dense matrix from its products with the unit vectors."""
    shapes = [p.shape for p in model.parameters()]
    sizes = [s.numel() for s in shapes]
    columns = [
        flat(product([c.view(s) for c, s in zip(e.split(sizes), shapes, strict=True)]))
        for e in torch.eye(sum(sizes), dtype=F64)
    ]
    return torch.stack(columns, dim=1)


# ---- answers


def test_outputs_and_jacobian(case):
    loss, exact, _ = case
    assert close(loss.outputs(), exact.outputs)
    blocks = loss.jacobian()
    rows = [j.reshape(exact.outputs.numel(), -1) for j in blocks]
    assert close(torch.cat(rows, dim=1), exact.jacobian)
    assert [j.shape for j in blocks] == [(*exact.outputs.shape, *p.shape) for p in loss.params]


def test_objective(case):
    loss, exact, v = case
    f = loss.objective()
    assert close(f.value(), exact.loss(exact.theta))
    assert close(flat(f.hvp(v).product), exact.hessian @ flat(v))
    assert f.counts is loss.counts


def test_ggn(case):
    loss, exact, v = case
    assert close(flat(loss.ggn(v)), exact.ggn @ flat(v))


@pytest.mark.parametrize("name", [c for c in CASES if c not in ("transformer-ce", "conv-ce")])
def test_ggn_is_symmetric_and_positive(name):
    loss, exact, _ = load(name)
    g = matrix(loss.ggn, exact.model)
    assert close(g, g.T)
    eigenvalues = torch.linalg.eigvalsh((g + g.T) / 2)
    assert eigenvalues[0] >= -1e-12 * eigenvalues[-1]


def test_rank_deficiency_is_exact():
    """Three equal columns: the matrix has no more than one direction an output, and the bias."""
    loss, exact, _ = load("deficient-mse")
    assert torch.linalg.matrix_rank(matrix(loss.ggn, exact.model)) == 4
    zero_sum = torch.tensor([1.0, -2.0, 1.0], dtype=F64).expand(2, 3).contiguous()
    product = loss.ggn([zero_sum, torch.zeros(2, dtype=F64)])
    assert flat(product).abs().max() < 1e-14


def test_ggn_is_the_hessian_of_a_linear_model():
    loss, exact, v = load("deficient-mse")
    assert close(flat(loss.ggn(v)), flat(loss.objective().hvp(v).product))
    assert close(exact.ggn, exact.hessian)


@pytest.mark.parametrize("name", CE)
def test_fisher_is_the_expectation_over_labels(name):
    """Sum over every label that the model could draw, of the squared score."""
    loss, exact, v = load(name)
    z, targets = exact.outputs, exact.targets
    classes = z.shape[1]
    soft = targets.is_floating_point()
    known = (
        torch.ones(z.numel() // classes, dtype=torch.bool) if soft else targets.flatten() != -100
    )
    logits = z.movedim(1, -1).reshape(-1, classes)
    inner = torch.zeros(len(logits), classes, len(logits), classes, dtype=F64)
    for i, row in enumerate(logits):
        for label in range(classes) if known[i] else ():
            score = functional.one_hot(torch.tensor(label), classes) - row.softmax(0)
            inner[i, :, i] += row.softmax(0)[label] * torch.outer(score, score)
    if loss.reduction == "mean":
        inner = inner / known.sum()
    j = exact.jacobian.reshape(*z.shape, -1).movedim(1, -2).reshape(-1, len(exact.theta))
    expected = j.T @ inner.reshape(len(j), len(j)) @ j @ flat(v)
    assert close(flat(loss.fisher(v)), expected)
    assert close(flat(loss.fisher(v)), flat(loss.ggn(v)))


@pytest.mark.parametrize("name", MSE)
def test_fisher_of_a_gaussian(name):
    """Signs have a Gaussian's second moments, so the mean over all of them is the expectation."""
    loss, exact, v = load(name)
    n, width = exact.outputs.shape
    inner = torch.zeros(n, width, n, width, dtype=F64)
    for noise in itertools.product((-1.0, 1.0), repeat=width):
        score = torch.tensor(noise, dtype=F64)
        for i in range(n):
            inner[i, :, i] += torch.outer(score, score) / 2**width
    mean = loss.reduction == "mean"
    expected = exact.sandwich(inner.reshape(n * width, -1) / (n if mean else 1)) @ flat(v)
    assert close(flat(loss.fisher(v)), expected)
    factor = 2 / width if mean else 2.0
    assert close(flat(loss.ggn(v)), factor * expected)


def sample_rows(name):
    """Gradients of the samples, one backward pass each."""
    model, criterion, inputs, targets = make(name)
    rows = []
    for i in range(len(inputs)):
        one = criterion(model(inputs[i : i + 1]), targets[i : i + 1])
        rows.append(
            flat(torch.autograd.grad(one, list(model.parameters()), materialize_grads=True))
        )
    return torch.stack(rows)


def test_per_sample_gradients(request, case):
    loss, exact, _ = case
    name = request.node.callspec.params["case"]
    rows = torch.cat([r.flatten(1) for r in loss.per_sample_gradients()], dim=1)
    assert close(rows, sample_rows(name))
    halves = torch.cat([r.flatten(1) for r in loss.per_sample_gradients(chunk_size=3)], dim=1)
    assert close(rows, halves)
    if name != "transformer-ce":  # one label is ignored there, so samples weigh unequally
        total = rows.mean(0) if loss.reduction == "mean" else rows.sum(0)
        assert close(total, exact.gradient())


def test_empirical_fisher(request, case):
    loss, _, v = case
    rows = sample_rows(request.node.callspec.params["case"])
    second = rows.T @ rows / (len(rows) if loss.reduction == "mean" else 1)
    assert close(flat(loss.empirical_fisher(v)), second @ flat(v))


def test_costs(case):
    loss, exact, v = case
    calls = 0

    def count(*_):
        nonlocal calls
        calls += 1

    handle = loss.model.register_forward_pre_hook(count)
    size = exact.outputs.numel()
    for query, cost in (
        (loss.outputs, (1, 0)),
        (loss.jacobian, (1, size)),
        (lambda: loss.ggn(v), (1, 1)),
        (lambda: loss.fisher(v), (1, 1)),
        (lambda: loss.empirical_fisher(v), (1, 1)),
        (loss.per_sample_gradients, (1, 1)),
        (lambda: loss.objective().hvp(v), (1, 2)),
    ):
        loss.counts.clear()
        calls = 0
        query()
        assert (loss.counts["forward"], loss.counts["backward"]) == cost
        assert calls == 1
    handle.remove()


def test_criteria_are_recognized():
    """The module, the function and a partial function are one criterion."""
    model, _, x, labels = make("mlp-ce")
    v = directions(model)
    total = flat(Composite(model, nn.CrossEntropyLoss(reduction="sum"), x, labels).fisher(v))
    for criterion, factor in (
        (nn.CrossEntropyLoss(), 1 / 4),
        (functional.cross_entropy, 1 / 4),
        (functools.partial(functional.cross_entropy, reduction="sum"), 1.0),
        (nn.CrossEntropyLoss(label_smoothing=0.1), 1 / 4),
    ):
        assert close(flat(Composite(model, criterion, x, labels).fisher(v)), factor * total)
    skipping = functools.partial(functional.cross_entropy, ignore_index=2)
    loss = Composite(model, skipping, x, labels)
    assert close(flat(loss.fisher(v)), flat(loss.ggn(v)))


def test_unknown_criteria():
    model, _, x, y = make("mlp-mse")
    v = directions(model)

    def quartic(z, y):
        return (z - y).pow(4).sum()

    loss = Composite(model, quartic, x, y, reduction="sum")
    exact = Dense(model, quartic, x, y)
    assert close(flat(loss.ggn(v)), exact.ggn @ flat(v))
    rows = torch.cat([r.flatten(1) for r in loss.per_sample_gradients()], dim=1)
    assert close(flat(loss.empirical_fisher(v)), rows.T @ rows @ flat(v))
    with pytest.raises(NotImplementedError, match="closed form"):
        loss.fisher(v)
    weighted = nn.CrossEntropyLoss(weight=torch.ones(2, dtype=F64))
    with pytest.raises(NotImplementedError, match="closed form"):
        Composite(model, weighted, x, torch.zeros(4, dtype=torch.long)).fisher(v)
    linear = Composite(model, lambda z, y: (z * y).sum(), x, y)
    assert flat(linear.ggn(v)).abs().max() == 0


def test_several_inputs_and_frozen_parameters():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 2), nn.Linear(2, 2)

        def forward(self, x, y):
            return self.a(x).tanh() + self.b(y)

    model = Pair().double()
    model.b.weight.requires_grad_(False)
    x, y = torch.randn(4, 3, dtype=F64), torch.randn(4, 2, dtype=F64)
    loss = Composite(model, nn.MSELoss(), (x, y), y)
    assert [p.shape for p in loss.params] == [(2, 3), (2,), (2,)]
    rows = loss.per_sample_gradients()
    gradient = loss.objective().gradient().gradient
    assert all(close(r.mean(0), g) for r, g in zip(rows, gradient, strict=True))
    v = [torch.randn_like(p) for p in loss.params]
    j = torch.cat([j.flatten(2) for j in loss.jacobian()], dim=2).flatten(0, 1)
    assert close(flat(loss.fisher(v)), j.T @ (j @ flat(v)) / 4)


def test_dropout_draws_once():
    """A product is that of one mask, so it stays symmetric and positive."""
    model = nn.Sequential(nn.Linear(3, 40), nn.Dropout(0.5), nn.Linear(40, 2)).double()
    x, y = torch.randn(4, 3, dtype=F64), torch.randn(4, 2, dtype=F64)
    loss, v, w = Composite(model, nn.MSELoss(), x, y), directions(model), directions(model, 2)
    inner = []
    for a, b in ((v, w), (w, v)):
        torch.manual_seed(3)
        inner.append(flat(loss.ggn(a)) @ flat(b))
    assert close(*inner)
    torch.manual_seed(3)
    one = torch.get_rng_state(), loss.outputs(), torch.get_rng_state()
    torch.manual_seed(3)
    loss.ggn(v)
    assert torch.equal(torch.get_rng_state(), one[2])


# ---- nothing changes, and what is refused


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_queries_leave_no_trace(mode):
    loss, exact, v = load("mlp-ce")
    params = loss.params
    params[0].grad = held = torch.ones_like(params[0])
    pending = loss.criterion(loss.model(*loss.inputs), loss.targets)
    versions = [p._version for p in params]
    with mode():
        loss.outputs()
        loss.jacobian()
        loss.per_sample_gradients()
        for product in (loss.ggn, loss.fisher, loss.empirical_fisher):
            answer = product(v)
            assert not any(t.requires_grad for t in answer)
    assert torch.equal(flat(params), exact.theta)
    assert [p._version for p in params] == versions
    assert params[0].grad is held
    assert held.eq(1).all()
    assert all(p.grad is None for p in params[1:])
    pending.backward()


def test_batch_normalization():
    """In training it mixes the samples; in evaluation it is one more affine map."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(5, 3, dtype=F64), torch.randn(5, 2, dtype=F64)
    loss, v = Composite(model, nn.MSELoss(), x, y), directions(model)
    statistics = model[1].running_mean.clone()
    for query in (loss.per_sample_gradients, lambda: loss.empirical_fisher(v)):
        with pytest.raises(RuntimeError, match=r"1 \(BatchNorm1d\).*model.eval\(\)"):
            query()
    assert torch.equal(model[1].running_mean, statistics)
    assert not loss.counts
    assert close(flat(loss.fisher(v)) * 2 / 2, flat(loss.ggn(v)))
    model.eval()
    rows = loss.per_sample_gradients()
    gradient = loss.objective().gradient().gradient
    assert all(close(r.mean(0), g) for r, g in zip(rows, gradient, strict=True))
    without = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, track_running_stats=False)).eval()
    with pytest.raises(RuntimeError, match="BatchNorm1d"):
        Composite(without.double(), nn.MSELoss(), x, y).per_sample_gradients()


def test_refusals():
    model, criterion, x, y = make("mlp-mse")
    with pytest.raises(TypeError, match=r"not a torch\.nn\.Module"):
        Composite(lambda x: x, criterion, x, y)
    with pytest.raises(ValueError, match="a mean or a sum"):
        Composite(model, nn.MSELoss(reduction="none"), x, y)
    with pytest.raises(ValueError, match="requires_grad_"):
        Composite(make("mlp-mse")[0].requires_grad_(False), criterion, x, y)
    loss = Composite(model, criterion, x, y)
    for product in (loss.ggn, loss.fisher, loss.empirical_fisher):
        with pytest.raises(ValueError, match="1 directions for 4 parameters"):
            product([torch.zeros(())])

    class Odd(nn.Module):
        def __init__(self, answer):
            super().__init__()
            self.inner, self.answer = model, answer

        def forward(self, x):
            return self.answer(self.inner(x))

    pair = Composite(Odd(lambda z: (z, z)), criterion, x, y)
    with pytest.raises(TypeError, match="returned a tuple"):
        pair.outputs()
    detached = Composite(Odd(torch.detach), criterion, x, y)
    for query in (detached.jacobian, lambda: detached.ggn(directions(model))):
        with pytest.raises(RuntimeError, match="none of the parameters"):
            query()
    assert not detached.counts
