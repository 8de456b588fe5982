r"""Gradient noise that fades."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from steepest._registry import method
from steepest.kernels import add_noise_, offsets, split_seed
from steepest.optim._base import real
from steepest.optim._checks import check_hyperparameters
from steepest.optim._filter import Filter
from steepest.optim._wrapper import Memory


@final
@method(
    paper="neelakantan2015adding",
    title="Adding Gradient Noise Improves Learning for Very Deep Networks",
    oracle="gradient",
    scope="model",
    claims={"descends_quadratic"},
)
class GradientNoise(Filter):
    r"""Gaussian noise on every gradient, of a variance that decays with the steps.

    .. math::

        \tilde g_t = g_t + \sigma_t z_t, \qquad z_t \sim N(0, I), \qquad
        \sigma_t^2 = \frac{\eta}{(1 + t)^\gamma}, \qquad t = 0, 1, 2, \dots

    Where a bad initialization leaves no gradient, or the same one for all units, noise moves the
    weights apart; later it has faded and the gradient leads. The noise is a function of seed,
    step and element: a resumed run draws what it would have drawn.

    Clip before adding noise, as the paper does: ``ClipNorm(GradientNoise(optimizer))``.

    Args:
        optimizer: The optimizer that gets the noisy gradients.
        eta: Variance :math:`\eta` at the first step, in the gradients' squared units; the paper
            chooses among 0.01, 0.3 and 1.
        gamma: Power :math:`\gamma` of the decay, 0 for none; the paper takes 0.55.
        seed: Seed of the noise; a checkpoint keeps it. Processes that share the weights need the
            same one.

    Raises:
        TypeError: If ``optimizer`` is not one, or queries the loss itself.
        ValueError: If a hyper-parameter is out of its range.

    Example:
        Without a gradient, the fourth step is noise of variance 4 / (1 + 3) = 1.

        >>> p = torch.nn.Parameter(torch.zeros(10_000))
        >>> opt = GradientNoise(torch.optim.SGD([p], lr=1.0), eta=4.0, gamma=1.0)
        >>> opt.steps, p.grad = 3, torch.zeros(10_000)
        >>> opt.step()
        >>> round(p.var().item(), 1)
        1.0

    Reference:
        :cite:t:`neelakantan2015adding`.

    When not to use it:
        With a good initialization and mini-batches, whose gradients have noise of their own. And
        around Adam with a large :math:`\eta`: where gradients are far below the noise it
        normalizes the noise, and walks at random at full speed until that has faded.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        eta: float = 0.01,
        gamma: float = 0.55,
        *,
        seed: int = 0,
    ) -> None:
        check_hyperparameters("GradientNoise", {"eta": eta, "gamma": gamma})
        super().__init__(optimizer)
        self.eta = eta
        self.gamma = gamma
        self.seed = seed

    @property
    def variance(self) -> float:
        """Variance of the next step's noise."""
        # $\sigma_t^2 = \eta / (1 + t)^\gamma$
        return self.eta / (1 + self.steps) ** self.gamma

    def filter(
        self, params: list[Tensor], grads: list[Tensor], memories: list[Memory]
    ) -> tuple[list[Tensor], list[Memory]]:
        """Add the step's noise."""
        if not self.eta:
            return grads, memories
        # A parameter keeps its place in the stream when others have no gradient.
        everything = [p for group in self.param_groups for p in group["params"]]
        names = [name for group in self.param_groups for name in group.get("param_names", [])]
        starts = offsets(
            [real(p) for p in everything], names if len(names) == len(everything) else None
        )
        place = dict(zip(everything, starts, strict=True))
        runs = _runs([real(g) for g in grads], [place[p] for p in params])
        # $g_t$
        flat = [torch.cat([t.reshape(-1) for t in run]) for _, run in runs]
        seed = split_seed(self.seed, self.steps)
        # $\tilde g_t = g_t + \sigma_t z_t$
        add_noise_(flat, seed, self.variance**0.5, start=[start for start, _ in runs])
        parts = [
            part.view_as(t)
            for noisy, (_, run) in zip(flat, runs, strict=True)
            for part, t in zip(noisy.split([t.numel() for t in run]), run, strict=True)
        ]
        return [
            torch.view_as_complex(part) if g.is_complex() else part
            for part, g in zip(parts, grads, strict=True)
        ], memories

    def own_state(self) -> dict[str, Any]:
        """Hyper-parameters and seed."""
        own = {"eta": self.eta, "gamma": self.gamma, "seed": self.seed}
        return {**super().own_state(), **own}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take them back."""
        super().load_own_state(state)
        self.eta, self.gamma = float(state["eta"]), float(state["gamma"])
        self.seed = int(state["seed"])


def _runs(tensors: list[Tensor], starts: list[int]) -> list[tuple[int, list[Tensor]]]:
    """Tensors that follow each other in the stream, with the place of the first: one draw each."""
    runs: list[tuple[int, list[Tensor]]] = []
    end, like = -1, None
    for t, start in zip(tensors, starts, strict=True):
        if start != end or (t.dtype, t.device) != like:
            runs.append((start, []))
        runs[-1][1].append(t)
        end, like = start + t.numel(), (t.dtype, t.device)
    return runs
