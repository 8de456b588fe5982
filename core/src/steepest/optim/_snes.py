r"""SNES: a search distribution with a width of its own for each coordinate."""

from __future__ import annotations

import math
from typing import Any, final

import torch
from torch import Tensor

from steepest._registry import method
from steepest.estimators._base import Mask
from steepest.kernels import add_noise_, split_seed
from steepest.optim._base import Params
from steepest.optim._cbo import evaluate, searched
from steepest.optim._checks import check_hyperparameters
from steepest.optim._oracle import Answer, OracleDriven
from steepest.oracles import Objective


def rank_utilities(values: Tensor) -> Tensor:
    r"""What each of :math:`n` candidates counts, by its rank :math:`r_i` from 1, the best.

    .. math::

        u_i = \frac{\max(0, \ln(n / 2 + 1) - \ln r_i)}{\sum_j \max(0, \ln(n / 2 + 1) - \ln r_j)}
            - \frac1n.

    The sum is zero, so a shift of the loss does nothing; nor does any increasing function of it.
    NaN comes last.

    Args:
        values: Losses, of shape ``(n,)``.

    Returns:
        A tensor like ``values``.

    Example:
        >>> rank_utilities(torch.tensor([30.0, 10.0, 20.0]))
        tensor([-0.3333,  0.4708, -0.1375])
    """
    n = len(values)
    ranks = torch.empty_like(values)
    order = values.nan_to_num(nan=math.inf).argsort(stable=True)
    # $r_i \in \{1, \dots, n\}$
    ranks[order] = torch.arange(1, n + 1).to(values)
    # $v_i = \max(0, \ln(n / 2 + 1) - \ln r_i)$
    raw = (math.log(n / 2 + 1) - ranks.log()).clamp(min=0)
    # $u_i = v_i / \sum_j v_j - 1 / n$
    return raw / raw.sum() - 1 / n


