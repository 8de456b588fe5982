"""Text of a grammar, for character language models."""

from __future__ import annotations

import random

import torch

from steepest.lightning._data import TensorData
from steepest.lightning._grammar import ENGLISH, Grammar
from steepest.lightning._loader import Tensors
from steepest.lightning._split import SPLITS


class GrammarData(TensorData):
    r"""Windows of text from a grammar, with the exact floor of the loss.

    A window begins at the start of a sentence, so that a model sees all that the source's next
    character depends on. Inputs are characters 0 to T-1 as indices, targets characters 1 to T.
    The best possible loss is known twice: :attr:`Grammar.entropy_rate` in closed form, in
    expectation over long texts, and :meth:`floor` for the very windows of a split, where what
    is left above the floor is the model's fault alone.

    Attributes:
        grammar: The source.
        vocabulary: Its characters; a character's index is its position here.

    Args:
        batch_size: Windows per batch.
        context: Characters T that the model sees.
        windows: Training windows. Validation and test have an eighth as many each.
        seed: Seed of the text and of the training order.
        num_workers: Worker processes.

    Raises:
        ValueError: If a size is not positive.

    Example:
        >>> data = GrammarData(batch_size=8, windows=32)
        >>> x, y = next(iter(data.train_dataloader()))
        >>> x.shape, torch.equal(x[:, 1:], y[:, :-1])
        (torch.Size([8, 64]), True)
        >>> round(data.grammar.entropy_rate, 3)
        0.334
    """

    def __init__(
        self,
        batch_size: int = 32,
        *,
        context: int = 64,
        windows: int = 4096,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, seed, num_workers)
        if min(context, windows // 8) < 1:
            raise ValueError(
                f"context must be positive and windows at least 8, not {context} and {windows}"
            )
        self.context = context
        self.windows = windows
        self.grammar = Grammar(ENGLISH)
        self.vocabulary = self.grammar.vocabulary

    def load(self) -> dict[str, Tensors]:
        """The three splits, drawn one after another from one seeded stream."""
        rng = random.Random(self.seed)
        splits = {}
        for name, count in zip(SPLITS, (self.windows, *[self.windows // 8] * 2), strict=True):
            texts = [self.grammar.text(self.context + 1, rng) for _ in range(count)]
            tokens = torch.stack([self.encode(text) for text in texts])
            splits[name] = Tensors(tokens[:, :-1], tokens[:, 1:])
        return splits

    def encode(self, text: str) -> torch.Tensor:
        """Indices of characters, shape ``(len(text),)``.

        Raises:
            ValueError: If a character is not in the vocabulary.
        """
        unknown = set(text) - set(self.vocabulary)
        if unknown:
            raise ValueError(f"not in the vocabulary: {''.join(sorted(unknown))!r}")
        return torch.tensor([self.vocabulary.index(character) for character in text])

    def decode(self, tokens: torch.Tensor) -> str:
        """Characters of a vector of indices."""
        return "".join(self.vocabulary[token] for token in tokens.tolist())

    def floor(self, split: str) -> float:
        """Mean loss of the source itself on a split's targets, in nats per character.

        Args:
            split: ``train``, ``val`` or ``test``.
        """
        self.setup()
        data = self.splits[split]
        total = 0.0
        for x, y in zip(data.inputs, data.targets, strict=True):
            total -= sum(self.grammar.log_probs(self.decode(x[:1]) + self.decode(y))[1:])
        return total / data.targets.numel()
