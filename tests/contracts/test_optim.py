"""Contract of the room ``optim``: every registered optimizer is tested because it exists."""

import copy
import inspect
import io
import math

import pytest
import torch

from steepest._registry import find_root, methods, records
from steepest.optim import create

OPTIMIZERS = [m for m in methods("optim") if isinstance(m.symbol, type)]
CLAIMS = {}


def claim(check):
    CLAIMS[check.__name__] = check
    return check


def options(cls, **wanted):
    """Those of the wanted options that the optimizer has."""
    known = inspect.signature(cls).parameters
    return {name: value for name, value in wanted.items() if name in known}


def walk(cls, gradient, start, steps, **wanted):
    """Path of one parameter; the gradient is a function of position and step."""
    p = torch.nn.Parameter(start.clone())
    opt = cls([p], **options(cls, **wanted))
    path = [p.detach().clone()]
    for t in range(steps):
        p.grad = gradient(p.detach(), t)
        opt.step()
        path.append(p.detach().clone())
    return torch.stack(path)


def stream(steps, *shape, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(steps, *shape, generator=rng, dtype=torch.float64)


# ---- claims: theorems that a method says hold of it


@claim
def scale_invariant(cls):
    """A positive factor on all gradients changes nothing (epsilon aside)."""
    noise = stream(50, 6)
    for factor in (1e-10, 1e10):
        start = torch.ones(6, dtype=torch.float64)
        same = {"lr": 0.01, "eps": 0.0, "weight_decay": 0.0}
        plain = walk(cls, lambda p, t: noise[t], start, 50, **same)
        scaled = walk(cls, lambda p, t, c=factor: c * noise[t], start, 50, **same)
        assert torch.allclose(plain, scaled, rtol=1e-9, atol=1e-9)


@claim
def bounded_update(cls):
    """No coordinate moves more than lr (1 - beta1) / sqrt(1 - beta2) in a step."""
    lr, betas = 0.01, (0.9, 0.999)
    bound = lr * max(1.0, (1 - betas[0]) / math.sqrt(1 - betas[1]))
    nasty = stream(200, 50) * 10 ** (4 * stream(200, 50, seed=1))  # heavy tails
    nasty[:100, :10] = 0  # then sparse
    same = {"lr": lr, "betas": betas, "weight_decay": 0.0}
    path = walk(cls, lambda p, t: nasty[t], torch.zeros(50, dtype=torch.float64), 200, **same)
    assert path.diff(dim=0).abs().max() <= bound * (1 + 1e-9)


@claim
def uniform_decay(cls):
    """Weight decay takes the same fraction of every weight, whatever its gradients."""
    lr, wd, noise = 0.01, 0.5, stream(20, 6) * torch.logspace(-5, 5, 6, dtype=torch.float64)
    p = torch.nn.Parameter(torch.ones(6, dtype=torch.float64))
    opt = cls([p], lr=lr, weight_decay=wd)
    for g in noise:
        _, other = copy.deepcopy((p, opt))
        (q,) = other.param_groups[0]["params"]
        other.param_groups[0]["weight_decay"] = 0.0
        before = p.detach().clone()
        p.grad, q.grad = g.clone(), g.clone()
        opt.step()
        other.step()
        assert torch.allclose(p - q, -lr * wd * before, rtol=1e-6, atol=1e-12)


@claim
def descends_quadratic(cls):
    """On a convex quadratic the loss falls a hundredfold within 1000 steps at lr = 0.02."""
    curvature = torch.tensor([0.3, 1.0, 3.0], dtype=torch.float64)
    path = walk(
        cls,
        lambda p, t: curvature * p,
        torch.tensor([3.0, -2.0, 1.0], dtype=torch.float64),
        1000,
        lr=0.02,
        weight_decay=0.0,
    )
    loss = 0.5 * (curvature * path**2).sum(1)
    assert loss[-1] < 0.01 * loss[0]


@pytest.mark.parametrize(
    ("method", "name"),
    [pytest.param(m, c, id=f"{m.name}-{c}") for m in OPTIMIZERS for c in sorted(m.claims)],
)
def test_claim(method, name):
    assert name in CLAIMS, f"{method.name} claims {name}, which no test checks"
    CLAIMS[name](method.symbol)


def test_false_claims_would_fail():
    """The checkers can fail: each does for an optimizer of which the claim is not true."""
    by_name = {m.name: m.symbol for m in OPTIMIZERS}
    false = {
        scale_invariant: "SGDW",
        bounded_update: "SGDW",
        uniform_decay: "Adam",
    }
    for check, name in false.items():
        with pytest.raises(AssertionError):
            check(by_name[name])

    def still(params, **hyper):
        return torch.optim.SGD(params, lr=0.0)

    with pytest.raises(AssertionError):
        descends_quadratic(still)


# ---- what is true of all


@pytest.fixture(params=OPTIMIZERS, ids=lambda m: m.name)
def cls(request):
    return request.param.symbol


def model_and_batches(dtype=torch.float32):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 2))
    x, y = torch.randn(20, 16, 5), torch.randn(20, 16, 2)
    return model.to(dtype), x.to(dtype), y.to(dtype)


def train(model, opt, x, y):
    for inputs, targets in zip(x, y, strict=True):
        opt.zero_grad()
        torch.nn.functional.mse_loss(model(inputs), targets).backward()
        opt.step()


def same(one, two):
    return all(map(torch.equal, one.parameters(), two.parameters()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_resume_is_bit_exact(cls, dtype):
    model, x, y = model_and_batches(dtype)
    opt = cls(model.parameters())
    train(model, opt, x[:10], y[:10])
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "opt": opt.state_dict()}, buffer)
    train(model, opt, x[10:], y[10:])
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    resumed = model_and_batches(dtype)[0]
    resumed.load_state_dict(saved["model"])
    other = cls(resumed.parameters(), lr=0.77)
    other.load_state_dict(saved["opt"])
    train(resumed, other, x[10:], y[10:])
    assert same(model, resumed)


