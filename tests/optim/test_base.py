"""What every elementwise optimizer shares: checks, dtypes, checkpoints."""

import copy
import io
import math
import pickle

import pytest
import torch

from steepest.optim import SGDW, AdaMax, AdamW, MeZO, OptAMSGrad, create, find
from steepest.optim import list as list_optimizers


def make(**options):
    """An AdamW in mid-run: parameters, optimizer."""
    params = [torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(4))]
    opt = AdamW(params, lr=0.1, **options)
    for seed in range(3):
        fill(params, seed)
        opt.step()
    return params, opt


def fill(params, seed):
    rng = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=rng).to(p.dtype)


def snapshot(params, opt):
    return copy.deepcopy(([p.detach() for p in params], opt.state_dict()))


def unchanged(before, params, opt):
    values, state = before
    now = opt.state_dict()
    same_state = all(
        torch.equal(torch.as_tensor(old), torch.as_tensor(now["state"][i][key]))
        for i, entry in state["state"].items()
        for key, old in entry.items()
    )
    same_keys = {i: set(e) for i, e in state["state"].items()} == {
        i: set(e) for i, e in now["state"].items()
    }
    return same_state and same_keys and all(map(torch.equal, values, params))


@pytest.mark.parametrize(
    "options",
    [
        {"lr": -1.0},
        {"lr": math.nan},
        {"lr": math.inf},
        {"lr": "fast"},
        {"lr": torch.tensor(-1.0)},
        {"betas": (0.9, 1.0)},
        {"betas": (-0.1, 0.9)},
        {"betas": (0.9,)},
        {"betas": 0.9},
        {"lr": "1e-3"},
        {"eps": -1e-8},
        {"weight_decay": -1},
        {"weight_decay": math.nan},
    ],
)
def test_bad_hyperparameters_say_what_is_allowed(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"AdamW: {name}=.* is not valid: give"):
        AdamW([torch.nn.Parameter(torch.zeros(1))], **options)


def test_other_bad_hyperparameters():
    p = [torch.nn.Parameter(torch.zeros(1))]
    for bad in ({"window": 0}, {"window": 2.5}, {"ridge": 0.0}):
        with pytest.raises(ValueError, match=r"is not valid: give"):
            OptAMSGrad(p, **bad)
    with pytest.raises(ValueError, match=r"momentum=1.0 is not valid: give a number in"):
        SGDW(p, momentum=1.0)
    with pytest.raises(ValueError, match=r"no capturable=True"):
        AdamW(p, capturable=True)
    with pytest.raises(ValueError, match=r"choose propagate, raise or skip"):
        AdamW(p, nonfinite="ignore")
    with pytest.raises(ValueError, match=r"unknown backend 'cuda'"):
        AdamW(p, backend="cuda")


def test_no_parameters():
    for empty in ([], iter(())):
        with pytest.raises(ValueError, match=r"got no parameters: pass model.parameters\(\)"):
            AdamW(empty)


@pytest.mark.parametrize("make", [AdamW, MeZO], ids=["elementwise", "asking"])
def test_a_bare_tensor_is_not_taken_for_a_list_of_its_rows(make):
    for params in (torch.zeros(2), torch.nn.Parameter(torch.zeros(2))):
        with pytest.raises(TypeError, match="iterable of Tensors"):
            make(params)


def test_a_star_import_leaves_the_builtins_alone():
    scope = {}
    exec("from steepest.optim import *", scope)
    assert "list" not in scope and scope["AdamW"] is AdamW


def test_a_schedule_that_breaks_lr_changes_nothing():
    params, opt = make()
    before = snapshot(params, opt)
    fill(params, 9)
    for bad in (math.nan, -1.0):
        opt.param_groups[0]["lr"] = bad
        with pytest.raises(ValueError, match="lr="):
            opt.step()
        assert unchanged(before, params, opt)


def test_a_bad_group_changes_nothing():
    _, opt = make()
    with pytest.raises(ValueError, match="weight_decay"):
        opt.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "weight_decay": -1})
    assert len(opt.param_groups) == 1


def test_sparse_gradients():
    params, opt = make()
    before = snapshot(params, opt)
    fill(params, 9)
    params[1].grad = params[1].grad.to_sparse()
    with pytest.raises(RuntimeError, match=r"parameter 1 of group 0.*sparse gradient: use sparse"):
        opt.step()
    assert unchanged(before, params, opt)


