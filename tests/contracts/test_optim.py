"""Contract of the room ``optim``: every registered optimizer is tested because it exists."""

import copy
import inspect
import io
import math
import pickle

import pytest
import torch
from torch.utils._pytree import tree_leaves

from steepest._registry import find_root, methods, records
from steepest.optim import AdamW, Elementwise, OracleDriven, Wrapper, create
from steepest.oracles import Objective

OPTIMIZERS = [m for m in methods("optim") if isinstance(m.symbol, type)]
CLAIMS = {}


def claim(check):
    CLAIMS[check.__name__] = check
    return check


def options(cls, **wanted):
    """Those of the wanted options that the optimizer has."""
    known = inspect.signature(cls).parameters
    return {name: value for name, value in wanted.items() if name in known}


def make(cls, params, **wanted):
    """An optimizer of the class; a wrapper has AdamW inside."""
    own = options(cls, **wanted)
    if issubclass(cls, Wrapper):
        return cls(AdamW(params, **options(AdamW, **wanted)), **own)
    return cls(params, **own)


def halves(loss):
    """A loss as the sum of two parts, which some methods need."""
    return [lambda: loss() / 2, lambda: loss() / 2]


def move(opt, loss=1.0):
    """A step from what is in ``.grad``; an optimizer that reads the loss's value gets it."""
    opt.step((lambda: loss) if getattr(opt, "needs_loss", False) else None)


def advance(opt, params, grads):
    """One step with these gradients: in ``.grad``, or as the slopes of a linear loss."""
    if isinstance(opt, OracleDriven):
        opt.step(halves(lambda: sum((p * g).sum() for p, g in zip(params, grads, strict=True))))
    else:
        for p, g in zip(params, grads, strict=True):
            p.grad = g.clone()
        move(opt)


def scope(cls):
    return next(m.scope for m in OPTIMIZERS if m.symbol is cls)


def adds_nothing_up(cls):
    """Whether elements are independent; sums (a norm, a loss) round by the order of terms."""
    return issubclass(cls, Elementwise) and cls.prepass is None


def walk(cls, gradient, start, steps, loss=None, **wanted):
    """Path of one parameter; gradient is a function of position and step, loss of position.

    The loss, if there is one, is for optimizers that ask for more than its slopes.
    """
    p = torch.nn.Parameter(start.clone())
    opt = make(cls, [p], **wanted)
    path = [p.detach().clone()]
    for t in range(steps):
        if loss is not None and isinstance(opt, OracleDriven):
            opt.step(halves(lambda: loss(p)))
        else:
            advance(opt, [p], [gradient(p.detach(), t)])
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
    opt = make(cls, [p], lr=lr, weight_decay=wd)
    for g in noise:
        _, other = copy.deepcopy((p, opt))
        (q,) = other.param_groups[0]["params"]
        other.param_groups[0]["weight_decay"] = 0.0
        before = p.detach().clone()
        advance(opt, [p], [g])
        advance(other, [q], [g])
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
        loss=lambda p: 0.5 * (curvature * p**2).sum(),
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

    class Still(torch.optim.SGD):
        def __init__(self, params):
            super().__init__(params, lr=0.0)

    with pytest.raises(AssertionError):
        descends_quadratic(Still)


# ---- what is true of all


FIRST_ORDER = [m for m in OPTIMIZERS if not issubclass(m.symbol, OracleDriven)]
ASKING = [m for m in OPTIMIZERS if issubclass(m.symbol, OracleDriven)]


@pytest.fixture(params=OPTIMIZERS, ids=lambda m: m.name)
def cls(request):
    return request.param.symbol


first_order = pytest.mark.parametrize("cls", [m.symbol for m in FIRST_ORDER])
asking = pytest.mark.parametrize("cls", [m.symbol for m in ASKING])


def model_and_batches(dtype=torch.float32, width=7):
    torch.manual_seed(0)
    layers = torch.nn.Linear(5, width), torch.nn.Tanh(), torch.nn.Linear(width, 2)
    model = torch.nn.Sequential(*layers)
    x, y = torch.randn(20, 16, 5), torch.randn(20, 16, 2)
    return model.to(dtype), x.to(dtype), y.to(dtype)


