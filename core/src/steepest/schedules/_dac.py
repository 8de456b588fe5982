r"""Dynamic algorithm configuration: a policy that sets a hyper-parameter, learned from runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, final

import numpy as np
from numpy.typing import NDArray

from steepest._registry import method

PAPER = "adriaensen2022automated"
TITLE = "Automated Dynamic Algorithm Configuration"
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Policy = Callable[[Integers], Integers]
"""States -> actions, one for each instance."""


class Environment(Protocol):
    """Runs of an algorithm, many instances side by side, whose configuration is set as they go.

    As in Gymnasium, :meth:`reset` begins an episode and :meth:`step` goes on; here each takes
    and returns an array with one entry for each instance, and all episodes have one length.
    """

    states: int
    """Number of states that can be told apart; a state is an integer below it."""
    actions: int
    """Number of actions."""
    steps: int
    """Length of an episode."""

    def draw(self, count: int, seed: int) -> Floats:
        """Draw instances, one in each row."""

    def reset(self, instances: Floats) -> Integers:
        """Begin an episode on each instance; return states."""

    def step(self, actions: Integers) -> tuple[Integers, Floats]:
        """Take an action on each instance; return states and rewards."""


@method(paper=PAPER, title=TITLE, oracle="none", forward=0, backward=0)
@final
class SigmoidTracking:
    r"""The toy problem: follow a sigmoid whose slope and place are the instance.

    .. math::

        r_t = 1 - \Bigl| \frac{1}{1 + e^{-s (t - p)}} - \frac{a_t}{n - 1} \Bigr|,
        \qquad t = 1, \ldots, T.

    A static configuration earns about half. The best policy depends on the time and on the
    instance, and is known: the nearest of the n actions.

    Args:
        steps: :math:`T`.
        actions: :math:`n`.

    Example:
        >>> env = SigmoidTracking()
        >>> _ = env.reset(np.array([[100.0, 1.5]]))
        >>> [round(float(env.step(np.array([a]))[1][0]), 2) for a in (0, 2)]
        [1.0, 1.0]

    Reference:
        :cite:t:`adriaensen2022automated`.

    Deviations:
        Slopes are uniform in (-4, 4), so that the sigmoids are not steps, and places normal
        around the middle. Agents see them in bins.
    """

    def __init__(self, steps: int = 10, actions: int = 3) -> None:
        self.steps, self.actions = steps, actions
        self.states = steps * 4 * (steps + 2)

    def draw(self, count: int, seed: int) -> Floats:
        """Instances: slope s and place p."""
        rng = np.random.default_rng(seed)
        place = rng.normal(self.steps / 2, self.steps / 4, count)
        return np.stack([rng.uniform(-4, 4, count), place], axis=1)

    def reset(self, instances: Floats) -> Integers:
        """Begin."""
        self._slope, self._place = instances.T
        self._t = 0
        return self._state()

    def target(self) -> Floats:
        """The sigmoid at the next step."""
        return np.asarray(1 / (1 + np.exp(-self._slope * (self._t + 1 - self._place))))

    def step(self, actions: Integers) -> tuple[Integers, Floats]:
        """Go on."""
        reward = 1 - np.abs(self.target() - actions / (self.actions - 1))
        self._t += 1
        return self._state(), reward

    def best(self, states: Integers) -> Integers:
        """The optimal policy, which looks at the sigmoid itself."""
        return np.rint(self.target() * (self.actions - 1)).astype(np.int64)

    def _state(self) -> Integers:
        slope = np.digitize(self._slope, (-1.0, 0.0, 1.0))
        place = np.clip(np.floor(self._place) + 1, 0, self.steps + 1)
        time = min(self._t, self.steps - 1)
        return ((time * 4 + slope) * (self.steps + 2) + place).astype(np.int64)


@method(paper=PAPER, title=TITLE, oracle="gradient")
@final
class QuadraticDescent:
    r"""A real problem: the learning rate of gradient descent on quadratics of unknown curvature.

    .. math::

        f(\theta) = \tfrac12 \sum_j \lambda_j \theta_j^2, \qquad
        \eta_{t+1} = \eta_t \cdot \{\tfrac12, 1, 2\}[a_t], \qquad
        r_t = \log f(\theta_t) - \log f(\theta_{t+1}).

    Rewards add up to the fall of the log-loss. The agent sees what any run sees: how loss and
    gradient norm changed in the last step, in bins, its last action, and in which third of the
    budget it is; it sees neither curvature nor rate.

    Args:
        lr: The rate to begin with.
        steps: Steps of descent, :math:`T`.
        dimension: Of the quadratics. Their largest curvature L is log-uniform in (0.3, 3), their
            condition in (10, 1000), and eigenvalues are log-uniform in between.

    Example:
        One coordinate of curvature 1, at a rate that halves it: the loss falls to a quarter.

        >>> env = QuadraticDescent(lr=0.5, dimension=1)
        >>> _ = env.reset(np.array([[1.0, 1.0]]))
        >>> round(float(np.exp(-env.step(np.array([1]))[1][0])), 6)
        0.25

    Reference:
        :cite:t:`adriaensen2022automated`, who control the rate of a network's training.
    """

    factors = np.array([0.5, 1.0, 2.0])
    edges = np.log(np.array([0.25, 0.5, 0.75, 0.9, 0.97, 1.0, 1.5, 4.0]))

    def __init__(self, lr: float = 0.1, steps: int = 30, dimension: int = 10) -> None:
        self.lr, self.steps, self.dimension = lr, steps, dimension
        self.actions = len(self.factors)
        bins = len(self.edges) + 1
        self.states = 3 * self.actions * bins * bins

    def draw(self, count: int, seed: int) -> Floats:
        """Instances: the d curvatures, then the d coordinates of the start."""
        rng = np.random.default_rng(seed)
        largest = np.exp(rng.uniform(np.log(0.3), np.log(3), (count, 1)))
        condition = np.exp(rng.uniform(np.log(10), np.log(1000), (count, 1)))
        curvature = largest * condition ** -rng.uniform(0, 1, (count, self.dimension))
        curvature[:, :2] = np.concatenate([largest, largest / condition], axis=1)
        return np.concatenate([curvature, rng.normal(size=(count, self.dimension))], axis=1)

    def reset(self, instances: Floats) -> Integers:
        """Begin."""
        self._curvature, start = np.split(instances, 2, axis=1)
        self._p = start.copy()
        self.rates = np.full(len(start), self.lr)
        self._t, self._last = 0, np.ones(len(start), dtype=np.int64)
        self._logs = self._measure()
        return self._state(np.zeros_like(self._logs))

    def step(self, actions: Integers) -> tuple[Integers, Floats]:
        """Go on; a run that has blown up by 50 in the log moves no further."""
        self.rates = self.rates * self.factors[actions]
        before = self._logs
        sane = (self.rates * self._curvature.max(1) < 1e6) & (before[0] < 50)
        move = self.rates[:, None] * self._curvature * self._p
        self._p = np.where(sane[:, None], self._p - move, self._p)
        self._logs = self._measure()
        self._t, self._last = self._t + 1, actions
        return self._state(self._logs - before), before[0] - self._logs[0]

    @property
    def log_loss(self) -> Floats:
        """Logarithm of the loss now."""
        return self._logs[0]

    def _measure(self) -> Floats:
        gradient = self._curvature * self._p
        tiny = np.finfo(float).tiny
        loss = 0.5 * (gradient * self._p).sum(1)
        return np.log(np.stack([loss, (gradient**2).sum(1)]) + tiny)

    def _state(self, change: Floats) -> Integers:
        third = min(3 * self._t // self.steps, 2)
        loss, norm = np.digitize(change, self.edges)
        bins = len(self.edges) + 1
        return np.asarray(((third * self.actions + self._last) * bins + loss) * bins + norm)


@method(paper=PAPER, title=TITLE, oracle="none", forward=0, backward=0)
@final
class QController:
    r"""A policy learned by tabular Q-learning.

    .. math::

        Q(s, a) \leftarrow Q(s, a) + \alpha \bigl(r + \max_{a'} Q(s', a') - Q(s, a)\bigr),
        \qquad \alpha = n(s, a)^{-1/2},

    without a discount, since episodes end. Instances run side by side, and those that meet in a
    state and an action move its value by the mean of their errors, which counts as one visit.

    Args:
        environment: What to learn to control.

    Attributes:
        q: Values, shape (states, actions).

    Raises:
        ValueError: If ``epsilon`` or a count is out of its range, in :meth:`train`.

    Example:
        >>> env = SigmoidTracking()
        >>> agent = QController(env).train(env.draw(100, seed=0), episodes=2000)
        >>> bool(play(env, env.draw(50, seed=1), agent).mean() > 7)
        True

    Reference:
        :cite:t:`adriaensen2022automated`.

    Deviations:
        One table in place of the double deep Q-network of the paper's case studies.

    When not to use it:
        With states that do not repeat: a table does not generalize between its rows. Nor on
        instances unlike those that it was trained on.
    """

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.q = np.zeros((environment.states, environment.actions))

    def __call__(self, states: Integers) -> Integers:
        """The greedy policy."""
        return np.argmax(self.q[states], axis=1)

    def train(
        self, instances: Floats, episodes: int, *, epsilon: float = 0.3, seed: int = 0
    ) -> QController:
        """Learn from episodes, each on an instance drawn from those given.

        Args:
            instances: Training instances, one in each row; an array of them runs at a time.
            episodes: Episodes in all, rounded up to whole arrays.
            epsilon: Share of random actions at first; it falls linearly to 0.
            seed: Seed of the exploration.

        Returns:
            The controller itself.
        """
        if not 0 <= epsilon <= 1 or episodes < 1 or not len(instances):
            raise ValueError("give instances, episodes >= 1 and an epsilon in [0, 1]")
        env, q = self.environment, self.q
        rng = np.random.default_rng(seed)
        visits = np.zeros_like(q)
        rounds = -(-episodes // len(instances))
        for k in range(rounds):
            states = env.reset(instances)
            for t in range(env.steps):
                blind = rng.integers(env.actions, size=len(states))
                explore = rng.random(len(states)) < epsilon * (1 - k / rounds)
                # $a = \arg\max_{a'} Q(s, a'), \text{ or a random one}$
                actions = np.where(explore, blind, self(states))
                # $s', \; r$
                after, rewards = env.step(actions)
                # $\max_{a'} Q(s', a')$
                future = q[after].max(1) if t + 1 < env.steps else 0.0
                error, count = np.zeros_like(q), np.zeros_like(q)
                # $r + \max_{a'} Q(s', a') - Q(s, a)$
                np.add.at(error, (states, actions), rewards + future - q[states, actions])
                np.add.at(count, (states, actions), 1)
                visits += count > 0
                # $Q \leftarrow Q + \alpha\, (\dots), \quad \alpha = 1 / \sqrt{\text{visits}}$
                q += np.maximum(visits, 1) ** -0.5 * error / np.maximum(count, 1)
                states = after
        return self


def play(environment: Environment, instances: Floats, policy: Policy) -> Floats:
    """Sum of the rewards of a policy's episode on each instance.

    Args:
        environment: What is played.
        instances: Its instances, of shape (n, k).
        policy: From states to actions.

    Returns:
        Of shape (n,).

    Example:
        A sigmoid that rises after the first of ten steps, and a policy that is always high.

        >>> float(play(SigmoidTracking(), np.array([[100.0, 1.5]]), constant(2))[0].round(6))
        9.0
    """
    states, total = environment.reset(instances), np.zeros(len(instances))
    for _ in range(environment.steps):
        states, rewards = environment.step(policy(states))
        total += rewards
    return total


def constant(action: int) -> Policy:
    """The static policy: always one action.

    Example:
        >>> constant(2)(np.zeros((3, 5)))
        array([2, 2, 2])
    """
    return lambda states: np.full(len(states), action)