@pytest.mark.parametrize("new", [torch.ones(5), torch.ones(4, dtype=torch.bfloat16)])
def test_a_parameter_that_changes_shape_or_dtype(new):
    params, opt = make()
    state = copy.deepcopy(opt.state_dict())
    params[1].grad = None
    params[1].data = new
    fill(params, 9)
    first = params[0].detach().clone()
    with pytest.raises(
        RuntimeError, match=r"had shape \(4,\) and torch.float32 before: make a new"
    ):
        opt.step()
    assert unchanged(([first, new], state), params, opt)


def test_forced_backend_that_is_missing(monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "numba" else real(name, *a)
    )
    with pytest.raises(RuntimeError, match=r"install the extra steepest\[cpu\]"):
        AdamW([torch.nn.Parameter(torch.zeros(1))], backend="cpu")


def test_nonfinite_gradients():
    for policy in ("raise", "skip", "propagate"):
        params, opt = make(nonfinite=policy)
        before = snapshot(params, opt)
        fill(params, 9)
        params[1].grad[2] = math.nan
        if policy == "raise":
            with pytest.raises(RuntimeError, match=r"parameter 1 of group 0.*NaN or infinity"):
                opt.step()
        else:
            opt.step()
        assert unchanged(before, params, opt) == (policy != "propagate")
        assert params[1].isnan().any() == (policy == "propagate")


def test_state_of_another_optimizer_is_refused():
    params, opt = make()
    before = snapshot(params, opt)
    others = [
        torch.optim.SGD(params, lr=0.1, momentum=0.9),
        torch.optim.SGD(params, lr=0.1),
        torch.optim.RMSprop(params, lr=0.1),
        AdaMax(params),
        SGDW(params),
        OptAMSGrad(params),
    ]
    fill(params, 1)
    for other in others:
        saved = [p.detach().clone() for p in params]
        other.step()
        for p, value in zip(params, saved, strict=True):
            p.data.copy_(value)
        with pytest.raises(ValueError, match="of another optimizer"):
            opt.load_state_dict(other.state_dict())
        assert unchanged(before, params, opt)
    small = AdamW([torch.nn.Parameter(torch.ones(3, 2))])
    with pytest.raises(ValueError, match="other parameter groups"):
        opt.load_state_dict(small.state_dict())
    swapped = AdamW([torch.nn.Parameter(torch.ones(2, 3)), torch.nn.Parameter(torch.ones(4))])
    fill(swapped.param_groups[0]["params"], 1)
    swapped.step()
    with pytest.raises(ValueError, match=r"has shape \(2, 3\), the parameter \(3, 2\)"):
        opt.load_state_dict(swapped.state_dict())
    assert unchanged(before, params, opt)


def test_a_loaded_state_shares_no_memory():
    params, opt = make()
    other = AdamW([torch.nn.Parameter(p.detach().clone()) for p in params])
    other.load_state_dict(opt.state_dict())
    before = snapshot(params, opt)
    fill(other.param_groups[0]["params"], 5)
    other.step()
    assert unchanged(before, params, opt)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_keeps_float32_state_also_through_a_checkpoint(dtype):
    p = torch.nn.Parameter(torch.ones(8, dtype=dtype))
    opt = AdamW([p], lr=0.1)
    fill([p], 0)
    opt.step()
    buffer = io.BytesIO()
    torch.save(opt.state_dict(), buffer)
    buffer.seek(0)
    resumed = AdamW([p], lr=0.1)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    for key in ("exp_avg", "exp_avg_sq"):
        assert resumed.state[p][key].dtype == torch.float32
        assert torch.equal(resumed.state[p][key], opt.state[p][key])
    assert p.dtype == dtype


def test_low_precision_is_the_float32_step_rounded():
    p = torch.nn.Parameter(torch.linspace(-2, 2, 64).to(torch.bfloat16))
    q = torch.nn.Parameter(p.detach().float())
    fill([p], 0)
    q.grad = p.grad.float()
    for param in (p, q):
        AdamW([param], lr=0.1).step()
    assert torch.equal(p.detach(), q.detach().to(torch.bfloat16))