def train(model, opt, x, y):
    for inputs, targets in zip(x, y, strict=True):
        if isinstance(opt, OracleDriven):
            parts = zip(inputs.split(8), targets.split(8), strict=True)
            opt.step(
                [lambda x=x, y=y: torch.nn.functional.mse_loss(model(x), y) / 2 for x, y in parts]
            )
        else:
            opt.zero_grad()
            loss = torch.nn.functional.mse_loss(model(inputs), targets)
            loss.backward()
            move(opt, loss)


def same(one, two):
    return all(map(torch.equal, one.parameters(), two.parameters()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_resume_is_bit_exact(cls, dtype):
    model, x, y = model_and_batches(dtype)
    opt = make(cls, model.parameters())
    train(model, opt, x[:10], y[:10])
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "opt": opt.state_dict()}, buffer)
    train(model, opt, x[10:], y[10:])
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    resumed = model_and_batches(dtype)[0]
    resumed.load_state_dict(saved["model"])
    other = make(cls, resumed.parameters(), lr=0.77, seed=99)
    other.load_state_dict(saved["opt"])
    train(resumed, other, x[10:], y[10:])
    assert same(model, resumed)


def test_copies_go_on_in_lockstep(cls):
    model, x, y = model_and_batches()
    opt = make(cls, model.parameters())
    torch.optim.lr_scheduler.ConstantLR(opt, 1.0)  # which sets a step of its own on it
    train(model, opt, x[:5], y[:5])
    twin, other = copy.deepcopy((model, opt))
    pickled, third = pickle.loads(pickle.dumps((model, opt)))
    for each, its in ((model, opt), (twin, other), (pickled, third)):
        train(each, its, x[5:], y[5:])
    assert same(model, twin) and same(model, pickled)


@first_order
def test_groups_are_separate_optimizers(cls):
    if scope(cls) == "model":
        pytest.skip("groups are coupled")
    start, noise = torch.ones(4, dtype=torch.float64), stream(10, 4)
    alone = [walk(cls, lambda p, t: noise[t], start, 10, lr=lr)[-1] for lr in (0.1, 0.003)]
    params = [torch.nn.Parameter(start.clone()) for _ in alone]
    opt = make(cls, [{"params": [params[0]], "lr": 0.1}, {"params": [params[1]]}], lr=0.003)
    for g in noise:
        advance(opt, params, [g, g])
    assert all(torch.equal(p, q) for p, q in zip(params, alone, strict=True))


@asking
def test_a_group_has_its_own_learning_rate(cls):
    params = [torch.nn.Parameter(torch.ones(4, dtype=torch.float64)) for _ in range(3)]
    groups = [{"params": params[:1], "lr": 0.0}, {"params": params[1:2]}]
    opt = make(cls, groups, lr=0.1, weight_decay=0.0)
    opt.add_param_group({"params": params[2:], "lr": 0.2})
    advance(opt, params, [torch.ones(4, dtype=torch.float64)] * 3)
    still, moved, fast = (p.detach() - 1 for p in params)
    assert still.abs().max() < 1e-12
    assert moved.abs().max() > 1e-6
    if cls.oracle != "value":  # there each element has its own random direction
        assert torch.allclose(fast, 2 * moved)


def test_one_tensor_or_many_is_the_same(cls):
    if scope(cls) == "tensor":
        pytest.skip("each tensor is treated as a whole")
    start, noise = stream(1, 30)[0], stream(10, 30)
    whole = walk(cls, lambda p, t: noise[t], start, 10, lr=0.01)[-1]
    parts = [torch.nn.Parameter(part.clone()) for part in start.split([3, 0, 20, 7])]
    opt = make(cls, parts, lr=0.01)
    for g in noise:
        advance(opt, parts, g.split([3, 0, 20, 7]))
    joined = torch.cat([p.detach() for p in parts])
    exact = adds_nothing_up(cls)
    assert torch.equal(joined, whole) if exact else torch.allclose(joined, whole, rtol=1e-9)


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_backends_take_the_same_path(cls, backend):
    if "backend" not in inspect.signature(cls).parameters:
        pytest.skip("it has no rule of its own")
    start, noise = stream(1, 70)[0], stream(20, 70)
    reference = walk(cls, lambda p, t: noise[t], start, 20, lr=0.01, backend="torch")
    fused = walk(cls, lambda p, t: noise[t], start, 20, lr=0.01, backend=backend)
    assert torch.allclose(reference, fused, rtol=1e-10, atol=1e-10)


