r"""Consensus: particles that agree on a point, and what that has to do with gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor

from steepest._registry import method
from steepest.kernels import add_noise_, offsets, split_seed
from steepest.optim._base import Group, Params
from steepest.optim._checks import check_hyperparameters
from steepest.optim._oracle import Answer, OracleDriven
from steepest.oracles import Objective

_PAPER = "riedl2023gradient"
_TITLE = "Gradient is All You Need?"


def consensus_weights(values: Tensor, alpha: float) -> Tensor:
    r"""How much each particle counts: :math:`w_i \propto \exp(-\alpha f_i)`, with sum 1.

    The smallest value is subtracted first, without which every weight would underflow to zero for
    large :math:`\alpha`. A particle whose loss is NaN or infinite has no weight.

    Args:
        values: Losses :math:`f_i`, of shape ``(n,)``.
        alpha: Inverse temperature, in units of one over the loss: 0 averages, infinity (in the
            limit) takes the best.

    Returns:
        A tensor like ``values``.

    Raises:
        FloatingPointError: If no loss is finite.

    Example:
        >>> consensus_weights(torch.tensor([1e4, 1e4 + 1, torch.nan]), math.log(3))
        tensor([0.7500, 0.2500, 0.0000])
    """
    finite = values.isfinite()
    if not finite.any():
        raise FloatingPointError(
            "the loss is NaN or infinite at every particle; nothing has moved. Start closer, or "
            "spread the particles less"
        )
    # $f_i - \min_j f_j$
    above = torch.where(finite, values - values[finite].min(), 0.0)
    # $e^{-\alpha (f_i - \min_j f_j)}$
    weights = torch.where(finite, torch.exp(-alpha * above), 0.0)
    # $w_i = e^{-\alpha f_i} / \sum_j e^{-\alpha f_j}$
    return weights / weights.sum()


@final
@method(
    paper=_PAPER,
    title=_TITLE,
    oracle="value",
    scope="model",
    forward=10,
    backward=0,
    state_bytes=40,
)
class CBO(OracleDriven):
    r"""CBO (consensus-based optimization): particles drift to where the good ones are.

    .. math::

        \bar x = \frac{\sum_i x_i\, e^{-\alpha f(x_i)}}{\sum_i e^{-\alpha f(x_i)}}, \qquad
        x_i \leftarrow x_i - \eta\lambda\, (x_i - \bar x)
            + \sigma \sqrt{\eta}\, \|x_i - \bar x\|\, z_i, \qquad z_i \sim \mathcal N(0, I).

    The parameters are the consensus :math:`\bar x`; the particles are state. Each drifts there
    and explores the more, the farther away it is, so noise ends by itself where all agree. Only
    values are asked for, and the loss may be anything. With many particles :math:`\bar x` goes
    to the global minimizer of a wide class of non-convex functions; and in the limit
    :math:`\lambda = 1 / \eta` its path is that of a stochastic gradient descent
    (:class:`ConsensusHopping`).

    Args:
        params: Parameters, named parameters, or groups. With names a parameter's noise belongs to
            its name; without, to its position. Particles start around the values they have.
        lr: Time step :math:`\eta`, in units of the drift's; the paper takes 0.01 to 1. A group
            with 0 stays as it is, and is not searched.
        alpha: Inverse temperature :math:`\alpha > 0`, in units of one over the loss. The paper
            takes 100 to 100,000.
        drift: Rate :math:`\lambda`.
        diffusion: Noise :math:`\sigma`. The isotropic noise of :math:`d` dimensions adds up:
            particles contract only while :math:`d \sigma^2 < 2 \lambda - \eta \lambda^2`. By
            default :math:`0.7 \sqrt{2 \lambda / d}`, which is 0.7 in the plane.
        width: Standard deviation of the particles' start, in the parameters' units: as wide as
            the region to search.
        population: Particles; one forward pass each, and as many copies of the parameters.
        seed: Seed of the noise, which is a function of (seed, step, particle, element).

    Raises:
        ValueError: If a hyper-parameter is out of its range.

    Example:
        Without noise, and at a high temperature, the consensus is the particles' mean, and they
        contract to it.

        >>> p = torch.nn.Parameter(torch.zeros(2))
        >>> opt = CBO([p], lr=0.5, alpha=1e-9, diffusion=0.0)
        >>> _ = opt.step(lambda: p.sum())
        >>> torch.allclose(p, opt.state[p]["particles"].mean(0))
        True

    Reference:
        :cite:t:`riedl2023gradient`.

    When not to use it:
        In high dimension: few particles span little, and the noise that still contracts is small
        in each direction. Or on a loss that has gradients and no barriers.
    """

    oracle = "value"

    def __init__(
        self,
        params: Params,
        lr: float = 0.1,
        alpha: float = 100.0,
        drift: float = 1.0,
        diffusion: float | None = None,
        width: float = 0.1,
        population: int = 10,
        *,
        seed: int = 0,
    ) -> None:
        _check_consensus("CBO", alpha, population, seed)
        super().__init__(params, {"lr": lr, "drift": drift, "diffusion": diffusion, "width": width})
        self.alpha, self.population, self.seed = alpha, population, seed

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as ``torch.optim``; a bad one changes nothing."""
        check_hyperparameters("CBO", {**self.defaults, **param_group})
        super().add_param_group(param_group)

    @torch.no_grad()
    def query(self, objective: Objective) -> Answer:
        """Read the loss at each particle, and weigh them."""
        groups = searched(self, objective)
        clouds = [self._particles(p, place, group) for p, place, group in groups]

        def visit(i: int) -> None:
            for (p, _, _), cloud in zip(groups, clouds, strict=True):
                p.detach().copy_(cloud[i])

        values = evaluate(objective, [p for p, _, _ in groups], visit, self.population)
        weights = consensus_weights(values, self.alpha)
        value = (weights * values.nan_to_num()).sum()
        return Answer(objective, value, None, (groups, clouds, weights))

    @torch.no_grad()
    def update(self, answer: Answer) -> None:
        """Put the parameters at the consensus, then move the particles."""
        for group in self.param_groups:
            check_hyperparameters("CBO", group)
        groups, clouds, weights = answer.rest
        square = torch.zeros(self.population, dtype=torch.float64)
        for (p, _, _), cloud in zip(groups, clouds, strict=True):
            # $\bar x = \sum_i w_i x_i$
            p.copy_(torch.tensordot(weights.to(cloud), cloud, 1))
            # $x_i - \bar x$
            cloud.sub_(p)
            square += cloud.double().square().flatten(1).sum(1).cpu()
        # $\lVert x_i - \bar x \rVert$
        distance = square.sqrt().tolist()
        count = sum(p.numel() for p, _, _ in groups)
        for (p, place, group), cloud in zip(groups, clouds, strict=True):
            lr, drift = float(group["lr"]), float(group["drift"])
            sigma = group["diffusion"]
            if sigma is None:
                # $\sigma = 0.7 \sqrt{2 \lambda / d}$
                sigma = 0.7 * math.sqrt(2 * drift / max(count, 1))
            # $(1 - \eta\lambda) (x_i - \bar x)$
            cloud.mul_(1 - lr * drift)
            for i, length in enumerate(distance):
                seed = split_seed(self.draw(), i)
                scale = float(sigma) * math.sqrt(lr) * length
                # $\dots + \sigma \sqrt\eta\, \lVert x_i - \bar x \rVert\, z_i$
                add_noise_([cloud[i]], seed, scale, start=[place])
            # $x_i \leftarrow \bar x + \dots$
            cloud.add_(p)
            self.state[p]["particles"] = cloud

    def _particles(self, p: Tensor, place: int, group: Group) -> Tensor:
        """A parameter's particles, a copy: those of the last step, or a first draw around it."""
        if p in self.state:
            cloud: Tensor = self.state[p]["particles"]
            if len(cloud) != self.population:
                raise ValueError(
                    f"CBO: the state has {len(cloud)} particles, and population is "
                    f"{self.population}: make the optimizer with population={len(cloud)}"
                )
            return cloud.clone()
        cloud = torch.empty(self.population, *p.shape, dtype=p.dtype, device=p.device)
        cloud.copy_(p.detach().expand_as(cloud))
        for i in range(self.population):
            seed = split_seed(self.draw(), self.population + i)
            add_noise_([cloud[i]], seed, float(group["width"]), start=[place])
        return cloud

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "alpha": self.alpha, "population": self.population}


