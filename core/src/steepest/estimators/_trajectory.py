r"""A gradient from past values: a model of the loss, fitted along the way, and its slope."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, final

import torch
from torch import Tensor

from steepest._registry import method
from steepest.estimators._base import GradientEstimator, NonFiniteLoss, Projection
from steepest.oracles import Objective

_ROOT5 = math.sqrt(5.0)


@final
@dataclass(frozen=True)
class Surrogate:
    r"""A Gaussian process that has seen values: its mean, its mean's gradient, and its doubt.

    .. math::

        \mu(x) = c + \sum_i \alpha_i\, k(x, x_i), \qquad
        \nabla \mu(x) = \sum_i w_i\, (x - x_i), \qquad
        w_i = -\frac{5 \alpha_i}{3 \ell^2} (1 + u_i)\, e^{-u_i}, \quad
        u_i = \frac{\sqrt5\, \|x - x_i\|}{\ell},

    with Matérn's kernel of smoothness 5/2, :math:`k = (1 + u + u^2/3)\, e^{-u}`, whose functions
    have two derivatives.
    """

    points: Tensor
    """Where values were read, of shape (n, d), float64."""
    alpha: Tensor
    """Coefficients, of shape (n,), in the values' units."""
    factor: Tensor
    """Lower Cholesky factor of the kernel matrix with noise, of shape (n, n)."""
    length: float
    """Length scale of the kernel, in the points' units."""
    offset: float
    """The mean far from all points."""

    def mean(self, x: Tensor) -> Tensor:
        """Posterior mean at points (m, d), of shape (m,)."""
        return self.offset + _matern(torch.cdist(x, self.points) / self.length) @ self.alpha

    def weights(self, x: Tensor) -> Tensor:
        """Weights of the directions ``x - points`` in the mean's gradient, for x (d,)."""
        return _slope(x[None], self.points, self.length)[0] * self.alpha

    def gradient(self, x: Tensor) -> Tensor:
        """Gradient of the posterior mean at x (d,)."""
        return self.weights(x) @ (x - self.points)

    def uncertainty(self, x: Tensor) -> Tensor:
        """Trace of the gradient's posterior covariance at points (m, d), of shape (m,).

        In units of the kernel's amplitude, which makes no difference to which is largest.
        """
        prior = x.shape[1] * 5 / (3 * self.length**2)
        apart = x[:, None] - self.points
        slopes = _slope(x, self.points, self.length)[..., None] * apart
        known = torch.linalg.solve_triangular(self.factor, slopes, upper=False)
        return prior - known.square().sum((1, 2))


def fit_surrogate(points: Tensor, values: Tensor, noise: float = 1e-6) -> Surrogate:
    r"""Fit the length scale, by maximum likelihood on a grid, and the coefficients.

    Values are centered; the amplitude has a best value in closed form for each length.

    Args:
        points: Where values were read, of shape (n, d), float64.
        values: The values, of shape (n,).
        noise: Variance of their noise, in units of the kernel's amplitude.

    Example:
        >>> x = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
        >>> f = fit_surrogate(x, x[:, 0] ** 2)
        >>> f.gradient(torch.tensor([0.5], dtype=torch.float64)).round(decimals=2)
        tensor([1.], dtype=torch.float64)
    """
    distance = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    spread = distance.max().item() or 1.0
    offset = values.mean()
    y = (values - offset)[:, None]
    identity = torch.eye(len(points), dtype=points.dtype, device=points.device)
    best = None
    for power in range(-2, 6):
        length = spread * 2.0**power
        factor, failed = torch.linalg.cholesky_ex(_matern(distance / length) + noise * identity)
        if failed:
            continue
        alpha = torch.cholesky_solve(y, factor)
        square = (y * alpha).sum().clamp_min(torch.finfo(y.dtype).tiny)
        evidence = -0.5 * len(y) * square.log() - factor.diagonal().log().sum()
        if best is None or evidence > best[0]:
            best = evidence, Surrogate(points, alpha[:, 0], factor, length, offset.item())
    assert best is not None  # with noise, the shortest length always has a factor
    return best[1]


