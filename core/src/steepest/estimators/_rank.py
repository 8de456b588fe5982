r"""A gradient from an order: which of some points are better, and nothing about how much."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, final

import torch
from torch import Tensor

from steepest._registry import method
from steepest.estimators._base import GradientEstimator, Projection
from steepest.estimators._spsa import SPSA
from steepest.oracles import Objective

Judge = Callable[[Objective, list[list[Tensor]], int], list[int]]
"""Objective, displacements of the parameters, k -> indices of the k best, best first."""


def rank_weights(order: Sequence[int], points: int) -> list[float]:
    r"""Weight of each point in the estimate, from the order of the best.

    .. math::

        w_i = \frac{|\{j : j \text{ better than } i\}| - |\{j : j \text{ worse than } i\}|}{|E|},
        \qquad |E| = k m - \frac{k (k + 1)}{2},

    where :math:`E` has a pair for each comparison that the order of the best :math:`k` of
    :math:`m` decides. With the place :math:`r_i` from 0, :math:`r_i` points are better and
    :math:`m - 1 - r_i` worse. Two points outside of the best are not compared.

    Args:
        order: Indices of the :math:`k` best, best first.
        points: How many there are, :math:`m`.

    Example:
        Point 2 beats all, point 0 the rest; 1 and 3 lose twice and win nothing.

        >>> [5 * w for w in rank_weights([2, 0], 4)]
        [-1.0, 2.0, -3.0, 2.0]
    """
    k, m = len(order), points
    # $|E| = k m - k (k + 1) / 2$
    pairs = k * m - k * (k + 1) // 2
    # $w_i = k / |E| \text{, if not named}$
    weights = [k / pairs] * m
    for place, i in enumerate(order):
        # $w_i = (2 r_i - m + 1) / |E|$
        weights[i] = (2 * place - m + 1) / pairs
    return weights


@final
@method(
    paper="tang2023zeroth",
    title="Zeroth-Order Optimization Meets Human Feedback: Provable Learning via Ranking Oracles",
    oracle="ranking",
    forward=1,  # for each point
    backward=0,
)
class RankGradient(GradientEstimator):
    r"""ZO-RankSGD's estimate: worse points minus better ones, averaged over all comparisons.

    .. math::

        \hat g = \frac{1}{|E|} \sum_{(i, j) \in E} (z_j - z_i), \qquad
        E = \{(i, j) : \theta + \epsilon z_i \text{ is ranked above } \theta + \epsilon z_j\}.

    A human says which picture is best and cannot say by how much. To first order :math:`i` is
    above :math:`j` where :math:`\langle \nabla f, z_i \rangle < \langle \nabla f, z_j \rangle`, so
    each comparison adds a direction of ascent, and what is across the gradient averages out.
    As :math:`E` only counts, the estimate is a sum over points with the weights of
    :func:`rank_weights`.

    Only the order is read. So :math:`f` may be replaced by any increasing function of it, and the
    estimate's length says nothing about the gradient's: near a minimum it does not shrink.
    Have the learning rate fall, or :func:`rank_search` choose it.

    Args:
        eps: Radius :math:`\epsilon` of the probes, in the parameters' units. So large that who
            ranks can tell the points apart.
        samples: How many points :math:`m` to compare.
        top: How many of the best, :math:`k`, to put in order; None for all.
        kind: ``gaussian``, ``rademacher`` or ``sphere`` directions.
        steps: Lengths to compare along the estimate, and with staying; the estimate is then
            multiplied by the best one. One forward each, and one.
        judge: Who ranks, by default the loss. It gets the objective, displacements of the
            parameters (each a list of one tensor a parameter) and :math:`k`, and returns indices,
            best first.

    Raises:
        ValueError: If an argument is out of its range; at an estimate, if a judge returns
            anything but :math:`k` different indices.
        RuntimeError: At an estimate, if the loss is NaN or infinite at all points. At some of
            them, these are the worst.

    Example:
        Order is all that is read: an increasing function of the loss changes no bit.

        >>> p = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> plain = RankGradient()(Objective(lambda: (p**2).sum(), [p]), seed=0)
        >>> other = RankGradient()(Objective(lambda: (p**2).sum().exp(), [p]), seed=0)
        >>> torch.equal(plain.gradient[0], other.gradient[0])
        True

    Reference:
        :cite:t:`tang2023zeroth`.

    When not to use it:
        Where values are to be had: SPSA reads how much, and needs fewer points. On plateaus, where
        most points are equal: ties are broken by the points' order, which means nothing.
    """

    oracle: ClassVar = "ranking"

    def __init__(
        self,
        eps: float = 0.1,
        samples: int = 15,
        top: int | None = None,
        kind: str = "gaussian",
        *,
        steps: Sequence[float] = (),
        judge: Judge | None = None,
    ) -> None:
        if not isinstance(samples, int) or samples < 2:
            raise ValueError(f"samples={samples!r} is not valid: give a whole number >= 2")
        if top is not None and not (isinstance(top, int) and 1 <= top <= samples):
            raise ValueError(f"top={top!r} is not valid: give 1 to {samples}, the number of points")
        if not all(math.isfinite(step) and step > 0 for step in steps):
            raise ValueError(f"steps={steps!r} is not valid: give finite numbers > 0")
        try:
            self._draws = SPSA(eps, samples, kind)
        except ValueError as error:
            raise ValueError(f"{error} (kind={kind!r}, eps={eps!r})") from None
        self.eps = eps
        self.samples = samples
        self.top = samples if top is None else top
        self.kind = kind
        self.steps = tuple(steps)
        self.judge = judge

    @property
    def forward(self) -> int:
        """One a point, where the loss ranks; with ``steps``, one each and one."""
        return self.samples + (len(self.steps) + 1 if self.steps else 0)

    @torch.no_grad()
    def project(self, objective: Objective, seed: int) -> Projection:
        """Rank the points, and weigh their directions.

        The value is the mean loss of the points, for a log: the estimate does not depend on it.
        NaN where someone else ranks.
        """
        stretch = [self._draws.stretch(objective, seed, i) for i in range(self.samples)]
        moves = [self.combine(objective, seed, {i: self.eps * s}) for i, s in enumerate(stretch)]
        value, order = _rank(objective, moves, self.top, self.judge)
        if not order:  # all are equal
            return Projection(value, dict.fromkeys(range(self.samples), 0.0))
        weights = {
            i: w * s
            for i, (w, s) in enumerate(zip(rank_weights(order, self.samples), stretch, strict=True))
        }
        if self.steps:
            direction = self.combine(objective, seed, weights)
            best = rank_search(objective, direction, self.steps, judge=self.judge)
            weights = {i: best * w for i, w in weights.items()}
        return Projection(value, weights)

    def accumulate_(
        self,
        tensors: Sequence[Tensor],
        seed: int,
        weights: Mapping[int, float],
        places: Sequence[int],
    ) -> None:
        r"""Add :math:`\sum_i w_i z_i`; of a sphere's directions, before they have their length."""
        self._draws.accumulate_(tensors, seed, weights, places)