def test_copies_go_on_in_lockstep(cls):
    model, x, y = model_and_batches()
    opt = cls(model.parameters())
    train(model, opt, x[:5], y[:5])
    twin, other = copy.deepcopy((model, opt))
    train(model, opt, x[5:], y[5:])
    train(twin, other, x[5:], y[5:])
    assert same(model, twin)


def test_groups_are_separate_optimizers(cls):
    start, noise = torch.ones(4, dtype=torch.float64), stream(10, 4)
    alone = [walk(cls, lambda p, t: noise[t], start, 10, lr=lr)[-1] for lr in (0.1, 0.003)]
    params = [torch.nn.Parameter(start.clone()) for _ in alone]
    opt = cls([{"params": [params[0]], "lr": 0.1}, {"params": [params[1]]}], lr=0.003)
    for g in noise:
        for p in params:
            p.grad = g.clone()
        opt.step()
    assert all(torch.equal(p, q) for p, q in zip(params, alone, strict=True))


def test_one_tensor_or_many_is_the_same(cls):
    start, noise = stream(1, 30)[0], stream(10, 30)
    whole = walk(cls, lambda p, t: noise[t], start, 10, lr=0.01)[-1]
    parts = [torch.nn.Parameter(part.clone()) for part in start.split([3, 0, 20, 7])]
    opt = cls(parts, lr=0.01)
    for g in noise:
        for p, part in zip(parts, g.split([3, 0, 20, 7]), strict=True):
            p.grad = part.clone()
        opt.step()
    assert torch.equal(torch.cat([p.detach() for p in parts]), whole)


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_backends_take_the_same_path(cls, backend):
    start, noise = stream(1, 70)[0], stream(20, 70)
    reference = walk(cls, lambda p, t: noise[t], start, 20, lr=0.01, backend="torch")
    fused = walk(cls, lambda p, t: noise[t], start, 20, lr=0.01, backend=backend)
    assert torch.allclose(reference, fused, rtol=1e-10, atol=1e-10)


def test_missing_and_zero_size_gradients(cls):
    params = [torch.nn.Parameter(torch.ones(n)) for n in (3, 0, 2)]
    opt = cls(params, lr=0.1)
    params[0].grad, params[1].grad = torch.ones(3), torch.ones(0)
    opt.step()
    assert (params[0] != 1).all() and (params[2] == 1).all()
    assert params[2] not in opt.state
    for p in params:
        p.grad = None
    frozen = params[0].detach().clone()
    opt.step()
    assert torch.equal(params[0], frozen)


def test_non_contiguous_parameters(cls):
    start, noise = stream(1, 6, 4)[0], stream(10, 6, 4)
    plain = walk(cls, lambda p, t: noise[t], start, 10, lr=0.01)[-1]
    p = torch.nn.Parameter(start.t().contiguous().t())
    assert not p.is_contiguous()
    opt = cls([p], lr=0.01)
    for g in noise:
        p.grad = g.clone()
        opt.step()
    assert torch.equal(p, plain) and not p.is_contiguous()


def test_maximize_is_minimizing_the_negative(cls):
    start, noise = torch.ones(4, dtype=torch.float64), stream(10, 4)
    up = walk(cls, lambda p, t: noise[t], start, 10, lr=0.1, maximize=True)
    down = walk(cls, lambda p, t: -noise[t], start, 10, lr=0.1)
    assert torch.equal(up, down)


def test_state_takes_the_bytes_that_the_registry_says(cls):
    (record,) = [m for m in OPTIMIZERS if m.symbol is cls]
    p = torch.nn.Parameter(torch.ones(1000))
    p.grad = torch.ones(1000)
    opt = cls([p])
    opt.step()
    tensors = [v for v in opt.state[p].values() if isinstance(v, torch.Tensor)]
    assert sum(t.nbytes for t in tensors) == record.state_bytes * 1000


def test_bad_calls_change_nothing(cls):
    model, x, y = model_and_batches()
    opt = cls(model.parameters())
    train(model, opt, x[:2], y[:2])
    before = copy.deepcopy((model, opt.state_dict()))
    weight = model[0].weight
    weight.grad = torch.randn_like(weight).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        opt.step()
    opt.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match=r"lr=-1\.0"):
        opt.step()
    assert same(model, before[0])
    for i, entry in before[1]["state"].items():
        for key, value in entry.items():
            assert torch.equal(
                torch.as_tensor(opt.state_dict()["state"][i][key]), torch.as_tensor(value)
            )


def test_factory_makes_it(cls):
    assert type(create(cls.__name__, [torch.nn.Parameter(torch.zeros(1))])) is cls


def test_docstring_is_complete(cls):
    text = inspect.getdoc(cls)
    for part in (".. math::", "Args:", "Raises:", "Example:", "Reference:", "When not to use it:"):
        assert part in text, f"{cls.__name__} has no {part}"
    for name in inspect.signature(cls).parameters:
        assert f"{name}: " in text, f"{cls.__name__} does not explain {name}"


@pytest.mark.parametrize("record", records(), ids=lambda r: r["paper"])
def test_every_paper_has_chapter_tests_and_reference(record):
    root = find_root()
    assert record["chapter"], (
        f"no chapter has a section ({record['symbols'][0].split('.')[-1].lower()})="
    )
    assert record["tests"], f"no test names {record['symbols']}"
    bibliography = (root / "book" / "references.bib").read_text("utf-8")
    assert f"{{{record['paper']}," in bibliography