@final
@method(
    paper="shu2023federated",
    title="Federated Zeroth-Order Optimization using Trajectory-Informed Surrogate Gradients",
    oracle="value",
    forward=6,
    backward=0,
)
class TrajectoryGradient(GradientEstimator):
    r"""The slope of a model of the loss that is fitted to all values read so far.

    An optimizer's path is a set of points at which the loss is known. A Gaussian process through
    the nearest of them (:class:`Surrogate`) has a gradient, so the past pays for a part of each
    estimate, and what is asked anew, a few points beside the current one, is where the model
    doubts its gradient the most. The estimate is a combination of the directions to past points:
    the subspace of the recent path, in which one gradient is much like the next.

    Args:
        nearest: Past points that the model is fitted to.
        active: Values asked an estimate, besides that at the parameters.
        initial: The same, before the first estimate.
        candidates: Random points around the parameters of which those are the most doubtful.
        radius: Half the side of the box around the parameters that they are drawn from, in the
            parameters' units. The paper takes 0.01.
        noise: Variance of the values' noise, in units of the kernel's amplitude.
        memory: Values that are kept.

    Attributes:
        points: Where values were read, of shape (n, d), float64.
        values: The values, of shape (n,).

    Raises:
        ValueError: If an argument is out of its range, or at an estimate if the parameters are
            not those of the past.
        RuntimeError: At an estimate, if a value is NaN or infinite. After all errors, parameters
            and past are as they were.

    Example:
        >>> p = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
        >>> f = Objective(lambda: (p**2).sum(), [p])
        >>> TrajectoryGradient()(f, seed=0).gradient[0].round(decimals=1)
        tensor([2., 4.], dtype=torch.float64)
        >>> f.counts["forward"]
        11

    Reference:
        :cite:t:`shu2023federated`.

    Deviations:
        The length scale is the best of eight, not found by a continuous search; values are
        centered and the amplitude is fitted, where the authors' program scales values to [0, 1].

    When not to use it:
        In high dimension: n values cannot say more than n numbers of a gradient. With noise in
        the loss, which has to be told (``noise``). For a loss that changes from step to step, as
        with new batches: past values are then of other functions. A checkpoint of an optimizer
        does not hold the past: a resumed run collects it again.
    """

    oracle: ClassVar = "value"

    def __init__(
        self,
        nearest: int = 150,
        active: int = 5,
        initial: int = 10,
        candidates: int = 100,
        radius: float = 0.01,
        *,
        noise: float = 1e-6,
        memory: int = 2000,
    ) -> None:
        counts = {"nearest": nearest, "initial": initial, "candidates": candidates}
        for name, count in {**counts, "memory": memory, "active": active}.items():
            least = 0 if name == "active" else 1
            if not isinstance(count, int) or count < least:
                raise ValueError(f"{name}={count!r} is not valid: give a whole number >= {least}")
        for name, number in (("radius", radius), ("noise", noise)):
            if not (math.isfinite(number) and number > 0):
                raise ValueError(f"{name}={number!r} is not valid: give a finite number > 0")
        self.nearest = nearest
        self.active = active
        self.initial = initial
        self.candidates = candidates
        self.radius = radius
        self.noise = noise
        self.memory = memory
        self.points = torch.zeros(0, 0, dtype=torch.float64)
        self.values = torch.zeros(0, dtype=torch.float64)
        self._here: dict[int, tuple[slice, Tensor]] = {}

    @property
    def forward(self) -> int:
        """The value at the parameters, and those beside it that the next estimate asks."""
        return 1 + (self.active if len(self.values) else self.initial)

    @torch.no_grad()
    def project(self, objective: Objective, seed: int) -> Projection:
        """Ask, fit, and weigh the directions from past points."""
        places = self.places(objective)
        count = self.active if len(self.values) else self.initial
        here, value = self.explore(objective, seed, count, self.candidates, self.radius)
        chosen = self.closest(here, self.nearest)
        surrogate = fit_surrogate(self.points[chosen], self.values[chosen], self.noise)
        weights = surrogate.weights(here).tolist()
        ends = torch.tensor([0] + [p.numel() for p in objective.params]).cumsum(0).tolist()
        cuts = [slice(a, b) for a, b in pairwise(ends)]
        self._here = {place: (cut, here[cut]) for place, cut in zip(places, cuts, strict=True)}
        return Projection(value, dict(zip(chosen.tolist(), weights, strict=True)))

    def accumulate_(
        self,
        tensors: Sequence[Tensor],
        seed: int,
        weights: Mapping[int, float],
        places: Sequence[int],
    ) -> None:
        r"""Add :math:`\sum_i w_i (x - x_i)`, of the last estimate; the seed is not used."""
        chosen = torch.tensor([*weights], dtype=torch.int64)
        w = torch.tensor([*weights.values()], dtype=torch.float64)
        for t, place in zip(tensors, places, strict=True):
            cut, here = self._here[place]
            t.add_((w @ (here - self.points[chosen, cut])).view(t.shape).to(t))

    def closest(self, here: Tensor, count: int) -> Tensor:
        """Indices of the past points nearest to one of shape (d,)."""
        distance = (self.points - here).square().sum(1)
        return distance.topk(min(count, len(distance)), largest=False).indices

    @torch.no_grad()
    def explore(
        self, objective: Objective, seed: int, count: int, candidates: int, radius: float
    ) -> tuple[Tensor, Tensor]:
        """Read the value here and at the most doubtful points around; remember all.

        Returns:
            The parameters as a vector (d,), and the value there.
        """
        params = [p.detach() for p in objective.params]
        home = [p.clone() for p in params]
        here = flatten(params)
        d = len(here)
        if len(self.values) and self.points.shape[1] != d:
            raise ValueError(
                f"the past is of {self.points.shape[1]} parameters, and there are {d}: use one "
                "estimator for one model"
            )
        value = objective.value()
        points, values = [here], [value.double().cpu()]
        rng = torch.Generator().manual_seed(seed % 2**63)
        box = 2 * torch.rand(max(candidates, count), d, generator=rng, dtype=torch.float64) - 1
        probes = here + radius * box
        if len(self.values):
            near = self.closest(here, self.nearest)
            past = torch.cat([self.points[near], here[None]])
            known = torch.cat([self.values[near], values[0][None]])
            doubt = fit_surrogate(past, known, self.noise).uncertainty(probes)
            probes = probes[doubt.topk(count).indices]
        try:
            for probe in probes[:count]:
                for p, part in zip(params, probe.split([p.numel() for p in params]), strict=True):
                    p.copy_(part.view(p.shape))
                points.append(flatten(params))  # rounded to their precision
                values.append(objective.value().double().cpu())
        finally:
            for p, start in zip(params, home, strict=True):
                p.copy_(start)
        found = torch.stack(values)
        if not found.isfinite().all():
            raise NonFiniteLoss
        old = self.points if len(self.values) else self.points.new_zeros(0, d)
        self.points = torch.cat([old, torch.stack(points)])[-self.memory :]
        self.values = torch.cat([self.values, found])[-self.memory :]
        return here, value


def flatten(params: Sequence[Tensor]) -> Tensor:
    """Parameters as one vector, float64 on the CPU."""
    return torch.cat([p.detach().reshape(-1).double().cpu() for p in params])


def _matern(r: Tensor) -> Tensor:
    u = _ROOT5 * r
    return (1 + u + u.square() / 3) * torch.exp(-u)


def _slope(x: Tensor, points: Tensor, length: float) -> Tensor:
    """Factors of x - points in the kernel's gradient, of shape (m, n)."""
    u = _ROOT5 * torch.cdist(x, points, compute_mode="donot_use_mm_for_euclid_dist") / length
    return -5 / (3 * length**2) * (1 + u) * torch.exp(-u)
