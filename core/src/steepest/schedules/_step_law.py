r"""The Step Law: learning rate and batch size as powers of model and data, and such laws' fits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from steepest._registry import method

PAPER = "li2025predictable"
TITLE = (
    "Predictable Scale: Part I -- Optimal Hyperparameter Scaling Law in Large Language Model "
    "Pretraining"
)
Floats = NDArray[np.float64]


class StepLaw(NamedTuple):
    """Answer of :func:`step_law`."""

    lr: float
    """Peak learning rate of AdamW."""
    batch_tokens: float
    """Tokens in a batch; divide by the length of a sequence."""


class PowerLaw(NamedTuple):
    """Answer of :func:`fit_power_law`."""

    constant: float
    """The factor c."""
    exponents: tuple[float, ...]
    """The power of each input."""
    interval: tuple[tuple[float, float], ...]
    """Bounds on the constant, then on each exponent."""

    def __call__(self, *inputs: float) -> float:
        """The fitted law at new inputs."""
        powers = zip(inputs, self.exponents, strict=True)
        return self.constant * math.prod(x**a for x, a in powers)


class Bowl(NamedTuple):
    """Answer of :func:`fit_bowl`."""

    lr: float
    """Learning rate at the bottom (meaningless where the fit is not convex)."""
    batch: float
    """Batch size at the bottom, in the units given; NaN if none was."""
    loss: float
    """Fitted loss at the bottom."""
    curvature: Floats
    """Second derivatives of the loss in the logarithms to base 2, shape (1, 1) or (2, 2)."""

    @property
    def convex(self) -> bool:
        """Whether the fitted quadratic has a minimum."""
        return bool(np.linalg.eigvalsh(self.curvature)[0] > 0)

    def plateau(self, tolerance: float) -> float:
        """Factor by which the rate may miss the bottom for a loss no more than this above it."""
        return float(2 ** math.sqrt(2 * tolerance / self.curvature[0, 0]))


@method(paper=PAPER, title=TITLE, oracle="none", forward=0, backward=0)
def step_law(parameters: float, tokens: float) -> StepLaw:
    r"""Learning rate and batch size for pretraining a language model.

    .. math::

        \eta(N, D) = 1.79\, N^{-0.713} D^{0.307}, \qquad B(D) = 0.58\, D^{0.571}.

    Fitted to the optima of 3,700 runs: a larger model wants a smaller rate, more data a larger
    rate and a larger batch, and the batch does not depend on the model.

    Args:
        parameters: N, without embeddings. Of a mixture of experts, all that are stored.
        tokens: D, tokens seen in training.

    Returns:
        :class:`StepLaw`: the peak rate of AdamW, for a linear warm-up and a cosine down to a
        *fixed* rate of 1e-5; and the batch in *tokens*.

    Raises:
        ValueError: If a number is not positive.

    Example:
        A billion parameters, a hundred billion tokens.

        >>> law = step_law(1e9, 1e11)
        >>> f"{law.lr:.5f}, {law.batch_tokens:,.0f} tokens"
        '0.00163, 1,107,715 tokens'

    Reference:
        :cite:t:`li2025predictable`.

    When not to use it:
        Far from what was fitted: language models of up to about a billion parameters, AdamW, and
        a final rate that does not move with the peak. Elsewhere fit your own
        (:func:`fit_power_law`).
    """
    if not parameters > 0 or not tokens > 0:
        raise ValueError(f"give numbers > 0, not {parameters=}, {tokens=}")
    # $\eta = 1.79\, N^{-0.713} D^{0.307}$
    lr = 1.79 * parameters**-0.713 * tokens**0.307
    # $B = 0.58\, D^{0.571}$
    batch = 0.58 * tokens**0.571
    return StepLaw(lr, batch)


@method(paper=PAPER, title=TITLE, oracle="none", forward=0, backward=0)
def fit_power_law(
    inputs: Sequence[ArrayLike],
    optima: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> PowerLaw:
    r"""Fit a product of powers to optima, with an interval for each exponent.

    .. math::

        \log y_i = \log c + \sum_j a_j \log x_{ij} + \epsilon_i

    by least squares. For the intervals the residuals, enlarged to the noise's variance, are drawn
    anew and the fit is repeated; each repetition's error is measured in its own standard errors
    (the bootstrap-t), because a handful of optima leaves few residuals, and plain percentiles of
    such fits are too narrow.

    Args:
        inputs: One sequence of n numbers > 0 for each quantity: parameters, tokens, ...
        optima: The best learning rates or batch sizes found there, n numbers > 0.
        level: Probability that an interval is to cover the truth.
        resamples: Repetitions.
        seed: Seed of the draws.

    Returns:
        :class:`PowerLaw`; call it to extrapolate.

    Raises:
        ValueError: If a number is not positive, there are not at least two more optima than
            coefficients, or the inputs do not tell the exponents apart.

    Example:
        >>> x = [1.0, 2.0, 4.0, 8.0, 16.0]
        >>> law = fit_power_law([x], [3 * t**-0.5 for t in x])
        >>> round(law.constant, 6), round(law.exponents[0], 6), round(law(100.0), 6)
        (3.0, -0.5, 0.3)

    Reference:
        :cite:t:`li2025predictable`, who fit the Step Law in this way.

    Deviations:
        The intervals are studentized; how the paper makes its own was not looked up.

    When not to use it:
        On optima at the edge of their grid: the best that was tried is not the best there is.
    """
    data = [np.asarray(column, dtype=np.float64) for column in (*inputs, optima)]
    if any(column.ndim != 1 or len(column) != len(data[-1]) for column in data):
        raise ValueError("give sequences of one length, a number for each optimum")
    if not all((column > 0).all() and np.isfinite(column).all() for column in data):
        raise ValueError("every number has to be finite and above 0: a law of powers is positive")
    x = np.stack([np.ones_like(data[-1]), *(np.log(column) for column in data[:-1])], axis=1)
    y = np.log(data[-1])
    n, k = x.shape
    if n < k + 2 or np.linalg.matrix_rank(x) < k:
        raise ValueError(f"{n} optima do not determine {k} coefficients and their errors: add more")
    solve = np.linalg.pinv(x)
    fit = solve @ y
    scale = np.sqrt(np.diag(solve @ solve.T))
    leverage = np.einsum("ij,ji->i", x, solve)
    residuals = y - x @ fit
    noise = residuals / np.sqrt(np.maximum(1 - leverage, 1e-9))
    noise -= noise.mean()
    drawn = np.random.default_rng(seed).choice(noise, (resamples, n))
    errors = drawn @ solve.T
    spread = np.sqrt(((drawn - errors @ x.T) ** 2).sum(1) / (n - k))
    t = errors / np.maximum(spread[:, None] * scale, np.finfo(float).tiny)
    high, low = np.quantile(t, [(1 + level) / 2, (1 - level) / 2], axis=0)
    own = scale * np.sqrt((residuals**2).sum() / (n - k))
    bounds = np.stack([fit - high * own, fit - low * own], axis=1)
    bounds[0] = np.exp(bounds[0])
    return PowerLaw(
        float(np.exp(fit[0])),
        tuple(float(a) for a in fit[1:]),
        tuple((float(a), float(b)) for a, b in bounds),
    )


@method(paper=PAPER, title=TITLE, oracle="none", forward=0, backward=0)
def fit_bowl(lr: ArrayLike, loss: ArrayLike, batch: ArrayLike | None = None) -> Bowl:
    r"""Fit a quadratic to final losses over the logarithms of learning rate and batch size.

    .. math::

        L \approx L_* + \tfrac12 (z - z_*)^\top A\, (z - z_*), \qquad
        z = (\log_2 \eta, \log_2 B).

    Its bottom is an optimum that lies between the points of a grid, and its curvature says how
    much it costs to miss it.

    Args:
        lr: Learning rates of n runs.
        loss: Their final losses.
        batch: Their batch sizes, if these vary.

    Returns:
        :class:`Bowl`.

    Raises:
        ValueError: If the runs do not determine a quadratic (3 different rates; 6 pairs).

    Example:
        >>> bowl = fit_bowl([0.25, 0.5, 1.0, 2.0], [3.0, 1.5, 1.0, 1.5])
        >>> round(bowl.lr, 3), bowl.convex
        (1.0, True)

    Reference:
        :cite:t:`li2025predictable`, who find such a surface convex, with a wide plateau.

    When not to use it:
        On runs that diverged, or far from the optimum: only near it is a loss quadratic.
    """
    columns = [np.log2(np.asarray(c, dtype=np.float64)) for c in (lr, batch) if c is not None]
    z, y = np.stack(columns, axis=1), np.asarray(loss, dtype=np.float64)
    d = z.shape[1]
    pairs = [(i, j) for i in range(d) for j in range(i, d)]
    center = z.mean(0)
    u = z - center
    x = np.stack([np.ones(len(u)), *u.T, *(u[:, i] * u[:, j] for i, j in pairs)], axis=1)
    if not np.isfinite(x).all() or not np.isfinite(y).all():
        raise ValueError("rates and batches have to be above 0, and losses finite: leave out runs")
    if np.linalg.matrix_rank(x) < x.shape[1]:
        raise ValueError(f"these runs do not determine a quadratic: {x.shape[1]} are the least")
    fit = np.linalg.lstsq(x, y, rcond=None)[0]
    curvature = np.zeros((d, d))
    for (i, j), value in zip(pairs, fit[d + 1 :], strict=True):
        curvature[i, j] += value
        curvature[j, i] += value
    step = -np.linalg.pinv(curvature) @ fit[1 : d + 1]
    bottom = 2 ** (center + step)
    value = fit[0] + fit[1 : d + 1] @ step + 0.5 * step @ curvature @ step
    return Bowl(float(bottom[0]), float(bottom[1]) if d == 2 else math.nan, float(value), curvature)
