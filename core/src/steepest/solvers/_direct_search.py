r"""Direct search that leaves no gap: poll, and cover."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from steepest._registry import method

Bounds = tuple[Tensor | float, Tensor | float]
"""Smallest and largest value of each variable."""

_CANDIDATES = 128
"""Random points of which the covering step takes the farthest from all trial points."""

_DECISIVE = 0.01
"""Relative improvement from which on a search step alone is an iteration."""


class Proposal(NamedTuple):
    """What a :class:`SearchStep` suggests."""

    points: Sequence[Tensor]
    """To be tried in this order, until one is better; each costs one evaluation."""
    cost: int
    """Evaluations that it took to find them."""


class SearchStep(Protocol):
    """A heuristic that suggests points; convergence does not rest on it."""

    def propose(self, x: Tensor, bounds: tuple[Tensor, Tensor], left: int) -> Proposal:
        """Points to try from the incumbent ``x``, at the price of ``left`` evaluations at most."""

    def report(self, success: bool) -> None:
        """Hear whether one of them was better."""


class Search(NamedTuple):
    """Result of :func:`direct_search`."""

    x: Tensor
    """The best feasible point, float64 of shape ``(n,)``."""
    value: float
    """The objective there."""
    points: Tensor
    """Every point that was tried, of shape ``(trials, n)``, the start first."""
    values: Tensor
    """The objective at each, infinite where a constraint is violated or the value is NaN."""
    evaluations: Tensor
    """How many evaluations had been spent after each, those of the search step included."""
    steps: list[str]
    """The step that tried each: ``start``, ``search``, ``cover`` or ``poll``."""
    radius: float
    """The poll's radius at the end."""

    @property
    def best(self) -> Tensor:
        """The incumbent's value after each trial."""
        return self.values.cummin(0).values


@method(
    paper="bouchet2025optimization",
    title="Optimization by Directional Attacks: Solving Problems with Neural Network Surrogates",
    oracle="value",
    scope="model",
    forward=1,  # for each trial point
    backward=0,
)
@torch.no_grad()
def direct_search(
    objective: Callable[[Tensor], Tensor | float],
    start: Tensor,
    budget: int,
    *,
    bounds: Bounds = (-math.inf, math.inf),
    constraints: Callable[[Tensor], Tensor] | None = None,
    radius: float = 1.0,
    covering: float | None = None,
    tolerance: float = 1e-6,
    search: SearchStep | None = None,
    seed: int = 0,
) -> Search:
    r"""Covering direct search (cDSM): try points around the best one, and leave no gap.

    .. math::

        \min_x f(x) \quad \text{such that} \quad c(x) \le 0, \; l \le x \le u.

    An iteration is three steps, of which the first that finds a better point ends it.

    1. *Search*, if there is one: whatever a heuristic suggests. An improvement by less than 1 %
       is kept, and the iteration goes on.
    2. *Cover*: the point of the ball of radius :math:`R` around the incumbent :math:`x` that is
       farthest from all points tried so far.
    3. *Poll*: :math:`x \pm \delta q_i` for the columns of a random orthogonal matrix. One of them
       is within 90° of downhill, wherever that is. Success doubles :math:`\delta`, failure halves
       it.

    Polling alone converges where the objective is smooth, and stalls at a jump that its
    directions miss. Covering makes the trial points dense around where the incumbent ends, so
    there is no better point near it, even if the objective is discontinuous. Both rest on values
    alone; what is infeasible counts as infinitely bad.

    Args:
        objective: :math:`f`, a function of a point of shape ``(n,)``; asked at feasible points.
        start: A feasible point, of shape ``(n,)``.
        budget: Evaluations to spend: one for each trial point, and what the search step says.
        bounds: :math:`l` and :math:`u`, numbers or of shape ``(n,)``. Trial points are moved to
            the nearest in the box.
        constraints: :math:`c`, to numbers of any shape; feasible where all are at most 0.
        radius: Start of :math:`\delta`, in the variables' units.
        covering: The radius :math:`R`; by default ``radius``. 0 leaves the step out, which gives
            the plain direct search.
        tolerance: Stop when :math:`\delta` is smaller, if nothing is covered; otherwise the poll
            pauses there, and covering spends what is left.
        search: The search step, such as :class:`DirectionalAttack`.
        seed: Seed of the directions and of the covering candidates.

    Returns:
        :class:`Search`.

    Raises:
        ValueError: If an argument is out of its range, or the start is out of bounds, infeasible,
            or has no finite objective.

    Example:
        >>> found = direct_search(lambda x: (x - 2).square().sum(), torch.zeros(2), 200)
        >>> found.x.round(decimals=1)
        tensor([2., 2.], dtype=torch.float64)

    Reference:
        :cite:t:`bouchet2025optimization`; the covering step is :cite:t:`audet2024convergence`'s.

    Deviations:
        We minimize. The farthest point is that of 128 random ones, and points are moved into the
        bounds. Of the hybrid's radii the attack's own stays apart: an attack that fails does not
        shrink the poll.

    When not to use it:
        In more than some tens of variables: a poll costs up to :math:`2 n` values, and a covering
        of a ball as many as there are volumes in it. With gradients and no jumps.
    """
    run = _Run(objective, start, budget, bounds, constraints, seed)
    for name, given in (("radius", radius), ("tolerance", tolerance)):
        if not (math.isfinite(given) and given > 0):
            raise ValueError(f"{name}={given!r} is not valid: give a finite number > 0")
    reach = radius if covering is None else covering
    if not (math.isfinite(reach) and reach >= 0):
        raise ValueError(f"covering={covering!r} is not valid: give a finite number >= 0")
    run.begin()
    while run.left > 0:
        if search is not None:
            before = run.value
            box = (run.low, run.high)
            proposal = search.propose(run.x.clone(), box, run.left)
            run.spent += proposal.cost
            better = any(run.attempt(point, "search") for point in proposal.points)
            search.report(better)
            if better and before - run.value >= _DECISIVE * abs(before):
                continue
        # $\arg\max_{\lVert y - x \rVert \le R} \, \min_k \lVert y - x_k \rVert$
        if reach and run.attempt(run.farthest(reach), "cover"):
            continue
        if radius >= tolerance:
            # $x \pm \delta q_i$
            polled = [run.x + radius * d for d in run.directions()]
            better = any(run.attempt(point, "poll") for point in polled)
            # $\delta \leftarrow 2\delta \text{ or } \delta / 2$
            radius = 2 * radius if better else radius / 2
        elif not reach:
            break
    return Search(
        run.x,
        run.value,
        torch.stack(run.points),
        torch.tensor(run.values, dtype=torch.float64),
        torch.tensor(run.counts),
        run.steps,
        radius,
    )