@final
class NoisyJudge:
    r"""A simulated human: ranks by the loss plus noise of its own at each point.

    .. math::

        \Pr[i \text{ above } j] = \frac{1}{1 + e^{-(f_j - f_i) / s}} \quad \text{(gumbel)},
        \qquad \Phi\Bigl(\frac{f_j - f_i}{\sqrt2\, s}\Bigr) \quad \text{(gaussian)}:

    Bradley's and Terry's model of comparisons, and Thurstone's. Points that are far apart are put
    in order, close ones confused.

    Args:
        noise: Scale :math:`s`, in units of the loss.
        kind: ``gumbel`` or ``gaussian``.
        seed: Seed of the noise; each ranking draws anew.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> p = torch.nn.Parameter(torch.tensor([1.0]))
        >>> points = [[torch.tensor([d])] for d in (0.0, -1.0, 5.0)]
        >>> NoisyJudge(0.1)(Objective(lambda: (p**2).sum(), [p]), points, 3)
        [1, 0, 2]
    """

    def __init__(self, noise: float, kind: str = "gumbel", seed: int = 0) -> None:
        if not (math.isfinite(noise) and noise >= 0):
            raise ValueError(f"noise={noise!r} is not valid: give a finite number >= 0")
        if kind not in ("gumbel", "gaussian"):
            raise ValueError(f"kind={kind!r} is not valid: choose gumbel or gaussian")
        self.noise = noise
        self.kind = kind
        self.rng = torch.Generator().manual_seed(seed)

    def __call__(self, objective: Objective, points: list[list[Tensor]], top: int) -> list[int]:
        """Indices of the best, best first."""
        twin = copy.copy(objective)
        twin._terms = [
            (self._blur(loss) if i == 0 else loss, replay)
            for i, (loss, replay) in enumerate(objective._terms)
        ]
        return twin.rank(points, top)

    def _blur(self, loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def ask() -> Tensor:
            u = torch.rand((), generator=self.rng, dtype=torch.float64)
            z = torch.randn((), generator=self.rng, dtype=torch.float64)
            drawn = z if self.kind == "gaussian" else (-u.log()).log()
            answer = loss()
            return answer + (self.noise * drawn).to(answer) if self.noise else answer

        return ask


@torch.no_grad()
def rank_search(
    objective: Objective,
    direction: Sequence[Tensor],
    steps: Sequence[float],
    *,
    judge: Judge | None = None,
) -> float:
    r"""Length of a step, by order: which is best of some points along a line, or to stay.

    .. math::

        \eta^\star = \arg\min_{\eta \in \{0, \eta_1, \dots, \eta_n\}} f(\theta - \eta d).

    Args:
        objective: What to descend on.
        direction: :math:`d`, one tensor a parameter; a gradient, or an estimate of it.
        steps: The lengths :math:`\eta_1, \dots, \eta_n`.
        judge: Who ranks, as of :class:`RankGradient`.

    Returns:
        The best length; 0 if it is best to stay.

    Raises:
        RuntimeError: If the loss is NaN or infinite at all points.

    Example:
        >>> p = torch.nn.Parameter(torch.tensor([1.0]))
        >>> f = Objective(lambda: (p**2).sum(), [p])
        >>> rank_search(f, [torch.tensor([1.0])], [4.0, 2.0, 1.0, 0.5])
        1.0
    """
    lengths = [0.0, *steps]
    moves = [[-step * d for d in direction] for step in lengths]
    order = _rank(objective, moves, 1, judge)[1]
    return lengths[order[0]] if order else 0.0


def _rank(
    objective: Objective, moves: list[list[Tensor]], top: int, judge: Judge | None
) -> tuple[Tensor, list[int]]:
    """Mean loss of the points, and the indices of the best, none if all are equal.

    Parameters end as they were, also under a judge that leaves them elsewhere.
    """
    params = [p.detach() for p in objective.params]
    m = len(moves)
    if judge is None:
        watched, read = _watched(objective)
        order = watched.rank(moves, top)
        terms = len(read) // m
        heights = [sum(read[terms * i : terms * (i + 1)]) for i in range(m)]
        if not any(map(math.isfinite, heights)):
            raise RuntimeError(
                "the loss is NaN or infinite at all points, which have no order: lower lr if it "
                "grew, eps if it is fine at the parameters themselves"
            )
        if len({*heights}) == 1:
            order = []
        return params[0].new_tensor(sum(heights) / m), order
    home = [p.clone() for p in params]
    try:
        order = [int(i) for i in judge(objective, moves, top)]
    finally:
        for p, start in zip(params, home, strict=True):
            p.copy_(start)
    if len(order) != top or len({*order} & {*range(m)}) != top:
        raise ValueError(
            f"the judge returned {order}: return the indices of the best {top} of {m}, each once"
        )
    return params[0].new_tensor(math.nan), order


def _watched(objective: Objective) -> tuple[Objective, list[float]]:
    """The objective, and a list to which what its losses return is written."""
    read: list[float] = []

    def watch(loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def ask() -> Tensor:
            answer = loss()
            if isinstance(answer, Tensor) and answer.numel() == 1:
                read.append(float(answer))
            return answer

        return ask

    twin = copy.copy(objective)
    twin._terms = [(watch(loss), replay) for loss, replay in objective._terms]
    return twin, read
