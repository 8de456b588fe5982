r"""VRGD: trust a coordinate by how well the parts of a batch agree on it."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from steepest._registry import method
from steepest.kernels._apply import compute_dtype
from steepest.optim._checks import check_hyperparameters
from steepest.optim._oracle import Answer, OracleDriven
from steepest.optim._wrapper import Wrapper
from steepest.oracles import Objective


def gsnr(mean: Tensor, variance: Tensor, floor: float) -> Tensor:
    r"""Gradient signal-to-noise ratio of each element, relative to its layer's mean.

    .. math::

        r = \operatorname{clip}\Bigl(\frac{\bar g^2 / \sigma^2}{\operatorname{mean}_{\text{layer}}
            (\bar g^2 / \sigma^2)},\; \gamma,\; 1\Bigr).

    Elements without any noise have ratio 1 and stay out of the layer's mean.

    Args:
        mean: :math:`\bar g` of a layer, of any shape.
        variance: :math:`\sigma^2` of its elements over the parts of a batch, of the same shape.
        floor: :math:`\gamma`, between 0 and 1.

    Returns:
        :math:`r`, of the same shape, without a unit.

    Example:
        Equal means, noise of 1 and 4: ratios 1 and 1/4 before the division by their mean.

        >>> gsnr(torch.ones(2), torch.tensor([1.0, 4.0]), floor=0.1)
        tensor([1.0000, 0.4000])
    """
    # $q = \bar g^2 / \sigma^2$
    ratio = mean.square() / variance
    noisy = variance > 0
    # $\operatorname{mean}(q)$
    layer = ratio[noisy].mean() if noisy.any() else ratio.new_ones(())
    # $q / \operatorname{mean}(q)$
    relative = torch.where(noisy, ratio / layer, 1.0).nan_to_num(nan=floor)
    # $r = \operatorname{clip}(q / \operatorname{mean}(q), \gamma, 1)$
    return relative.clamp(floor, 1.0)


_FRESH = {"gsnr": torch.zeros(()), "steps": torch.zeros((), dtype=torch.int64)}
"""What is known of a parameter before its first step."""


@final
@method(
    paper="jiang2023accelerating",
    title="Accelerating Large Batch Training via Gradient Signal to Noise Ratio (GSNR)",
    oracle="gradient",
    scope="tensor",
    state_bytes=4,
)
class VRGD(OracleDriven, Wrapper):
    r"""VRGD: gradients scaled by their signal-to-noise ratio, measured on parts of the batch.

    .. math::

        \bar g &= \frac1k \sum_{d=1}^k g_d, \qquad
        \sigma^2 = \frac1k \sum_{d=1}^k (g_d - \bar g)^2, \qquad
        r = \operatorname{clip}\Bigl(\frac{\bar g^2/\sigma^2}
            {\operatorname{mean}(\bar g^2/\sigma^2)}, \gamma, 1\Bigr), \\
        p_t &= \beta p_{t-1} + (1 - \beta)\, r_t, \qquad
        \theta \leftarrow \text{optimizer}(\theta, \hat p_t\, \bar g).

    All elementwise but for the mean, which is over a tensor. Where the parts of a large batch
    agree, the step is the optimizer's own; where they contradict each other, what they average
    to is mostly noise, and its step shrinks, to :math:`\gamma` of it at the least. The scaling
    comes before the optimizer's moments.

    A step needs the parts: ``step`` takes a list of losses that sum to the batch's, one a part,
    and under Lightning ``accumulate_grad_batches`` batches are the parts of one.

    Args:
        optimizer: The optimizer that makes the step, any that takes a gradient as it comes.
        floor: Least ratio :math:`\gamma`.
        beta: Memory :math:`\beta` of the ratio, bias-corrected; the paper takes 0.9 around Adam
            and none, 0, around SGD.

    Raises:
        TypeError: If ``optimizer`` is not one, or queries the loss itself.
        ValueError: If a hyper-parameter is out of its range.
        RuntimeError: In a step, if the batch has one part only.

    Example:
        Two parts agree on the first coordinate and not on the second.

        >>> p = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
        >>> opt = VRGD(torch.optim.SGD([p], lr=1.0), beta=0.0)
        >>> parts = [torch.tensor([1.1, 3.0]), torch.tensor([0.9, -1.0])]
        >>> _ = opt.step([lambda g=g: (p * g).sum() / 2 for g in parts])
        >>> p.data
        tensor([-1.0000, -0.1000], dtype=torch.float64)

    Reference:
        :cite:t:`jiang2023accelerating`.

    Deviations:
        Elements on which all parts agree exactly have ratio 1 and stay out of the layer's mean;
        dividing by a small number there would give them the whole mean. Under several processes
        a part is what the processes see together.

    When not to use it:
        For small batches: parts of a few samples differ by more than they agree, everywhere. With
        few parts the ratio itself is a rough guess.
    """

    oracle = "gradient"

    def __init__(
        self, optimizer: torch.optim.Optimizer, floor: float = 0.1, beta: float = 0.9
    ) -> None:
        check_hyperparameters("VRGD", {"floor": floor, "beta": beta})
        super().__init__(optimizer)
        self.floor = floor
        self.beta = beta

    @torch.no_grad()
    def query(self, objective: Objective) -> Answer:
        """Mean and variance over the parts, in one pass over each."""
        parts = objective.terms
        if len(parts) < 2 and not self.memory:
            raise RuntimeError(
                "VRGD compares parts of a batch and got one: pass a list of losses, one a part, "
                "or with Lightning accumulate_grad_batches=2 or more"
            )
        params = objective.params
        mean = [torch.zeros_like(p, dtype=compute_dtype(p.dtype)) for p in params]
        spread = [torch.zeros_like(m) for m in mean]
        total = torch.zeros((), device=params[0].device)
        for n, part in enumerate(parts, 1):
            value, gradient = part.gradient()
            total = total + value
            # Welford's recurrence: exactly zero where the parts are equal.
            for g, m, s in zip(gradient, mean, spread, strict=True):
                off = len(parts) * g.to(m.dtype) - m
                m.add_(off / n)
                s.addcmul_(off, off, value=(n - 1) / n)
        gradients, memories = [], []
        for p, m, s in zip(params, mean, spread, strict=True):
            ema, steps = self.memory.get(p, _FRESH).values()
            # A last batch may have one part: what is remembered scales it.
            if len(parts) > 1:
                ratio = gsnr(m, s / len(parts), self.floor)
                # $p_t = \beta p_{t-1} + (1 - \beta)\, r$
                ema, steps = self.beta * ema + (1 - self.beta) * ratio, steps + 1
            memories.append({"gsnr": ema, "steps": steps})
            if steps > 0:
                # $\hat p_t\, \bar g, \quad \hat p_t = p_t / (1 - \beta^t)$
                m = m * (ema / (1 - self.beta ** steps.item()))
            gradients.append(m.to(p.dtype))
        return Answer(objective, total, gradients, memories)

    def update(self, answer: Answer) -> None:
        """Step the optimizer, then remember the ratios."""
        self.step_inside(answer.value)
        if not self.skipped:
            self.memory.update(zip(answer.objective.params, answer.rest, strict=True))

    def own_state(self) -> dict[str, Any]:
        """Ratios, floor and beta."""
        return {**super().own_state(), "floor": self.floor, "beta": self.beta}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take them back."""
        super().load_own_state(state)
        self.floor, self.beta = float(state["floor"]), float(state["beta"])