@first_order
def test_missing_and_zero_size_gradients(cls):
    params = [torch.nn.Parameter(torch.ones(n)) for n in (3, 0, 2)]
    opt = make(cls, params, lr=0.1)
    params[0].grad, params[1].grad = torch.ones(3), torch.ones(0)
    move(opt)
    assert (params[0] != 1).all() and (params[2] == 1).all()
    assert params[2] not in opt.state
    for p in params:
        p.grad = None
    frozen = params[0].detach().clone()
    move(opt)
    assert torch.equal(params[0], frozen)


@asking
def test_frozen_and_zero_size_parameters(cls):
    params = [torch.nn.Parameter(torch.ones(n)) for n in (3, 0, 2)]
    params[2].requires_grad_(False)
    opt = make(cls, params, lr=0.1)
    params[0].grad = torch.full((3,), 7.0)
    advance(opt, params, [torch.ones(3), torch.ones(0), torch.ones(2)])
    assert (params[0] != 1).all() and (params[2] == 1).all()
    assert (params[0].grad == 7).all()  # is as it was


def test_non_contiguous_parameters(cls):
    start, noise = stream(1, 6, 4)[0], stream(10, 6, 4)
    plain = walk(cls, lambda p, t: noise[t], start, 10, lr=0.01)[-1]
    p = torch.nn.Parameter(start.t().contiguous().t())
    assert not p.is_contiguous()
    opt = make(cls, [p], lr=0.01)
    for g in noise:
        advance(opt, [p], [g])
    exact = adds_nothing_up(cls)
    assert torch.equal(p, plain) if exact else torch.allclose(p, plain, rtol=1e-9)
    assert not p.is_contiguous()


def test_maximize_is_minimizing_the_negative(cls):
    if "maximize" not in inspect.signature(cls).parameters:
        pytest.skip("that is its inner optimizer's")
    start, noise = torch.ones(4, dtype=torch.float64), stream(10, 4)
    up = walk(cls, lambda p, t: noise[t], start, 10, lr=0.1, maximize=True)
    down = walk(cls, lambda p, t: -noise[t], start, 10, lr=0.1)
    assert torch.equal(up, down)


def test_state_takes_the_bytes_that_the_registry_says(cls):
    (record,) = [m for m in OPTIMIZERS if m.symbol is cls]
    p = torch.nn.Parameter(torch.ones(1000))
    opt = make(cls, [p])
    advance(opt, [p], [torch.ones(1000)])
    own = opt.own_state() if isinstance(opt, Wrapper) else opt.state[p]
    tensors = [v for v in tree_leaves(own) if isinstance(v, torch.Tensor)]
    assert sum(t.nbytes for t in tensors if t.numel() > 1) == record.state_bytes * 1000


def snapshot(model, opt):
    leaves = tree_leaves((list(model.parameters()), opt.state_dict()))
    return [v.detach().clone() if isinstance(v, torch.Tensor) else v for v in leaves]


def unchanged(before, after, tolerance=0.0):
    assert len(before) == len(after)
    for a, b in zip(before, after, strict=True):
        if isinstance(a, torch.Tensor):
            assert torch.allclose(a, b, rtol=0, atol=tolerance)
        else:
            assert a == b


@first_order
def test_bad_calls_change_nothing(cls):
    model, x, y = model_and_batches()
    opt = make(cls, model.parameters())
    train(model, opt, x[:2], y[:2])
    before = snapshot(model, opt)
    weight = model[0].weight
    weight.grad = torch.randn_like(weight).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        move(opt)
    unchanged(before, snapshot(model, opt))
    train(model, opt, x[2:3], y[2:3])
    lr = opt.param_groups[0]["lr"]
    before = snapshot(model, opt)
    opt.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match=r"lr=-1\.0"):
        move(opt)
    opt.param_groups[0]["lr"] = lr
    unchanged(before, snapshot(model, opt))


def test_a_checkpoint_of_another_model_changes_nothing(cls):
    """Kernels write where they are told: state of another shape must not get to them."""
    (model, x, y), (narrow, _, _) = model_and_batches(), model_and_batches(width=3)
    opt, other = make(cls, model.parameters()), make(cls, narrow.parameters())
    train(model, opt, x[:2], y[:2])
    train(narrow, other, x[:2], y[:2])
    saved = other.state_dict()
    if not any(t.ndim for t in tree_leaves(saved) if isinstance(t, torch.Tensor)):
        pytest.skip("it remembers no tensor")
    before = snapshot(model, opt)
    with pytest.raises(ValueError, match="shape"):
        opt.load_state_dict(saved)
    unchanged(before, snapshot(model, opt))


