"""MeZO against a transcription, its estimator, and what its noise and memory promise."""

import statistics

import pytest
import torch

from steepest.estimators import SPSA
from steepest.kernels import noise, offsets, split_seed
from steepest.optim import AdaHessian, Estimated, MeZO
from steepest.oracles import Objective

F64 = torch.float64


def problem(dtype=F64):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
    x, y = torch.randn(20, 32, 4, dtype=dtype), torch.randn(20, 32, 1, dtype=dtype)
    return model.to(dtype), list(zip(x, y, strict=True))


def mse(model, batch):
    return torch.nn.functional.mse_loss(model(batch[0]), batch[1])


@pytest.mark.parametrize("samples", [1, 3])
def test_against_a_transcription(samples):
    model, data = problem()
    twin, _ = problem()
    lr, eps, wd, seed = 0.05, 1e-3, 0.1, 11
    opt = MeZO(model.parameters(), lr=lr, eps=eps, samples=samples, weight_decay=wd, seed=seed)
    theta = torch.nn.utils.parameters_to_vector(twin.parameters()).detach()

    def loss(vector, batch):
        torch.nn.utils.vector_to_parameters(vector, twin.parameters())
        with torch.no_grad():
            return mse(twin, batch)

    for t, batch in enumerate(data):
        opt.step(lambda batch=batch: mse(model, batch))
        z = [
            noise(split_seed(split_seed(seed, t), i), 0, len(theta)).double()
            for i in range(samples)
        ]
        w = [(loss(theta + eps * d, batch) - loss(theta - eps * d, batch)) / (2 * eps) for d in z]
        step = sum(a * d for a, d in zip(w, z, strict=True)) / samples
        theta = (1 - lr * wd) * theta - lr * step
    assert torch.allclose(
        torch.nn.utils.parameters_to_vector(model.parameters()), theta, rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
def test_it_is_spsa_driving_sgd_without_the_memory(kind):
    model, data = problem()
    twin, _ = problem()
    mezo = MeZO(model.parameters(), lr=0.05, samples=2, kind=kind, seed=4)
    sgd = torch.optim.SGD(twin.parameters(), lr=0.05)
    spsa = Estimated(sgd, SPSA(samples=2, kind=kind), seed=4)
    for batch in data:
        mezo.step(lambda batch=batch: mse(model, batch))
        spsa.step(lambda batch=batch: mse(twin, batch))
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=0, atol=1e-9)


def test_parameters_return_from_the_probes():
    """To within rounding in float32, which does not pile up; bit for bit in half precision."""
    model, data = problem(torch.float32)
    start = [p.detach().clone() for p in model.parameters()]
    opt = MeZO(model.parameters(), lr=0.0)
    for _ in range(5):
        for batch in data:
            opt.step(lambda batch=batch: mse(model, batch))
    gap = max((p - s).abs().max() for p, s in zip(model.parameters(), start, strict=True))
    assert gap < 100**0.5 * 4 * 6e-8
    model, data = problem(torch.bfloat16)
    start = [p.detach().clone() for p in model.parameters()]
    MeZO(model.parameters(), lr=0.0).step(lambda: mse(model, data[0]))
    assert all(map(torch.equal, model.parameters(), start))


def test_nothing_of_the_models_size_is_allocated():
    """No copy, no gradient, no graph: what a step makes is bounded by the noise's chunk."""
    p = torch.nn.Parameter(torch.ones(3_000_000))
    opt = MeZO([p])
    objective = Objective(lambda: p[:10].sum(), [p])
    opt.step(objective)  # compile
    with torch.profiler.profile(profile_memory=True) as profile:
        opt.step(objective)
    made = [e.self_cpu_memory_usage for e in profile.key_averages()]
    assert max(made, default=0) < 1_000_000 < p.nbytes
    assert p.grad is None and not opt.state


def steps_to(hessian_rank, dimension, seed):
    """Steps to a hundredth of the loss, for a Hessian that projects onto the first axes."""
    p = torch.nn.Parameter(torch.zeros(dimension))
    p.data[:hessian_rank] = 1
    opt = MeZO([p], lr=1 / (hessian_rank + 2), seed=seed)
    for t in range(1, 20_000):
        value = opt.step(lambda: 0.5 * p[:hessian_rank].square().sum())
        if value < 0.01 * 0.5 * hessian_rank:
            return t
    raise AssertionError("it did not get there")


def test_the_rate_is_that_of_the_effective_rank():
    """A hundred times the dimension costs nothing; forty times the rank costs it."""
    low, high, full = (
        statistics.median(steps_to(rank, dimension, seed) for seed in range(3))
        for rank, dimension in ((5, 200), (5, 20_000), (200, 200))
    )
    assert high / low < 2
    assert full / low > 8


def test_the_loss_need_not_have_a_gradient():
    """A count of errors is flat almost everywhere; its values still lead somewhere."""
    torch.manual_seed(0)
    x = torch.randn(400, 10)
    y = (x @ torch.randn(10) > 0).float()
    p = torch.nn.Parameter(torch.randn(10))

    def errors():
        return ((x @ p > 0).float() != y).float().mean()

    start = errors().item()
    opt = MeZO([p], lr=0.1, eps=0.3, samples=4)
    for _ in range(300):
        opt.step(errors)
    assert errors() < start - 0.2


