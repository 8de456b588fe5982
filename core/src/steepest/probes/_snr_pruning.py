r"""Lottery tickets of evolution: what the width of a search says about a weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from steepest._registry import method

Tensors = Sequence[Tensor]


class Ticket(NamedTuple):
    """A round of :func:`snr_pruning`: a sparse start, and what training made of it."""

    masks: list[Tensor]
    """Which elements there were in this round, of bool."""
    start: list[Tensor]
    """Where they started: the first start, with zeros where it is pruned."""
    means: list[Tensor]
    """Where they ended."""
    sigmas: list[Tensor]
    """How wide the search was there at the end."""


def signal_to_noise(means: Tensors, sigmas: Tensors) -> list[Tensor]:
    r"""The score :math:`|m| / \sigma` of each element.

    A search distribution narrows where the loss is steep, to about :math:`\sigma_j \propto
    h_j^{-1/2}` for the curvature :math:`h_j`. So :math:`(m_j / \sigma_j)^2 \propto h_j m_j^2`,
    which is twice what the loss rises when the weight is set to zero (optimal brain damage),
    learned without a derivative.

    Args:
        means: Tensors :math:`m`.
        sigmas: Standard deviations :math:`\sigma > 0`, like them.

    Example:
        >>> signal_to_noise([torch.tensor([-2.0, 0.5])], [torch.tensor([4.0, 0.1])])
        [tensor([0.5000, 5.0000])]
    """
    # $|m_j| / \sigma_j$
    return [m.abs() / s for m, s in zip(means, sigmas, strict=True)]


def prune_lowest(scores: Tensors, masks: Tensors, fraction: float) -> list[Tensor]:
    """Masks without the share of elements, of those that are left, whose scores are lowest.

    The comparison is over all tensors at once. What is pruned already is not compared, and stays
    pruned.

    Args:
        scores: A number for each element.
        masks: Which elements are left, of bool, like the scores.
        fraction: Share to prune, in [0, 1); rounded to a whole number of elements.

    Raises:
        ValueError: If the fraction is out of its range, or a score is NaN.

    Example:
        >>> left = [torch.tensor([True, True, False, True, True])]
        >>> prune_lowest([torch.tensor([3.0, 1.0, 0.0, 4.0, 2.0])], left, 0.5)
        [tensor([ True, False, False,  True, False])]
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction={fraction!r} is not valid: give a number in [0, 1)")
    flat = torch.cat([s.double().flatten() for s in scores])
    alive = torch.cat([m.flatten() for m in masks])
    if flat[alive].isnan().any():
        raise ValueError("a score is NaN: has the search diverged, or a width become 0?")
    count = round(fraction * int(alive.sum()))
    order = torch.where(alive, flat, torch.inf).argsort(stable=True)
    alive = alive.clone()
    alive[order[:count]] = False
    sizes = [m.numel() for m in masks]
    return [part.view(m.shape) for part, m in zip(alive.split(sizes), masks, strict=True)]


@method(
    paper="lange2023lottery",
    title="Lottery Tickets in Evolutionary Optimization: On Sparse Backpropagation-Free "
    "Trainability",
    oracle="none",
    forward=0,
    backward=0,
)
def snr_pruning(
    train: Callable[[list[Tensor], list[Tensor]], tuple[Tensors, Tensors]],
    start: Tensors,
    rounds: int,
    fraction: float = 0.2,
    *,
    score: Callable[[Tensors, Tensors], Tensors] = signal_to_noise,
    prunable: Sequence[bool] | None = None,
) -> list[Ticket]:
    r"""Train, prune what has the lowest signal-to-noise ratio, rewind to the start, and repeat.

    .. math::

        (m, \sigma) = \mathrm{train}(M \odot m_0,\, M), \qquad
        M \leftarrow M \odot \big[\,|m| / \sigma \text{ above its } p\text{-quantile over }
        M\,\big].

    Each round starts from the *same* :math:`m_0`, without what is pruned, and with a search
    distribution as wide as at first. After :math:`k` rounds a share :math:`(1 - p)^k` is left.
    That it still trains is what makes it a winning ticket.

    Args:
        train: Function of a start and masks, each a list of one tensor a parameter, that trains
            what is not masked (:class:`~steepest.optim.SNES` with ``mask``, say) and returns
            means and standard deviations at the end. What it is given are copies.
        start: The initialization :math:`m_0`.
        rounds: Times to prune.
        fraction: Share :math:`p` of the elements left to prune in a round, in [0, 1).
        score: What to rank by, as a function of means and standard deviations: magnitude, say,
            or random numbers, to compare with.
        prunable: For each tensor, whether to prune it; the paper leaves biases out.

    Returns:
        ``rounds + 1`` :class:`Ticket`, the dense one first.

    Raises:
        ValueError: If an argument is out of its range, or a score is NaN.

    Example:
        Training that moves nothing, and widths that say which of two equal weights matters.

        >>> widths = [torch.tensor([1.0, 10.0])]
        >>> found = snr_pruning(lambda m, masks: (m, widths), [torch.tensor([3.0, 3.0])], 1, 0.5)
        >>> found[1].masks, found[1].start
        ([tensor([ True, False])], [tensor([3., 0.])])

    Reference:
        :cite:t:`lange2023lottery`.

    Deviations:
        The paper prunes by the quantile's value; here a whole number of elements goes, also
        where scores are equal.

    When not to use it:
        If widths are not learned: with one for all it is magnitude pruning. Where the search has
        not run long enough to narrow, they say little.
    """
    if rounds < 0:
        raise ValueError(f"rounds={rounds!r} is not valid: give a whole number >= 0")
    which = [True] * len(start) if prunable is None else list(prunable)
    masks = [torch.ones_like(t, dtype=torch.bool, requires_grad=False) for t in start]
    tickets: list[Ticket] = []
    for k in range(rounds + 1):
        # $M \odot m_0$
        rewound = [t.detach() * m for t, m in zip(start, masks, strict=True)]
        copies = [t.clone() for t in rewound], [m.clone() for m in masks]
        # $(m, \sigma) = \mathrm{train}(M \odot m_0, M)$
        means, sigmas = train(*copies)
        held = [[t.detach().clone() for t in each] for each in (means, sigmas)]
        tickets.append(Ticket(masks, rewound, *held))
        if k < rounds:
            scores = score(*held)
            chosen = [i for i, yes in enumerate(which) if yes]
            ranked, alive = ([each[i] for i in chosen] for each in (scores, masks))
            # $M \leftarrow M \odot [\,|m| / \sigma > p\text{-quantile}\,]$
            left = prune_lowest(ranked, alive, fraction)
            masks = list(masks)
            for i, mask in zip(chosen, left, strict=True):
                masks[i] = mask
    return tickets