def test_complex_parameters_are_pairs_of_real_numbers():
    rng = torch.Generator().manual_seed(0)
    z = torch.nn.Parameter(torch.randn(5, dtype=torch.complex64, generator=rng))
    x = torch.nn.Parameter(torch.view_as_real(z.detach()).clone())
    one, two = AdamW([z], lr=0.1), AdamW([x], lr=0.1)
    theirs = torch.nn.Parameter(z.detach().clone())
    three = torch.optim.AdamW([theirs], lr=0.1)
    for _ in range(10):
        z.grad = torch.randn(5, dtype=torch.complex64, generator=rng)
        x.grad, theirs.grad = torch.view_as_real(z.grad).clone(), z.grad.clone()
        for opt in (one, two, three):
            opt.step()
    assert torch.equal(torch.view_as_real(z.detach()), x.detach())
    assert torch.allclose(z, theirs, atol=1e-6)
    again = AdamW([z], lr=0.1)
    again.load_state_dict(three.state_dict())
    assert torch.allclose(again.state[z]["exp_avg"], one.state[z]["exp_avg"], atol=1e-6)


def test_a_late_parameter_has_its_own_bias_correction():
    early, late = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    opt = AdamW([early, late], lr=0.1, weight_decay=0.0)
    for t in range(5):
        early.grad = torch.ones(2)
        late.grad = torch.ones(2) if t == 4 else None
        opt.step()
    assert torch.allclose(late, torch.full((2,), -0.1), atol=1e-6)
    assert opt.state[late]["step"] == 1 and opt.state[early]["step"] == 5


def test_closures_and_accumulation():
    w = torch.nn.Parameter(torch.tensor([2.0]))
    opt = AdamW([w], lr=0.1)

    def closure():
        opt.zero_grad()
        loss = (w**2).sum()
        loss.backward()
        return loss

    assert opt.step(closure).item() == 4.0
    assert torch.equal(w.grad, torch.tensor([4.0]))  # a step does not write gradients
    opt.zero_grad()
    (w**2).sum().backward()
    (w**2).sum().backward()
    total = w.grad.clone()
    opt.step()
    assert torch.equal(w.grad, total)


def test_a_tensor_lr_that_a_schedule_moves():
    p, q = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    moving, fixed = AdamW([p], lr=torch.tensor(0.1)), AdamW([q], lr=0.1)
    for lr in (0.1, 0.05, 0.2):
        moving.param_groups[0]["lr"].fill_(lr)
        fixed.param_groups[0]["lr"] = lr
        p.grad = q.grad = torch.ones(3)
        moving.step()
        fixed.step()
    assert torch.allclose(p, q, atol=1e-7)


def test_schedulers_and_pickling():
    params, opt = make(backend="torch", nonfinite="raise")
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=10)
    opt.step()
    schedule.step()
    assert opt.param_groups[0]["lr"] < 0.1
    again = pickle.loads(pickle.dumps(opt))
    assert (again.backend, again.nonfinite) == ("torch", "raise")
    copies = again.param_groups[0]["params"]
    fill(params, 8)
    fill(copies, 8)
    opt.step()
    again.step()
    assert all(map(torch.equal, params, copies))


def test_a_compiled_training_step():
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    twin = copy.deepcopy(model)
    opt, other = AdamW(model.parameters(), lr=0.1), AdamW(twin.parameters(), lr=0.1)
    x = torch.randn(8, 4)

    def train(model, opt):
        opt.zero_grad()
        model(x).square().mean().backward()
        opt.step()

    fast = torch.compile(train, backend="eager")
    for _ in range(3):
        fast(model, opt)
        train(twin, other)
    assert all(map(torch.equal, model.parameters(), twin.parameters()))


def test_factory():
    p = [torch.nn.Parameter(torch.zeros(1))]
    assert type(create("AdamW", p)) is AdamW and type(create("adam-w", p, lr=1)) is AdamW
    assert find("opt_amsgrad") is OptAMSGrad
    with pytest.raises(ValueError, match="there is no optimizer 'AdmaW': did you mean AdamW"):
        create("AdmaW", p)
    with pytest.raises(ValueError, match=r"did you mean .*AdaMax, Adam, AdamAtan2"):
        create("zzzz", p)
    with pytest.raises(TypeError):
        create("AdamW", p, momentum=0.9)
    with pytest.raises(TypeError, match="neither SAM nor SGDW has a hyper-parameter 'rh'"):
        create("sam", p, rh=0.1)
    with pytest.raises(ValueError, match="unknown oracle 'grad': choose one of value"):
        list_optimizers(oracle="grad")
    assert "SGDW" in list_optimizers(max_state_bytes=4)
    assert {"AdaHessian", "OASIS"} <= set(list_optimizers(oracle="hvp"))
    assert "Adam" not in list_optimizers(oracle="hvp")
    assert "Adam" not in list_optimizers(claims={"uniform_decay"})
