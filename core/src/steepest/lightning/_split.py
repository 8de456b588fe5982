"""Splitting examples into training, validation and test."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SPLITS = ("train", "val", "test")


def split(labels: Tensor, fractions: Sequence[float], seed: int) -> list[Tensor]:
    """Disjoint random index sets that cover all examples, stratified by label.

    Each label's examples are dealt out by themselves, so that every part holds ``fraction`` of
    each label's examples, to within one example.

    Args:
        labels: Label of each example, shape ``(n,)``; all equal for no stratification.
        fractions: Size of each part; they sum to 1.
        seed: Seed.

    Returns:
        Sorted indices of each part.

    Raises:
        ValueError: If the fractions are not positive or do not sum to 1.

    Example:
        >>> [len(part) for part in split(torch.zeros(10), (0.7, 0.2, 0.1), seed=0)]
        [7, 2, 1]
    """
    if min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-9:
        raise ValueError(f"fractions must be positive and sum to 1, not {tuple(fractions)}")
    generator = torch.Generator().manual_seed(seed)
    edges = torch.tensor([0.0, *fractions], dtype=torch.float64).cumsum(0)
    parts: list[list[Tensor]] = [[] for _ in fractions]
    for label in labels.unique():
        rows = (labels == label).nonzero().flatten()
        rows = rows[torch.randperm(len(rows), generator=generator)]
        ends = (edges * len(rows)).round().long().tolist()
        for part, low, high in zip(parts, ends[:-1], ends[1:], strict=True):
            part.append(rows[low:high])
    return [torch.cat(part).sort().values for part in parts]
