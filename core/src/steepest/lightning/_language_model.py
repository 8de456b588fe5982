"""Language modeling."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F
from torchmetrics.text import Perplexity

from steepest.lightning._grammar import ENGLISH, Grammar
from steepest.lightning._module import MakeOptimizer, Supervised
from steepest.lightning._transformer import Transformer

CHARACTERS = len(Grammar(ENGLISH).vocabulary)


class LanguageModel(Supervised):
    """A small causal transformer: cross-entropy of the next token, and perplexity.

    The defaults fit :class:`GrammarData` and have about 106,000 parameters. Logs
    ``{train,val,test}_loss`` in nats per token and ``_perplexity``, its exponential.

    Args:
        vocabulary: Number of tokens; by default the characters of :class:`GrammarData`.
        context: Longest input, in tokens.
        width: Channels.
        depth: Transformer blocks.
        heads: Attention heads of a block; must divide ``width``.
        dropout: Dropout probability.
        optimizer: Parameters -> optimizer; default AdamW.

    Raises:
        ValueError: If a size is not positive or ``heads`` does not divide ``width``.

    Example:
        >>> import torch
        >>> model = LanguageModel()
        >>> model(torch.zeros(2, 5, dtype=torch.int64)).shape[:2]
        torch.Size([2, 5])
    """

    def __init__(
        self,
        vocabulary: int = CHARACTERS,
        *,
        context: int = 64,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        dropout: float = 0.0,
        optimizer: MakeOptimizer | None = None,
    ) -> None:
        super().__init__(
            Transformer(vocabulary, context, width, depth, heads, dropout),
            {"perplexity": Perplexity()},
            optimizer,
        )
        self.save_hyperparameters(ignore=["optimizer"], logger=False)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy, in nats per token."""
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())