@final
@method(
    paper=_PAPER,
    title=_TITLE,
    oracle="value",
    scope="model",
    forward=10,
    backward=0,
    state_bytes=0,
)
class ConsensusHopping(OracleDriven):
    r"""Consensus hopping: sample around the parameters, go to the consensus, forget the samples.

    .. math::

        x_i = \theta + s z_i, \qquad
        \theta \leftarrow \frac{\sum_i x_i\, e^{-\alpha f(x_i)}}{\sum_i e^{-\alpha f(x_i)}}, \qquad
        s^2 = \tau / \alpha, \qquad z_i \sim \mathcal N(0, I).

    The density of a Gaussian times :math:`e^{-\alpha f}` is
    :math:`\exp(-\alpha\,[f(y) + \|y - \theta\|^2 / 2\tau])`, whose mean is close to its mode for
    large :math:`\alpha` (Laplace). So a step goes to the proximal point, without a gradient:

    .. math::

        \theta \leftarrow \operatorname*{arg\,min}_y\; f(y) + \frac{\|y - \theta\|^2}{2 \tau}
            + \text{noise} = \theta - \tau \nabla f(\theta) + O(\tau^2) + \text{noise}.

    The noise falls with the number of samples :math:`n` as :math:`s / \sqrt n`. On a quadratic
    the mean *is* the mode, and noise is all the error there is.

    Args:
        params: Parameters, named parameters, or groups. With names a parameter's noise belongs to
            its name; without, to its position.
        lr: Step :math:`\tau`, in the units of gradient descent's. A group with 0 stays as it is.
        alpha: Inverse temperature :math:`\alpha > 0`, in units of one over the loss: samples have
            the width :math:`\sqrt{\tau / \alpha}`. Few samples carry the weight where
            :math:`\sqrt{\tau \alpha}\, \|\nabla f\|` is above about 1.
        population: Samples :math:`n`; one forward pass each, and no memory.
        seed: Seed of the noise, which is a function of (seed, step, particle, element).

    Raises:
        ValueError: If a hyper-parameter is out of its range.

    Example:
        Many samples on a parabola: the proximal point is theta / (1 + lr).

        >>> p = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
        >>> opt = ConsensusHopping([p], lr=1.0, alpha=4.0, population=2000)
        >>> _ = opt.step(lambda: 0.5 * (p**2).sum())
        >>> p.data.round(decimals=1)
        tensor([0.5000], dtype=torch.float64)

    Reference:
        :cite:t:`riedl2023gradient`.

    When not to use it:
        In high dimension, as any estimate from values: the noise has :math:`d` components, and
        a step learns one direction for each sample at most.
    """

    oracle = "value"

    def __init__(
        self,
        params: Params,
        lr: float = 0.1,
        alpha: float = 100.0,
        population: int = 10,
        *,
        seed: int = 0,
    ) -> None:
        _check_consensus("ConsensusHopping", alpha, population, seed)
        super().__init__(params, {"lr": lr})
        self.alpha, self.population, self.seed = alpha, population, seed

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as ``torch.optim``; a bad one changes nothing."""
        check_hyperparameters("ConsensusHopping", {**self.defaults, **param_group})
        super().add_param_group(param_group)

    @torch.no_grad()
    def query(self, objective: Objective) -> Answer:
        """Read the loss at each sample, and weigh them."""
        groups = searched(self, objective)
        # $f(x_i), \quad x_i = \theta + s z_i$
        values = evaluate(
            objective,
            [p for p, _, _ in groups],
            lambda i: self._move(groups, {i: 1.0}),
            self.population,
        )
        # $w_i = e^{-\alpha f(x_i)} / \sum_j e^{-\alpha f(x_j)}$
        weights = consensus_weights(values, self.alpha)
        value = (weights * values.nan_to_num()).sum()
        return Answer(objective, value, None, (groups, dict(enumerate(weights.tolist()))))

    @torch.no_grad()
    def update(self, answer: Answer) -> None:
        """Make the samples' noise again, and go to their weighted mean."""
        for group in self.param_groups:
            check_hyperparameters("ConsensusHopping", group)
        self._move(*answer.rest)

    def _move(self, groups: list[Place], weights: dict[int, float]) -> None:
        seeds = [split_seed(self.draw(), i) for i in weights]
        for p, place, group in groups:
            # $s = \sqrt{\tau / \alpha}$
            width = math.sqrt(float(group["lr"]) / self.alpha)
            scales = [width * w for w in weights.values()]
            # $\theta \leftarrow \theta + s \sum_i w_i z_i$
            add_noise_([p.detach()], seeds, scales, start=[place])

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "alpha": self.alpha, "population": self.population}


