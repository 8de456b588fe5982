r"""XGrad: take the gradient where the optimizer is about to be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor

from steepest._registry import method
from steepest.optim._checks import check_hyperparameters
from steepest.optim._wrapper import Wrapper


@final
@method(
    paper="guan2023xgrad",
    title="XGrad: Boosting Gradient-Based Optimizers With Weight Prediction",
    oracle="gradient",
    state_bytes=4,
    claims={"descends_quadratic"},
)
class XGrad(Wrapper):
    r"""XGrad: any optimizer, with gradients taken at the weights that it is predicted to reach.

    .. math::

        \hat\theta_t = \theta_t + s\,(\theta_t - \theta_{t-1}), \qquad
        \theta_{t+1} = \text{optimizer}\bigl(\theta_t, \nabla f(\hat\theta_t)\bigr).

    The forecast is that the optimizer repeats its last step :math:`s` times. That step is what
    the method predicts with: :math:`-\eta\, m_t` for SGD with momentum and
    :math:`-\eta\, \hat m_t / (\sqrt{\hat v_t} + \epsilon)` for Adam, both with the state as it is
    now, *are* :math:`\theta_t - \theta_{t-1}`. So no formula per optimizer is needed, and filters
    and further wrappers may stand inside. Since
    :math:`\nabla f(\hat\theta) \approx \nabla f(\theta) + s\, \nabla^2 f\, (\theta_t -
    \theta_{t-1})`, motion along high curvature is braked. Around SGD with momentum it is
    :class:`TripleMomentum` with a look-ahead of :math:`s`. Where gradients arrive :math:`\tau`
    steps late, :math:`s = \tau` foresees where they will be applied.

    The parameters stand at :math:`\hat\theta` to train, as that is where the next gradient is
    taken. :meth:`eval` puts :math:`\theta` in place, :meth:`train` puts :math:`\hat\theta` back,
    both exactly; under Lightning, ``steepest.lightning.Oracles`` does that for validation and
    checkpoints.

    Args:
        optimizer: The optimizer that makes the step, any that takes a gradient as it comes.
        lookahead: Number of steps :math:`s \ge 0` to look ahead. With 0 this is the optimizer.

    Raises:
        TypeError: If ``optimizer`` is not one, or queries the loss itself.
        ValueError: If ``lookahead`` is not a finite number >= 0.
        RuntimeError: At a step after :meth:`eval`.

    Example:
        A step from 1 to 0.5; the next gradient is to be taken at 0, half a unit further.

        >>> p = torch.nn.Parameter(torch.tensor([1.0]))
        >>> opt = XGrad(torch.optim.SGD([p], lr=0.5))
        >>> p.grad = torch.tensor([1.0])
        >>> opt.step()
        >>> p.data
        tensor([0.])
        >>> opt.eval()
        >>> p.data
        tensor([0.5000])

    Reference:
        :cite:t:`guan2023xgrad`.

    Deviations:
        With decoupled weight decay the last step, and so the forecast, contains the decay
        :math:`-\eta\lambda\theta_{t-1}`; the authors' code leaves it out. When a schedule moves
        the learning rate, the forecast has the last step's, the paper's the next one's. A
        checkpoint that is made after :meth:`eval` goes on from :math:`\theta`.

    When not to use it:
        Where a step says little about the next one: with small batches the forecast is mostly
        the last batch's noise. It costs a copy of the weights, and running statistics, such as
        those of batch normalization, are of the predicted weights.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, lookahead: float = 1.0) -> None:
        check_hyperparameters("XGrad", {"lookahead": lookahead})
        super().__init__(optimizer)
        self.lookahead = lookahead
        self.predicted: dict[Tensor, Tensor] | None = None
        """The predicted weights, while the optimizer's own are in place."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one update, with the gradient at the predicted weights.

        Args:
            closure: Optional; clears gradients, computes the loss, calls ``backward`` and
                returns the loss.

        Returns:
            What the closure returned, or None.

        Raises:
            RuntimeError: If a gradient cannot be used, or :meth:`train` was not called after
                :meth:`eval`. Nothing has changed then.
        """
        if self.predicted is not None:
            raise RuntimeError("XGrad is at its weights to evaluate with: call train() first")
        with torch.enable_grad():
            loss = None if closure is None else closure()
        with torch.no_grad():
            params = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
            # $\hat\theta_t$
            asked = [p.clone() for p in params]
            # $\theta_t$
            start = [self._own(p).clone() for p in params]
            try:
                _put(params, start)
                # $\theta_{t+1} = \text{optimizer}(\theta_t, \nabla f(\hat\theta_t))$
                self.step_inside(loss)
            except BaseException:
                _put(params, asked)
                raise
            for p, before in zip(params, start, strict=True):
                self.memory[p] = {"weights": p.clone()}
                # $\hat\theta_{t+1} = \theta_{t+1} + s\,(\theta_{t+1} - \theta_t)$
                p.add_(p - before, alpha=self.lookahead)
        return loss

    @torch.no_grad()
    def eval(self) -> None:
        """Put the optimizer's own weights in place; a second call does nothing."""
        if self.predicted is None:
            self.predicted = {p: p.clone() for p in self.memory}
            _put([*self.memory], [self._own(p) for p in self.memory])

    @torch.no_grad()
    def train(self) -> None:
        """Put the predicted weights back; a second call does nothing."""
        if self.predicted is not None:
            _put([*self.predicted], [*self.predicted.values()])
            self.predicted = None

    def own_state(self) -> dict[str, Any]:
        """The look-ahead, and the optimizer's own weights."""
        return {**super().own_state(), "lookahead": self.lookahead}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take back look-ahead and weights; the parameters are where training goes on."""
        super().load_own_state(state)
        self.lookahead = float(state["lookahead"])
        self.predicted = None

    def _own(self, p: Tensor) -> Tensor:
        return self.memory[p]["weights"] if p in self.memory else p


def _put(params: list[Tensor], values: list[Tensor]) -> None:
    for p, value in zip(params, values, strict=True):
        p.copy_(value)
