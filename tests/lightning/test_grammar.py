import math
import random
from itertools import product

import numpy as np
import pytest
import torch

from steepest.lightning import Grammar, GrammarData
from steepest.lightning._grammar import ENGLISH

FINITE = {
    "s": [(0.5, ("x", "y", ".")), (0.3, ("ab", "y", ".")), (0.2, ("y", "."))],
    "x": [(0.25, ("a",)), (0.75, ("b", "z"))],
    "y": [(0.6, ("c",)), (0.4, ())],
    "z": [(0.1, ("d",)), (0.9, ())],
}
AMBIGUOUS = {**FINITE, "z": FINITE["y"]}


def sentences(rules, symbols=("s",)):
    """Every sentence of a grammar without recursion, and its probability."""
    found = {}

    def derive(text, rest, p):
        if not rest:
            found[text] = found.get(text, 0) + p
        elif rest[0] in rules:
            for q, right in rules[rest[0]]:
                derive(text, (*right, *rest[1:]), p * q)
        else:
            derive(text + rest[0], rest[1:], p)

    derive("", symbols, 1.0)
    return found


def test_entropy_and_length_equal_sums_over_all_sentences():
    found = sentences(FINITE)
    assert math.isclose(sum(found.values()), 1)
    grammar = Grammar(FINITE)
    assert math.isclose(grammar.entropy, -sum(p * math.log(p) for p in found.values()))
    assert math.isclose(grammar.length, sum(p * len(text) for text, p in found.items()))
    assert grammar.vocabulary == ".abcd"


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_recursion_equals_the_geometric_series(p):
    grammar = Grammar({"s": [(p, ("a", "s")), (1 - p, (".",))]})
    choice = -p * math.log(p) - (1 - p) * math.log(1 - p)
    assert math.isclose(grammar.entropy, choice / (1 - p))
    assert math.isclose(grammar.length, 1 / (1 - p))
    assert math.isclose(grammar.entropy_rate, choice)


@pytest.mark.parametrize("rules", [FINITE, AMBIGUOUS])
def test_conditionals_equal_ratios_of_prefix_probabilities(rules):
    grammar, found = Grammar(rules), sentences(rules)

    def prefix(text):  # over two sentences, enough to look across an end
        return sum(
            p * q
            for (first, p), (second, q) in product(found.items(), repeat=2)
            if (first + second).startswith(text)
        )

    for text in found:
        text = text + "a"
        ratios = [math.log(prefix(text[: i + 1]) / prefix(text[:i])) for i in range(len(text))]
        np.testing.assert_allclose(grammar.log_probs(text), ratios, rtol=0, atol=1e-12)


def test_english_is_unambiguous_so_the_formula_is_the_entropy_of_its_text():
    grammar, rng = Grammar(ENGLISH), random.Random(1)
    for _ in range(2000):
        text, log_p = grammar.sentence(rng)
        assert text.endswith(".")
        assert text.count(".") == 1
        assert math.isclose(sum(grammar.log_probs(text)), log_p, rel_tol=1e-9)


def test_entropy_rate_equals_the_estimate_from_samples():
    grammar, rng = Grammar(ENGLISH), random.Random(2)
    drawn = [grammar.sentence(rng) for _ in range(20_000)]
    surprise = np.array([-log_p for _, log_p in drawn])
    length = np.array([len(text) for text, _ in drawn])
    estimate = surprise.mean() / length.mean()
    # Ratio of means: its error is that of the mean of surprise - rate x length.
    sigma = (surprise - estimate * length).std() / length.mean() / math.sqrt(len(drawn))
    assert sigma < 0.003 * grammar.entropy_rate
    assert abs(estimate - grammar.entropy_rate) < 5 * sigma
    assert abs(length.mean() - grammar.length) < 5 * length.std() / math.sqrt(len(drawn))


def test_a_verb_agrees_with_its_subject_across_clauses():
    grammar = Grammar(ENGLISH)
    assert grammar.log_probs(" the cat that the dogs that the bird sees chase sleeps.")
    with pytest.raises(ValueError, match="cannot write"):
        grammar.log_probs(" the cat that the dogs that the bird sees chase sleep.")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"s": [(0.5, ("a",))]}, "sum to 1"),
        ({"s": [(1.5, ("a",)), (-0.5, ("b",))]}, "positive"),
        ({"s": [(1.0, ("",))]}, "empty symbol"),
        ({"s": [(0.5, ("s", "s")), (0.5, ("a",))]}, "infinite expected length"),
    ],
)
def test_bad_grammars(rules, message):
    with pytest.raises(ValueError, match=message):
        Grammar(rules)


def test_left_recursion_is_refused_not_endless():
    with pytest.raises(ValueError, match="left-recursive"):
        Grammar({"s": [(0.4, ("s", "a")), (0.6, (".",))]}).log_probs(".")


def test_windows_are_text_of_the_grammar_and_depend_on_the_seed_only():
    first, again, other = (GrammarData(windows=64, seed=seed) for seed in (0, 0, 1))
    for data in (first, again, other):
        data.setup()
    assert {name: len(part) for name, part in first.splits.items()} == {
        "train": 64,
        "val": 8,
        "test": 8,
    }
    for name, part in first.splits.items():
        assert torch.equal(part.inputs, again.splits[name].inputs)
        assert not torch.equal(part.inputs, other.splits[name].inputs)
        assert torch.equal(part.inputs[:, 1:], part.targets[:, :-1])
        for x, y in zip(part.inputs, part.targets, strict=True):
            text = first.decode(x) + first.decode(y[-1:])
            assert len(first.grammar.log_probs(text)) == 65
            assert torch.equal(first.encode(text)[1:], y)


def test_floor_is_the_loss_of_the_source():
    data = GrammarData(windows=8, context=16)
    data.setup()
    (x,), (y,) = data.splits["val"].inputs, data.splits["val"].targets
    text = data.decode(x) + data.decode(y[-1:])
    prefix = [sum(data.grammar.log_probs(text[:n])) for n in range(1, 18)]
    assert math.isclose(data.floor("val"), -(prefix[-1] - prefix[0]) / 16)


def test_floor_of_long_windows_approaches_the_entropy_rate():
    data = GrammarData(windows=64, context=2048)
    floor, rate = data.floor("train"), data.grammar.entropy_rate
    assert abs(floor / rate - 1) < 0.01


def test_bad_sizes_and_characters():
    with pytest.raises(ValueError, match="context must be positive"):
        GrammarData(context=0)
    with pytest.raises(ValueError, match="not in the vocabulary: 'XZ'"):
        GrammarData().encode(" the ZX")
