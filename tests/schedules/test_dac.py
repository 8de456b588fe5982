import math

import numpy as np
import pytest
import torch

from steepest.schedules import QController, QuadraticDescent, SigmoidTracking, constant, play


def test_rewards_of_the_sigmoid_by_hand():
    env = SigmoidTracking(steps=4, actions=3)
    slopes, places = [2.0, -0.5], [1.5, 3.0]
    env.reset(np.array([slopes, places]).T)
    for t, actions in enumerate(([0, 2], [1, 1], [2, 0], [2, 2]), start=1):
        _, rewards = env.step(np.array(actions))
        for s, p, a, r in zip(slopes, places, actions, rewards, strict=True):
            assert r == pytest.approx(1 - abs(1 / (1 + math.exp(-s * (t - p))) - a / 2))


def test_the_nearest_action_is_the_best_of_all_sequences():
    env = SigmoidTracking(steps=3, actions=3)
    instances = env.draw(20, seed=0)
    totals = []
    for code in range(27):
        plan = iter([code // 9, code // 3 % 3, code % 3])
        totals.append(play(env, instances, lambda s, plan=plan: np.full(len(s), next(plan))))
    np.testing.assert_allclose(play(env, instances, env.best), np.max(totals, axis=0))


def test_a_learned_policy_follows_sigmoids_that_it_has_not_seen():
    env = SigmoidTracking()
    for seed in range(3):
        train, test = env.draw(300, seed), env.draw(200, 1000 + seed)
        agent = QController(env).train(train, episodes=5000, seed=seed)
        returns = [play(env, train, constant(a)).mean() for a in range(env.actions)]
        static = play(env, test, constant(int(np.argmax(returns)))).mean()
        learned = play(env, test, agent).mean()
        assert learned >= 1.2 * static
        assert learned >= 0.9 * play(env, test, env.best).mean()


def test_descent_is_torchs_sgd():
    env = QuadraticDescent(lr=0.2, steps=6, dimension=3)
    instance = env.draw(1, seed=3)
    curvature, start = torch.tensor(instance[0]).split(3)
    p = torch.nn.Parameter(start.clone())
    opt = torch.optim.SGD([p], lr=0.2)
    env.reset(instance)
    total, rng = 0.0, np.random.default_rng(0)
    for action in rng.integers(3, size=6):
        _, reward = env.step(np.array([action]))
        total += reward[0]
        opt.param_groups[0]["lr"] *= (0.5, 1.0, 2.0)[action]
        p.grad = curvature * p.detach()
        opt.step()
    loss = 0.5 * (curvature * p.detach() ** 2).sum()
    assert env.log_loss[0] == pytest.approx(loss.log().item())
    assert total == pytest.approx((0.5 * (curvature * start**2).sum() / loss).log().item())


def test_quadratics_have_the_curvatures_that_they_are_said_to_have():
    curvature = QuadraticDescent().draw(1000, seed=0)[:, :10]
    largest, condition = curvature.max(1), curvature.max(1) / curvature.min(1)
    assert 0.3 <= largest.min() < 0.31 and 2.9 < largest.max() <= 3
    assert 10 * (1 - 1e-9) <= condition.min() < 11 and 900 < condition.max() <= 1000 * (1 + 1e-9)


def final(env, instances, policy):
    play(env, instances, policy)
    return env.log_loss


def test_a_learned_policy_beats_the_best_static_rate_on_unseen_quadratics():
    env = QuadraticDescent()
    rates = np.logspace(-2, 1, 31)
    for seed in range(3):
        train, test = env.draw(50, seed), env.draw(50, 1000 + seed)
        assert not np.isin(train, test).any()
        agent = QController(env).train(train, episodes=2000, seed=seed)
        tuned = min(
            rates, key=lambda lr: np.median(final(QuadraticDescent(lr), train, constant(1)))
        )
        assert rates[0] < tuned < rates[-1]
        static = np.median(final(QuadraticDescent(tuned), test, constant(1)))
        assert np.median(final(env, test, agent)) <= static - 0.5


def test_q_learning_finds_the_values_of_a_chain():
    class Chain:
        """Two steps: action 1 costs 1 at first, and then makes 3 possible."""

        states, actions, steps = 3, 2, 2

        def reset(self, instances):
            self._s = np.zeros(len(instances), dtype=np.int64)
            return self._s

        def step(self, actions):
            rewards = np.where(self._s == 0, -1.0 * actions, 3.0 * (self._s == 2) * actions)
            self._s = np.where(self._s == 0, 1 + actions, self._s)
            return self._s, rewards

    agent = QController(Chain()).train(np.zeros((20, 1)), episodes=20_000, epsilon=1.0)
    np.testing.assert_allclose(agent.q, [[0, 2], [0, 0], [0, 3]], atol=0.05)
    assert play(Chain(), np.zeros((1, 1)), agent)[0] == 2.0


def test_training_is_a_function_of_its_seed():
    env = SigmoidTracking()
    instances = env.draw(20, seed=0)
    first, same, other = (QController(env).train(instances, 200, seed=seed).q for seed in (0, 0, 1))
    assert np.array_equal(first, same) and not np.array_equal(first, other)


def test_bad_training_is_refused():
    env = SigmoidTracking()
    for options in ({"episodes": 0}, {"episodes": 5, "epsilon": 2.0}):
        with pytest.raises(ValueError, match="episodes >= 1"):
            QController(env).train(env.draw(5, 0), **options)
