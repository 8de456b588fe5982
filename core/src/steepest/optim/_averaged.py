r"""A running average of the weights, for any optimizer, to evaluate with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor

from steepest._registry import method
from steepest.kernels import apply, rule
from steepest.kernels._apply import compute_dtype
from steepest.optim._base import real
from steepest.optim._checks import check_hyperparameters, check_shapes
from steepest.optim._wrapper import Wrapper


@rule
def average(p, mean, *, weight):
    # $d = \theta - \bar\theta$
    d = p - mean
    # $\bar\theta \leftarrow \bar\theta + w_t\, d$
    mean = mean + weight * d
    return mean  # noqa: RET504  (a rule returns names)


@final
@method(
    paper="ivgi2023dog",
    title="DoG is SGD's Best Friend: A Parameter-Free Dynamic Step Size Schedule",
    oracle="gradient",
    state_bytes=4,
    claims={"descends_quadratic"},
)
class Averaged(Wrapper):
    r"""Averaged: train with one set of weights, evaluate with their average.

    .. math::

        \bar\theta_t = (1 - w_t)\, \bar\theta_{t-1} + w_t\, \theta_t, \qquad
        w_t = \frac{1 + \gamma}{t + \gamma}.

    An average of iterates has less noise than any of them, and for many methods, :class:`DoG`
    among them, it is the average that theory speaks of. With :math:`\gamma = 0` all iterates count
    the same, and the start of the run never leaves. Polynomial decay, :math:`\gamma = 8`, gives
    iterate :math:`s` a weight in proportion to about :math:`s^\gamma`: always the last tenth or
    so of the run, however long it is, with no horizon to choose.

    Training goes on from the plain weights. :meth:`eval` puts the average in their place and
    :meth:`train` puts them back; the callback :class:`steepest.lightning.Oracles` does so around
    validation, in checkpoints and at the end of a fit.

    Args:
        optimizer: The optimizer that makes the steps.
        gamma: Power :math:`\gamma` of the decay; 0 for the plain mean.

    Raises:
        TypeError: If ``optimizer`` is not one, or queries the loss itself.
        ValueError: If ``gamma`` is negative.

    Example:
        Iterates -1, -2, -3, and their mean.

        >>> p = torch.nn.Parameter(torch.zeros(1))
        >>> opt = Averaged(torch.optim.SGD([p], lr=1.0), gamma=0.0)
        >>> for _ in range(3):
        ...     p.grad = torch.ones(1)
        ...     opt.step()
        >>> opt.eval()
        >>> p.data
        tensor([-2.])
        >>> opt.train()
        >>> p.data
        tensor([-3.])

    Reference:
        :cite:t:`ivgi2023dog`, who use it with DoG.

    When not to use it:
        With a learning rate that falls to zero, whose last iterate needs no average. With batch
        normalization the average has no statistics of its own: recompute them with
        ``torch.optim.swa_utils.update_bn``.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, gamma: float = 8.0) -> None:
        check_hyperparameters("Averaged", {"gamma": gamma})
        super().__init__(optimizer)
        self.gamma = gamma
        self.steps = 0
        self.home: dict[Tensor, Tensor] | None = None
        """The weights to train at, while the average is in their place."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one update, and take the new weights into the average.

        Args:
            closure: Optional; clears gradients, computes the loss, calls ``backward`` and
                returns the loss.

        Returns:
            What the closure returned, or None.

        Raises:
            RuntimeError: If a gradient cannot be used, or :meth:`train` was not called after
                :meth:`eval`. Nothing has changed then.
        """
        if self.home is not None:
            raise RuntimeError("Averaged is at its weights to evaluate with: call train() first")
        with torch.enable_grad():
            loss = None if closure is None else closure()
        params = [p for group in self.param_groups for p in group["params"]]
        check_shapes("Averaged", params, {i: self.memory.get(p, {}) for i, p in enumerate(params)})
        self.step_inside(loss)
        if self.skipped:
            return loss
        self.steps += 1
        with torch.no_grad():
            for p in params:
                if p not in self.memory:
                    wide = p.dtype if p.is_complex() else compute_dtype(p.dtype)
                    self.memory[p] = {"mean": p.to(wide, copy=True)}
            means = [real(self.memory[p]["mean"]) for p in params]
            weight = (1 + self.gamma) / (self.steps + self.gamma)
            apply(average, [[real(p) for p in params], means], [{"weight": weight}])
        return loss

    @torch.no_grad()
    def eval(self) -> None:
        """Put the average in place; a second call does nothing."""
        if self.home is None:
            self.home = {p: p.clone() for p in self.memory}
            for p, memory in self.memory.items():
                p.copy_(memory["mean"])

    @torch.no_grad()
    def train(self) -> None:
        """Put the weights to train at back; a second call does nothing."""
        if self.home is not None:
            for p, own in self.home.items():
                p.copy_(own)
            self.home = None

    def own_state(self) -> dict[str, Any]:
        """The averages, the number of steps, and the power."""
        return {**super().own_state(), "steps": self.steps, "gamma": self.gamma}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take them back; the parameters are where training goes on."""
        super().load_own_state(state)
        self.steps, self.gamma = int(state["steps"]), float(state["gamma"])
        self.home = None
