r"""Several clients descend together on values alone, and send each other surrogates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor, distributed

from steepest._registry import method
from steepest.estimators import Features, TrajectoryGradient
from steepest.estimators._trajectory import flatten
from steepest.kernels import split_seed
from steepest.lightning._shared_randomness import together
from steepest.oracles import Objective

Make = Callable[[Iterable[Tensor]], torch.optim.Optimizer]


class Round(NamedTuple):
    """What a round brought; all processes have the same."""

    value: float
    """Mean of the clients' losses at the point that the round ends at."""
    accepted: bool
    """Whether it is a new point."""


@final
@method(
    paper="shu2023federated",
    title="Federated Zeroth-Order Optimization using Trajectory-Informed Surrogate Gradients",
    oracle="value",
    scope="model",
    forward=1,
    backward=0,
)
class FZooS:
    r"""Federated zeroth-order descent with surrogates of the clients' losses.

    Clients have losses :math:`f_1, \dots, f_N` that they do not share, and answer queries only.
    To descend on their mean, each makes some steps of its own, and the mean of where they end is
    the next point. In a round, at its step :math:`t = 0, 1, \dots`, client :math:`i` steps along

    .. math::

        g_i = \nabla \mu_i(\theta) + \gamma_t
            \bigl( \nabla \hat\mu_F(\theta) - \nabla \hat\mu_i(\theta) \bigr), \qquad
        \gamma_t = \frac{1}{(t + 1)^p}, \qquad \hat\mu_F = \frac1N \sum_i \hat\mu_i.

    :math:`\nabla \mu_i` is the slope of a Gaussian process of its own queries
    (:class:`~steepest.estimators.TrajectoryGradient`). It leads to the client's minimum, not to
    that of the mean; the correction turns it. :math:`\hat\mu_i` is a model in random features
    (:class:`~steepest.estimators.Features`), fitted at the end of the round before. Its weights
    :math:`\nu_i` are what the client sends, and their mean :math:`\nu_F` is what all get. As it is
    a function and not a vector, it corrects at each point, and not only at that where the round
    began. It may fade with :math:`t`, as the point leaves the data behind.

    Clients live in the processes of ``torch.distributed``, any number in each; without it, all in
    this one. Results do not depend on who lives where.

    Args:
        params: Parameters, which the losses read; equal in all processes. After a round they are
            the new point.
        clients: The losses of this process's clients, callables that return a tensor of one
            element. For a mean with weights, multiply a loss.
        optimizer: Parameters to an optimizer, made anew for the steps of a client in a round.
        steps: Steps of a client in a round.
        trajectory: Makes a client's estimator.
        features: Number of features, which is how many numbers a client sends a round.
        length: Their length scale, in the parameters' units.
        nearest: Points that a client fits its features to.
        queries: Queries of a client at the end of a round, besides that at the new point: where
            its gradient is least certain among four times as many, in a cube of half the clients'
            mean distance to the new point.
        correct: Whether to correct. Without, clients average, and send nothing else.
        fade: How fast the correction fades within a round, :math:`p`; 0 is not at all. The
            authors' program takes 1.
        seed: Seed of features and queries; the same in all processes.

    Attributes:
        trajectories: The estimators of this process's clients, with all their queries.
        history: A :class:`Round` for each round.
        sent: Numbers that a client has sent.

    Raises:
        ValueError: If an argument is out of its range, or there is no client.
        RuntimeError: In a round, if a loss is NaN or infinite. Parameters are then as they were.

    Example:
        Two clients pull one number to 0 and 2; together they find 1.

        >>> p = torch.nn.Parameter(torch.zeros(1))
        >>> clients = [lambda: (p**2).sum(), lambda: ((p - 2) ** 2).sum()]
        >>> make = lambda ps: torch.optim.SGD(ps, lr=0.05)
        >>> fleet = FZooS([p], clients, make, features=50, queries=5)
        >>> _ = [fleet.round() for _ in range(6)]
        >>> bool((p - 1).abs() < 0.02), fleet.history[-1].value < 1.01
        (True, True)

    Reference:
        :cite:t:`shu2023federated`.

    Deviations:
        As the paper's code does, a point where the mean of the losses is not lower is refused.
        Features are fitted to values less that at the new point, with a ridge of 1e-6: theirs are
        scaled to [0, 1].

    When not to use it:
        With gradients at hand, or with more than some hundred parameters. It is not private:
        weights of features say much about a client's loss.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        clients: Sequence[Callable[[], Tensor]],
        optimizer: Make = torch.optim.Adam,
        steps: int = 10,
        *,
        trajectory: Callable[[], TrajectoryGradient] = TrajectoryGradient,
        features: int = 1000,
        length: float = 1.0,
        nearest: int = 500,
        queries: int = 50,
        correct: bool = True,
        fade: float = 1.0,
        seed: int = 0,
    ) -> None:
        if not clients:
            raise ValueError("no clients: give each process at least one loss")
        for name, count in (("steps", steps), ("nearest", nearest), ("queries", queries)):
            if not isinstance(count, int) or count < 1:
                raise ValueError(f"{name}={count!r} is not valid: give a whole number >= 1")
        if not (math.isfinite(fade) and fade >= 0):
            raise ValueError(f"fade={fade!r} is not valid: give a finite number >= 0")
        params = [*params]
        self.objectives = [Objective(loss, params) for loss in clients]
        self.params = self.objectives[0].params
        self.optimizer = optimizer
        self.steps = steps
        self.trajectories = [trajectory() for _ in clients]
        self.features = Features(
            sum(p.numel() for p in self.params), features, length, split_seed(seed, 0)
        )
        self.nearest = nearest
        self.queries = queries
        self.correct = correct
        self.fade = fade
        self.seed = seed
        self.first, self.clients = _seats(len(clients))
        self.own: Tensor | None = None
        self.mean: Tensor | None = None
        self.best = math.inf
        self.history: list[Round] = []
        self.sent = 0

    def round(self) -> Round:
        """Make a round; parameters end at its point, or, if something fails, where they were."""
        home = [p.detach().clone() for p in self.params]
        start = flatten(self.params)
        try:
            ends = []
            for i in range(len(self.objectives)):
                ends.append(self._descend(i))
                place_(self.params, start)
            everyone = self._share(torch.stack(ends))
            center = everyone.mean(0)
            place_(self.params, center)
            center = flatten(self.params)  # as the parameters' precision has it
            radius = float((everyone - center).norm(dim=1).mean()) / 2
            done = self._meet(center, radius)
        except BaseException:
            _put(self.params, home)
            raise
        if not done.accepted:
            _put(self.params, home)
        self.best = min(self.best, done.value)
        self.history.append(done)
        return done

    def gradient(self, i: int, t: int, x: Tensor, slope: Tensor) -> Tensor:
        """Client i's slope (d,) at a point (d,), corrected as in step t."""
        if self.own is None or self.mean is None:
            return slope
        # $\nabla\hat\mu_F(\theta) - \nabla\hat\mu_i(\theta)$
        turn = self.features.gradient(x, self.mean - self.own[i])
        # $g_i = \nabla\mu_i + \frac{1}{(t + 1)^p} (\nabla\hat\mu_F - \nabla\hat\mu_i)$
        return slope + turn / (t + 1) ** self.fade

    def _descend(self, i: int) -> Tensor:
        """A client's steps; where it ends."""
        objective, trajectory = self.objectives[i], self.trajectories[i]
        optimizer = self.optimizer(self.params)
        held = [p.grad for p in self.params]
        sizes = [p.numel() for p in self.params]
        try:
            for t in range(self.steps):
                estimate = trajectory(objective, self._draw(i, t)).gradient
                slope = flatten(estimate)
                g = self.gradient(i, t, flatten(self.params), slope)
                for p, part in zip(self.params, g.split(sizes), strict=True):
                    p.grad = part.view(p.shape).to(p)
                optimizer.step()
        finally:
            for p, grad in zip(self.params, held, strict=True):
                p.grad = grad
        return flatten(self.params)

    def _meet(self, center: Tensor, radius: float) -> Round:
        """Ask at the new point and around it; exchange values and models."""
        values, weights = [], []
        count = self.queries if self.correct else 0
        for i, trajectory in enumerate(self.trajectories):
            objective, seed = self.objectives[i], self._draw(i, self.steps)
            box = radius or trajectory.radius
            _, value = trajectory.explore(objective, seed, count, 4 * count, box)
            # $f_i(\theta)$
            values.append(value.double().cpu())
            if self.correct:
                near = trajectory.closest(center, self.nearest)
                # $f_i(\theta_j) - f_i(\theta)$
                heights = trajectory.values[near] - values[-1]
                # $\nu_i: \; \hat\mu_i(\theta_j) \approx f_i(\theta_j) - f_i(\theta)$
                weights.append(self.features.fit(trajectory.points[near], heights))
        # $F(\theta) = \frac1N \sum_i f_i(\theta)$
        level = float(self._share(torch.stack(values)[:, None]).mean())
        if self.correct:
            # $\nu_i$
            self.own = torch.stack(weights)
            # $\nu_F = \frac1N \sum_i \nu_i$
            self.mean = self._share(self.own).mean(0)
        return Round(level, level < self.best)

    def _share(self, rows: Tensor) -> Tensor:
        """A row a client of this process -> a row a client, in the order of ranks.

        A sum over processes of a table that is zero but for one's own rows: exact, whatever the
        order, where the sum of the rows themselves would depend on who lives where.
        """
        self.sent += rows.shape[1]
        table = rows.new_zeros(self.clients, rows.shape[1])
        table[self.first : self.first + len(rows)] = rows
        if together():
            distributed.all_reduce(table)
        return table

    def _draw(self, i: int, t: int) -> int:
        """Seed of client i's queries in step t."""
        turn = split_seed(split_seed(self.seed, 1), len(self.history))
        return split_seed(split_seed(turn, self.first + i), t)


@torch.no_grad()
def place_(params: Sequence[Tensor], x: Tensor) -> None:
    """Put a vector into parameters, rounded to their precision."""
    for p, part in zip(params, x.split([p.numel() for p in params]), strict=True):
        p.copy_(part.view(p.shape))


@torch.no_grad()
def _put(params: Sequence[Tensor], home: Sequence[Tensor]) -> None:
    for p, start in zip(params, home, strict=True):
        p.copy_(start)


def _seats(own: int) -> tuple[int, int]:
    """How many clients there are in processes of lower rank, and in all."""
    if not together():
        return 0, own
    counts = torch.zeros(distributed.get_world_size(), dtype=torch.int64)
    rank = distributed.get_rank()
    counts[rank] = own
    distributed.all_reduce(counts)
    return int(counts[:rank].sum()), int(counts.sum())
