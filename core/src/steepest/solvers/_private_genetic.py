r"""Synthetic data that answers a private table's queries, found by evolution."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from steepest._registry import method

Column = int | tuple[float, float]
"""What is publicly known of a column: the number of its categories 0, 1, ..., or its range."""

_EXPLORE = 0.1
"""Share of the edits that is spread over all strategies, however they fared."""


class Queries(NamedTuple):
    """Statistics of a table that are means over its rows; ``+`` puts two families together."""

    answer: Callable[[Tensor], Tensor]
    """Rows, of shape ``(n, columns)``, to numbers, of shape ``(n, queries)``."""
    spread: float
    """The largest distance (2-norm) between the numbers of two rows. Of a table of N rows, with
    one replaced by another, the statistics move by at most this over N."""

    def __add__(self, other: Queries) -> Queries:  # type: ignore[override]
        """Both families; distances add in squares."""
        parts = (self.answer, other.answer)
        return Queries(
            lambda rows: torch.cat([part(rows) for part in parts], 1),
            math.hypot(self.spread, other.spread),
        )


class Synthetic(NamedTuple):
    """Result of :func:`genetic_search`."""

    rows: Tensor
    """The table, float64 of shape ``(rows, columns)``."""
    answers: Tensor
    """Its statistics, of shape ``(queries,)``."""
    target: Tensor
    """Those that it was to have."""
    losses: Tensor
    """Squared distance of the two at the start and after each generation."""
    strategies: Tensor
    """Weights of the strategies at the end, sum 1: mutate, cross one column, cross two."""


def marginals(domain: Sequence[Column], sets: Sequence[Sequence[int]]) -> Queries:
    r"""Contingency tables: for each set of categorical columns, the share of every combination.

    A row is in one cell of a table, so replacing it moves two: the spread of :math:`K` tables is
    :math:`\sqrt{2 K}`.

    Args:
        domain: What is publicly known of each column.
        sets: Sets of categorical columns, by index.

    Raises:
        ValueError: If a column is not categorical.

    Example:
        >>> table = marginals([2, 3], [(0, 1)])
        >>> table.answer(torch.tensor([[1.0, 2.0], [0.0, 1.0]])).int()
        tensor([[0, 0, 0, 0, 0, 1],
                [0, 1, 0, 0, 0, 0]], dtype=torch.int32)
    """
    strides, sizes = torch.zeros(len(domain), len(sets), dtype=torch.int64), []
    for k, columns in enumerate(sets):
        size = 1
        for column in reversed(columns):
            categories = domain[column]
            if not isinstance(categories, int):
                raise ValueError(f"column {column} is not categorical: its domain is {categories}")
            strides[column, k] = size
            size *= categories
        sizes.append(size)
    first = torch.tensor([0, *accumulate(sizes)][:-1])

    def answer(rows: Tensor) -> Tensor:
        cells = (rows.long()[:, :, None] * strides).sum(1) + first
        return torch.zeros(len(rows), sum(sizes), dtype=torch.float64).scatter_(1, cells, 1.0)

    return Queries(answer, math.sqrt(2 * len(sets)))


def halfspaces(normals: Tensor, thresholds: Tensor) -> Queries:
    r"""Shares of rows on one side of hyperplanes, :math:`\langle a_k, x \rangle \le b_k`.

    With a unit vector this is a prefix query, "at most :math:`b` in this column". It has no
    useful gradient. One row may change all :math:`K` answers: the spread is :math:`\sqrt K`.

    Args:
        normals: :math:`a`, of shape ``(queries, columns)``.
        thresholds: :math:`b`, of shape ``(queries,)``.

    Example:
        >>> halfspaces(torch.eye(2), torch.tensor([0.5, 0.2])).answer(torch.tensor([[0.3, 0.3]]))
        tensor([[1., 0.]], dtype=torch.float64)
    """
    across, b = normals.double().T.contiguous(), thresholds.double()
    return Queries(lambda rows: (rows.double() @ across <= b).double(), math.sqrt(len(b)))


def zcdp_scale(sensitivity: float, rho: float) -> float:
    r"""Standard deviation :math:`\Delta / \sqrt{2 \rho}` of Gaussian noise, for :math:`\rho`-zCDP.

    Budgets of several releases add up, :math:`\rho = \sum_i \rho_i`.

    Args:
        sensitivity: The largest distance :math:`\Delta` (2-norm) between what two tables that
            differ in one row would release without noise.
        rho: Privacy budget :math:`\rho > 0` of zero-concentrated differential privacy.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> zcdp_scale(0.02, rho=0.5)
        0.02
    """
    if not (math.isfinite(rho) and rho > 0 and math.isfinite(sensitivity) and sensitivity >= 0):
        raise ValueError(f"rho={rho!r} and sensitivity={sensitivity!r}: give finite numbers > 0")
    # $\Delta / \sqrt{2 \rho}$
    return sensitivity / math.sqrt(2 * rho)


def gaussian_mechanism(
    answers: Tensor, sensitivity: float, rho: float, seed: int | None = None
) -> Tensor:
    """Answers with the noise that makes them private.

    Args:
        answers: Exact statistics.
        sensitivity: As for :func:`zcdp_scale`.
        rho: Privacy budget.
        seed: For a test. Who knows the seed can take the noise away: leave it out otherwise.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> answers = torch.full((10_000,), 0.5)
        >>> noisy = gaussian_mechanism(answers, sensitivity=0.1, rho=0.5, seed=0)
        >>> abs(noisy.std() - zcdp_scale(0.1, 0.5)) < 0.005
        tensor(True)
    """
    # $\Delta / \sqrt{2 \rho}$
    scale = zcdp_scale(sensitivity, rho)
    rng = _generator(seed)
    noise = torch.randn(answers.shape, generator=rng, dtype=torch.float64)
    # $a = q(D) + \mathcal N(0, \frac{\Delta^2}{2 \rho} I)$
    return answers.double() + scale * noise


def genetic_search(
    target: Tensor,
    queries: Queries,
    domain: Sequence[Column],
    rows: int = 200,
    generations: int = 10_000,
    population: int = 50,
    *,
    elites: int = 5,
    tolerance: float = 1e-4,
    seed: int | None = None,
) -> Synthetic:
    r"""A table whose statistics are close to given ones, by edits of single rows.

    .. math::

        \min_X \|a - q(X)\|^2, \qquad
        q(X') = q(X) + \frac{q(x'_r) - q(x_r)}{n} \quad\text{if only row } r \text{ differs}.

    A candidate costs two rows of queries, however large the table is: that is what lets a
    generation be cheap. Each has a strategy for its candidates: *mutate* gives a column of a
    random row a random value; *cross* copies one or two columns from another row. The best
    candidate replaces the table if it is better. Strategies that succeed are drawn more often
    (multiplicative weights).

    Args:
        target: Statistics :math:`a`, of shape ``(queries,)``.
        queries: What they are statistics of.
        domain: What is publicly known of each column.
        rows: Rows :math:`n` of the table.
        generations: At most so many.
        population: Candidates of a generation.
        elites: Random tables, of which the best is the start.
        tolerance: Stop when the loss has fallen by less than this share in ``rows``
            generations (in 100 at least).
        seed: Seed of the search.

    Returns:
        :class:`Synthetic`.

    Raises:
        ValueError: If an argument is out of its range, or the target does not fit the queries.

    Example:
        Three quarters of ones, found from that number alone.

        >>> share = torch.tensor([0.25, 0.75])
        >>> genetic_search(share, marginals([2], [[0]]), [2], rows=8, seed=0).rows.sum()
        tensor(6., dtype=torch.float64)
    """
    for name, given in (("rows", rows), ("population", population), ("elites", elites)):
        if given < 1:
            raise ValueError(f"{name}={given!r} is not valid: give a whole number >= 1")
    if not target.isfinite().all():
        raise ValueError("a target is NaN or infinite: leave its query out")
    rng = _generator(seed)
    target = target.double()
    tables = [_draw(domain, rows, rng) for _ in range(elites)]
    sums = [queries.answer(table).sum(0) for table in tables]
    if target.shape != sums[0].shape:
        raise ValueError(f"a target of shape {tuple(target.shape)} for {len(sums[0])} queries")
    distances = [float((target - s / rows).square().sum()) for s in sums]
    loss = min(distances)
    table, total = tables[distances.index(loss)], sums[distances.index(loss)]
    weights, losses = torch.ones(3, dtype=torch.float64) / 3, [loss]
    patience = max(100, rows)
    for t in range(1, generations + 1):
        chances = (1 - _EXPLORE) * weights + _EXPLORE / len(weights)
        strategy = int(torch.multinomial(chances, 1, generator=rng))
        at, edited = _edit(table, strategy, domain, population, rng)
        # $q(x'_r) - q(x_r)$
        change = queries.answer(edited) - queries.answer(table[at])
        # $q(X') = q(X) + \frac{q(x'_r) - q(x_r)}{n}$
        answers = (total + change) / rows
        # $\lVert a - q(X') \rVert^2$
        found = (target - answers).square().sum(1)
        best = int(found.argmin())
        if found[best] < loss:
            loss = float(found[best])
            # $x_r \leftarrow x'_r$
            table[at[best]] = edited[best]
            # $n\, q(X)$
            total = total + change[best]
            weights[strategy] *= math.exp(_EXPLORE / len(weights) / float(chances[strategy]))
            weights /= weights.sum()
        losses.append(loss)
        if t % patience == 0 and losses[-1 - patience] - loss <= tolerance * losses[-1 - patience]:
            break
    return Synthetic(
        table, total / rows, target, torch.tensor(losses, dtype=torch.float64), weights
    )


@method(
    paper="liu2023generating",
    title="Generating Private Synthetic Data with Genetic Algorithms",
    oracle="value",
    scope="model",
    forward=50,
    backward=0,
)
def private_genetic(
    data: Tensor,
    queries: Queries,
    domain: Sequence[Column],
    rho: float,
    rows: int = 200,
    generations: int = 10_000,
    population: int = 50,
    *,
    elites: int = 5,
    tolerance: float = 1e-4,
    seed: int | None = None,
) -> Synthetic:
    r"""Private-GSD: publish a table's statistics with noise, then evolve a table that has them.

    .. math::

        a = q(D) + \mathcal N\big(0,\, \tfrac{\Delta^2}{2 \rho} I\big), \qquad
        X \approx \operatorname*{arg\,min}_X \|a - q(X)\|^2, \qquad
        \Delta = \frac1N \max_{x, x'} \|q(x) - q(x')\|.

    The first line touches the data, once, and is :math:`\rho`-zCDP (one row replaced by another).
    All that follows sees only :math:`a`, and needs no privacy of its own
    (:func:`genetic_search`). The search asks for values alone, so statistics need not be
    differentiable: thresholds are met as they are, and not a relaxation of them.

    Args:
        data: The private table, of shape ``(N, columns)``: categories as 0, 1, ..., and reals.
        queries: What to preserve: :func:`marginals`, :func:`halfspaces`, or their sum.
        domain: What is publicly known of each column: the number of categories, or the range.
            Read off the data, it would leak.
        rho: Privacy budget :math:`\rho > 0`.
        rows: Rows of the synthetic table.
        generations: As for :func:`genetic_search`.
        population: As for :func:`genetic_search`.
        elites: As for :func:`genetic_search`.
        tolerance: As for :func:`genetic_search`.
        seed: Seed of the noise and of the search, for a test. Who knows it can take the noise
            away: leave it out otherwise.

    Returns:
        :class:`Synthetic`; ``target`` has the noisy statistics, which may be published too.

    Raises:
        ValueError: If an argument is out of its range, or the data do not fit the domain.

    Example:
        With a budget without end, the share of ones is preserved.

        >>> coins = torch.tensor([[1.0], [1.0], [1.0], [0.0]])
        >>> found = private_genetic(coins, marginals([2], [[0]]), [2], 1e12, rows=8, seed=0)
        >>> found.rows.sum()
        tensor(6., dtype=torch.float64)

    Reference:
        :cite:t:`liu2023generating`.

    Deviations:
        The variant that chooses in rounds which statistics to measure is left out. So are two
        kinds of edits: of a real value within the table's own quantiles, and a swap of two rows.

    When not to use it:
        For statistics with gradients and many columns, where a first-order search needs fewer
        evaluations. Noise is from torch's generator, in floating point: for a release in earnest
        take noise from an audited library, and :func:`genetic_search` from there on.
    """
    if data.dim() != 2 or data.shape[1] != len(domain) or not len(data):
        raise ValueError(
            f"data of shape {tuple(data.shape)} for a domain of {len(domain)} columns: give a "
            "table with a row a record and a column a domain"
        )
    for j, known in enumerate(domain):
        low, high = (0.0, known - 1.0) if isinstance(known, int) else known
        if not ((data[:, j] >= low) & (data[:, j] <= high)).all():
            raise ValueError(f"column {j} of the data leaves its domain {known}: clip it first")
    exact = queries.answer(data).mean(0)
    target = gaussian_mechanism(exact, queries.spread / len(data), rho, seed)
    return genetic_search(
        target,
        queries,
        domain,
        rows,
        generations,
        population,
        elites=elites,
        tolerance=tolerance,
        seed=None if seed is None else seed + 1,
    )


def _edit(
    table: Tensor, strategy: int, domain: Sequence[Column], count: int, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Rows to edit, and what becomes of them."""
    at = torch.randint(len(table), (count,), generator=rng)
    if strategy == 0:
        source = _draw(domain, count, rng)
    else:
        source = table[torch.randint(len(table), (count,), generator=rng)]
    edited, each = table[at], torch.arange(count)
    for _ in range(max(1, strategy)):
        column = torch.randint(len(domain), (count,), generator=rng)
        edited[each, column] = source[each, column]
    return at, edited


def _draw(domain: Sequence[Column], count: int, rng: torch.Generator) -> Tensor:
    """Random rows, uniform over the domain."""
    u = torch.rand(count, len(domain), generator=rng, dtype=torch.float64)
    for j, known in enumerate(domain):
        if isinstance(known, int):
            u[:, j] = (u[:, j] * known).floor()
        else:
            u[:, j] = known[0] + u[:, j] * (known[1] - known[0])
    return u


def _generator(seed: int | None) -> torch.Generator:
    rng = torch.Generator()
    if seed is None:
        rng.seed()
    else:
        rng.manual_seed(seed)
    return rng
