r"""A source of text whose entropy is known exactly."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Rules = Mapping[str, Sequence[tuple[float, tuple[str, ...]]]]
Stacks = tuple[tuple[tuple[str, ...], float], ...]

MAX_EXPANSIONS = 10_000


def _words(*words: str) -> list[tuple[float, tuple[str, ...]]]:
    """Words with probabilities proportional to 1, 1/2, 1/3, ..."""
    total = sum(1 / rank for rank in range(1, len(words) + 1))
    return [(1 / rank / total, (f" {word}",)) for rank, word in enumerate(words, start=1)]


ENGLISH: Rules = {
    "sentence": [(0.6, ("np", "vp", ".")), (0.4, ("nps", "vps", "."))],
    "any np": [(0.6, ("np",)), (0.4, ("nps",))],
    "np": [(0.7, (" the", "noun", "rel")), (0.3, (" a", "noun", "rel"))],
    "nps": [(0.7, (" the", "nouns", "rels")), (0.3, (" some", "nouns", "rels"))],
    "rel": [
        (0.70, ()),
        (0.18, (" that", "vp")),
        (0.07, (" that", "np", "verb")),
        (0.05, (" that", "nps", "verbs")),
    ],
    "rels": [
        (0.70, ()),
        (0.18, (" that", "vps")),
        (0.07, (" that", "np", "verb")),
        (0.05, (" that", "nps", "verbs")),
    ],
    "vp": [(0.5, ("does",)), (0.5, ("verb", "any np"))],
    "vps": [(0.5, ("do",)), (0.5, ("verbs", "any np"))],
    "noun": _words("cat", "dog", "bird", "cow", "child"),
    "nouns": _words("cats", "dogs", "birds", "cows", "children"),
    "verb": _words("sees", "hears", "likes", "chases"),
    "verbs": _words("see", "hear", "like", "chase"),
    "does": _words("sleeps", "runs", "sings", "waits"),
    "do": _words("sleep", "run", "sing", "wait"),
}
"""English in which the verb agrees with its subject, across relative clauses of any depth.