def test_a_group_decays_alone():
    a, b = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    opt = MeZO([{"params": [a], "weight_decay": 0.5}, {"params": [b]}], lr=0.1)
    opt.step(lambda: 0 * (a.sum() + b.sum()))
    assert torch.allclose(a, torch.full((3,), 0.95)) and torch.allclose(b, torch.ones(3))


def test_noise_of_a_named_parameter_is_its_own():
    """Freezing one parameter leaves the others' directions as they are."""

    def move(frozen):
        model, _ = problem()
        model[0].weight.requires_grad_(not frozen)
        before = model[2].weight.detach().clone()
        # a loss that only the last layer's weight changes: the slope is the same in both
        MeZO(model.named_parameters(), lr=1.0).step(lambda: model[2].weight.sum())
        return model[2].weight.detach() - before

    assert torch.allclose(move(False), move(True), atol=1e-9)
    names = ["0.weight", "0.bias"]
    sizes = [torch.zeros(20), torch.zeros(5)]
    assert offsets(sizes, names) == offsets(sizes[::-1], names[::-1])[::-1]


def test_in_half_precision_both_probes_start_from_home():
    """At weights of 1, an ulp is 8 times eps: a probe made from the other one would be biased."""
    p = torch.nn.Parameter(torch.ones(20_000, dtype=torch.bfloat16))
    objective = Objective(lambda: p.float().sum(), [p])
    slopes = [SPSA(in_place=True).project(objective, seed).weights[0] for seed in range(20)]
    spread = statistics.stdev(slopes)
    assert abs(statistics.mean(slopes)) < 5 * spread / 20**0.5


def test_equal_names_are_refused():
    a, b = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    opt = MeZO([{"params": [("weight", a)]}, {"params": [("weight", b)]}])
    with pytest.raises(ValueError, match="two parameters have the same name"):
        opt.step(lambda: (a + b).sum())


def test_a_checkpoint_of_another_method_is_refused():
    p = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="is of AdaHessian, not of MeZO"):
        MeZO([p]).load_state_dict(AdaHessian([p]).state_dict())
    with pytest.raises(ValueError, match=r"MeZO: seed=1\.5"):
        MeZO([p], seed=1.5)


def test_bad_calls_change_nothing():
    p = torch.nn.Parameter(torch.ones(3, dtype=F64))
    opt = MeZO([p], lr=0.1)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(RuntimeError, match="the loss is NaN or infinite"):
            opt.step(lambda bad=bad: p.sum() * bad)
        assert torch.allclose(p, torch.ones(3, dtype=F64), atol=1e-12) and opt.steps == 0
    with pytest.raises(ValueError, match="samples=0"):
        MeZO([p], samples=0)
    with pytest.raises(ValueError, match="'cauchy': choose one of gaussian, rademacher, sphere"):
        MeZO([p], kind="cauchy")
    with pytest.raises(ValueError, match="eps=0"):
        MeZO([p], eps=0)
    with pytest.raises(ValueError, match=r"MeZO: lr=-1"):
        MeZO([p], lr=-1)
    with pytest.raises(TypeError, match="directions are real"):
        MeZO([torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))]).step(lambda: p.sum())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_coming_back_with_the_update_is_coming_back_before_it(dtype, masked):
    """A step on its own leaves one pass out; asked and told apart, all passes are made."""

    def mask(params):
        return [torch.arange(p.numel()).view(p.shape) % 3 > 0 for p in params]

    ends = []
    for apart in (False, True):
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(n, 3).to(dtype)) for n in (4, 6)]
        groups = [{"params": params[:1]}, {"params": params[1:], "lr": 0.02}]
        opt = MeZO(
            groups, lr=0.01, samples=2, weight_decay=0.1, eps=0.1, mask=mask if masked else None
        )

        def loss(params=params):
            return sum((p.double() ** 2).sum() for p in params)

        for _ in range(5):
            start = [p.detach().clone() for p in params]
            if apart:
                answer = opt.query(opt.objective(loss))
                rounding = 1e-14 if dtype == torch.float64 else 0.0
                for p, q in zip(params, start, strict=True):
                    assert torch.allclose(p, q, rtol=0, atol=rounding)
                opt.update(answer)
                opt.steps += 1
            else:
                opt.step(loss)
        ends.append([p.detach() for p in params])
    for p, q in zip(*ends, strict=True):
        assert torch.allclose(p, q, rtol=1e-9) if dtype == torch.float64 else torch.equal(p, q)


def test_a_step_that_fails_after_its_probes_brings_the_parameters_back():
    p = torch.nn.Parameter(torch.linspace(-1, 1, 7, dtype=torch.float64))
    start = p.detach().clone()
    opt = MeZO([p], lr=0.1, eps=0.5)
    with pytest.raises(RuntimeError, match="NaN or infinite"):
        opt.step(lambda: p.log().sum())
    assert torch.allclose(p, start, rtol=0, atol=1e-15)
    opt.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr"):
        opt.step(lambda: (p**2).sum())
    assert torch.allclose(p, start, rtol=0, atol=1e-15)