# ---- what is true of those that put questions to the loss


@asking
def test_bad_objectives_change_nothing(cls):
    model, x, y = model_and_batches()
    opt = make(cls, model.parameters())
    train(model, opt, x[:2], y[:2])
    before = snapshot(model, opt)
    in_place = 1e-6 if cls.__name__ == "MeZO" else 0.0  # it returns by subtraction

    def loss():
        return torch.nn.functional.mse_loss(model(x[0]), y[0])

    def backward():
        value = loss()
        value.backward()
        return value

    bad = [
        (None, RuntimeError, rf"queries the {cls.oracle} oracle: pass the loss"),
        (backward, RuntimeError, r"calls backward.*queries the"),
        (lambda: None, TypeError, "returned None"),
        (lambda: model(x[0]), ValueError, "return one real number"),
        (lambda: 1 / 0, ZeroDivisionError, "division"),
    ]
    for objective, error, message in bad:
        with pytest.raises(error, match=message):
            opt.step(objective and [objective, objective])
        unchanged(before, snapshot(model, opt), in_place)
    lr = opt.param_groups[0]["lr"]
    opt.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match=r"lr=-1\.0"):
        opt.step(halves(loss))
    opt.param_groups[0]["lr"] = lr
    unchanged(before, snapshot(model, opt), in_place)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="requires_grad_"):
        opt.step(halves(loss))
    with pytest.raises(ValueError, match="saved without"):
        opt.load_state_dict(AdamW(model.parameters()).state_dict())
    unchanged(before, snapshot(model, opt), in_place)


@asking
def test_a_step_costs_what_the_registry_says(cls):
    (record,) = [m for m in ASKING if m.symbol is cls]
    assert cls.oracle == record.oracle
    p = torch.nn.Parameter(torch.ones(3))
    objective = Objective(halves(lambda: (p**4).sum()), [p])
    make(cls, [p]).step(objective)
    assert objective.counts["forward"] == 2 * record.forward
    assert objective.counts["backward"] == 2 * record.backward


@asking
def test_the_loss_is_one_function_in_a_step(cls):
    """All passes of a step see the same random numbers, and each step new ones."""
    p = torch.nn.Parameter(torch.ones(3))
    seen = []

    def loss():
        seen.append(torch.rand(2))
        return (p**4).sum() * (1 + seen[-1].mean())

    torch.manual_seed(1)
    draws = [(torch.rand(2), torch.rand(2)) for _ in range(3)]
    torch.manual_seed(1)
    opt = make(cls, [p], lr=1e-3)
    for pair in draws:
        seen.clear()
        opt.step([loss, loss])
        assert {tuple(s.tolist()) for s in seen} == {tuple(d.tolist()) for d in pair}


@asking
def test_the_order_of_named_parameters_does_not_matter(cls):
    """A direction belongs to a name: another order, or a group more, changes nothing."""
    paths = []
    for arrange in (
        lambda named: named,
        lambda named: named[::-1],
        lambda named: [{"params": named[1:3]}, {"params": [named[3], named[0]]}],
    ):
        model, x, y = model_and_batches(torch.float64)
        opt = make(cls, arrange(list(model.named_parameters())), lr=1e-3)
        train(model, opt, x, y)
        paths.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert all(torch.allclose(paths[0], path, rtol=1e-9, atol=1e-12) for path in paths[1:])


@asking
def test_steps_and_seeds_give_new_directions(cls):
    """Two seeds, and two steps of one, differ where the method draws; SAM's do not."""
    draws = {make(cls, [torch.nn.Parameter(torch.ones(1))], seed=s).draw() for s in (0, 1)}
    assert len(draws) == (2 if "seed" in inspect.signature(cls).parameters else 1)
    p = torch.nn.Parameter(torch.ones(1))
    opt = make(cls, [p])
    first = opt.draw()
    advance(opt, [p], [torch.ones(1)])
    assert opt.draw() != first


# ---- what is said of it


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
    missing = f"book/references.bib has no entry {record['paper']}"
    assert f"{{{record['paper']}," in bibliography, missing