Place = tuple[Tensor, int, Group]
"""A parameter, where its elements begin in the noise, and its group."""


def searched(optimizer: OracleDriven, objective: Objective) -> list[Place]:
    """The parameters that a population is to move: those whose group has a step.

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        TypeError: If a parameter is complex.
    """
    for group in optimizer.param_groups:
        check_hyperparameters(type(optimizer).__name__, group)
    if any(p.is_complex() for p in objective.params):
        raise TypeError("a parameter is complex, and noise is real: train torch.view_as_real of it")
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}
    places = offsets(objective.params, objective.names)
    rows = [(p, place, groups[p]) for p, place in zip(objective.params, places, strict=True)]
    return [row for row in rows if float(row[2]["lr"]) > 0]


def evaluate(
    objective: Objective, params: Sequence[Tensor], move: Callable[[int], None], count: int
) -> Tensor:
    """The loss after each of several moves of the parameters in place, float64, shape (count,).

    Each move starts where the parameters are now, and there they end, bit for bit.
    """
    home = [p.detach().clone() for p in params]
    values = []
    for i in range(count):
        try:
            move(i)
            values.append(objective.value())
        finally:
            for p, start in zip(params, home, strict=True):
                p.detach().copy_(start)
    return torch.stack(values).double().cpu()


def _check_consensus(name: str, alpha: float, population: int, seed: int) -> None:
    check_hyperparameters(name, {"population": population, "seed": seed})
    if not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(f"{name}: alpha={alpha!r} is not valid: give a finite number > 0")
