r"""A gradient from values alone: one coordinate after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from steepest._registry import method
from steepest.estimators._base import GradientEstimator, NonFiniteLoss, Projection
from steepest.estimators._feature_reuse import FeatureReuse
from steepest.kernels import noise, split_seed
from steepest.oracles import Objective


@final
@method(
    paper="chen2024deepzero",
    title="DeepZero: Scaling up Zeroth-Order Optimization for Deep Model Training",
    oracle="value",
    forward=1,  # for each coordinate
    backward=0,
)
class Coordinates(GradientEstimator):
    r"""Coordinate-wise finite differences, of all coordinates or of a random subset.

    .. math::

        \hat g_j = \frac{f(\theta + \epsilon e_j) - f(\theta)}{\epsilon}, \quad j \in S,
        \qquad \hat g_j = 0, \quad j \notin S.

    Nothing is random but the subset, so nothing has a variance: with all :math:`d` coordinates
    the error is the bias :math:`\tfrac\epsilon2 \partial_j^2 f`, of order :math:`\epsilon^2` with
    central differences. As many random directions leave an error as long as the gradient itself:
    an average of :math:`q` Gaussian ones has the expected squared error
    :math:`(d + 1)\, \|\nabla f\|^2 / q`.

    With a subset the estimate is the gradient on it, and nothing elsewhere. How many coordinates
    a tensor gets is fixed by its ratio in ``keep`` (:func:`zo_grasp` measures some); which ones
    is drawn anew every ``period`` estimates, so that all are trained in turn.

    Args:
        eps: Distance :math:`\epsilon`; the paper takes 5e-3. The difference is divided by the
            distance that is left after rounding.
        one_sided: Compare with the value at the parameters; otherwise on both sides, at twice the
            price.
        keep: Share of each tensor's elements to probe: a number for all, or one for each, in the
            order of the parameters. Rounded; at least one element where it is not 0.
        period: Estimates that a subset lasts.
        seed: Seed of the subsets. They are a function of it, of the number of estimates made
            (``estimates``; after a resume, set it), and of the element's place.
        reuse: The stack of layers in the loss, to be restarted where a weight has changed.
        module: The module in the loss: evaluate many coordinates at once by ``torch.func.vmap``.
            What comes before the changed tensor is computed once for all of them.
        chunk: Coordinates at once, with ``module``; memory is in proportion.

    Attributes:
        estimates: Estimates made.

    Raises:
        ValueError: If an argument is out of its range, or at an estimate if ratios do not fit the
            parameters, or a weight is so large that adding :math:`\epsilon` does not change it.
        RuntimeError: At an estimate, if a value is NaN or infinite. As after all errors, the
            parameters are as they were.

    Example:
        >>> p = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
        >>> f = Objective(lambda: (p**2).sum(), [p])
        >>> Coordinates(one_sided=False)(f, seed=0).gradient[0].round(decimals=6)
        tensor([2., 4.], dtype=torch.float64)
        >>> f.counts["forward"]
        5

    Reference:
        :cite:t:`chen2024deepzero`.

    When not to use it:
        Where a step cannot wait for as many values as there are parameters in the subset, or the
        loss is noisy: a difference over a short distance magnifies noise. Batch normalization in
        training mode and fresh dropout are noise.
    """

    oracle: ClassVar = "value"

    def __init__(
        self,
        eps: float = 5e-3,
        *,
        one_sided: bool = True,
        keep: float | Sequence[float] = 1.0,
        period: int = 1,
        seed: int = 0,
        reuse: FeatureReuse | None = None,
        module: torch.nn.Module | None = None,
        chunk: int = 256,
    ) -> None:
        if not (math.isfinite(eps) and eps > 0):
            raise ValueError(f"eps={eps!r} is not valid: give a finite number > 0")
        for name, count in (("period", period), ("chunk", chunk)):
            if not isinstance(count, int) or count < 1:
                raise ValueError(f"{name}={count!r} is not valid: give a whole number >= 1")
        ratios = [keep] if isinstance(keep, float | int) else [*keep]
        if not all(0 <= ratio <= 1 for ratio in ratios) or not any(ratios):
            raise ValueError(f"keep={keep!r} is not valid: give shares in [0, 1], not all 0")
        if reuse is not None and module is not None:
            raise ValueError("give reuse or module, not both: module restarts by itself")
        self.eps = eps
        self.one_sided = one_sided
        self.keep = keep
        self.period = period
        self.seed = seed
        self.reuse = reuse
        self.module = module
        self.chunk = chunk
        self.estimates = 0
        self._forward = 0

    @property
    def forward(self) -> int:
        """Values that the last estimate took; 0 before the first."""
        return self._forward

    @torch.no_grad()
    def project(self, objective: Objective, seed: int) -> Projection:
        """The difference quotients, by global index of the element; the seed is not used."""
        subset = self.subset(objective)
        weights: dict[int, float] = {}
        with self.reuse.kept() if self.reuse else nullcontext():
            # $f(\theta)$
            base = objective.value()
            for p, place, index in zip(
                objective.params, self.places(objective), subset, strict=True
            ):
                # $\epsilon, \; f(\theta + \epsilon e_j)$
                ahead, rise = self._ask(objective, p, index, self.eps)
                if self.one_sided:
                    # $f(\theta + \epsilon e_j) - f(\theta)$
                    rise = rise - base
                else:
                    # $-\epsilon, \; f(\theta - \epsilon e_j)$
                    behind, fall = self._ask(objective, p, index, -self.eps)
                    # $2 \epsilon, \; f(\theta + \epsilon e_j) - f(\theta - \epsilon e_j)$
                    ahead, rise = ahead - behind, rise - fall
                if not ahead.all():
                    raise ValueError(
                        f"eps={self.eps} is lost beside a weight of {p.dtype}: raise eps, or keep "
                        "the weights in float32"
                    )
                if not rise.isfinite().all():
                    raise NonFiniteLoss
                # $\hat g_j, \; j \in S$
                slopes = (rise.double() / ahead).tolist()
                weights |= zip((index + place).tolist(), slopes, strict=True)
        self.estimates += 1
        self._forward = 1 + (1 if self.one_sided else 2) * len(weights)
        return Projection(base, weights)

    def subset(self, objective: Objective) -> list[Tensor]:
        """The elements of each parameter that the next estimate probes, as flat indices."""
        params = objective.params
        keep = self.keep
        ratios = [float(keep)] * len(params) if isinstance(keep, float | int) else [*keep]
        if len(ratios) != len(params):
            raise ValueError(
                f"{len(ratios)} ratios and {len(params)} parameters: give one for each"
            )
        drawn = split_seed(self.seed, self.estimates // self.period)
        chosen = []
        for p, place, ratio in zip(params, self.places(objective), ratios, strict=True):
            n = p.numel()
            count = min(n, max(1, round(ratio * n))) if ratio else 0
            order = noise(drawn, place, n, device=p.device).topk(count).indices.sort().values
            chosen.append(order)
        return chosen

    def accumulate_(
        self,
        tensors: Sequence[Tensor],
        seed: int,
        weights: Mapping[int, float],
        places: Sequence[int],
    ) -> None:
        r"""Put each weight on its element; the seed is not used."""
        index = torch.tensor([*weights], dtype=torch.int64)
        value = torch.tensor([*weights.values()], dtype=torch.float64)
        for t, place in zip(tensors, places, strict=True):
            inside = (index >= place) & (index < place + t.numel())
            flat = t.view(-1) if t.is_contiguous() else t.reshape(-1)
            at = (index[inside] - place).to(t.device)
            flat.index_add_(0, at, value[inside].to(t))
            if not t.is_contiguous():
                t.copy_(flat.view(t.shape))

    def _ask(
        self, objective: Objective, p: Tensor, index: Tensor, step: float
    ) -> tuple[Tensor, Tensor]:
        """How far each element of a parameter moves, and the value then."""
        if self.module is not None:
            return self._ask_at_once(objective, p, index, step)
        moves, values = [], []
        with self.reuse.restart(p) if self.reuse else nullcontext():
            for j in index.tolist():
                element = p.detach()[_unravel(j, p.shape)]
                home = element.clone()
                try:
                    element.add_(step)
                    moves.append(element.double() - home.double())
                    values.append(objective.value())
                finally:
                    element.copy_(home)
        none = p.new_zeros(0)
        return (torch.stack(moves), torch.stack(values)) if moves else (none, none)

    def _ask_at_once(
        self, objective: Objective, p: Tensor, index: Tensor, step: float
    ) -> tuple[Tensor, Tensor]:
        assert self.module is not None
        names: dict[Tensor, str] = {q: name for name, q in self.module.named_parameters()}
        if p not in names:
            raise ValueError("a parameter is not the module's: pass the module that the loss reads")
        moves, values = [p.new_zeros(0)], [p.new_zeros(0)]
        for part in index.split(self.chunk):
            rows = p.detach().repeat(len(part), *(1 for _ in p.shape))
            at = (torch.arange(len(part), device=p.device), part)
            flat = rows.view(len(part), -1)
            home = flat[at].double()
            flat[at] += step
            moves.append(flat[at].double() - home)
            total = torch.zeros(len(part), device=p.device)
            for loss, repeated in objective._terms:
                ask = partial(_swapped, _Loss(self.module, loss), f"module.{names[p]}")
                with repeated:
                    total = total + torch.func.vmap(ask, randomness="same")(rows)
            values.append(total)
        answer = torch.cat(values)
        objective._mean([answer])
        objective.counts.update(
            {"value": len(index), "forward": len(index) * len(objective._terms)}
        )
        return torch.cat(moves), answer


class _Loss(torch.nn.Module):
    """A loss as a module around the one that it reads, whose parameters can be swapped."""

    def __init__(self, module: torch.nn.Module, loss: Callable[[], Tensor]) -> None:
        super().__init__()
        self.module = module
        self.loss = loss

    def forward(self) -> Tensor:
        return self.loss().reshape(())


def _swapped(loss: _Loss, name: str, p: Tensor) -> Any:
    return torch.func.functional_call(loss, {name: p}, ())


def _unravel(index: int, shape: torch.Size) -> tuple[int, ...]:
    where = []
    for size in reversed(shape):
        index, last = divmod(index, size)
        where.append(last)
    return tuple(reversed(where))