@final
@method(
    paper="lange2023lottery",
    title="Lottery Tickets in Evolutionary Optimization: On Sparse Backpropagation-Free "
    "Trainability",
    oracle="value",
    scope="model",
    forward=16,
    backward=0,
    state_bytes=4,
)
class SNES(OracleDriven):
    r"""SNES (separable natural evolution strategy): learn where to search, and how widely.

    From candidates :math:`x_i = \theta + \sigma \odot z_i`, and utilities :math:`u_i` of their
    ranks (:func:`rank_utilities`),

    .. math::

        \theta \leftarrow \theta + \eta\, \sigma \odot \sum_i u_i z_i, \qquad
        \sigma \leftarrow \sigma \odot \exp\Big(\tfrac{\eta_\sigma}{2} \sum_i u_i\,
            (z_i^2 - 1)\Big), \qquad z_i \sim \mathcal N(0, I).

    Both are natural gradients of the expected utility under the search distribution, so a step
    has the distribution's own units. Where the loss is steep, candidates that went far are bad:
    :math:`\sigma` shrinks there, and stays wide where nothing depends on the coordinate. So
    :math:`\sigma` knows the curvature, which :func:`~steepest.probes.snr_pruning` makes use of.
    Only the order of the losses counts: :math:`f`, :math:`f^3` and :math:`e^f` give the same
    path.

    Args:
        params: Parameters, named parameters, or groups; the mean :math:`\theta`. With names a
            parameter's noise belongs to its name; without, to its position.
        lr: Step :math:`\eta` of the mean, in units of :math:`\sigma`; 1 is the method's own. A
            group with 0 stays as it is, and is not searched.
        sigma0: Start of :math:`\sigma`, in the parameters' units.
        sigma_lr: Step :math:`\eta_\sigma`; by default :math:`(3 + \ln d) / (5 \sqrt d)` with
            the number :math:`d` of coordinates that are searched.
        population: Candidates a step; one forward pass each, and no memory.
        mask: Which elements to search, as a function of the parameters; all by default. The
            others get no noise and do not move.
        seed: Seed of the noise, which is a function of (seed, step, particle, element).

    Raises:
        ValueError: If a hyper-parameter is out of its range.

    Example:
        Every loss that is larger on the right sends the mean to the left.

        >>> p = torch.nn.Parameter(torch.zeros(1))
        >>> _ = SNES([p], seed=1).step(lambda: torch.exp(p.sum()))
        >>> bool(p < 0)
        True

    Reference:
        Used as in :cite:t:`lange2023lottery`; the method is :cite:t:`schaul2011high`'s.

    When not to use it:
        Where directions across the axes matter (a diagonal cannot turn), or a gradient is to be
        had. In bfloat16, whose digits a change of :math:`\sigma` falls below: keep float32.
    """

    oracle = "value"

    def __init__(
        self,
        params: Params,
        lr: float = 1.0,
        sigma0: float = 0.1,
        sigma_lr: float | None = None,
        population: int = 16,
        *,
        mask: Mask | None = None,
        seed: int = 0,
    ) -> None:
        check_hyperparameters("SNES", {"population": population, "seed": seed})
        super().__init__(params, {"lr": lr, "sigma0": sigma0, "sigma_lr": sigma_lr})
        self.population, self.mask, self.seed = population, mask, seed

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as ``torch.optim``; a bad one changes nothing."""
        check_hyperparameters("SNES", {**self.defaults, **param_group})
        super().add_param_group(param_group)

    @torch.no_grad()
    def query(self, objective: Objective) -> Answer:
        """Read the loss at each candidate."""
        groups = searched(self, objective)
        params = [p for p, _, _ in groups]
        masks = None
        if self.mask is not None:
            made = self.mask([p.detach() for p in objective.params])
            by_param = dict(zip(objective.params, made, strict=True))
            masks = [by_param[p] for p in params]
        sigmas = [self._sigma(p, float(group["sigma0"])) for p, _, group in groups]
        places = [place for _, place, _ in groups]

        def visit(i: int) -> None:
            directions = self._noise(sigmas, i, places, masks)
            for p, sigma, z in zip(params, sigmas, directions, strict=True):
                p.detach().addcmul_(sigma, z)

        values = evaluate(objective, params, visit, self.population)
        finite = values.isfinite()
        if not finite.any():
            raise FloatingPointError(
                "SNES: the loss is NaN or infinite at every candidate; nothing has moved. Lower "
                "sigma0, or start elsewhere"
            )
        rest = (groups, sigmas, places, masks, rank_utilities(values).tolist())
        return Answer(objective, values[finite].mean(), None, rest)

    @torch.no_grad()
    def update(self, answer: Answer) -> None:
        """Make the noise again; move the mean, then scale the widths."""
        for group in self.param_groups:
            check_hyperparameters("SNES", group)
        groups, sigmas, places, masks, utilities = answer.rest
        count = sum(int(m.sum()) for m in masks) if masks else sum(s.numel() for s in sigmas)
        own = (3 + math.log(max(count, 1))) / (5 * math.sqrt(max(count, 1)))
        toward = [torch.zeros_like(sigma) for sigma in sigmas]
        spread = [torch.zeros_like(sigma) for sigma in sigmas]
        for i, u in enumerate(utilities):
            directions = self._noise(sigmas, i, places, masks)
            for first, second, z in zip(toward, spread, directions, strict=True):
                # $\sum_i u_i z_i$
                first.add_(z, alpha=u)
                # $\sum_i u_i (z_i^2 - 1), \; \text{as } \sum_i u_i = 0$
                second.addcmul_(z, z, value=u)
        rows = zip(groups, sigmas, toward, spread, strict=True)
        for (p, _, group), sigma, first, second in rows:
            rate = own if group["sigma_lr"] is None else float(group["sigma_lr"])
            # $\theta \leftarrow \theta + \eta\, \sigma \odot \sum_i u_i z_i$
            p.addcmul_(sigma, first, value=float(group["lr"]))
            # $\sigma \leftarrow \sigma \odot \exp(\frac{\eta_\sigma}{2} \sum_i u_i (z_i^2 - 1))$
            self.state[p]["sigma"] = sigma * torch.exp(0.5 * rate * second)

    def _sigma(self, p: Tensor, start: float) -> Tensor:
        known: Tensor | None = self.state[p]["sigma"] if p in self.state else None
        return torch.full_like(p, start, requires_grad=False) if known is None else known

    def _noise(
        self, like: list[Tensor], i: int, places: list[int], masks: list[Tensor] | None
    ) -> list[Tensor]:
        """A candidate's direction; zero where it is masked."""
        z = [torch.zeros_like(t) for t in like]
        add_noise_(z, split_seed(self.draw(), i), 1.0, start=places, masks=masks)
        return z

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "population": self.population, "mask": self.mask}
