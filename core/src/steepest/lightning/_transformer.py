"""A small causal transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Attention to the past, then a perceptron, each added to the stream after normalization.

    Args:
        width: Channels of the stream.
        heads: Attention heads.
        dropout: Probability of dropping what is added.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Stream ``(n, length, width)`` to the same shape."""
        q, k, v = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True
        )
        x = x + self.dropout(self.project(y.transpose(1, 2).flatten(-2)))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class Transformer(nn.Module):
    """Tokens to logits of the next token, looking at the past only.

    Blocks normalize before they act; positions are learned; the matrix that embeds tokens also
    reads them out (tied weights). Matrices start normal with deviation 0.02, those that write
    to the stream divided by the square root of their number, biases zero.

    Args:
        vocabulary: Number of tokens.
        context: Longest input.
        width: Channels.
        depth: Blocks.
        heads: Attention heads of a block; must divide ``width``.
        dropout: Probability of dropping what a block adds, and embeddings.

    Raises:
        ValueError: If a size is not positive or ``heads`` does not divide ``width``.

    Example:
        >>> model = Transformer(vocabulary=7, context=5, width=8, depth=1, heads=2, dropout=0.0)
        >>> model(torch.zeros(3, 5, dtype=torch.long)).shape
        torch.Size([3, 5, 7])
    """

    def __init__(
        self, vocabulary: int, context: int, width: int, depth: int, heads: int, dropout: float
    ) -> None:
        super().__init__()
        if min(vocabulary, context, width, depth, heads) < 1 or width % heads:
            raise ValueError(
                "sizes must be positive and heads must divide width, not "
                f"{vocabulary=}, {context=}, {width=}, {depth=}, {heads=}"
            )
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                writes = name.endswith(("project.weight", "mlp.2.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * depth) ** 0.5 if writes else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens ``(n, length)`` to logits ``(n, length, vocabulary)``.

        Raises:
            ValueError: If the input is longer than the context.
        """
        length, context = tokens.shape[-1], self.position.num_embeddings
        if length > context:
            raise ValueError(f"{length} tokens are longer than the context of {context}")
        x = self.embedding(tokens) + self.position(torch.arange(length, device=tokens.device))
        return self.head(self.norm(self.blocks(self.dropout(x))))