class _Run:
    """What a search has seen: points, values, and the best of them."""

    def __init__(
        self,
        objective: Callable[[Tensor], Tensor | float],
        start: Tensor,
        budget: int,
        bounds: Bounds,
        constraints: Callable[[Tensor], Tensor] | None,
        seed: int,
    ) -> None:
        if start.dim() != 1 or not len(start) or not start.isfinite().all():
            raise ValueError(f"start={start!r}: give finite numbers, of shape (n,)")
        if not isinstance(budget, int) or budget < 1:
            raise ValueError(f"budget={budget!r} is not valid: give a whole number >= 1")
        self.x = start.detach().double().clone()
        ends = [torch.as_tensor(end, dtype=torch.float64) for end in bounds]
        if any(end.dim() > 1 or (end.dim() == 1 and end.shape != start.shape) for end in ends):
            raise ValueError(f"bounds={bounds!r}: give numbers, or {len(start)} for each end")
        self.low, self.high = (end.expand(start.shape) for end in ends)
        if not (self.low <= self.high).all():
            raise ValueError(f"bounds={bounds!r}: the lower ones are not below the upper ones")
        if not ((self.x >= self.low) & (self.x <= self.high)).all():
            raise ValueError("the start is out of bounds: clamp it first")
        self.objective, self.constraints, self.budget = objective, constraints, budget
        self.rng = torch.Generator().manual_seed(seed)
        self.spent, self.value = 0, math.inf
        self.points: list[Tensor] = []
        self.values: list[float] = []
        self.counts: list[int] = []
        self.steps: list[str] = []

    @property
    def left(self) -> int:
        """Evaluations left."""
        return self.budget - self.spent

    def begin(self) -> None:
        """Evaluate the start."""
        if self.constraints is not None and not self._feasible(self.x):
            raise ValueError("the start violates a constraint: start at a feasible point")
        if not self.attempt(self.x, "start"):
            raise ValueError("the objective is NaN or infinite at the start: start elsewhere")

    def attempt(self, point: Tensor, step: str) -> bool:
        """Evaluate a point, moved into the bounds; True if it is the new incumbent."""
        if self.left <= 0:
            return False
        point = point.double().clamp(self.low, self.high)
        value = float(self.objective(point.clone())) if self._feasible(point) else math.inf
        value = math.inf if math.isnan(value) else value
        self.spent += 1
        self.points.append(point)
        self.values.append(value)
        self.counts.append(self.spent)
        self.steps.append(step)
        if value < self.value:
            self.x, self.value = point, value
            return True
        return False

    def farthest(self, reach: float) -> Tensor:
        """Of random points of a ball, the one that is farthest from all that were tried."""
        n = len(self.x)
        d = torch.randn(_CANDIDATES, n, generator=self.rng, dtype=torch.float64)
        u = torch.rand(_CANDIDATES, 1, generator=self.rng, dtype=torch.float64)
        d = d / d.norm(dim=1, keepdim=True) * reach * u ** (1 / n)
        candidates = (self.x + d).clamp(self.low, self.high)
        gaps = torch.cdist(candidates, torch.stack(self.points)).amin(1)
        return candidates[gaps.argmax()]

    def directions(self) -> Tensor:
        """The columns of a random orthogonal matrix, and their negatives, in random order."""
        n = len(self.x)
        q, _ = torch.linalg.qr(torch.randn(n, n, generator=self.rng, dtype=torch.float64))
        return torch.cat([q, -q])[torch.randperm(2 * n, generator=self.rng)]

    def _feasible(self, point: Tensor) -> bool:
        return self.constraints is None or bool((self.constraints(point.clone()) <= 0).all())
