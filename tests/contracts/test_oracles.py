"""Contract of the room ``oracles``: what is true of every query, because it exists."""

import inspect

import pytest
import torch
from oracles._zoo import CASES, close, directions, make
from torch.utils._pytree import tree_leaves

import steepest.oracles
from steepest.oracles import Composite, Objective

# How each public query is called; one that is missing here fails the first test.
QUERIES = {
    "Objective.value": lambda f, c, v: f.value(),
    "Objective.gradient": lambda f, c, v: f.gradient(),
    "Objective.derivative": lambda f, c, v: f.derivative(v),
    "Objective.hvp": lambda f, c, v: f.hvp(v),
    "Objective.rank": lambda f, c, v: f.rank([v, [-d for d in v]]),
    "Composite.outputs": lambda f, c, v: c.outputs(),
    "Composite.jacobian": lambda f, c, v: c.jacobian(),
    "Composite.ggn": lambda f, c, v: c.ggn(v),
    "Composite.fisher": lambda f, c, v: c.fisher(v),
    "Composite.empirical_fisher": lambda f, c, v: c.empirical_fisher(v),
    "Composite.per_sample_gradients": lambda f, c, v: c.per_sample_gradients(),
}
NO_QUERY = {"Composite.objective"}


def methods():
    return {
        f"{name}.{method}": function
        for name, cls in vars(steepest.oracles).items()
        if inspect.isclass(cls) and not issubclass(cls, tuple)
        for method, function in vars(cls).items()
        if not method.startswith("_") and callable(function)
    }


def test_every_query_is_in_the_contract():
    assert set(methods()) == set(QUERIES) | NO_QUERY


@pytest.mark.parametrize("name", QUERIES)
def test_docstring_is_complete(name):
    text = inspect.getdoc(methods()[name])
    for part in ("Cost:", "Raises:", "Example:"):
        assert part in text, f"{name} has no {part}"
    for argument in inspect.signature(methods()[name]).parameters:
        assert argument == "self" or f"{argument}: " in text, f"{name}: {argument}"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", QUERIES)
def test_a_query_is_counted_repeatable_and_leaves_no_trace(name, case):
    model, criterion, x, y = make(case)
    composite = Composite(model, criterion, x, y)
    objective = composite.objective()
    v = directions(model)
    before = [p.detach().clone() for p in model.parameters()]
    params, random = list(model.parameters()), torch.get_rng_state()
    query = name.split(".")[1]
    answer = QUERIES[name](objective, composite, v)
    assert objective.counts[query] == 1 and objective.counts["forward"] >= 1
    again = QUERIES[name](objective, composite, v)
    assert all(
        map(
            close,
            map(torch.as_tensor, tree_leaves(again)),
            map(torch.as_tensor, tree_leaves(answer)),
        )
    )
    assert objective.counts[query] == 2
    assert all(p is q for p, q in zip(model.parameters(), params, strict=True))
    assert all(map(torch.equal, params, before)) and all(p.grad is None for p in params)
    assert torch.equal(torch.get_rng_state(), random)
    for t in tree_leaves(answer):
        assert not isinstance(t, torch.Tensor) or not t.requires_grad


@pytest.mark.parametrize("name", [n for n in QUERIES if n.startswith("Objective")])
def test_a_query_of_a_bad_loss_changes_nothing(name):
    model, _, _, _ = make(CASES[0])
    before = [p.detach().clone() for p in model.parameters()]
    for bad, error in ((lambda: None, TypeError), (lambda: torch.ones(2), ValueError)):
        objective = Objective(bad, model)
        with pytest.raises(error, match="return"):
            QUERIES[name](objective, None, directions(model))
        assert all(map(torch.equal, model.parameters(), before))
        assert not objective.counts