A model of short context cannot know whether ``the cat that the dogs that the bird sees chase``
goes on with ``sleeps`` or ``sleep``; that takes a stack.
"""


class Grammar:
    r"""A probabilistic context-free grammar, as a source of text with a known entropy rate.

    Sentences are drawn independently: from the start symbol, each nonterminal is replaced by
    one of its right-hand sides at random. Let :math:`M_{AB}` be the expected number of
    :math:`B` on the right of :math:`A`, :math:`h_A` the entropy of the choice at :math:`A`, and
    :math:`\ell_A` the expected number of characters that the choice writes. By the chain rule
    the entropy of a derivation, and by linearity the length of its sentence, obey

    .. math::

        H = h + M H, \qquad L = \ell + M L,

    two linear systems. When every sentence has one derivation and ends in a character found
    nowhere else in it, text determines derivations, and its entropy rate is
    :math:`H_{\text{start}} / L_{\text{start}}` nats per character: the floor under the loss of
    any model of it.

    Args:
        rules: Nonterminal -> choices, each a probability and a tuple of symbols; a symbol that
            is not a nonterminal is literal text. No left recursion.
        start: The start symbol; the first nonterminal by default.

    Raises:
        ValueError: If the probabilities of a nonterminal do not sum to 1, a symbol is empty,
            or sentences have infinite expected length.

    Example:
        A fair coin decides after each ``a`` whether the sentence ends: two bits in expectation,
        three characters.

        >>> coin = Grammar({"s": [(0.5, ("a", "s")), (0.5, ("a", "."))]})
        >>> round(coin.entropy / math.log(2), 6), round(coin.length, 6)
        (2.0, 3.0)
    """

    def __init__(self, rules: Rules, start: str | None = None) -> None:
        for name, choices in rules.items():
            total = math.fsum(p for p, _ in choices)
            if abs(total - 1) > 1e-9 or any(not p > 0 for p, _ in choices):
                raise ValueError(f"probabilities of {name!r} must be positive and sum to 1")
            if any(symbol == "" for _, symbols in choices for symbol in symbols):
                raise ValueError(f"a choice of {name!r} holds an empty symbol")
        self.rules = dict(rules)
        self.start = start if start is not None else next(iter(rules))
        self._steps: dict[Stacks, dict[str, tuple[float, Stacks]]] = {}
        radius = np.abs(np.linalg.eigvals(self._mean)).max()
        if radius >= 1:
            raise ValueError(f"sentences have infinite expected length (growth {radius:.3g} >= 1)")

    @cached_property
    def vocabulary(self) -> str:
        """The characters that the grammar writes, sorted."""
        symbols = {s for choices in self.rules.values() for _, right in choices for s in right}
        return "".join(sorted(set("".join(symbols - self.rules.keys()))))

    @cached_property
    def _mean(self) -> NDArray[np.float64]:
        index = {name: i for i, name in enumerate(self.rules)}
        mean = np.zeros((len(index), len(index)))
        for name, choices in self.rules.items():
            for p, right in choices:
                for symbol in right:
                    if symbol in index:
                        mean[index[name], index[symbol]] += p
        return mean

    def _solve(self, own: list[float]) -> float:
        """Solution at the start symbol of x = own + M x."""
        solution = np.linalg.solve(np.eye(len(own)) - self._mean, np.array(own))
        return float(solution[list(self.rules).index(self.start)])

    @cached_property
    def entropy(self) -> float:
        """Entropy of a sentence's derivation, in nats."""
        return self._solve(
            [-math.fsum(p * math.log(p) for p, _ in choices) for choices in self.rules.values()]
        )

    @cached_property
    def length(self) -> float:
        """Expected characters in a sentence."""
        return self._solve(
            [
                math.fsum(p * len(s) for p, right in choices for s in right if s not in self.rules)
                for choices in self.rules.values()
            ]
        )

    @property
    def entropy_rate(self) -> float:
        """Nats per character of a long text."""
        return self.entropy / self.length

    def sentence(self, rng: random.Random) -> tuple[str, float]:
        """Draw a sentence.

        Args:
            rng: Source of randomness; only ``rng.random()`` is used, which Python keeps stable.

        Returns:
            The sentence and the logarithm of its derivation's probability, in nats.
        """
        text: list[str] = []
        log_p = 0.0
        stack = [self.start]
        while stack:
            symbol = stack.pop()
            if symbol not in self.rules:
                text.append(symbol)
                continue
            u = rng.random()
            for p, right in self.rules[symbol]:  # noqa: B007 (the last choice takes the rest)
                u -= p
                if u < 0:
                    break
            log_p += math.log(p)
            stack.extend(reversed(right))
        return "".join(text), log_p

    def text(self, characters: int, rng: random.Random) -> str:
        """Sentences, one after another, cut at a number of characters."""
        parts: list[str] = []
        missing = characters
        while missing > 0:
            parts.append(self.sentence(rng)[0])
            missing -= len(parts[-1])
        return "".join(parts)[:characters]

    def log_probs(self, text: str) -> list[float]:
        r"""Exact :math:`\log p(\text{character} \mid \text{all before})`, in nats.

        Sums over all derivations of what was read so far, so that no model can do better in
        expectation, and the grammar need not be unambiguous.

        Args:
            text: Text that begins at the start of a sentence.

        Raises:
            ValueError: If the grammar cannot have written the text.
        """
        state: Stacks = (((self.start,), 1.0),)
        logs = []
        for position, character in enumerate(text):
            if state not in self._steps:
                self._steps[state] = self._successors(state)
            if character not in self._steps[state]:
                raise ValueError(f"the grammar cannot write {text[: position + 1]!r}")
            p, state = self._steps[state][character]
            logs.append(math.log(p))
        return logs

    def _successors(self, state: Stacks) -> dict[str, tuple[float, Stacks]]:
        """Each possible next character, its probability and the stacks that remain."""
        after: dict[str, dict[tuple[str, ...], float]] = {}
        todo = list(state)
        for _ in range(MAX_EXPANSIONS):
            if not todo:
                break
            stack, p = todo.pop()
            first, *rest = stack or (self.start,)
            if first in self.rules:
                todo += [((*right, *rest), p * q) for q, right in self.rules[first]]
            else:
                remaining = (first[1:], *rest) if len(first) > 1 else tuple(rest)
                stacks = after.setdefault(first[0], {})
                stacks[remaining] = stacks.get(remaining, 0.0) + p
        else:
            raise ValueError("the grammar is left-recursive")
        totals = {character: math.fsum(stacks.values()) for character, stacks in after.items()}
        return {
            character: (totals[character], tuple((s, p / totals[character]) for s, p in found))
            for character, found in ((c, stacks.items()) for c, stacks in after.items())
        }
